// SPDX-License-Identifier: MIT
// Counts what the penalty did to a group, against the same tokens unpenalised.
#ifndef GATEPRO_ROUTING_OBSERVE_PENALTY_HPP
#define GATEPRO_ROUTING_OBSERVE_PENALTY_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/routing/active_competition.hpp"
#include "gatepro/routing/penalty_statistics.hpp"

namespace gatepro {
namespace detail {

/// The most similar partner of each expert, or nothing if there are no partners.
using FirstPartners = StridedView<const std::int32_t>;

inline namespace GATEPRO_ABI {

/// Counts losers, ties and lost penalties of one token; losers are those of eliminate().
template <class A>
void count_penalties(const RoutingGroup<A>& group, Index lane, Index experts,
                     const ActiveCompetition<A>& competition, PenaltyStatistics& counts) {
  using O = Order<A>;
  const Index lanes = kernels<A>().lanes;
  const auto key = [&](Index e) { return group.keys_EL[e * lanes + lane]; };
  for (Index e = 0; e < experts; ++e) {
    if (key(e) == O::nan) continue;
    auto best_rival = O::lowest;
    for (auto i = competition.rivals.begin[e]; i < competition.rivals.begin[e + 1]; ++i) {
      best_rival = (std::max)(best_rival, key(competition.rivals.ids[i]));
    }
    counts.tied_pairs += key(e) == best_rival ? 1 : 0;
    if (group.ranked_EL[e * lanes + lane] != O::loser) continue;
    ++counts.penalised_pairs;
    const bool vanished = !competition.eliminate && lowered_key(key(e), competition) == key(e);
    counts.penalties_lost_in_rounding += vanished ? 1 : 0;
  }
}

/// Marks the selection of one token in selected_E, and counts its pairs of partners.
template <class A>
void count_partners(const typename Order<A>::Key* ids_KL, Index lane, Index top_k,
                    const FirstPartners& partners, std::uint8_t* selected_E,
                    std::int64_t& partnered, std::int64_t& coactivated) {
  const Index lanes = kernels<A>().lanes;
  for (Index j = 0; j < top_k; ++j) selected_E[ids_KL[j * lanes + lane]] = 1;
  if (!partners.given()) return;
  for (Index j = 0; j < top_k; ++j) {
    const Index id = static_cast<Index>(ids_KL[j * lanes + lane]);
    const Index partner = partners(id, 0);
    if (partner == id) continue;
    ++partnered;
    coactivated += selected_E[partner];
  }
}

/// Compares the selection of one token with the unpenalised one in group.other_ids_KL. selected_E
/// is all zero before and after.
template <class A>
void compare_selections(const RoutingGroup<A>& group, Index lane, Index top_k,
                        const FirstPartners& partners, std::uint8_t* selected_E,
                        PenaltyStatistics& counts) {
  const Index lanes = kernels<A>().lanes;
  count_partners<A>(group.ids_KL, lane, top_k, partners, selected_E, counts.partnered_selections,
                    counts.coactivations);
  bool changed = false;
  for (Index i = lane; i < top_k * lanes; i += lanes) {
    changed = changed || selected_E[group.other_ids_KL[i]] == 0;
  }
  counts.tokens_changed += changed ? 1 : 0;
  for (Index i = lane; i < top_k * lanes; i += lanes) selected_E[group.ids_KL[i]] = 0;
  count_partners<A>(group.other_ids_KL, lane, top_k, partners, selected_E,
                    counts.unpenalised_partnered_selections, counts.unpenalised_coactivations);
  for (Index i = lane; i < top_k * lanes; i += lanes) selected_E[group.other_ids_KL[i]] = 0;
}

/// Adds the tokens of a routed group that `counts_token(lane)` names to `counts`, but for the
/// tokens short of survivors, which the report counts. group.other_ids_KL: the unpenalised
/// selection. Overwrites ranked_EL.
template <class A, class CountsToken>
void observe_group(const RoutingGroup<A>& group, Index tokens, Index experts, Index top_k,
                   const ActiveCompetition<A>& competition, const FirstPartners& partners,
                   std::uint8_t* selected_E, PenaltyStatistics& counts,
                   const CountsToken& counts_token) {
  eliminate(group, experts, competition);
  for (Index lane = 0; lane < tokens; ++lane) {
    if (!counts_token(lane)) continue;
    ++counts.tokens;
    if (competition.active) count_penalties(group, lane, experts, competition, counts);
    compare_selections(group, lane, top_k, partners, selected_E, counts);
  }
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_OBSERVE_PENALTY_HPP
