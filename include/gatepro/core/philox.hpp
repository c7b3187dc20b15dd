// SPDX-License-Identifier: MIT
// Philox4x32-10: random bits as a function of a counter and a key, without state (J. K. Salmon,
// M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011).
#ifndef GATEPRO_CORE_PHILOX_HPP
#define GATEPRO_CORE_PHILOX_HPP

#include <cstdint>

#include "gatepro/core/config.hpp"

namespace gatepro {
namespace detail {

/// Four words: a counter, or the random bits that it gives.
struct PhiloxBlock {
  std::uint32_t word[4];
};

inline namespace GATEPRO_ABI {

/// One round: two products of 32 by 32 bits, whose halves change places.
inline PhiloxBlock philox_round(const PhiloxBlock& in, std::uint32_t key0, std::uint32_t key1) {
  const std::uint64_t a = std::uint64_t{0xD2511F53} * in.word[0];
  const std::uint64_t b = std::uint64_t{0xCD9E8D57} * in.word[2];
  const auto high = [](std::uint64_t product) { return static_cast<std::uint32_t>(product >> 32); };
  const auto low = [](std::uint64_t product) { return static_cast<std::uint32_t>(product); };
  return {{high(b) ^ in.word[1] ^ key0, low(b), high(a) ^ in.word[3] ^ key1, low(a)}};
}

/// Ten rounds, each with a key of its own. `key`: the low word is the first.
inline PhiloxBlock philox4x32(PhiloxBlock block, std::uint64_t key) {
  auto key0 = static_cast<std::uint32_t>(key);
  auto key1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    block = philox_round(block, key0, key1);
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return block;
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_CORE_PHILOX_HPP
