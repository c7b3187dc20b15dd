// SPDX-License-Identifier: MIT
// Stage: tokens that make fewer than K choices, by a threshold or within a budget.
//
// Choices stand best first, so fewer of them are a prefix. Which prefix a threshold leaves, a token
// knows by itself; a budget is shared by the tokens of a sequence.
#ifndef GATEPRO_ROUTING_FEWER_CHOICES_HPP
#define GATEPRO_ROUTING_FEWER_CHOICES_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "gatepro/core/overlap.hpp"
#include "gatepro/core/product.hpp"
#include "gatepro/core/sequences.hpp"
#include "gatepro/routing/recorded_selection.hpp"
#include "gatepro/routing/route_logits.hpp"

namespace gatepro {

/// How many of its K choices a token keeps. With the defaults all of them; the threshold comes
/// before the budget if both are set. Plain data.
struct FewerChoices {
  /// p: a token keeps the fewest choices, best first, whose scores sum to p, all K if they do not;
  /// 0 < p <= 1, 1 for no threshold. A score counts as it is if it is a softmax, else as its share
  /// of the sum of the token's K. (Huang et al. 2024, arXiv 2403.07652: softmax_before_top_k.)
  double top_p = 1;
  /// b: the T_s tokens of a sequence that are not padding keep their floor(b T_s) best choices
  /// together; 0 for no budget, else least <= b <= K. Choices of all tokens rank by their choice
  /// values (RoutingView::choice_values_TK), then lower token, then rank: for softmax_after_top_k
  /// logits are compared, as in Megatron-LM; softmax_before_top_k, renormalised, gives the same
  /// weights and compares probabilities. (SeqTopK, arXiv 2511.06494.)
  double budget = 0;
  Index least = 1;  ///< Choices that a token keeps in any case; 0 <= least <= K.
};

namespace detail {

/// The least of the largest keys, and how many keys equal to it are among them.
template <class Key>
struct KeyCutoff {
  Key key;
  Index ties;
};

inline namespace GATEPRO_ABI {

inline void check_fewer_choices(const Checks& checks, const FewerChoices& rule, Index top_k) {
  checks.need(is_finite(rule.top_p) && rule.top_p > 0 && rule.top_p <= 1, "0 < top_p <= 1",
              {{"top_p", rule.top_p}});
  checks.need(rule.least >= 0 && rule.least <= top_k, "0 <= least <= top_k",
              {{"least", rule.least}, {"top_k", top_k}});
  const bool off = key_of(rule.budget) == 0;
  checks.need(off || (is_finite(rule.budget) && rule.budget > 0 &&
                      rule.budget >= static_cast<double>(rule.least) &&
                      rule.budget <= static_cast<double>(top_k)),
              "a budget of 0 for none, or least <= budget <= top_k",
              {{"budget", rule.budget}, {"least", rule.least}, {"top_k", top_k}});
}

/// The `wanted` largest of the keys that `for_each(visit)` calls `visit(key)` for; there are more.
template <class Key, class ForEach>
KeyCutoff<Key> largest_keys(Index wanted, const ForEach& for_each) {
  using Bits = std::make_unsigned_t<Key>;
  constexpr int digit_bits = 8, digits = 1 << digit_bits, key_bits = 8 * int(sizeof(Key));
  constexpr Bits sign = Bits(1) << (key_bits - 1);  // as unsigned numbers, keys rank alike
  Bits found = 0;
  for (int shift = key_bits - digit_bits; shift >= 0; shift -= digit_bits) {
    Index counts[digits] = {};
    for_each([&](Key key) {
      const Bits bits = static_cast<Bits>(key) ^ sign;
      // Shifted in two steps, as the first time all bits go.
      if ((bits ^ found) >> shift >> digit_bits == 0) ++counts[(bits >> shift) % digits];
    });
    int digit = digits - 1;
    while (counts[digit] < wanted) wanted -= counts[digit--];
    found |= static_cast<Bits>(digit) << shift;
  }
  return {static_cast<Key>(found ^ sign), wanted};
}

template <class A, class Id>
void take_choice_away(const RoutingView<A, Id>& out, Index t, Index j) {
  out.expert_ids_TK(t, j) = static_cast<Id>(-1);
  out.weights_TK(t, j) = A(0);
  out.scores_TK(t, j) = A(0);
  if (out.penalised_TK.given()) out.penalised_TK(t, j) = 0;
  if (out.choice_values_TK.given()) out.choice_values_TK(t, j) = value_of<A>(-Order<A>::infinity);
}

/// True if no rule concerns a token: it is masked, or has no scores to go by.
template <class A, class Id>
bool keeps_all(const RoutingInputs<A>& in, const RoutingView<A, Id>& out, Index t) {
  return is_masked(in.is_padding_T, t) || key_of(out.scores_TK(t, 0)) == Order<A>::nan;
}

/// Choices of a token that are left.
template <class Id>
Index choices_left(const StridedView<Id>& ids_TK, Index t) {
  Index left = 0;
  for (Index j = 0; j < ids_TK.cols; ++j) left += is_some(ids_TK(t, j)) ? 1 : 0;
  return left;
}

/// The threshold, for a token.
template <class A, class Id>
void keep_likely(const FewerChoices& rule, ScoreFunction function, const RoutingView<A, Id>& out,
                 Index t) {
  const StridedView<A>& scores_TK = out.scores_TK;
  A total = 1;
  if (!is_softmax(function)) {
    total = 0;
    for (Index j = 0; j < scores_TK.cols; ++j) total += scores_TK(t, j);
  }
  const A wanted = product(static_cast<A>(rule.top_p), total);
  A sum = 0;
  for (Index j = 0; j < scores_TK.cols; ++j) {
    // Scores of 0 only, by underflow, tell nothing.
    if (j >= rule.least && sum >= wanted && sum > 0) {
      take_choice_away(out, t, j);
    } else {
      sum += scores_TK(t, j);
    }
  }
}

/// floor(b T_s). A product within 2^-50, relative, below an integer counts as that integer.
inline Index choices_within(double budget, Index tokens) {
  return static_cast<Index>(
      std::floor(product(budget, static_cast<double>(tokens)) * (1 + 0x1p-50)));
}

/// The budget, for the tokens [first, end).
template <class A, class Id>
void keep_best(const FewerChoices& rule, const RoutingInputs<A>& in, const RoutingView<A, Id>& out,
               Index first, Index end) {
  using Key = typename Order<A>::Key;
  const StridedView<Id>& ids_TK = out.expert_ids_TK;
  const auto for_each_open = [&](const auto& visit) {
    for (Index t = first; t < end; ++t) {
      if (keeps_all(in, out, t)) continue;
      for (Index j = rule.least; j < ids_TK.cols; ++j) {
        if (is_some(ids_TK(t, j))) visit(t, j);
      }
    }
  };
  Index tokens = 0, made = 0, safe = 0;
  for (Index t = first; t < end; ++t) {
    if (keeps_all(in, out, t)) continue;
    const Index left = choices_left(ids_TK, t);
    ++tokens;
    made += left;
    safe += (std::min)(left, rule.least);
  }
  const Index most = choices_within(rule.budget, tokens);
  if (made <= most) return;

  auto cutoff = largest_keys<Key>(most - safe, [&](const auto& visit) {
    for_each_open([&](Index t, Index j) { visit(key_of(out.choice_values_TK(t, j))); });
  });
  for_each_open([&](Index t, Index j) {
    const Key key = key_of(out.choice_values_TK(t, j));
    const bool ties = key == cutoff.key && cutoff.ties > 0;
    cutoff.ties -= ties ? 1 : 0;
    if (key < cutoff.key || (key == cutoff.key && !ties)) take_choice_away(out, t, j);
  });
}

/// Puts the choices of a token in order of their ids, those that were taken away last.
template <class A, class Id>
void sort_by_id(const RoutingView<A, Id>& out, Index t) {
  const StridedView<Id>& ids_TK = out.expert_ids_TK;
  const auto place = [&](Index j) { return static_cast<std::make_unsigned_t<Id>>(ids_TK(t, j)); };
  const auto swap_in = [t](const auto& view, Index i) {
    if (view.given()) std::swap(view(t, i), view(t, i - 1));
  };
  for (Index j = 1; j < ids_TK.cols; ++j) {
    for (Index i = j; i > 0 && place(i) < place(i - 1); --i) {
      swap_in(ids_TK, i);
      swap_in(out.scores_TK, i);
      swap_in(out.penalised_TK, i);
      swap_in(out.choice_values_TK, i);
    }
  }
}

/// Scratch to weigh a group: what weigh_group takes.
template <class A>
struct CarveWeighing {
  Index top_k;

  RuledGroup<A> operator()(Arena& arena) const {
    using Key = typename Order<A>::Key;
    const Index lanes = kernels<A>().lanes;
    RuledGroup<A> group;
    group.selected_KL = arena.take<Key>(top_k, lanes);
    group.scores_KL = arena.take<A>(top_k, lanes);
    group.weights_KL = arena.take<A>(top_k, lanes);
    group.nonfinite_L = arena.take<Key>(lanes);
    return group;
  }
};

/// The competition of choices that were made: who of them had lost is known.
template <class A>
ActiveCompetition<A> decided_competition(const Competition& competition) {
  ActiveCompetition<A> decided;
  decided.active = competition.active();
  decided.eliminate = competition.mode == CompetitionMode::eliminate;
  decided.lambda = static_cast<A>(competition.lambda);
  return decided;
}

/// selected_KL and scores_KL of what is left; a choice that was taken away counts as a logit of
/// -inf. Lanes past `tokens` repeat the last one.
template <class A, class Id>
void load_remaining(const RuledGroup<A>& group, const RoutingInputs<A>& in,
                    const ActiveCompetition<A>& competition, const RoutingView<A, Id>& out,
                    const TokenRange& tokens) {
  const Choices<Id> choices{out.expert_ids_TK, in.is_padding_T};
  const Index lanes = kernels<A>().lanes;
  for (Index lane = 0; lane < lanes; ++lane) {
    const Index t = tokens.first + (std::min)(lane, tokens.count - 1);
    for (Index j = 0; j < out.expert_ids_TK.cols; ++j) {
      auto key = -Order<A>::infinity;
      A score = 0;
      if (counts(choices, t, j)) {
        key = key_of(in.logits_TE(t, static_cast<Index>(out.expert_ids_TK(t, j))));
        if (competition.active && out.penalised_TK(t, j) != 0) key = lowered_key(key, competition);
        score = out.scores_TK(t, j);
      }
      group.selected_KL[j * lanes + lane] = key;
      group.scores_KL[j * lanes + lane] = score;
    }
  }
}

/// Weighs the tokens of a group anew that have lost choices, but not all, or whose choices stand in
/// another order. Where what is left has no weight that is a number, its weights are NaN.
template <class A, class Id>
void weigh_remaining(const RuledGroup<A>& group, const SelectionRule& rule,
                     const RoutingInputs<A>& in, const RoutingView<A, Id>& out,
                     const TokenRange& tokens) {
  const StridedView<Id>& ids_TK = out.expert_ids_TK;
  const bool sorted = rule.choice.order == ChoiceOrder::ascending_ids;
  const auto weighs_anew = [&](Index t) {
    const Index left = choices_left(ids_TK, t);
    return left > 0 && (sorted || left < ids_TK.cols) && !is_masked(in.is_padding_T, t);
  };
  bool any = false;
  for (Index t = tokens.first; t < tokens.first + tokens.count; ++t) any = any || weighs_anew(t);
  if (!any) return;
  load_remaining(group, in, decided_competition<A>(rule.competition), out, tokens);
  weigh_group(group, rule);
  clear_missing(group, Choices<Id>{ids_TK, in.is_padding_T}, tokens);
  const Index lanes = kernels<A>().lanes;
  for (Index lane = 0; lane < tokens.count; ++lane) {
    const Index t = tokens.first + lane;
    if (!weighs_anew(t)) continue;
    for (Index j = 0; j < ids_TK.cols; ++j) {
      out.weights_TK(t, j) = group.weights_KL[j * lanes + lane];
      out.scores_TK(t, j) = group.scores_KL[j * lanes + lane];
    }
  }
}

/// Counts, and tells of, the choices that are left.
template <class A, class Id>
RoutingReport report_remaining(const SelectionRule& rule, const RoutingInputs<A>& in,
                               const RoutingView<A, Id>& out) {
  const bool eliminate = rule.competition.mode == CompetitionMode::eliminate;
  RoutingReport report;
  report.tokens = in.logits_TE.rows;
  const VectorView<std::int64_t>& counts_E = out.tokens_per_expert_E;
  std::fill_n(counts_E.data, counts_E.size, std::int64_t{0});
  for (Index t = 0; t < report.tokens; ++t) {
    if (is_masked(in.is_padding_T, t)) continue;
    bool is_short = false, nonfinite = false;
    for (Index j = 0; j < out.expert_ids_TK.cols; ++j) {
      const auto id = out.expert_ids_TK(t, j);
      if (!is_some(id)) continue;
      ++report.choices;
      if (counts_E.given()) ++counts_E[static_cast<Index>(id)];
      is_short = is_short || (eliminate && out.penalised_TK(t, j) != 0);
      nonfinite = nonfinite || key_of(out.weights_TK(t, j)) == Order<A>::nan;
    }
    report.tokens_short_of_survivors += is_short ? 1 : 0;
    report.nonfinite_rows += nonfinite ? 1 : 0;
  }
  return report;
}

/// What keep_fewer_choices reads and writes.
template <class A, class Id>
void check_fewer_routing(const Checks& checks, const RoutingInputs<A>& in,
                         const SelectionRule& rule, const FewerChoices& fewer,
                         const VectorView<const std::int64_t>& sequence_begin_S1,
                         const RoutingView<A, Id>& out, Workspace workspace) {
  const Index tokens = in.logits_TE.rows;
  const Index experts = in.logits_TE.cols;
  check_selection<A>(checks, rule, experts);
  check_competition<A>(checks, rule.competition);
  check_fewer_choices(checks, fewer, rule.top_k);
  checks.matrix("logits_TE", in.logits_TE, tokens, experts);
  checks.optional_vector("is_padding_T", in.is_padding_T, tokens);
  if (fewer.budget > 0) check_sequences(checks, sequence_begin_S1, tokens);
  check_routing_view(checks, out, tokens, experts, rule.top_k);
  checks.strided("scores_TK", out.scores_TK, tokens, rule.top_k);
  if (fewer.budget > 0) {
    checks.strided("choice_values_TK", out.choice_values_TK, tokens, rule.top_k);
  }
  if (rule.competition.active()) {
    checks.strided("penalised_TK", out.penalised_TK, tokens, rule.top_k);
  }
  checks.overlaps(output("expert_ids_TK", out.expert_ids_TK), output("weights_TK", out.weights_TK),
                  output("scores_TK", out.scores_TK), output("penalised_TK", out.penalised_TK),
                  output("tokens_per_expert_E", out.tokens_per_expert_E),
                  output("workspace", workspace), output("choice_values_TK", out.choice_values_TK),
                  input("logits_TE", in.logits_TE), input("is_padding_T", in.is_padding_T),
                  input("sequence_begin_S1", sequence_begin_S1));
  check_choices(checks, "expert_ids_TK", Choices<Id>{out.expert_ids_TK, in.is_padding_T}, experts);
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Bytes of workspace for keep_fewer_choices, whatever T is.
template <class A>
std::size_t keep_fewer_choices_workspace_bytes(Index top_k, Workers workers = 1) {
  return detail::measure([&](detail::Arena& arena) {
    detail::PerWorker(arena, workers, detail::CarveWeighing<A>{top_k});
  });
}

/// Takes choices away from tokens that need fewer than K: their ids become -1, their weights and
/// scores 0, their choice values -inf, and what is left is weighed as weigh_choices would weigh it,
/// to the bit.
///
/// in, rule: as in route_logits, which must have written choices best first; with
/// ChoiceOrder::ascending_ids they stand by id after this, those of padding, too. The bias is not
/// looked at. sequence_begin_S1: S + 1 offsets from 0 to T, read with a budget. out: what
/// route_logits wrote, ids, weights, scores, with a budget choice values, and with a competition
/// penalised_TK; these and, if given, tokens_per_expert_E are brought up to date. Padding keeps all
/// choices, as does, outside of any budget, a token whose scores are NaN. The number of choices is
/// piecewise constant, so the gradient is that of weigh_choices: route_logits_backward with these
/// ids.
///
/// Returns the report of the routing as it is then. Results do not depend on the executor, nor on
/// how tokens are cut, with a budget between sequences. Throws Error for shapes, settings, offsets,
/// ids that are neither in [0, E) nor -1, outputs that overlap other memory or a workspace that is
/// too small, before any write. Cost: O(T K), with ascending_ids O(T K^2); the count for the report
/// is on the calling thread alone. No allocation. Thread-safe.
template <class A, class Id, class Executor = SerialExecutor>
RoutingReport keep_fewer_choices(const RoutingInputs<A>& in, const SelectionRule& rule,
                                 const FewerChoices& fewer,
                                 VectorView<const std::int64_t> sequence_begin_S1,
                                 const RoutingView<A, Id>& out, Workspace workspace,
                                 const Executor& executor = {}) {
  detail::check_accumulator<A>();
  detail::check_id_type<Id>();
  const detail::Checks checks("keep_fewer_choices");
  const Index tokens = in.logits_TE.rows;
  detail::check_fewer_routing(checks, in, rule, fewer, sequence_begin_S1, out, workspace);
  const int workers = checks.workers(executor);
  detail::Arena arena(checks.where(), workspace,
                      keep_fewer_choices_workspace_bytes<A>(rule.top_k, workers));
  const detail::PerWorker scratch(arena, workers, detail::CarveWeighing<A>{rule.top_k});

  const int busy =
      detail::useful_workers(executor, workers, {detail::softmax_work, tokens, rule.top_k});
  if (fewer.top_p < 1) {
    detail::for_each_row(tokens, executor, busy, [&](Index t) {
      if (!detail::keeps_all(in, out, t)) {
        detail::keep_likely(fewer, rule.scores.function, out, t);
      }
    });
  }
  if (fewer.budget > 0) {
    detail::for_each_block(executor, busy, sequence_begin_S1.size - 1, [&](int, Index s) {
      detail::keep_best(fewer, in, out, static_cast<Index>(sequence_begin_S1[s]),
                        static_cast<Index>(sequence_begin_S1[s + 1]));
    });
  }
  if (rule.choice.order == ChoiceOrder::ascending_ids) {
    detail::for_each_row(tokens, executor, busy, [&](Index t) { detail::sort_by_id(out, t); });
  }
  detail::for_each_group<A>(tokens, executor, busy, [&](int worker, const auto& range) {
    detail::weigh_remaining(scratch(worker), rule, in, out, range);
  });
  return detail::report_remaining(rule, in, out);
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_FEWER_CHOICES_HPP
