// SPDX-License-Identifier: MIT
// What the penalty did: counted on request, against the same tokens unpenalised.
#ifndef GATEPRO_ROUTING_PENALTY_STATISTICS_HPP
#define GATEPRO_ROUTING_PENALTY_STATISTICS_HPP

#include <cstdint>

#include "gatepro/core/config.hpp"

namespace gatepro {

/// Counts over the tokens of one or more forwards. All integers: sums do not depend on the order.
///
/// What is compared are sets of equal size: the K best, or the k best of a call with
/// ForwardInputs::top_k, before FewerChoices takes any away, as with a threshold or a budget the
/// penalty also moves how many are left. RoutingReport and Coactivation tell of what is left.
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

}  // namespace gatepro

#endif  // GATEPRO_ROUTING_PENALTY_STATISTICS_HPP
