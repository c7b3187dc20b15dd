// SPDX-License-Identifier: MIT
// A routing that was made once and can be made again, choice by choice.
#ifndef GATEPRO_ROUTING_ROUTING_RECORD_HPP
#define GATEPRO_ROUTING_ROUTING_RECORD_HPP

#include <cstdint>
#include <optional>
#include <vector>

#include "gatepro/routing/rules.hpp"

namespace gatepro {

/// What a forward decided and drew, so that a recomputation decides and draws the same: near-ties
/// cannot flip, drops neither, noise is the same noise, and nothing is counted twice.
///
/// A forward with ForwardInputs::record fills it, a forward with ForwardInputs::replay follows it.
/// It owns its memory and may be copied, stored or filled by hand (ids chosen elsewhere, such as by
/// another implementation; penalised all 0). Ids are checked when replayed: in range and distinct
/// per token, or -1 for none; those of padding may be anything. Filling allocates only where the
/// vectors grow.
template <class Id = std::int32_t>
struct RoutingRecord {
  Index tokens = 0;        ///< T.
  Index top_k = 0;         ///< K.
  Index most_choices = 0;  ///< ForwardInputs::top_k; 0 for K.
  /// T x K, row-major: the choices, as they stood; -1 behind those of a token that made fewer.
  std::vector<Id> expert_ids_TK;
  std::vector<std::uint8_t> penalised_TK;  ///< T x K: 1 where the chosen expert had lost.
  std::int64_t noise_position = 0;         ///< Where the noise of token 0 was drawn.
  /// The reduced integers that the losses used, as in CompleteRoutingView::totals. Empty if the
  /// record was filled by hand; then only Pass::recompute with losses refuses it.
  std::vector<std::int64_t> totals;
  /// T x K: 1 where the choice has a slot. Empty without `capacity`.
  std::vector<std::uint8_t> kept_TK;
  /// Slots per expert that kept_TK was decided with; both are followed where the router has a
  /// capacity. None if the record was filled by hand or without a capacity: then drops are decided
  /// anew, but Pass::recompute with a capacity refuses it.
  std::optional<Index> capacity;
  /// The rule for losers that was applied: Pass::recompute applies it again, whatever the router's
  /// has become. None if the record was filled by hand: then it is the router's.
  std::optional<Competition> competition;
  std::uint64_t partners = 0;  ///< RivalTable::fingerprint of those who competed.

  /// The choices, T x K.
  GATEPRO_ALWAYS_INLINE StridedView<const Id> expert_ids() const {
    return {expert_ids_TK.data(), tokens, top_k, top_k, 1};
  }
  /// Which of them had lost, T x K.
  GATEPRO_ALWAYS_INLINE StridedView<const std::uint8_t> penalised() const {
    return {penalised_TK.data(), tokens, top_k, top_k, 1};
  }
  /// Which of them have a slot, T x K.
  GATEPRO_ALWAYS_INLINE StridedView<const std::uint8_t> kept() const {
    return {kept_TK.data(), tokens, top_k, top_k, 1};
  }
};

}  // namespace gatepro

#endif  // GATEPRO_ROUTING_ROUTING_RECORD_HPP
