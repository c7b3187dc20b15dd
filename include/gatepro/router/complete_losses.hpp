// SPDX-License-Identifier: MIT
// The losses of a complete router: what they count, their values, their gradients.
#ifndef GATEPRO_ROUTER_COMPLETE_LOSSES_HPP
#define GATEPRO_ROUTER_COMPLETE_LOSSES_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "gatepro/balance/load_balancing_loss.hpp"
#include "gatepro/balance/z_loss.hpp"
#include "gatepro/core/choices.hpp"
#include "gatepro/router/complete_routing.hpp"
#include "gatepro/routing/count_unpenalised.hpp"
#include "gatepro/routing/route_logits.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// A load that stands in E + 1 integers of `totals`: the counts, then the tokens.
inline BalanceCounts load_at(const VectorView<const std::int64_t>& totals, Index first) {
  const Index experts = totals.size / 2 - 1;
  return {{totals.data + first, experts}, totals[first + experts]};
}
/// The load of the forward itself.
inline BalanceCounts latest_load(const VectorView<const std::int64_t>& totals) {
  BalanceCounts load = load_at(totals, 0);
  load.sequences = totals[totals.size - 1];
  return load;
}
/// The load of all forwards since end_step.
inline BalanceCounts accumulated_load(const VectorView<const std::int64_t>& totals) {
  return load_at(totals, totals.size / 2);
}
/// Writes both loads.
inline void store_totals(const BalanceCounts& latest, const BalanceCounts& total,
                         const VectorView<std::int64_t>& totals) {
  std::int64_t* to = totals.data;
  for (const BalanceCounts& load : {latest, total}) {
    to = std::copy_n(load.tokens_per_expert_E.data, load.tokens_per_expert_E.size, to);
    *to++ = load.tokens;
  }
  *to = latest.sequences;
}

/// The choices of a forward, dropped ones among them.
template <class X, class A, class Id>
Choices<Id> choices_of(const ForwardInputs<Id>& in, const CompleteRoutingView<X, A, Id>& out) {
  return {out.expert_ids_TK, in.is_padding_T};
}

/// The choices that the losses count.
template <class X, class A, class Id>
StridedView<Id> counted_ids(const CompleteRoutingView<X, A, Id>& out) {
  return out.counted_ids_TK.given() ? out.counted_ids_TK : out.expert_ids_TK;
}

/// True if a forward counts for losses and computes them.
inline bool counts_for_losses(const LossRule& losses, Pass pass) {
  return losses.any() && pass != Pass::evaluation;
}

/// True if losses need to know who would be chosen without competition, bias and groups.
inline bool counts_unpenalised_ids(const LossRule& losses) {
  return losses.counts == CountSource::unpenalised && losses.sequence > 0;
}

/// counted_ids_TK and counts_E, where tokens make top_k choices: who would be chosen by score
/// alone.
template <class X, class A, class Id, class Executor>
void select_unpenalised(const CompleteConfig& config,
                        const VectorView<const std::uint8_t>& is_padding_T, Index top_k,
                        const CompleteRoutingView<X, A, Id>& out,
                        const VectorView<std::int64_t>& counts_E, Workspace workspace,
                        const Executor& executor) {
  const SelectionRule rule = plain_selection(config.scores.function, top_k);
  const Index experts = config.num_experts;
  const auto selection =
      checked_selection<A>("CompleteRouter::forward", rule, RivalTable(), experts);
  const int workers = executor.workers();
  Arena arena("CompleteRouter", workspace, pass_bytes<RuledSelection<A>>(experts, rule, workers));
  RoutingView<A, Id> counted;
  counted.expert_ids_TK = first_columns(out.counted_ids_TK, top_k);
  counted.tokens_per_expert_E = counts_E;
  run_pass(arena, rule, selection, RoutingInputs<A>{out.logits_TE, {}, is_padding_T}, counted,
           executor, workers);
  clear_columns(out.counted_ids_TK, top_k, static_cast<Id>(-1));
}

/// counts_E: the choices that the losses count, where tokens make up to top_k. Fills counted_ids_TK
/// where a loss needs it.
template <class X, class A, class Id, class Executor>
void count_for_losses(const CompleteConfig& config,
                      const VectorView<const std::uint8_t>& is_padding_T, Index top_k,
                      const CompleteRoutingView<X, A, Id>& out,
                      const VectorView<std::int64_t>& counts_E, Workspace workspace,
                      const Executor& executor) {
  if (config.losses.counts == CountSource::dispatched) {
    std::copy_n(out.tokens_per_expert_E.data, counts_E.size, counts_E.data);
  } else if (counts_unpenalised_ids(config.losses)) {
    select_unpenalised(config, is_padding_T, top_k, out, counts_E, workspace, executor);
  } else {
    count_unpenalised(out.logits_TE, config.scores.function, top_k, is_padding_T, counts_E,
                      workspace, executor);
  }
}

