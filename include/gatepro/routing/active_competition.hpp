// SPDX-License-Identifier: MIT
// Who loses: the checked competition of a call, applied to a group.
#ifndef GATEPRO_ROUTING_ACTIVE_COMPETITION_HPP
#define GATEPRO_ROUTING_ACTIVE_COMPETITION_HPP

#include <algorithm>
#include <limits>

#include "gatepro/core/checks.hpp"
#include "gatepro/partners/pairing.hpp"
#include "gatepro/routing/routing_group.hpp"
#include "gatepro/routing/rules.hpp"

namespace gatepro {
namespace detail {

/// The competition of a call.
template <class A>
struct ActiveCompetition : CompetitionRule<A> {
  bool active = false;
};

inline namespace GATEPRO_ABI {

/// Lambda must be finite and >= 0, also as an A.
template <class A>
void check_competition(const Checks& checks, const Competition& competition) {
  if (competition.mode != CompetitionMode::penalty) return;
  const bool in_range = key_of(competition.lambda) >= 0 &&
                        competition.lambda <= static_cast<double>((std::numeric_limits<A>::max)());
  checks.need(in_range && key_of(competition.lambda) < Order<double>::infinity,
              "lambda finite and >= 0", {{"lambda", competition.lambda}});
}

/// The settings joined with the rivals. `rivals` must cover all experts if the competition acts.
template <class A>
ActiveCompetition<A> checked_competition(const Checks& checks, const Competition& competition,
                                         const RivalTable& rivals, Index num_experts) {
  check_competition<A>(checks, competition);
  ActiveCompetition<A> result;
  if (!competition.active()) return result;
  checks.need(rivals.num_experts() == num_experts,
              "partners of all experts before competition: refresh or set_partners first",
              {{"experts with partners", rivals.num_experts()}, {"num_experts", num_experts}});
  result.active = true;
  result.eliminate = competition.mode == CompetitionMode::eliminate;
  result.ties_lose = competition.ties == TieRule::higher_id_loses;
  result.lambda = static_cast<A>(competition.lambda);
  result.rivals = rivals.view();
  return result;
}

/// The keys by which experts rank: the logits' own where nobody competes, else group.ranked_EL.
template <class A>
const typename Order<A>::Key* compete(const RoutingGroup<A>& group, Index experts,
                                      const ActiveCompetition<A>& competition) {
  if (!competition.active) return group.keys_EL;
  kernels<A>().compete(group.keys_EL, experts, competition, group.ranked_EL);
  return group.ranked_EL;
}

/// The same with every loser's key Order::loser, also where its penalty vanishes in rounding.
template <class A>
const typename Order<A>::Key* eliminate(const RoutingGroup<A>& group, Index experts,
                                        const ActiveCompetition<A>& competition) {
  ActiveCompetition<A> marking = competition;
  marking.eliminate = true;
  return compete(group, experts, marking);
}

/// lost_TK = 1 where the expert that a token selected has lost, else 0.
template <class A>
void mark_losers(const RoutingGroup<A>& group, const ActiveCompetition<A>& competition,
                 const StridedView<std::uint8_t>& lost_TK) {
  if (competition.active) {
    kernels<A>().mark_losers(group.keys_EL, group.ids_KL, lost_TK.cols, competition.rivals,
                             competition.ties_lose, lost_TK.rows, lost_TK.data, lost_TK.row_stride,
                             lost_TK.col_stride);
    return;
  }
  for (Index t = 0; t < lost_TK.rows; ++t) {
    for (Index j = 0; j < lost_TK.cols; ++j) lost_TK(t, j) = 0;
  }
}

/// A loser's ranked key.
template <class A>
typename Order<A>::Key lowered_key(typename Order<A>::Key key,
                                   const ActiveCompetition<A>& competition) {
  if (key == Order<A>::nan) return key;
  if (competition.eliminate) return Order<A>::loser;
  return key_of(value_of<A>(key) - competition.lambda);
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_ACTIVE_COMPETITION_HPP
