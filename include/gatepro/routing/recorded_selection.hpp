// SPDX-License-Identifier: MIT
// A selection that was made before: the record says who was chosen and who of them had lost.
#ifndef GATEPRO_ROUTING_RECORDED_SELECTION_HPP
#define GATEPRO_ROUTING_RECORDED_SELECTION_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/core/choices.hpp"
#include "gatepro/routing/ruled_selection.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// Reads recorded ids into lanes. Lanes past `tokens` repeat the last one, and expert 0 stands in
/// for choices that do not count.
template <class A, class Id>
void load_recorded_ids(const RoutingGroup<A>& group, const Choices<Id>& choices,
                       const TokenRange& tokens) {
  using Key = typename Order<A>::Key;
  const Index lanes = kernels<A>().lanes;
  for (Index j = 0; j < choices.expert_ids_TK.cols; ++j) {
    for (Index lane = 0; lane < lanes; ++lane) {
      const Index t = tokens.first + (std::min)(lane, tokens.count - 1);
      group.ids_KL[j * lanes + lane] =
          counts(choices, t, j) ? static_cast<Key>(choices.expert_ids_TK(t, j)) : Key(0);
    }
  }
}

/// The ranked keys of a group whose ids stand in ids_KL: those of the competition, but the record
/// says who among the selected had lost.
template <class A, class Id>
const typename Order<A>::Key* rank_by_record(const RoutingGroup<A>& group, Index experts,
                                             const ActiveCompetition<A>& competition,
                                             const Choices<Id>& choices,
                                             const StridedView<const std::uint8_t>& penalised_TK,
                                             const TokenRange& tokens) {
  const auto* ranked_EL = compete(group, experts, competition);
  if (!competition.active || !penalised_TK.given()) return ranked_EL;
  const Index lanes = kernels<A>().lanes;
  for (Index j = 0; j < penalised_TK.cols; ++j) {
    for (Index lane = 0; lane < tokens.count; ++lane) {
      const Index t = tokens.first + lane;
      if (!counts(choices, t, j)) continue;
      const Index i = static_cast<Index>(group.ids_KL[j * lanes + lane]) * lanes + lane;
      const auto key = group.keys_EL[i];
      group.ranked_EL[i] = penalised_TK(t, j) != 0 ? lowered_key(key, competition) : key;
    }
  }
  return ranked_EL;
}

/// Choices without an expert: -inf among the selected, with a score of 0.
template <class A, class Id>
void lower_missing(const RoutingGroup<A>& group, const Choices<Id>& choices,
                   const TokenRange& tokens) {
  const Index lanes = kernels<A>().lanes;
  for (Index j = 0; j < choices.expert_ids_TK.cols; ++j) {
    for (Index lane = 0; lane < tokens.count; ++lane) {
      if (counts(choices, tokens.first + lane, j)) continue;
      group.selected_KL[j * lanes + lane] = -Order<A>::infinity;
      group.scores_KL[j * lanes + lane] = A(0);
    }
  }
}

/// Choices without an expert weigh and score 0, also beside NaNs. A token without any is no fault.
template <class A, class Id>
void clear_missing(const RoutingGroup<A>& group, const Choices<Id>& choices,
                   const TokenRange& tokens) {
  const Index lanes = kernels<A>().lanes;
  for (Index lane = 0; lane < tokens.count; ++lane) {
    bool idle = true;
    for (Index j = 0; j < choices.expert_ids_TK.cols; ++j) {
      if (counts(choices, tokens.first + lane, j)) {
        idle = false;
        continue;
      }
      group.weights_KL[j * lanes + lane] = A(0);
      group.scores_KL[j * lanes + lane] = A(0);
    }
    if (idle) group.nonfinite_L[lane] = 0;
  }
}

/// What RoutingPass does with a group.
template <class A, class Id>
struct RecordedSelection {
  using Group = RuledGroup<A>;
  using Key = typename Order<A>::Key;
  static constexpr bool is_recorded = true;
  static constexpr bool knows_choice_values = false;

  SelectionRule rule;
  Index top_k = 0;
  ActiveCompetition<A> competition;
  Choices<Id> choices;
  StridedView<const std::uint8_t> penalised_TK;

  static Group carve(Arena& arena, Index experts, const SelectionRule& rule) {
    return carve_ruled_group<A>(arena, experts, rule);
  }
  bool choose(const Group& group, const TokenRange& tokens, Index experts) const {
    load_recorded_ids(group, choices, tokens);
    const Key* ranked_EL =
        rank_by_record(group, experts, competition, choices, penalised_TK, tokens);
    score_all<A>(ranked_EL, experts, rule, group.scores_EL);
    gather_selected(group, top_k, ranked_EL, group.selected_KL);
    score_selected(group, rule);
    lower_missing(group, choices, tokens);
    return competition.eliminate;
  }
  void weigh(const Group& group, const TokenRange& tokens) const {
    weigh_group(group, rule);
    clear_missing(group, choices, tokens);
  }
};

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_RECORDED_SELECTION_HPP
