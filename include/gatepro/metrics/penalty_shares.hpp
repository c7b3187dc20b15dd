// SPDX-License-Identifier: MIT
// What the penalty did, as shares, of one rank or of all.
#ifndef GATEPRO_METRICS_PENALTY_SHARES_HPP
#define GATEPRO_METRICS_PENALTY_SHARES_HPP

#include <cstdint>

#include "gatepro/metrics/tally.hpp"
#include "gatepro/routing/penalty_statistics.hpp"

namespace gatepro {

/// PenaltyStatistics as shares; 0 of nothing.
struct PenaltyShares {
  double penalised = 0;  ///< Of all (token, expert) pairs: those that lose. 1/2 for m = 1.
  double tied = 0;       ///< Of all (token, expert) pairs: those that equal their best rival.
  double lost_in_rounding = 0;    ///< Of the penalties: those that leave the logit as it is.
  double changed = 0;             ///< Of the tokens: those whose selected set changed.
  double short_of_survivors = 0;  ///< Of the tokens: those that had to select a loser.
  double coactivated = 0;         ///< P(j*(i) selected | i selected); chance is (K - 1) / (E - 1).
  double unpenalised_coactivated = 0;  ///< The same, had nobody been penalised.
};

inline namespace GATEPRO_ABI {

/// The shares of some counts over E experts. Throws Error for E < 1. Cost: none to speak of.
inline PenaltyShares penalty_shares(const PenaltyStatistics& statistics, Index num_experts) {
  const auto experts = static_cast<double>(detail::checked_experts("penalty_shares", num_experts));
  const double pairs = static_cast<double>(statistics.tokens) * experts;
  PenaltyShares shares;
  shares.penalised = detail::share_of(static_cast<double>(statistics.penalised_pairs), pairs);
  shares.tied = detail::share_of(static_cast<double>(statistics.tied_pairs), pairs);
  shares.lost_in_rounding =
      detail::share_of(statistics.penalties_lost_in_rounding, statistics.penalised_pairs);
  shares.changed = statistics.changed_rate();
  shares.short_of_survivors =
      detail::share_of(statistics.tokens_short_of_survivors, statistics.tokens);
  shares.coactivated = statistics.coactivation_rate();
  shares.unpenalised_coactivated = statistics.unpenalised_coactivation_rate();
  return shares;
}

/// The sums of `statistics` over all ranks; see NoReduce. Throws Error for a hook that leaves a
/// negative count behind, and what it throws. No allocation.
template <class Reduce>
PenaltyStatistics all_reduced(const PenaltyStatistics& statistics, const Reduce& reduce) {
  detail::check_reduce<Reduce>();
  PenaltyStatistics sums = statistics;
  std::int64_t* const members[] = {&sums.tokens,
                                   &sums.penalised_pairs,
                                   &sums.penalties_lost_in_rounding,
                                   &sums.tied_pairs,
                                   &sums.tokens_changed,
                                   &sums.tokens_short_of_survivors,
                                   &sums.partnered_selections,
                                   &sums.coactivations,
                                   &sums.unpenalised_partnered_selections,
                                   &sums.unpenalised_coactivations};
  constexpr Index size = sizeof members / sizeof members[0];
  static_assert(sizeof(PenaltyStatistics) == size * sizeof(std::int64_t), "all members");
  std::int64_t counts[size];
  for (Index i = 0; i < size; ++i) counts[i] = *members[i];
  reduce(counts, size);
  detail::check_counts("all_reduced", "counts from the reduce hook", {counts, size}, size);
  for (Index i = 0; i < size; ++i) *members[i] = counts[i];
  return sums;
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_METRICS_PENALTY_SHARES_HPP
