// SPDX-License-Identifier: MIT
// A selection by any SelectionRule: scores, bias and groups decide who is chosen and what it
// weighs.
//
//   ranked_EL --score--> scores_EL --+ bias, groups--> choice_EL --top-k--> ids_KL
//       |                    |                                                 |
//       +--------------------+---------- gather selected_KL, scores_KL <------+--> weights_KL
#ifndef GATEPRO_ROUTING_RULED_SELECTION_HPP
#define GATEPRO_ROUTING_RULED_SELECTION_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/routing/group_limit.hpp"
#include "gatepro/routing/plain_selection.hpp"

namespace gatepro {
namespace detail {

/// A group with scratch for scores.
template <class A>
struct RuledGroup : RoutingGroup<A> {
  using Key = typename Order<A>::Key;
  GroupsScratch<Key> groups;
  A* scores_EL = nullptr;
  Key* choice_EL = nullptr;  ///< Keys of score + bias, behind all others in a forbidden group.
  A* other_scores_EL = nullptr;
  Key* other_EL = nullptr;  ///< Choice keys if nobody competed.
  A* sum_L = nullptr;
};

inline namespace GATEPRO_ABI {

template <class A>
RuledGroup<A> carve_ruled_group(Arena& arena, Index experts, const SelectionRule& rule) {
  using Key = typename Order<A>::Key;
  const Index lanes = kernels<A>().lanes;
  RuledGroup<A> group;
  static_cast<RoutingGroup<A>&>(group) = carve_group<A>(arena, experts, rule.top_k);
  group.selected_KL = arena.take<Key>(rule.top_k, lanes);
  group.scores_KL = arena.take<A>(rule.top_k, lanes);
  group.groups = carve_group_limit<A>(arena, rule);
  group.scores_EL = arena.take<A>(experts, lanes);
  group.choice_EL = arena.take<Key>(experts, lanes);
  group.other_scores_EL = arena.take<A>(experts, lanes);
  group.other_EL = arena.take<Key>(experts, lanes);
  group.sum_L = arena.take<A>(lanes);
  return group;
}

inline bool scores_after_top_k(const SelectionRule& rule) {
  return rule.scores.function == ScoreFunction::softmax_after_top_k;
}

/// True if a rule without a bias asks for nothing that PlainSelection does not do.
inline bool is_plain(const SelectionRule& rule) {
  return scores_after_top_k(rule) && !rule.groups.active() &&
         key_of(rule.scores.scale) == key_of(1.0);
}

/// True if weights are shares of scores that come before the choice.
inline bool weighs_by_share(const ScoreRule& scores) {
  return scores.renormalise && scores.renormalisation == Renormalisation::exact &&
         scores.function != ScoreFunction::softmax_after_top_k;
}

/// Copies the ranked keys of the experts in ids_KL, and their scores where they exist.
template <class A>
void gather_ranked(const RuledGroup<A>& group, const typename Order<A>::Key* ranked_EL,
                   const SelectionRule& rule) {
  gather_selected(group, rule.top_k, ranked_EL, group.selected_KL);
  if (scores_after_top_k(rule)) return;
  gather_selected<A, A>(group, rule.top_k, group.scores_EL, group.scores_KL);
}

/// nonfinite_L for scores that came before the choice: a NaN or +inf among the selected, nothing
/// above -inf, or a row without a softmax, whose scores are all NaN.
template <class A>
void mark_nonfinite(const RuledGroup<A>& group, Index top_k) {
  using O = Order<A>;
  using Key = typename O::Key;
  const Index lanes = kernels<A>().lanes;
  for (Index lane = 0; lane < lanes; ++lane) {
    bool nonfinite = false;
    Key best = O::lowest;
    for (Index i = lane; i < top_k * lanes; i += lanes) {
      best = (std::max)(best, group.selected_KL[i]);
      nonfinite =
          nonfinite || group.selected_KL[i] == O::nan || key_of(group.scores_KL[i]) == O::nan;
    }
    nonfinite = nonfinite || best == O::infinity || best <= -O::infinity;
    group.nonfinite_L[lane] = nonfinite ? Key(-1) : Key(0);
  }
}

/// weights_KL = s / (sum + 1e-20): what the sum is divided by keeps it from 0.
template <class A>
void divide_by_floored_sum(const RuledGroup<A>& group, Index top_k) {
  const Index lanes = kernels<A>().lanes;
  for (Index lane = 0; lane < lanes; ++lane) {
    A sum = 0;
    for (Index j = 0; j < top_k; ++j) sum += group.scores_KL[j * lanes + lane];
    group.sum_L[lane] = sum + A(1e-20);
  }
  for (Index j = 0; j < top_k; ++j) {
    for (Index lane = 0; lane < lanes; ++lane) {
      const Index i = j * lanes + lane;
      group.weights_KL[i] = group.scores_KL[i] / group.sum_L[lane];
    }
  }
}

/// weights_KL from the scores of the selected, or for shares from their keys.
template <class A>
void weights_of_scores(const RuledGroup<A>& group, const ScoreRule& scores, Index top_k) {
  const Index size = top_k * kernels<A>().lanes;
  A* weights_KL = group.weights_KL;
  if (weighs_by_share(scores)) {
    score_kernels<A>().shares(group.selected_KL, top_k, scores.function, weights_KL, nullptr,
                              nullptr);
  } else if (scores.renormalise && scores.function != ScoreFunction::softmax_after_top_k) {
    divide_by_floored_sum(group, top_k);
  } else {
    std::copy_n(group.scores_KL, size, weights_KL);
  }
  const A scale = static_cast<A>(scores.scale);
  if (key_of(scale) == key_of(A(1))) return;
  for (Index i = 0; i < size; ++i) weights_KL[i] *= scale;
}

/// weights_KL, scores_KL and nonfinite_L of the selected.
template <class A>
void weigh_group(const RuledGroup<A>& group, const SelectionRule& rule) {
  if (scores_after_top_k(rule)) {
    kernels<A>().softmax(group.selected_KL, rule.top_k, group.scores_KL, group.nonfinite_L);
  } else {
    mark_nonfinite(group, rule.top_k);
  }
  weights_of_scores(group, rule.scores, rule.top_k);
  fill_lanes(group, rule.top_k, value_of<A>(Order<A>::nan),
             [&](Index lane) { return group.nonfinite_L[lane] != 0; });
}

/// What RoutingPass does with a group.
template <class A>
struct RuledSelection {
  using Group = RuledGroup<A>;
  using Key = typename Order<A>::Key;
  static constexpr bool is_recorded = false;

  SelectionRule rule;
  Index top_k = 0;
  ActiveCompetition<A> competition;
  const A* bias_E = nullptr;  ///< Null for none.

  static Group carve(Arena& arena, Index experts, const SelectionRule& rule) {
    return carve_ruled_group<A>(arena, experts, rule);
  }
  /// Losers that fill the slots of missing survivors rank by the choice value that they had if
  /// nobody competed.
  bool choose(const Group& group, const TokenRange& tokens, Index experts) const {
    const Key* ranked_EL = compete(group, experts, competition);
    const Key* choice_EL = limited(
        group, experts, choice_of(group, ranked_EL, experts, group.scores_EL, group.choice_EL),
        group.choice_EL);
    kernels<A>().top_k(choice_EL, experts, top_k, group.top());
    if (choice_EL == ranked_EL) {
      std::copy_n(group.top_keys_KL, top_k * kernels<A>().lanes, group.selected_KL);
    } else {
      gather_ranked(group, ranked_EL, rule);
    }
    if (!competition.eliminate || !holds_losers(group, tokens.count, top_k)) return false;
    const Key* order_EL =
        choice_of(group, group.keys_EL, experts, group.other_scores_EL, group.other_EL);
    Key* writable_EL = choice_EL == group.choice_EL ? group.choice_EL : group.ranked_EL;
    kernels<A>().refill(order_EL, experts, top_k, writable_EL, group.other(), group.top());
    return true;
  }

  void choose_unpenalised(const Group& group, Index experts) const {
    const Key* choice_EL =
        limited(group, experts,
                choice_of(group, group.keys_EL, experts, group.other_scores_EL, group.other_EL),
                group.other_EL);
    kernels<A>().top_k(choice_EL, experts, top_k, group.other());
  }

  void weigh(const Group& group, const TokenRange&) const { weigh_group(group, rule); }

 private:
  /// The keys of score + bias by which experts with keys ranked_EL are chosen: ranked_EL itself, or
  /// choice_EL. Writes scores_EL where scores come before the choice.
  const Key* choice_of(const Group& group, const Key* ranked_EL, Index experts, A* scores_EL,
                       Key* choice_EL) const {
    const bool by_logit = scores_after_top_k(rule);
    if (by_logit && bias_E == nullptr) return ranked_EL;
    if (!by_logit) {
      score_kernels<A>().scores(ranked_EL, experts, rule.scores.function, scores_EL, group.sum_L);
    }
    score_kernels<A>().choice_keys(ranked_EL, experts, by_logit ? nullptr : scores_EL, bias_E,
                                   choice_EL);
    return choice_EL;
  }

  /// choice_EL itself, or limited_EL with the experts of forbidden groups behind all others.
  const Key* limited(const Group& group, Index experts, const Key* choice_EL,
                     Key* limited_EL) const {
    if (!rule.groups.active()) return choice_EL;
    limit_to_best_groups<A>(group.groups, rule, choice_EL, experts, limited_EL);
    return limited_EL;
  }
};

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_RULED_SELECTION_HPP