/// Bytes of workspace for what this header does: for the largest step of the losses that are on.
template <class A>
std::size_t complete_losses_workspace_bytes(const CompleteConfig& config,
                                            const BufferShape& shape) {
  const Index tokens = shape.tokens;
  const int workers = shape.workers;
  const LossRule& rule = config.losses;
  if (!rule.any()) return 0;
  const Index experts = config.num_experts;
  std::size_t most = 0;
  const auto include = [&most](std::size_t bytes) { most = (std::max)(most, bytes); };
  if (rule.counts == CountSource::unpenalised) {
    include(count_unpenalised_workspace_bytes<A>(experts, config.top_k, workers));
  }
  if (rule.batch > 0 || rule.global > 0) {
    include(load_balancing_loss_workspace_bytes<A>(tokens, experts, workers));
  }
  if (rule.sequence > 0) {
    include(
        sequence_load_balancing_loss_workspace_bytes<A>(tokens, experts, shape.sequences, workers));
  }
  if (rule.z > 0) include(z_loss_workspace_bytes<A>(tokens, experts, workers));
  return most;
}

/// The weight of a loss per token.
template <class Id>
LossWeight weight_per_token(double coefficient, const ForwardInputs<Id>& in,
                            const BalanceCounts& latest, double gradient_scale) {
  const std::int64_t tokens = in.tokens_in_mean != 0 ? in.tokens_in_mean : latest.tokens;
  return {coefficient, tokens, gradient_scale};
}

/// The sequence loss; with dlogits_TE also its gradient, added.
template <class X, class A, class Id, class Executor>
double complete_sequence_loss(const CompleteConfig& config, const ForwardInputs<Id>& in,
                              const CompleteRoutingView<X, A, Id>& out, double gradient_scale,
                              const MatrixView<A>& dlogits_TE, Workspace workspace,
                              const Executor& executor) {
  if (!(config.losses.sequence > 0)) return 0;
  const std::int64_t latest = latest_load(out.totals).sequences;
  const std::int64_t sequences = in.sequences_in_mean != 0 ? in.sequences_in_mean : latest;
  return sequence_load_balancing_loss(
      LossLogits<A>{out.logits_TE, in.is_padding_T, dlogits_TE},
      SequenceChoices<Id>{counted_ids(out), in.sequence_begin_S1, /*k_varies=*/true},
      config.scores.function, {config.losses.sequence, sequences, gradient_scale}, workspace,
      executor);
}

/// Values of the losses of a forward, most of them from what TileLosses found.
template <class X, class A, class Id, class Executor>
LossValues loss_values(const CompleteConfig& config, const ForwardInputs<Id>& in,
                       const CompleteRoutingView<X, A, Id>& out, Workspace workspace,
                       const Executor& executor) {
  const LossRule& rule = config.losses;
  const BalanceCounts latest = latest_load(out.totals);
  const auto weight = [&](double coefficient) {
    return weight_per_token(coefficient, in, latest, 1.0);
  };
  LossValues values;
  if (weighs_shares(rule)) {
    values.batch =
        load_balancing_loss_value(out.share_sums_E, latest, config.top_k, weight(rule.batch),
                                  /*k_varies=*/true);
    values.global = load_balancing_loss_value(out.share_sums_E, accumulated_load(out.totals),
                                              config.top_k, weight(rule.global), /*k_varies=*/true);
  }
  if (rule.z > 0) values.z = z_loss_value(out.log_sum_exp_T, in.is_padding_T, weight(rule.z));
  values.sequence =
      complete_sequence_loss(config, in, out, 1.0, MatrixView<A>(), workspace, executor);
  return values;
}

/// Gradients of the losses, added to dlogits_TE. `global`: the load that the global loss compares
/// with.
template <class X, class A, class Id, class Executor>
void add_loss_gradients(const CompleteConfig& config, const ForwardInputs<Id>& in,
                        const CompleteRoutingView<X, A, Id>& out, const BalanceCounts& global,
                        double gradient_scale, const MatrixView<A>& dlogits_TE, Workspace workspace,
                        const Executor& executor) {
  const LossRule& rule = config.losses;
  const LossLogits<A> logits{out.logits_TE, in.is_padding_T, dlogits_TE};
  const BalanceRule balance{config.scores.function, config.top_k, /*k_varies=*/true};
  const BalanceCounts latest = latest_load(out.totals);
  const auto weight = [&](double coefficient) {
    return weight_per_token(coefficient, in, latest, gradient_scale);
  };
  if (rule.batch > 0) {
    load_balancing_loss(logits, latest, balance, weight(rule.batch), workspace, executor);
  }
  if (rule.global > 0) {
    load_balancing_loss(logits, global, balance, weight(rule.global), workspace, executor);
  }
  if (rule.z > 0) z_loss(logits, weight(rule.z), workspace, executor);
  complete_sequence_loss(config, in, out, gradient_scale, dlogits_TE, workspace, executor);
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTER_COMPLETE_LOSSES_HPP
