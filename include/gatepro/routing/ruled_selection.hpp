// SPDX-License-Identifier: MIT
// Routes one group of tokens, one token per lane, under a SelectionRule.
//
//   logits --load, compete--> ranked_EL --score--> scores_EL --+ bias, groups--> choice_EL
//                                 |                    |                            | top-k
//                                 +--------------------+---- gather <---- ids_KL <--+
//                                                               |
//                                                         weights_KL, scores_KL
#ifndef GATEPRO_ROUTING_RULED_SELECTION_HPP
#define GATEPRO_ROUTING_RULED_SELECTION_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/routing/group_limit.hpp"
#include "gatepro/routing/routing_group.hpp"

namespace gatepro {
namespace detail {

/// A checked SelectionRule, as the steps take it.
template <class A>
struct ActiveSelection {
  SelectionRule rule;
  ActiveCompetition<A> competition;
  const A* bias_E = nullptr;  ///< Null for none.
};

/// Scratch for a group: L tokens, E experts, K choices.
template <class A>
struct ScoredGroup {
  using Key = typename Order<A>::Key;
  RoutingGroup<A> routing;  ///< weights_KL: after scaling; nonfinite_L as there.
  GroupLimitScratch<A> groups;
  A* scores_EL = nullptr;
  Key* choice_EL = nullptr;
  A* other_scores_EL = nullptr;
  Key* other_EL = nullptr;     ///< Choice keys without competition, or marked losers.
  Key* selected_KL = nullptr;  ///< Ranked keys of the selected: their logits, loser or NaN.
  A* scores_KL = nullptr;      ///< Scores of the selected.
  A* sum_L = nullptr;
};

inline namespace GATEPRO_ABI {

template <class A>
ScoredGroup<A> carve_scored_group(Arena& arena, Index experts, const SelectionRule& rule) {
  using Key = typename Order<A>::Key;
  const Index lanes = kernels<A>().lanes;
  ScoredGroup<A> group;
  group.routing = carve_group<A>(arena, experts, rule.top_k);
  group.groups = carve_group_limit<A>(arena, rule);
  group.scores_EL = arena.take<A>(experts, lanes);
  group.choice_EL = arena.take<Key>(experts, lanes);
  group.other_scores_EL = arena.take<A>(experts, lanes);
  group.other_EL = arena.take<Key>(experts, lanes);
  group.selected_KL = arena.take<Key>(rule.top_k, lanes);
  group.scores_KL = arena.take<A>(rule.top_k, lanes);
  group.sum_L = arena.take<A>(lanes);
  return group;
}

inline bool scores_after_top_k(const SelectionRule& rule) {
  return rule.scores.function == ScoreFunction::softmax_after_top_k;
}

/// True if weights are shares of scores that come before the choice.
inline bool weighs_by_share(const ScoreRule& scores) {
  return scores.renormalise && scores.renormalisation == Renormalisation::exact &&
         scores.function != ScoreFunction::softmax_after_top_k;
}

/// The keys of score + bias by which experts with keys ranked_EL are chosen: ranked_EL itself, or
/// choice_EL. Writes scores_EL where scores come before the choice.
template <class A>
const typename Order<A>::Key* choice_of(const typename Order<A>::Key* ranked_EL, Index experts,
                                        const ActiveSelection<A>& selection, A* scores_EL, A* sum_L,
                                        typename Order<A>::Key* choice_EL) {
  const bool by_logit = scores_after_top_k(selection.rule);
  if (by_logit && selection.bias_E == nullptr) return ranked_EL;
  if (!by_logit) {
    score_kernels<A>().scores(ranked_EL, experts, selection.rule.scores.function, scores_EL, sum_L,
                              nullptr);
  }
  score_kernels<A>().choice_keys(ranked_EL, experts, by_logit ? nullptr : scores_EL,
                                 selection.bias_E, choice_EL);
  return choice_EL;
}

/// of_selected_KL = of_all_EL of the experts in top_ids_KL.
template <class A, class T>
void gather_selected(const RoutingGroup<A>& routing, Index top_k, const T* of_all_EL,
                     T* of_selected_KL) {
  const Index lanes = kernels<A>().lanes;
  for (Index j = 0; j < top_k; ++j) {
    for (Index lane = 0; lane < lanes; ++lane) {
      const Index e = static_cast<Index>(routing.top_ids_KL[j * lanes + lane]);
      of_selected_KL[j * lanes + lane] = of_all_EL[e * lanes + lane];
    }
  }
}

/// Copies the ranked keys of the experts in top_ids_KL, and their scores where they exist.
template <class A>
void gather_ranked(const ScoredGroup<A>& group, const typename Order<A>::Key* ranked_EL,
                   const SelectionRule& rule) {
  gather_selected(group.routing, rule.top_k, ranked_EL, group.selected_KL);
  if (scores_after_top_k(rule)) return;
  gather_selected<A, A>(group.routing, rule.top_k, group.scores_EL, group.scores_KL);
}

/// Chooses the best K: top_ids_KL, selected_KL, scores_KL. Losers that fill the slots of missing
/// survivors rank by the choice value that they had if nobody competed.
template <class A>
void choose_group(const ScoredGroup<A>& group, const typename Order<A>::Key* ranked_EL,
                  Index tokens, Index experts, const ActiveSelection<A>& selection) {
  const SelectionRule& rule = selection.rule;
  const RoutingGroup<A>& routing = group.routing;
  const auto* choice_EL =
      choice_of(ranked_EL, experts, selection, group.scores_EL, group.sum_L, group.choice_EL);
  if (rule.groups.active()) {
    limit_to_best_groups(group.groups, rule, choice_EL, experts, group.choice_EL);
    choice_EL = group.choice_EL;
  }
  kernels<A>().top_k(choice_EL, experts, rule.top_k, routing.top_keys_KL, routing.top_ids_KL);
  if (choice_EL == ranked_EL) {
    std::copy_n(routing.top_keys_KL, rule.top_k * kernels<A>().lanes, group.selected_KL);
  } else {
    gather_ranked(group, ranked_EL, rule);
  }
  if (!selection.competition.eliminate || !holds_losers(routing, tokens, rule.top_k)) return;
  const auto* order_EL = choice_of<A>(routing.keys_EL, experts, selection, group.other_scores_EL,
                                      group.sum_L, group.other_EL);
  auto* writable_EL = choice_EL == group.choice_EL ? group.choice_EL : routing.ranked_EL;
  refill_from_losers(routing, order_EL, writable_EL, tokens, experts, rule.top_k);
}

/// nonfinite_L for scores that came before the choice: a NaN or +inf among the selected, nothing
/// above -inf, or a row without a softmax, whose scores are all NaN.
template <class A>
void mark_nonfinite(const ScoredGroup<A>& group, Index top_k) {
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
    group.routing.nonfinite_L[lane] = nonfinite ? Key(-1) : Key(0);
  }
}

/// weights_KL = s / (sum + 1e-20): what the sum is divided by keeps it from 0.
template <class A>
void divide_by_floored_sum(const ScoredGroup<A>& group, Index top_k) {
  const Index lanes = kernels<A>().lanes;
  for (Index lane = 0; lane < lanes; ++lane) {
    A sum = 0;
    for (Index j = 0; j < top_k; ++j) sum += group.scores_KL[j * lanes + lane];
    group.sum_L[lane] = sum + A(1e-20);
  }
  for (Index j = 0; j < top_k; ++j) {
    for (Index lane = 0; lane < lanes; ++lane) {
      const Index i = j * lanes + lane;
      group.routing.weights_KL[i] = group.scores_KL[i] / group.sum_L[lane];
    }
  }
}

/// weights_KL from the scores of the selected, or for shares from their keys.
template <class A>
void weights_of_scores(const ScoredGroup<A>& group, const ScoreRule& scores, Index top_k) {
  const Index size = top_k * kernels<A>().lanes;
  A* weights_KL = group.routing.weights_KL;
  if (weighs_by_share(scores)) {
    score_kernels<A>().shares(group.selected_KL, top_k, scores.function, weights_KL, nullptr);
  } else if (scores.renormalise && scores.function != ScoreFunction::softmax_after_top_k) {
    divide_by_floored_sum(group, top_k);
  } else {
    std::copy_n(group.scores_KL, size, weights_KL);
  }
  const A scale = static_cast<A>(scores.scale);
  if (key_of(scale) == key_of(A(1))) return;
  for (Index i = 0; i < size; ++i) weights_KL[i] *= scale;
}

/// Fills the weights and scores of the lanes that `which(lane)` names.
template <class A, class Which>
void fill_lanes(const ScoredGroup<A>& group, Index top_k, A value, const Which& which) {
  const Index lanes = kernels<A>().lanes;
  for (Index lane = 0; lane < lanes; ++lane) {
    if (!which(lane)) continue;
    for (Index i = lane; i < top_k * lanes; i += lanes) {
      group.routing.weights_KL[i] = value;
      group.scores_KL[i] = value;
    }
  }
}

/// weights_KL, scores_KL and nonfinite_L of the selected.
template <class A>
void weigh_group(const ScoredGroup<A>& group, const SelectionRule& rule) {
  if (scores_after_top_k(rule)) {
    kernels<A>().softmax(group.selected_KL, rule.top_k, group.scores_KL, group.routing.nonfinite_L);
  } else {
    mark_nonfinite(group, rule.top_k);
  }
  weights_of_scores(group, rule.scores, rule.top_k);
  fill_lanes(group, rule.top_k, value_of<A>(Order<A>::nan),
             [&](Index lane) { return group.routing.nonfinite_L[lane] != 0; });
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_RULED_SELECTION_HPP
