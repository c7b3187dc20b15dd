// SPDX-License-Identifier: MIT
// The operators in plain ATen, for devices other than the CPU, for tensors without data and for
// tracing: of ATen's operators those that have shapes without data in C++, too.
#ifndef GATEPRO_EXAMPLES_TORCH_FALLBACK_HPP
#define GATEPRO_EXAMPLES_TORCH_FALLBACK_HPP

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>

#include <limits>

#include "options.hpp"

namespace gatepro_torch {
namespace fallback {

using at::Tensor;
using gatepro::ScoreFunction;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

/// T x E: true for experts that are strictly below a partner (GatePro eq. 7). A NaN is below
/// nobody, and nobody below it.
inline Tensor losers(const Tensor& logits, const Options& options) {
  Tensor lost = at::zeros_like(logits, at::kBool);
  if (!options.rule.competition.active()) return lost;
  for (const Tensor& partner_E : options.partners.to(at::kLong).unbind(1)) {
    lost = lost | (logits < logits.gather(1, partner_E.expand_as(logits)));
  }
  return lost;
}

/// The logits after competition (GatePro eq. 8); -inf for who is eliminated.
inline Tensor penalise(const Tensor& logits, const Tensor& lost, const Options& options) {
  const gatepro::Competition& competition = options.rule.competition;
  if (!competition.active()) return logits;
  if (competition.mode == gatepro::CompetitionMode::eliminate) {
    return logits.masked_fill(lost, -infinity);
  }
  // A bool times a number would be a float, also among doubles.
  return logits - lost.to(logits.scalar_type()) * competition.lambda;
}

/// Logarithms of scores that take each logit by itself, without underflow; of a softmax, up to what
/// the row has in common.
inline Tensor log_scores(const Tensor& logits, ScoreFunction function) {
  constexpr double high = 40;  // from where on softplus is the logit itself, in double, too
  if (function == ScoreFunction::sigmoid) return -at::softplus(-logits, 1, high);
  if (function != ScoreFunction::sqrt_softplus) return logits;
  const Tensor is_low = logits < -high;  // where it is exp(l), and may underflow
  const Tensor log_softplus = at::softplus(logits.masked_fill(is_low, 0), 1, high).log();
  return (log_softplus.masked_fill(is_low, 0) + logits.masked_fill(~is_low, 0)) * 0.5;
}

/// Scores that come before the choice. NaNs are left out of the softmax of the others.
inline Tensor scores(const Tensor& logits, ScoreFunction function) {
  if (function == ScoreFunction::sigmoid) return at::sigmoid(logits);
  if (function == ScoreFunction::sqrt_softplus) return log_scores(logits, function).exp();
  const Tensor is_nan = logits != logits;
  return at::softmax(logits.masked_fill(is_nan, -infinity), 1).masked_fill(is_nan, nan);
}

inline bool chooses_by_logit(const Options& options) {
  return options.rule.scores.function == ScoreFunction::softmax_after_top_k;
}

/// What experts with these logits are chosen by.
inline Tensor choice_values(const Tensor& logits, const Options& options) {
  const Tensor values =
      chooses_by_logit(options) ? logits : scores(logits, options.rule.scores.function);
  return options.expert_bias.defined() ? values + options.expert_bias : values;
}

/// The K best of each row, T x K: not NaN, survivor before loser, larger value, lower id. Two
/// stable sorts make this order of tuples.
inline Tensor choose(const Tensor& logits, const Tensor& lost, const Options& options) {
  Tensor values = choice_values(penalise(logits, lost, options), options);
  Tensor is_out = at::zeros_like(lost);
  if (options.rule.competition.mode == gatepro::CompetitionMode::eliminate) {
    is_out = lost;
    values = values.masked_fill(lost, 0) + choice_values(logits, options).masked_fill(~lost, 0);
  }
  const Tensor is_nan = values != values;
  const Tensor last = at::add(is_out.to(at::kInt), is_nan & ~is_out, 2);
  values = values.masked_fill(is_nan, -infinity) + 0.0;  // radix sorts rank -0 lower
  const Tensor by_value = std::get<1>(at::sort(values, /*stable=*/true, 1, /*descending=*/true));
  const Tensor order = std::get<1>(at::sort(last.gather(1, by_value), /*stable=*/true, 1, false));
  return by_value.gather(1, order.narrow(1, 0, options.rule.top_k));
}

/// The weights of the chosen; NaNs where a logit says so. What is filled in for padding keeps its
/// rows out of gradients.
inline Tensor weigh(Tensor logits, Tensor lost, const Tensor& expert_ids, const Options& options) {
  const gatepro::ScoreRule& rule = options.rule.scores;
  const Tensor is_padding =
      options.is_padding.defined() ? options.is_padding.unsqueeze(1) : Tensor();
  if (is_padding.defined()) {
    logits = logits.masked_fill(is_padding, 0);
    lost = lost & ~is_padding;
  }
  const Tensor penalised = penalise(logits, lost, options);
  const Tensor selected = penalised.gather(1, expert_ids);
  Tensor weights;
  if (chooses_by_logit(options) || rule.renormalise) {
    weights = at::softmax(log_scores(selected, rule.function), 1);
  } else if (rule.function == ScoreFunction::softmax_before_top_k) {
    weights = scores(penalised, rule.function).gather(1, expert_ids);
  } else {
    weights = scores(selected, rule.function);
  }
  Tensor spoilt = ((selected != selected) | (selected == infinity)).any(1, true) |
                  (selected == -infinity).all(1, true);
  if (rule.function == ScoreFunction::softmax_before_top_k) {
    spoilt = spoilt | (penalised == infinity).any(1, true);
  }
  weights = weights * at::ones_like(spoilt, weights.scalar_type()).masked_fill(spoilt, nan);
  return is_padding.defined() ? weights.masked_fill(is_padding, 0) : weights;
}

inline Routing route_logits(const Tensor& logits, const Options& options) {
  const Tensor lost = losers(logits.detach(), options);
  const Tensor expert_ids = choose(logits.detach(), lost, options);
  return {weigh(logits, lost, expert_ids, options), expert_ids, logits};
}

inline Routing route(const Tensor& x, const Tensor& w, const Options& options) {
  // Under autocast the product would be one of 16 bits.
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const at::ScalarType dtype = accumulator(x);
  return route_logits(at::matmul(x.to(dtype), w.to(dtype).t()), options);
}

}  // namespace fallback
}  // namespace gatepro_torch

#endif  // GATEPRO_EXAMPLES_TORCH_FALLBACK_HPP
