// SPDX-License-Identifier: MIT
// The router z-loss: keeps logits small.
#ifndef GATEPRO_BALANCE_Z_LOSS_HPP
#define GATEPRO_BALANCE_Z_LOSS_HPP

#include <cstdint>

#include "gatepro/balance/loss_pass.hpp"
#include "gatepro/balance/loss_weight.hpp"
#include "gatepro/core/product.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// lse^2 and its gradient, factor * lse * softmax, for each lane.
template <class A>
void z_loss_group(const LossGroup<A>& group, Index experts, A factor, bool gradient) {
  const Index lanes = kernels<A>().lanes;
  score_kernels<A>().shares(group.keys_EL, experts, ScoreFunction::softmax_before_top_k,
                            gradient ? group.scores_EL : nullptr, nullptr, group.log_sum_exp_L);
  for (Index lane = 0; lane < lanes; ++lane) {
    const double log_sum_exp = static_cast<double>(group.log_sum_exp_L[lane]);
    group.value_L[lane] = product(log_sum_exp, log_sum_exp);
  }
  if (!gradient) return;
  for (Index e = 0; e < experts; ++e) {
    const A* scores_L = group.scores_EL + e * lanes;
    for (Index lane = 0; lane < lanes; ++lane) {
      group.gradient_EL[e * lanes + lane] =
          product(factor * group.log_sum_exp_L[lane], scores_L[lane]);
    }
  }
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Bytes of workspace for z_loss.
template <class A>
std::size_t z_loss_workspace_bytes(Index num_tokens, Index num_experts, Workers workers = 1) {
  detail::Checks("z_loss").query_experts(num_experts);
  return detail::measure([&](detail::Arena& arena) {
    detail::LossLayout<A>(arena, num_tokens, num_experts, workers);
  });
}

/// Router z-loss (Zoph et al. 2022, arXiv 2202.08906, eq. 5): L = c / M * sum over tokens of
/// logsumexp(logits)^2, with c = weight.coefficient and M = weight.mean_over. Returns this call's
/// part of L, and adds the gradient to dlogits_TE:
/// dL/dlogit = gradient_scale * 2 c / M * logsumexp * softmax.
///
/// logits: see LossLogits; a masked token neither counts nor gets a gradient, whatever it holds. A
/// token that holds a NaN or +inf, or only -inf, makes the value NaN, and its own gradients NaN.
///
/// Throws Error for shapes, the weight, or a workspace below z_loss_workspace_bytes(T, E,
/// executor.workers()), before any write. Cost: one pass over the logits, and one over dlogits_TE;
/// no allocation. Thread-safe. Gradients have the same bits however the batch is cut; the value is
/// summed in double.
template <class A, class Executor = SerialExecutor>
double z_loss(const LossLogits<A>& logits, const LossWeight& weight, Workspace workspace,
              const Executor& executor = {}) {
  detail::check_accumulator<A>();
  const detail::Checks checks("z_loss");
  const Index tokens = logits.logits_TE.rows;
  const Index experts = logits.logits_TE.cols;
  detail::check_loss_logits(checks, logits, workspace);
  detail::check_loss_weight(checks, weight);
  const int workers = checks.workers(executor);
  detail::Arena arena(checks.where(), workspace,
                      z_loss_workspace_bytes<A>(tokens, experts, workers));
  const std::int64_t mean_over = weight.mean_over != 0
                                     ? weight.mean_over
                                     : detail::count_valid(logits.is_padding_T, 0, tokens);
  if (!(weight.coefficient > 0) || mean_over == 0) return 0;

  const double scale = weight.coefficient / static_cast<double>(mean_over);
  const A factor = static_cast<A>(2 * scale * weight.gradient_scale);
  const bool gradient = logits.dlogits_TE.given() && detail::key_of(factor) != 0;
  LossLogits<A> wanted = logits;
  if (!gradient) wanted.dlogits_TE = {};
  const detail::LossLayout<A> layout(arena, tokens, experts, workers);
  const auto body = [&](const detail::LossGroup<A>& group, Index, Index) {
    detail::z_loss_group(group, experts, factor, gradient);
  };
  return detail::product(scale, layout.run(wanted, executor, body));
}

/// The value of z_loss alone, from log_sum_exp_T (T), as a forward of CompleteRouter writes it.
/// is_padding_T: T bytes, nonzero for tokens that do not count, or not given. weight.mean_over: 0
/// for the tokens that count here. The bits are those of z_loss.
///
/// Throws Error for shapes or the weight. Cost: T multiplications. No allocation. Thread-safe.
template <class L>
double z_loss_value(VectorView<L> log_sum_exp_T, VectorView<const std::uint8_t> is_padding_T,
                    const LossWeight& weight) {
  const detail::Checks checks("z_loss_value");
  const Index tokens = log_sum_exp_T.size;
  checks.vector("log_sum_exp_T", log_sum_exp_T, tokens);
  checks.optional_vector("is_padding_T", is_padding_T, tokens);
  detail::check_loss_weight(checks, weight);
  const std::int64_t mean_over =
      weight.mean_over != 0 ? weight.mean_over : detail::count_valid(is_padding_T, 0, tokens);
  if (!(weight.coefficient > 0) || mean_over == 0) return 0;
  double sum = 0, sum_of_block = 0;
  for (Index t = 0; t < tokens; ++t) {
    if (!detail::is_masked(is_padding_T, t)) {
      const double log_sum_exp = static_cast<double>(log_sum_exp_T[t]);
      sum_of_block += detail::product(log_sum_exp, log_sum_exp);
    }
    if (t + 1 < tokens && (t + 1) % detail::block_tokens != 0) continue;
    sum += sum_of_block;
    sum_of_block = 0;
  }
  return detail::product(weight.coefficient / static_cast<double>(mean_over), sum);
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_BALANCE_Z_LOSS_HPP
