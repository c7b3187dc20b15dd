// SPDX-License-Identifier: MIT
// Ids of experts: random choices and partners, and what must hold for all.
#ifndef GATEPRO_TESTS_SUPPORT_IDS_HPP
#define GATEPRO_TESTS_SUPPORT_IDS_HPP

#include <gtest/gtest.h>

#include <cstdint>
#include <gatepro/core/views.hpp>
#include <utility>
#include <vector>

#include "support/inputs.hpp"

namespace data {

/// K distinct ids in [0, E) for each of T tokens, in random order.
template <class Id>
RowMatrix<Id> random_ids(Index tokens, Index experts, Index top_k, std::uint64_t seed) {
  RowMatrix<Id> ids(tokens, top_k);
  std::vector<Id> all(static_cast<std::size_t>(experts));
  for (Index t = 0; t < tokens; ++t) {
    for (Index e = 0; e < experts; ++e) all[static_cast<std::size_t>(e)] = static_cast<Id>(e);
    for (Index j = 0; j < top_k; ++j) {
      const auto counter = static_cast<std::uint64_t>(t * top_k + j);
      const Index other = j + random_below(experts - j, seed, counter);
      std::swap(all[static_cast<std::size_t>(j)], all[static_cast<std::size_t>(other)]);
      ids(t, j) = all[static_cast<std::size_t>(j)];
    }
  }
  return ids;
}

/// M partners of each expert, "none" among them.
inline RowMatrix<std::int32_t> random_partners(Index experts, Index m, std::uint64_t seed) {
  RowMatrix<std::int32_t> partners_EM(experts, m);
  for (Index i = 0; i < experts * m; ++i) {
    const auto counter = static_cast<std::uint64_t>(i);
    partners_EM.data()[i] = static_cast<std::int32_t>(random_below(experts, seed, counter));
  }
  return partners_EM;
}

/// Distinct ids in [0, E), which holds for any bits in any input.
template <class Id>
testing::AssertionResult valid_ids(const RowMatrix<Id>& ids_TK, Index experts) {
  for (Index t = 0; t < ids_TK.rows(); ++t) {
    std::vector<bool> seen(static_cast<std::size_t>(experts), false);
    for (Index j = 0; j < ids_TK.cols(); ++j) {
      const auto id = static_cast<std::uint64_t>(ids_TK(t, j));
      if (id >= static_cast<std::uint64_t>(experts)) {
        return testing::AssertionFailure() << "id " << id << " of token " << t;
      }
      if (seen[id]) return testing::AssertionFailure() << "id " << id << " twice in token " << t;
      seen[id] = true;
    }
  }
  return testing::AssertionSuccess();
}

}  // namespace data

#endif  // GATEPRO_TESTS_SUPPORT_IDS_HPP
