// SPDX-License-Identifier: MIT
// Stage: at most so many tokens per expert. What is over is dropped.
#ifndef GATEPRO_DISPATCH_CAPACITY_HPP
#define GATEPRO_DISPATCH_CAPACITY_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "gatepro/core/checks.hpp"
#include "gatepro/core/choices.hpp"
#include "gatepro/core/order.hpp"
#include "gatepro/core/product.hpp"
#include "gatepro/core/workspace.hpp"

namespace gatepro {

/// Who keeps a slot of an expert that too many tokens chose.
enum class DropPolicy {
  probability,   ///< The largest weights, then the lowest tokens (Megatron-LM `probs`).
  position,      ///< The lowest tokens (Megatron-LM `position`).
  choice_major,  ///< All first choices before all second ones, then the lowest tokens (Tutel).
};

/// How many tokens an expert takes, and what happens to the rest. Plain data.
///
/// For T valid tokens an expert has `align(min(T, max(minimum, ceil(factor T K / E))))` slots:
/// no more than T are of use, as a token chooses an expert once at most; `align` rounds up to a
/// multiple of `alignment`, also beyond T, so that buffers of E x capacity rows fit what needs
/// aligned ones. No tokens, no slots. `over_ranks` says what T is on several ranks.
struct CapacityRule {
  double factor = 1;    ///< Slots per expert, in units of T K / E: finite, > 0.
  Index minimum = 0;    ///< No fewer slots than this, unless there are fewer tokens; >= 0.
  Index alignment = 1;  ///< Slots are a multiple of this; >= 1.
  DropPolicy policy = DropPolicy::probability;  ///< Who keeps a slot.
  /// Whether a token that lost some of its choices gives their weights to those that it kept, so
  /// that its weights sum to what they summed to before; see renormalise_kept.
  bool renormalise = false;
  /// The factor in Pass::evaluation: finite, >= 0. 0: that of training; from E / K on nothing
  /// drops. With over_ranks it takes E / K times the most tokens of a rank over their mean, which
  /// is E / K times the number of ranks at most.
  double evaluation_factor = 0;
  /// Whether T is the mean of all ranks' valid tokens, rounded up, so that all ranks have the same
  /// capacity and exchange buffers of one size. The bound on useful slots is then the sum of these
  /// tokens, as a rank may hold more than the mean. Both go through the reduce hook, in evaluations
  /// too.
  bool over_ranks = false;
};

/// What drop_over_capacity leaves to each expert. Plain data.
struct DropRule {
  Index capacity = 0;  ///< Slots per expert, as from expert_capacity; >= 0.
  DropPolicy policy = DropPolicy::probability;  ///< Who keeps a slot.
};

/// Where drop_over_capacity writes: the routing, less what is dropped.
template <class A>
struct KeptRouting {
  StridedView<A> weights_TK{};  ///< T x K, read and written: exactly 0 where a choice is not kept.
  StridedView<std::uint8_t> kept_TK{};  ///< T x K, overwritten: 1 where a choice is kept, else 0.
  VectorView<std::int64_t> tokens_per_expert_E{};  ///< E, overwritten: the choices that are kept.
};
/// `KeptRouting{weights, kept, counts}` knows the type of the weights.
template <class A>
KeptRouting(StridedView<A>, StridedView<std::uint8_t>, VectorView<std::int64_t>) -> KeptRouting<A>;

/// What drop_over_capacity took away. Masked tokens are not counted.
struct DropReport {
  Index dropped_choices = 0;        ///< (token, choice) pairs without a slot.
  Index tokens_without_expert = 0;  ///< Tokens that lost all choices they made.
};

namespace detail {

/// A choice that competes for a slot.
template <class A>
struct SlotCandidate {
  typename Order<A>::Key key;  ///< The weight's.
  Index token;
  Index choice;
};

/// Scratch of a drop: E slots taken, E + 1 starts and T * K candidates of the probability policy.
template <class A>
struct DropScratch {
  Index* taken_E = nullptr;
  Index* begin_E1 = nullptr;
  SlotCandidate<A>* candidates = nullptr;
};

/// How many choices of a token have a slot, and how many have none.
struct TokenDrops {
  Index kept = 0;
  Index lost = 0;
};

inline namespace GATEPRO_ABI {

inline void check_capacity_rule(const Checks& checks, const CapacityRule& rule) {
  using O = Order<double>;
  const auto factor = key_of(rule.factor);
  checks.need(factor > 0 && factor < O::infinity, "factor finite and > 0",
              {{"factor", rule.factor}});
  const auto evaluation_factor = key_of(rule.evaluation_factor);
  checks.need(evaluation_factor >= 0 && evaluation_factor < O::infinity,
              "evaluation_factor finite and >= 0", {{"evaluation_factor", rule.evaluation_factor}});
  checks.need(rule.minimum >= 0, "minimum >= 0", {{"minimum", rule.minimum}});
  checks.need(rule.alignment >= 1, "alignment >= 1", {{"alignment", rule.alignment}});
}

template <class A>
DropScratch<A> carve_drop(Arena& arena, Index tokens, Index experts, Index top_k,
                          DropPolicy policy) {
  const Index choices =
      checked_product("drop_over_capacity", "T * K within the address space", tokens, top_k);
  DropScratch<A> scratch;
  scratch.taken_E = arena.take<Index>(experts);
  scratch.begin_E1 = arena.take<Index>(experts + 1);
  const bool sorts = policy == DropPolicy::probability;
  scratch.candidates = arena.take<SlotCandidate<A>>(sorts ? choices : 0);
  return scratch;
}

/// All choices that count are kept, the others weigh nothing.
template <class Id, class A>
void keep_all(const Choices<Id>& choices, const KeptRouting<A>& out) {
  for (Index t = 0; t < out.kept_TK.rows; ++t) {
    for (Index j = 0; j < out.kept_TK.cols; ++j) {
      out.kept_TK(t, j) = counts(choices, t, j) ? 1 : 0;
      if (out.kept_TK(t, j) == 0) out.weights_TK(t, j) = A(0);
    }
  }
}

template <class A>
void drop_choice(Index t, Index j, const KeptRouting<A>& out) {
  out.weights_TK(t, j) = A(0);
  out.kept_TK(t, j) = 0;
}

/// First come, first served. taken_E is overwritten.
template <class Id, class A>
void drop_late(const Choices<Id>& choices, const DropRule& rule, Index* taken_E,
               const KeptRouting<A>& out) {
  std::fill_n(taken_E, out.tokens_per_expert_E.size, Index{0});
  const bool choice_major = rule.policy == DropPolicy::choice_major;
  for_each_choice(choices, choice_major, [&](Index t, Index j, Index e) {
    if (taken_E[e]++ >= rule.capacity) drop_choice(t, j, out);
  });
}

/// The candidates of each expert, by expert. begin_E1[e] is where those of e start.
template <class Id, class A>
void gather_candidates(const Choices<Id>& choices, const StridedView<A>& weights_TK, Index experts,
                       const DropScratch<A>& scratch) {
  count_choices(choices, experts, scratch.taken_E);
  scratch.begin_E1[0] = 0;
  for (Index e = 0; e < experts; ++e) {
    scratch.begin_E1[e + 1] = scratch.begin_E1[e] + scratch.taken_E[e];
    scratch.taken_E[e] = 0;
  }
  for_each_choice(choices, false, [&](Index t, Index j, Index e) {
    const Index at = scratch.begin_E1[e] + scratch.taken_E[e]++;
    scratch.candidates[at] = {key_of(weights_TK(t, j)), t, j};
  });
}

/// What a choice takes where the candidates of an expert are parted, in multiply-adds of the gate.
inline constexpr Index part_work = 256;

/// The heaviest come first. Experts are independent.
template <class Id, class A, class Executor>
void drop_light(const Choices<Id>& choices, Index capacity, const DropScratch<A>& scratch,
                const KeptRouting<A>& out, const Executor& executor, int workers) {
  const Index experts = out.tokens_per_expert_E.size;
  gather_candidates(choices, out.weights_TK, experts, scratch);
  const auto heavier = [](const SlotCandidate<A>& a, const SlotCandidate<A>& b) {
    return a.key != b.key ? a.key > b.key : a.token < b.token;
  };
  const StridedView<Id>& ids_TK = choices.expert_ids_TK;
  const int busy = useful_workers(executor, workers, {part_work, ids_TK.rows, ids_TK.cols});
  for_each_block(executor, busy, experts, [&](int, Index e) {
    SlotCandidate<A>* first = scratch.candidates + scratch.begin_E1[e];
    SlotCandidate<A>* last = scratch.candidates + scratch.begin_E1[e + 1];
    if (last - first <= capacity) return;
    std::nth_element(first, first + capacity, last, heavier);
    for (auto* loser = first + capacity; loser != last; ++loser) {
      drop_choice(loser->token, loser->choice, out);
    }
  });
}

/// What became of a token's choices. One that was never made is not lost.
template <class Id>
TokenDrops drops_of_token(const Choices<Id>& choices,
                          const StridedView<const std::uint8_t>& kept_TK, Index t) {
  TokenDrops drops;
  for (Index j = 0; j < kept_TK.cols; ++j) {
    if (counts(choices, t, j)) ++(kept_TK(t, j) != 0 ? drops.kept : drops.lost);
  }
  return drops;
}

/// Whether renormalisation concerns a token: it lost some of its choices, but not all. Masked
/// tokens keep none, so that their ids do not matter.
template <class Id>
bool lost_some(const Choices<Id>& choices, Index t) {
  const TokenDrops drops = drops_of_token(before_drops(choices), choices.kept_TK, t);
  return drops.kept > 0 && drops.lost > 0;
}

/// The report, and the counts of what was kept.
template <class Id, class A>
DropReport report_drops(const Choices<Id>& choices, const KeptRouting<A>& out) {
  count_choices(Choices<Id>{choices.expert_ids_TK, choices.is_padding_T, out.kept_TK},
                out.tokens_per_expert_E.size, out.tokens_per_expert_E.data);
  DropReport report;
  for (Index t = 0; t < out.kept_TK.rows; ++t) {
    const TokenDrops drops = drops_of_token(choices, out.kept_TK, t);
    report.dropped_choices += drops.lost;
    report.tokens_without_expert += drops.lost > 0 && drops.kept == 0 ? 1 : 0;
  }
  return report;
}

/// Choices of which is known who was kept.
template <class Id>
void check_kept_choices(const Checks& checks, const Choices<Id>& choices) {
  const StridedView<Id>& ids_TK = choices.expert_ids_TK;
  check_choice_views(checks, choices, ids_TK.rows, ids_TK.cols);
  checks.strided("kept_TK", choices.kept_TK, ids_TK.rows, ids_TK.cols);
}

/// The sum of a token's weights, the kept ones only if they are told.
template <class A>
A sum_weights(const StridedView<const A>& weights_TK,
              const StridedView<const std::uint8_t>& kept_TK, Index t) {
  A sum = 0;
  for (Index j = 0; j < weights_TK.cols; ++j) {
    if (!kept_TK.given() || kept_TK(t, j) != 0) sum += weights_TK(t, j);
  }
  return sum;
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Slots per expert, by the formula at CapacityRule, with its `factor`.
///
/// `num_tokens` are the valid ones: T less those that are masked, or their mean over ranks; no more
/// than `most_tokens` slots are of use, with a mean the sum over ranks. A product within 2^-50,
/// relative, above an integer counts as that integer, so that the rounding of a factor like 1.1
/// does not cost a slot: 1.1 times 10 is 11. Throws Error for settings and sizes out of range.
/// Thread-safe.
inline Index expert_capacity(Index num_tokens, Index num_experts, Index top_k,
                             const CapacityRule& rule, Index most_tokens) {
  const detail::Checks checks("expert_capacity");
  checks.num_experts(num_experts);
  checks.top_k(top_k, num_experts);
  detail::check_capacity_rule(checks, rule);
  checks.need(num_tokens >= 0 && most_tokens >= num_tokens, "0 <= num_tokens <= most_tokens",
              {{"num_tokens", num_tokens}, {"most_tokens", most_tokens}});
  const Index choices =
      checks.product("num_tokens * top_k within the address space", num_tokens, top_k);
  const double share = static_cast<double>(choices) / static_cast<double>(num_experts);
  const double wanted = std::ceil(rule.factor * share * (1 - 0x1p-50));
  const bool fewer = wanted < static_cast<double>(most_tokens);
  const Index used_slots =
      fewer ? (std::max)(static_cast<Index>(wanted), rule.minimum) : most_tokens;
  return detail::align_up(checks, "aligned slots within the address space",
                          (std::min)(used_slots, most_tokens), rule.alignment);
}

/// The same on one rank, where all tokens are the most that an expert can be chosen by.
inline Index expert_capacity(Index num_tokens, Index num_experts, Index top_k,
                             const CapacityRule& rule) {
  return expert_capacity(num_tokens, num_experts, top_k, rule, num_tokens);
}

/// Bytes of workspace for drop_over_capacity.
template <class A>
std::size_t drop_over_capacity_workspace_bytes(Index num_tokens, Index num_experts, Index top_k,
                                               DropPolicy policy) {
  detail::Checks("drop_over_capacity").query_experts(num_experts);
  return detail::measure([&](detail::Arena& arena) {
    detail::carve_drop<A>(arena, num_tokens, num_experts, top_k, policy);
  });
}

/// Leaves each expert its first `rule.capacity` choices in the order of `rule.policy`, and drops
/// the rest.
///
/// choices: T x K, distinct within a row; they stay as they are, and their kept_TK is not read.
/// Those that do not count take no slot and are never kept. `out` is overwritten, all of it given;
/// a weight of 0 may take the place of a NaN. Weights compare as logits do: numbers before NaN,
/// -0.0 equals +0.0, then the lowest token. A capacity above T drops nothing, 0 drops everything.
///
/// Throws Error for shapes, a negative capacity, an id that is out of range or twice in a row, or a
/// workspace that is too small, before any write. Cost: O(T K); no allocation. Thread-safe.
template <class Id, class A, class Executor = SerialExecutor>
DropReport drop_over_capacity(const Choices<Id>& choices, const DropRule& rule,
                              const KeptRouting<A>& out, Workspace workspace,
                              const Executor& executor = {}) {
  detail::check_accumulator<A>();
  const detail::Checks checks("drop_over_capacity");
  const Choices<Id> all = detail::before_drops(choices);
  const Index tokens = all.expert_ids_TK.rows;
  const Index top_k = all.expert_ids_TK.cols;
  const Index experts = out.tokens_per_expert_E.size;
  checks.num_experts(experts);
  checks.top_k(top_k, experts);
  checks.need(rule.capacity >= 0, "capacity >= 0", {{"capacity", rule.capacity}});
  detail::check_choice_views(checks, all, tokens, top_k);
  checks.strided("weights_TK", out.weights_TK, tokens, top_k);
  checks.strided("kept_TK", out.kept_TK, tokens, top_k);
  checks.vector("tokens_per_expert_E", out.tokens_per_expert_E, experts);
  checks.overlaps(
      detail::output("weights_TK", out.weights_TK), detail::output("kept_TK", out.kept_TK),
      detail::output("tokens_per_expert_E", out.tokens_per_expert_E),
      detail::output("workspace", workspace), detail::input("expert_ids_TK", all.expert_ids_TK),
      detail::input("is_padding_T", all.is_padding_T));
  const int workers = checks.workers(executor);
  detail::Arena arena(checks.where(), workspace,
                      drop_over_capacity_workspace_bytes<A>(tokens, experts, top_k, rule.policy));
  const auto scratch = detail::carve_drop<A>(arena, tokens, experts, top_k, rule.policy);
  detail::check_distinct_choices(checks, "expert_ids_TK", all, experts, scratch.taken_E);

  detail::keep_all(all, out);
  if (rule.policy == DropPolicy::probability) {
    detail::drop_light(all, rule.capacity, scratch, out, executor, workers);
  } else {
    detail::drop_late(all, rule, scratch.taken_E, out);
  }
  return detail::report_drops(all, out);
}

/// dbefore_TK = dweights_TK where the choice was kept, else exactly 0: the gradient of a drop.
///
/// All T x K; dbefore_TK is overwritten and may be dweights_TK. Throws Error for shapes, before any
/// write. No allocation. Thread-safe.
template <class A>
void drop_backward(StridedView<const std::uint8_t> kept_TK,
                   detail::non_deduced_t<StridedView<const A>> dweights_TK,
                   StridedView<A> dbefore_TK) {
  detail::check_accumulator<A>();
  const detail::Checks checks("drop_backward");
  checks.strided("kept_TK", kept_TK, kept_TK.rows, kept_TK.cols);
  checks.strided("dweights_TK", dweights_TK, kept_TK.rows, kept_TK.cols);
  checks.strided("dbefore_TK", dbefore_TK, kept_TK.rows, kept_TK.cols);
  checks.overlaps(detail::output("dbefore_TK", dbefore_TK),
                  detail::in_place("dweights_TK", dweights_TK), detail::input("kept_TK", kept_TK));
  for (Index t = 0; t < kept_TK.rows; ++t) {
    for (Index j = 0; j < kept_TK.cols; ++j) {
      dbefore_TK(t, j) = kept_TK(t, j) != 0 ? dweights_TK(t, j) : A(0);
    }
  }
}

/// totals_T[t] = sum over j of weights_TK(t, j): what renormalise_kept restores after a drop.
///
/// weights_TK: T x K. totals_T: T, overwritten. Throws Error for shapes, before any write. No
/// allocation. Thread-safe.
template <class A>
void total_weights(detail::non_deduced_t<StridedView<const A>> weights_TK, VectorView<A> totals_T) {
  detail::check_accumulator<A>();
  const detail::Checks checks("total_weights");
  checks.strided("weights_TK", weights_TK, weights_TK.rows, weights_TK.cols);
  checks.vector("totals_T", totals_T, weights_TK.rows);
  checks.overlaps(detail::output("totals_T", totals_T), detail::input("weights_TK", weights_TK));
  for (Index t = 0; t < weights_TK.rows; ++t) {
    totals_T[t] = detail::sum_weights<A>(weights_TK, {}, t);
  }
}

/// Scales the kept weights of tokens that lost some choices up: w_j = total w_j / sum over kept of
/// w, so that they sum to the token's total again. The weights of a token that lost nothing keep
/// their bits; one that lost everything has only zeros.
///
/// choices: T x K, as in drop_over_capacity, with the kept_TK from there; -1 is no loss. totals_T:
/// T, from total_weights before the drop. weights_TK: T x K, read and written; those of 0 stay 0.
/// sums_T: T, overwritten with the sums over kept, which the gradient needs. A NaN makes its
/// token's kept weights NaN. Throws Error for shapes, before any write. No allocation. Thread-safe.
template <class A, class Id>
void renormalise_kept(const Choices<Id>& choices,
                      detail::non_deduced_t<VectorView<const A>> totals_T,
                      StridedView<A> weights_TK, VectorView<A> sums_T) {
  detail::check_accumulator<A>();
  const detail::Checks checks("renormalise_kept");
  const StridedView<const std::uint8_t>& kept_TK = choices.kept_TK;
  detail::check_kept_choices(checks, choices);
  checks.vector("totals_T", totals_T, kept_TK.rows);
  checks.strided("weights_TK", weights_TK, kept_TK.rows, kept_TK.cols);
  checks.vector("sums_T", sums_T, kept_TK.rows);
  checks.overlaps(
      detail::output("weights_TK", weights_TK), detail::output("sums_T", sums_T),
      detail::input("expert_ids_TK", choices.expert_ids_TK), detail::input("kept_TK", kept_TK),
      detail::input("is_padding_T", choices.is_padding_T), detail::input("totals_T", totals_T));
  for (Index t = 0; t < kept_TK.rows; ++t) {
    sums_T[t] = detail::sum_weights<A>(weights_TK, kept_TK, t);
    if (!detail::lost_some(choices, t)) continue;
    for (Index j = 0; j < kept_TK.cols; ++j) {
      A& weight = weights_TK(t, j);
      if (detail::key_of(weight) != 0) weight = totals_T[t] * (weight / sums_T[t]);
    }
  }
}

/// The gradient of renormalise_kept and of the drop before it, with respect to the weights before
/// both: the total is a sum over all choices, dropped ones too.
///
/// With g = dweights, s the sum over kept, and m = sum over kept of w g / s, for w before
/// renormalisation: total / s (g_j - m) + m for kept choices and m for others, where the token lost
/// some; else g_j for kept choices and exactly 0 for others.
///
/// choices, totals_T, sums_T: as in renormalise_kept; weights_TK: T x K, what it wrote.
/// dweights_TK: T x K; what it holds where the weight is 0 does not matter to the others.
/// dbefore_TK: T x K, overwritten, may be dweights_TK. Throws Error for shapes, before any write.
/// No allocation. Thread-safe.
template <class A, class Id>
void renormalise_kept_backward(const Choices<Id>& choices,
                               detail::non_deduced_t<VectorView<const A>> totals_T,
                               detail::non_deduced_t<StridedView<const A>> weights_TK,
                               detail::non_deduced_t<VectorView<const A>> sums_T,
                               detail::non_deduced_t<StridedView<const A>> dweights_TK,
                               StridedView<A> dbefore_TK) {
  detail::check_accumulator<A>();
  const detail::Checks checks("renormalise_kept_backward");
  const StridedView<const std::uint8_t>& kept_TK = choices.kept_TK;
  const Index tokens = kept_TK.rows;
  const Index top_k = kept_TK.cols;
  detail::check_kept_choices(checks, choices);
  checks.vector("totals_T", totals_T, tokens);
  checks.strided("weights_TK", weights_TK, tokens, top_k);
  checks.vector("sums_T", sums_T, tokens);
  checks.strided("dweights_TK", dweights_TK, tokens, top_k);
  checks.strided("dbefore_TK", dbefore_TK, tokens, top_k);
  checks.overlaps(
      detail::output("dbefore_TK", dbefore_TK), detail::in_place("dweights_TK", dweights_TK),
      detail::input("expert_ids_TK", choices.expert_ids_TK), detail::input("kept_TK", kept_TK),
      detail::input("is_padding_T", choices.is_padding_T), detail::input("weights_TK", weights_TK),
      detail::input("sums_T", sums_T), detail::input("totals_T", totals_T));
  constexpr A most = (std::numeric_limits<A>::max)();
  for (Index t = 0; t < tokens; ++t) {
    const bool scaled = detail::lost_some(choices, t);
    A mean = 0;
    for (Index j = 0; j < top_k && scaled; ++j) {
      const bool weighs = kept_TK(t, j) != 0 && detail::key_of(weights_TK(t, j)) != 0;
      if (weighs) mean += detail::product(weights_TK(t, j) / totals_T[t], dweights_TK(t, j));
    }
    const bool rises = scaled && detail::key_of(sums_T[t]) != 0;
    const A slope = rises ? (std::min)(totals_T[t] / sums_T[t], most) : A(1);
    for (Index j = 0; j < top_k; ++j) {
      const A kept = detail::product(slope, dweights_TK(t, j) - mean) + mean;
      dbefore_TK(t, j) = kept_TK(t, j) != 0 ? kept : mean;
    }
  }
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_DISPATCH_CAPACITY_HPP
