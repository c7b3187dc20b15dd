// SPDX-License-Identifier: MIT
// What the penalty did: counted on request, against the same tokens unpenalised.
#ifndef GATEPRO_ROUTING_PENALTY_STATISTICS_HPP
#define GATEPRO_ROUTING_PENALTY_STATISTICS_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/routing/routing_group.hpp"

namespace gatepro {

/// Counts over the tokens of one or more forwards. All integers: sums do not depend on the order.
struct PenaltyStatistics {
  std::int64_t tokens = 0;           ///< Tokens routed.
  std::int64_t penalised_pairs = 0;  ///< (token, expert) pairs in which the expert lost.
  /// Of these, pairs whose logit minus lambda rounds to the logit: the penalty does nothing.
  std::int64_t penalties_lost_in_rounding = 0;
  /// (token, expert) pairs in which the expert's logit equals the largest of its rivals', whatever
  /// Competition::ties makes of it. Two experts that name each other, as exact copies do, are two.
  std::int64_t tied_pairs = 0;
  std::int64_t tokens_changed = 0;  ///< Tokens whose selected set differs from the unpenalised one.
  std::int64_t tokens_short_of_survivors = 0;  ///< Elimination: a loser had to fill a slot.
  std::int64_t partnered_selections = 0;       ///< Selections of an expert i that has a partner.
  std::int64_t coactivations = 0;  ///< Of these, with j*(i) selected for the same token.
  std::int64_t unpenalised_partnered_selections = 0;  ///< The same, had nobody been penalised.
  std::int64_t unpenalised_coactivations = 0;         ///< The same, had nobody been penalised.

  /// P(j*(i) selected | i selected); 0 without selections. Chance is (K - 1) / (E - 1).
  GATEPRO_ALWAYS_INLINE double coactivation_rate() const {
    return ratio(coactivations, partnered_selections);
  }
  /// The same, had nobody been penalised.
  GATEPRO_ALWAYS_INLINE double unpenalised_coactivation_rate() const {
    return ratio(unpenalised_coactivations, unpenalised_partnered_selections);
  }
  /// Share of the tokens whose selected set changed.
  GATEPRO_ALWAYS_INLINE double changed_rate() const { return ratio(tokens_changed, tokens); }

  /// Adds the counts of other tokens.
  GATEPRO_ALWAYS_INLINE PenaltyStatistics& operator+=(const PenaltyStatistics& other) {
    tokens += other.tokens;
    penalised_pairs += other.penalised_pairs;
    tied_pairs += other.tied_pairs;
    penalties_lost_in_rounding += other.penalties_lost_in_rounding;
    tokens_changed += other.tokens_changed;
    tokens_short_of_survivors += other.tokens_short_of_survivors;
    partnered_selections += other.partnered_selections;
    coactivations += other.coactivations;
    unpenalised_partnered_selections += other.unpenalised_partnered_selections;
    unpenalised_coactivations += other.unpenalised_coactivations;
    return *this;
  }

 private:
  GATEPRO_ALWAYS_INLINE static double ratio(std::int64_t part, std::int64_t whole) {
    return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
  }
};

namespace detail {
inline namespace GATEPRO_ABI {

/// The most similar partner of each expert, or nothing if there are no partners.
using FirstPartners = StridedView<const std::int32_t>;

/// Counts losers, ties and lost penalties of one token.
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
    if (!has_lost<A>(group.keys_EL + lane, lanes, e, competition)) continue;
    ++counts.penalised_pairs;
    const A logit = value_of<A>(key(e));
    const bool lost = !competition.eliminate && key_of<A>(logit - competition.lambda) == key(e);
    counts.penalties_lost_in_rounding += lost ? 1 : 0;
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

/// Adds a routed group to `counts`, but for the tokens short of survivors, which the report counts.
/// Selects once more without penalty, into group.other_*.
/// selected_E is all zero before and after.
template <class A>
void observe_group(const RoutingGroup<A>& group, Index tokens, Index experts, Index top_k,
                   const ActiveCompetition<A>& competition, const FirstPartners& partners,
                   std::uint8_t* selected_E, PenaltyStatistics& counts) {
  const Index lanes = kernels<A>().lanes;
  kernels<A>().top_k(group.keys_EL, experts, top_k, group.other_keys_KL, group.other_ids_KL);
  counts.tokens += tokens;
  for (Index lane = 0; lane < tokens; ++lane) {
    if (competition.active) count_penalties(group, lane, experts, competition, counts);
    count_partners<A>(group.top_ids_KL, lane, top_k, partners, selected_E,
                      counts.partnered_selections, counts.coactivations);
    bool changed = false;
    for (Index i = lane; i < top_k * lanes; i += lanes) {
      changed = changed || selected_E[group.other_ids_KL[i]] == 0;
    }
    counts.tokens_changed += changed ? 1 : 0;
    for (Index i = lane; i < top_k * lanes; i += lanes) selected_E[group.top_ids_KL[i]] = 0;
    count_partners<A>(group.other_ids_KL, lane, top_k, partners, selected_E,
                      counts.unpenalised_partnered_selections, counts.unpenalised_coactivations);
    for (Index i = lane; i < top_k * lanes; i += lanes) selected_E[group.other_ids_KL[i]] = 0;
  }
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_PENALTY_STATISTICS_HPP
