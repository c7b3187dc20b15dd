// SPDX-License-Identifier: MIT
// Ranks a group of tokens whose experts were chosen before, by the record of that choice.
#ifndef GATEPRO_ROUTING_RECORDED_SELECTION_HPP
#define GATEPRO_ROUTING_RECORDED_SELECTION_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/core/choices.hpp"
#include "gatepro/routing/ruled_selection.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// A loser's ranked key.
template <class A>
typename Order<A>::Key lowered_key(typename Order<A>::Key key,
                                   const ActiveCompetition<A>& competition) {
  if (key == Order<A>::nan) return key;
  if (competition.eliminate) return Order<A>::loser;
  return key_of(value_of<A>(key) - competition.lambda);
}

/// Reads recorded ids of `tokens` tokens into lanes. Lanes past them repeat the last one, and
/// expert 0 stands in for choices that do not count.
template <class A, class Id>
void load_recorded_ids(const ScoredGroup<A>& group, const Choices<Id>& choices, Index first,
                       Index tokens) {
  using Key = typename Order<A>::Key;
  const Index lanes = kernels<A>().lanes;
  for (Index j = 0; j < choices.expert_ids_TK.cols; ++j) {
    for (Index lane = 0; lane < lanes; ++lane) {
      const Index t = first + (std::min)(lane, tokens - 1);
      group.routing.top_ids_KL[j * lanes + lane] =
          counts(choices, t, j) ? static_cast<Key>(choices.expert_ids_TK(t, j)) : Key(0);
    }
  }
}

/// Choices without an expert: -inf among the selected, with a score of 0.
template <class A, class Id>
void lower_missing(const ScoredGroup<A>& group, const Choices<Id>& choices, Index first,
                   Index tokens) {
  const Index lanes = kernels<A>().lanes;
  for (Index j = 0; j < choices.expert_ids_TK.cols; ++j) {
    for (Index lane = 0; lane < tokens; ++lane) {
      if (counts(choices, first + lane, j)) continue;
      group.selected_KL[j * lanes + lane] = -Order<A>::infinity;
      group.scores_KL[j * lanes + lane] = A(0);
    }
  }
}

/// Tokens without any expert weigh 0, which is no fault.
template <class A, class Id>
void clear_idle(const ScoredGroup<A>& group, const Choices<Id>& choices, Index first,
                Index tokens) {
  const Index top_k = choices.expert_ids_TK.cols;
  fill_lanes(group, top_k, A(0), [&](Index lane) {
    bool idle = lane < tokens;
    for (Index j = 0; j < top_k && idle; ++j) idle = !counts(choices, first + lane, j);
    if (idle) group.routing.nonfinite_L[lane] = 0;
    return idle;
  });
}

/// The ranked keys of a group whose ids stand in top_ids_KL: those of the competition, but the
/// record says who among the selected had lost.
template <class A, class Id>
const typename Order<A>::Key* rank_by_record(const ScoredGroup<A>& group, Index experts,
                                             const ActiveCompetition<A>& competition,
                                             const Choices<Id>& choices,
                                             const StridedView<const std::uint8_t>& penalised_TK,
                                             Index first, Index tokens) {
  const RoutingGroup<A>& routing = group.routing;
  const auto* ranked_EL = rank_group(routing, experts, competition);
  if (!competition.active || !penalised_TK.given()) return ranked_EL;
  const Index lanes = kernels<A>().lanes;
  for (Index j = 0; j < penalised_TK.cols; ++j) {
    for (Index lane = 0; lane < tokens; ++lane) {
      if (!counts(choices, first + lane, j)) continue;
      const Index i = static_cast<Index>(routing.top_ids_KL[j * lanes + lane]) * lanes + lane;
      const auto key = routing.keys_EL[i];
      routing.ranked_EL[i] =
          penalised_TK(first + lane, j) != 0 ? lowered_key(key, competition) : key;
    }
  }
  return ranked_EL;
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_RECORDED_SELECTION_HPP
