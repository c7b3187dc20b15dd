// SPDX-License-Identifier: MIT
// Tables for hash routing, as Hash Layers (Roller et al. 2021, arXiv 2106.04426) makes them.
#ifndef GATEPRO_ROUTING_HASH_TABLES_HPP
#define GATEPRO_ROUTING_HASH_TABLES_HPP

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <queue>
#include <tuple>
#include <vector>

#include "gatepro/gate/noise.hpp"
#include "gatepro/routing/hash_routing.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// Random words: number `at` of row `row`.
class HashBits {
 public:
  explicit HashBits(std::uint64_t seed) : key_(stream_key({seed, 0, 0}, NoiseUse::hashes)) {}

  std::uint32_t operator()(Index row, Index at) const {
    return noise_bits(key_, row, at / 4).word[at % 4];
  }

 private:
  std::uint64_t key_;
};

/// Memory for a table, on checked settings.
inline std::vector<std::int32_t> hash_ids_of(const Checks& checks, Index vocabulary,
                                             Index num_experts, Index top_k) {
  checks.num_experts(num_experts);
  checks.top_k(top_k, num_experts);
  checks.need(vocabulary >= 0, "vocabulary >= 0", {{"vocabulary", vocabulary}});
  return std::vector<std::int32_t>(static_cast<std::size_t>(
      checks.product("V * K within the address space", vocabulary, top_k)));
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// A table of random experts, K different ones for each of V tokens: the random hash.
///
/// The ids are a function of the seed, the token, E and j, the same on all machines. Give each
/// layer a seed. Throws Error for sizes. Allocates.
inline HashTable random_hash_table(Index vocabulary, Index num_experts, Index top_k,
                                   std::uint64_t seed) {
  auto ids = detail::hash_ids_of("random_hash_table", vocabulary, num_experts, top_k);
  const detail::HashBits bits(seed);
  const auto experts = static_cast<std::uint64_t>(num_experts);
  for (Index v = 0; v < vocabulary; ++v) {
    std::int32_t* row = ids.data() + v * top_k;
    Index drawn = 0;
    for (Index j = 0; j < top_k; ++drawn) {
      row[j] = static_cast<std::int32_t>((bits(v, drawn) * experts) >> 32);
      if (std::find(row, row + j, row[j]) == row + j) ++j;
    }
  }
  return HashTable(num_experts, {ids.data(), vocabulary, top_k});
}

/// A table that balances the load of tokens with these frequencies: the most frequent token that is
/// left takes the K experts with the least load so far.
///
/// token_counts_V: how often each token occurs in a sample, >= 0. Each counts once more, so that
/// tokens which the sample lacks are spread, too. The seed decides among equals, the same way on
/// all machines; give each layer one. Throws Error for sizes and counts. Allocates. Cost: V log V +
/// V K log E.
inline HashTable balanced_hash_table(VectorView<const std::int64_t> token_counts_V,
                                     Index num_experts, Index top_k, std::uint64_t seed) {
  const detail::Checks checks("balanced_hash_table");
  const Index vocabulary = token_counts_V.size;
  checks.vector("token_counts_V", token_counts_V, vocabulary);
  auto ids = detail::hash_ids_of(checks, vocabulary, num_experts, top_k);
  std::int64_t left = (std::numeric_limits<std::int64_t>::max)();
  for (Index v = 0; v < vocabulary; ++v) {
    const std::int64_t count = token_counts_V[v];
    checks.need(count >= 0 && count < left, "token_counts_V >= 0, with a sum within int64",
                {{"count", count}, {"token", v}});
    left -= count + 1;
  }

  const detail::HashBits bits(seed);
  std::vector<Index> order_V(static_cast<std::size_t>(vocabulary));
  std::iota(order_V.begin(), order_V.end(), Index{0});
  const auto rank = [&](Index v) {
    return std::tuple(-token_counts_V[v], bits(v, 0), v);  // the largest count first
  };
  std::sort(order_V.begin(), order_V.end(), [&](Index a, Index b) { return rank(a) < rank(b); });

  using Load = std::tuple<std::int64_t, std::uint32_t, Index>;  // with what decides among equals
  std::priority_queue<Load, std::vector<Load>, std::greater<Load>> emptiest;
  for (Index e = 0; e < num_experts; ++e) emptiest.emplace(0, bits(e, 1), e);
  std::vector<Load> taken(static_cast<std::size_t>(top_k));
  for (const Index v : order_V) {
    std::int32_t* id = ids.data() + v * top_k;
    for (Load& load : taken) {
      load = emptiest.top();
      emptiest.pop();
      *id++ = static_cast<std::int32_t>(std::get<2>(load));
    }
    for (Load& load : taken) {
      std::get<0>(load) += token_counts_V[v] + 1;
      emptiest.push(load);
    }
  }
  return HashTable(num_experts, {ids.data(), vocabulary, top_k});
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_HASH_TABLES_HPP
