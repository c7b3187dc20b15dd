// SPDX-License-Identifier: MIT
// A selection by any SelectionRule: scores, bias and groups decide who is chosen and what it
// weighs.
//
//   ranked_EL --score, round, + bias, groups--> choice_EL --top-k--> ids_KL
//       |                                                       |
//       +---------------- gather, score --> selected_KL, scores_KL --> weights_KL
//
// Scores that each follow from one logit are computed once more for the selected; those of a
// softmax are kept for all experts, in scores_EL.
#ifndef GATEPRO_ROUTING_RULED_SELECTION_HPP
#define GATEPRO_ROUTING_RULED_SELECTION_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/routing/group_limit.hpp"
#include "gatepro/routing/needed_bias.hpp"
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
  return group;
}

inline bool scores_after_top_k(const SelectionRule& rule) {
  return rule.scores.function == ScoreFunction::softmax_after_top_k;
}

/// True if a rule without a bias asks for nothing that PlainSelection does not do.
inline bool is_plain(const SelectionRule& rule) {
  return scores_after_top_k(rule) && !rule.groups.active() &&
         key_of(rule.scores.scale) == key_of(1.0) && !(rule.choice.step > 0) &&
         rule.choice.order == ChoiceOrder::best_first;
}

/// True if weights are shares of scores that come before the choice.
inline bool weighs_by_share(const ScoreRule& scores) {
  return scores.renormalise && scores.renormalisation == Renormalisation::exact &&
         scores.function != ScoreFunction::softmax_after_top_k;
}

/// scores_EL, if the selected must know the scores of all.
template <class A>
void score_all(const typename Order<A>::Key* ranked_EL, Index experts, const SelectionRule& rule,
               A* scores_EL) {
  if (rule.scores.function != ScoreFunction::softmax_before_top_k) return;
  score_kernels<A>().scores(ranked_EL, experts, rule.scores.function, scores_EL);
}

/// The scores of the selected, whose ids and ranked keys are known, where they come before the
/// choice.
template <class A>
void score_selected(const RuledGroup<A>& group, const SelectionRule& rule) {
  if (scores_after_top_k(rule)) return;
  if (is_softmax(rule.scores.function)) {
    gather_selected<A, A>(group, rule.top_k, group.scores_EL, group.scores_KL);
  } else {
    score_kernels<A>().scores(group.selected_KL, rule.top_k, rule.scores.function, group.scores_KL);
  }
}

/// weights_KL, scores_KL and nonfinite_L of the selected.
template <class A>
void weigh_group(const RuledGroup<A>& group, const SelectionRule& rule) {
  const ScoreKernels<A>& kernel = score_kernels<A>();
  const ScoreRule& scores = rule.scores;
  const Index top_k = rule.top_k;
  if (scores_after_top_k(rule)) {
    kernels<A>().softmax(group.selected_KL, top_k, group.scores_KL, group.nonfinite_L);
    std::copy_n(group.scores_KL, top_k * kernels<A>().lanes, group.weights_KL);
  } else {
    kernel.weigh_scores(group.selected_KL, group.scores_KL, top_k,
                        scores.renormalise && !weighs_by_share(scores), group.weights_KL,
                        group.nonfinite_L);
  }
  if (weighs_by_share(scores)) {
    kernel.shares(group.selected_KL, top_k, scores.function, group.weights_KL, nullptr, nullptr);
  }
  kernel.finish_weights(group.nonfinite_L, top_k, static_cast<A>(scores.scale), group.scores_KL,
                        group.weights_KL);
}

/// What RoutingPass does with a group.
template <class A>
struct RuledSelection {
  using Group = RuledGroup<A>;
  using Key = typename Order<A>::Key;
  static constexpr bool is_recorded = false;
  static constexpr bool knows_choice_values = true;

  SelectionRule rule;
  Index top_k = 0;
  ActiveCompetition<A> competition;
  const A* bias_E = nullptr;              ///< Null for none.
  const NeededBias<A>* needed = nullptr;  ///< Null unless biases are counted.

  static Group carve(Arena& arena, Index experts, const SelectionRule& rule) {
    return carve_ruled_group<A>(arena, experts, rule);
  }
  /// Losers that fill the slots of missing survivors rank by the choice value that they had if
  /// nobody competed.
  bool choose(const Group& group, const TokenRange& tokens, Index experts) const {
    const Key* ranked_EL = compete(group, experts, competition);
    const Key* choice_EL =
        limited(group, experts, choice_of(ranked_EL, experts, group.scores_EL, group.choice_EL),
                group.choice_EL);
    kernels<A>().top_k(choice_EL, experts, top_k, group.top());
    if (needed != nullptr) {
      needed->add(group.worker, tokens, choice_EL, top_k, group.top_keys_KL);
    }
    if (choice_EL == ranked_EL) {
      std::copy_n(group.top_keys_KL, top_k * kernels<A>().lanes, group.selected_KL);
    } else {
      gather_selected(group, top_k, ranked_EL, group.selected_KL);
    }
    const bool lost_some = competition.eliminate && holds_losers(group, tokens.count, top_k);
    if (lost_some) {
      Key* writable_EL = choice_EL == group.choice_EL ? group.choice_EL : group.ranked_EL;
      refill(group, experts, writable_EL);
    }
    if (rule.choice.order == ChoiceOrder::ascending_ids) {
      score_kernels<A>().sort_ids(top_k, group.ids_KL, group.selected_KL);
    }
    score_selected(group, rule);
    return lost_some;
  }

  void choose_unpenalised(const Group& group, Index experts) const {
    const Key* choice_EL = limited(
        group, experts, choice_of(group.keys_EL, experts, group.other_scores_EL, group.other_EL),
        group.other_EL);
    kernels<A>().top_k(choice_EL, experts, top_k, group.other());
  }

  void weigh(const Group& group, const TokenRange&) const { weigh_group(group, rule); }

 private:
  /// The keys of score + bias by which experts with keys ranked_EL are chosen: ranked_EL itself, or
  /// choice_EL. May write scores_EL.
  const Key* choice_of(const Key* ranked_EL, Index experts, A* scores_EL, Key* choice_EL) const {
    const ScoreKernels<A>& kernel = score_kernels<A>();
    const ScoreFunction function = rule.scores.function;
    const A step = static_cast<A>(rule.choice.step);
    const bool by_logit = scores_after_top_k(rule);
    if (by_logit && bias_E == nullptr && !(step > 0)) return ranked_EL;
    if (is_softmax(function) || step > 0) {
      if (!by_logit) kernel.scores(ranked_EL, experts, function, scores_EL);
      kernel.choice_keys(ranked_EL, experts, by_logit ? nullptr : scores_EL, step, bias_E,
                         choice_EL);
    } else {
      kernel.separate_choice_keys(ranked_EL, experts, function, bias_E, choice_EL);
    }
    return choice_EL;
  }

  /// Puts the losers that fill slots in order of their choice values. All losers have one ranked
  /// key, so what was gathered of them holds for whoever takes the slot. Overwrites choice_EL.
  void refill(const Group& group, Index experts, Key* choice_EL) const {
    const Key* order_EL = choice_of(group.keys_EL, experts, group.other_scores_EL, group.other_EL);
    kernels<A>().refill(order_EL, experts, top_k, choice_EL, group.other(), group.top());
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
