// SPDX-License-Identifier: MIT
// Packed sequences: their borders, and which of their tokens are padding.
#ifndef GATEPRO_CORE_SEQUENCES_HPP
#define GATEPRO_CORE_SEQUENCES_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/core/checks.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// The tokens of [first, end) that are not padding.
inline std::int64_t count_valid(const VectorView<const std::uint8_t>& is_padding_T, Index first,
                                Index end) {
  if (!is_padding_T.given()) return end - first;
  return std::count(is_padding_T.data + first, is_padding_T.data + end, std::uint8_t{0});
}

/// Ascending borders from 0 to T.
inline void check_sequences(const Checks& checks, const VectorView<const std::int64_t>& begin_S1,
                            Index tokens) {
  checks.need(begin_S1.size >= 1, "sequence_begin_S1 with a border per sequence, and the end",
              {{"size", begin_S1.size}});
  checks.vector("sequence_begin_S1", begin_S1, begin_S1.size);
  checks.need(begin_S1[0] == 0 && begin_S1[begin_S1.size - 1] == tokens,
              "sequence_begin_S1 from 0 to the number of tokens",
              {{"first", begin_S1[0]}, {"last", begin_S1[begin_S1.size - 1]}, {"tokens", tokens}});
  for (Index s = 1; s < begin_S1.size; ++s) {
    checks.need(begin_S1[s - 1] <= begin_S1[s], "sequence_begin_S1 that never falls",
                {{"position", s}, {"before", begin_S1[s - 1]}, {"here", begin_S1[s]}});
  }
}

/// The tokens of sequence s that are not padding.
inline std::int64_t valid_in_sequence(const VectorView<const std::uint8_t>& is_padding_T,
                                      const VectorView<const std::int64_t>& begin_S1, Index s) {
  return count_valid(is_padding_T, static_cast<Index>(begin_S1[s]),
                     static_cast<Index>(begin_S1[s + 1]));
}

/// The number of sequences with a token that is not padding.
inline std::int64_t count_sequences(const VectorView<const std::uint8_t>& is_padding_T,
                                    const VectorView<const std::int64_t>& begin_S1) {
  std::int64_t sequences = 0;
  for (Index s = 0; s + 1 < begin_S1.size; ++s) {
    sequences += valid_in_sequence(is_padding_T, begin_S1, s) != 0 ? 1 : 0;
  }
  return sequences;
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_CORE_SEQUENCES_HPP
