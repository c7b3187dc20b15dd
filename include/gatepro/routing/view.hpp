// SPDX-License-Identifier: MIT
// Where a routing writes, and what it tells about its tokens.
#ifndef GATEPRO_ROUTING_VIEW_HPP
#define GATEPRO_ROUTING_VIEW_HPP

#include <cstdint>

#include "gatepro/core/views.hpp"
#include "gatepro/routing/penalty_statistics.hpp"

namespace gatepro {

/// Where a routing of T tokens writes. `A` is the type of logits and weights, `Id` that of expert
/// ids. The first two are required; the others are written only if given.
template <class A, class Id = std::int32_t>
struct RoutingView {
  /// T x K: the selected experts, best first unless ChoiceRule::order says otherwise; distinct, in
  /// [0, E). Any strides.
  StridedView<Id> expert_ids_TK;
  /// T x K: their weights, in the same order; 0 for padding. Any strides.
  StridedView<A> weights_TK;
  /// E: tokens routed to each expert, without padding.
  VectorView<std::int64_t> tokens_per_expert_E{};
  /// T x E: the original, unpenalised logits. A routing of given logits does not write them.
  MatrixView<A> logits_TE{};
  /// T x K: scores of the selected, before renormalisation and scale. Any strides.
  StridedView<A> scores_TK{};
  /// T x K: 1 where the selected expert had lost its competition, else 0. Any strides.
  StridedView<std::uint8_t> penalised_TK{};
  /// What the penalty did. Costs a second selection; null for none.
  PenaltyStatistics* statistics = nullptr;
  /// T x K: what the selected were chosen by, which never rises from one to the next: score plus
  /// bias, or with softmax_after_top_k the penalised logit plus bias; -inf for losers of
  /// elimination, and where the router made no choice: it needed fewer, or they are replayed,
  /// forced in turn or hashed. Of route_logits and CompleteRouter, best first. Any strides.
  StridedView<A> choice_values_TK{};
};

/// What a routing tells about its tokens. Padding needs no attention.
struct RoutingReport {
  /// Their weights are quiet NaNs: a NaN or +inf was selected, or all selected logits are -inf.
  /// Their ids are still distinct and in range.
  Index nonfinite_rows = 0;
  Index tokens_short_of_survivors = 0;  ///< Elimination: fewer than K survivors; losers filled in.
  Index tokens = 0;                     ///< T.
  /// (token, choice) pairs that were made: over the tokens, their mean is the k in use.
  std::int64_t choices = 0;

  /// Adds the counts of other tokens.
  GATEPRO_ALWAYS_INLINE RoutingReport& operator+=(const RoutingReport& other) {
    tokens += other.tokens;
    choices += other.choices;
    nonfinite_rows += other.nonfinite_rows;
    tokens_short_of_survivors += other.tokens_short_of_survivors;
    return *this;
  }
};

}  // namespace gatepro

#endif  // GATEPRO_ROUTING_VIEW_HPP
