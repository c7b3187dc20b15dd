// SPDX-License-Identifier: MIT
// Experts by the id of a token: tables, how they are made, and the ids that they give.
#include <gatepro/setup.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/bits.hpp"
#include "support/errors.hpp"
#include "support/ids.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::HashTable;
using gatepro::Index;
using gatepro::RowMatrix;
using Ids = RowMatrix<std::int32_t>;
using Counts = std::vector<std::int64_t>;

HashTable table_of(Index experts, const Ids& ids_VK) { return HashTable(experts, ids_VK); }

Ids ids_of(const HashTable& table) { return data::copy<std::int32_t>(table.expert_ids()); }

/// How often experts are used, if token v occurs counts[v] times.
Counts loads(const HashTable& table, const Counts& counts) {
  Counts loads_E(static_cast<std::size_t>(table.num_experts()));
  for (Index v = 0; v < table.vocabulary(); ++v) {
    for (Index j = 0; j < table.top_k(); ++j) {
      loads_E[static_cast<std::size_t>(table.expert_ids()(v, j))] +=
          counts[static_cast<std::size_t>(v)];
    }
  }
  return loads_E;
}

TEST(HashTable, HoldsWhatItWasGiven) {
  RowMatrix<std::int32_t> ids_VK(3, 2);
  ids_VK << 4, 0, -1, 3, -1, -1;
  const HashTable table(5, ids_VK);
  EXPECT_EQ(table.vocabulary(), 3);
  EXPECT_EQ(table.num_experts(), 5);
  EXPECT_EQ(table.top_k(), 2);
  EXPECT_EQ(ids_of(table), ids_VK);
  const Eigen::Matrix<std::int32_t, 3, 2, Eigen::ColMajor> planes = ids_VK;
  EXPECT_EQ(ids_of(HashTable(5, planes)), ids_VK);
  EXPECT_EQ(table_of(5, Ids(0, 2)).vocabulary(), 0);
}

TEST(HashTable, BadIdsAreRefused) {
  Ids ids_VK = Ids::Zero(3, 1);
  ids_VK(2, 0) = 5;
  expect_error([&] { table_of(5, ids_VK); }, {"HashTable", "expert_ids_VK", "id=5", "row=2"});
  ids_VK(2, 0) = -2;
  expect_error([&] { table_of(5, ids_VK); }, {"expert_ids_VK", "-2"});
  expect_error([&] { table_of(5, Ids::Zero(3, 2)); }, {"distinct"});
  expect_error([&] { table_of(1, Ids::Zero(3, 2)); }, {"top_k"});
  expect_error([&] { table_of(5, Ids(3, 0)); }, {"top_k"});
  expect_error([&] { table_of(0, ids_VK); }, {"num_experts"});
}

TEST(RandomHashTable, SpreadsTokensEvenlyOverPlacesAndExperts) {
  constexpr Index vocabulary = 2000;
  for (Index experts : {1, 2, 8, 60}) {
    for (Index top_k : {Index{1}, (experts + 1) / 2, experts}) {
      const HashTable table = gatepro::random_hash_table(vocabulary, experts, top_k, 3);
      const Ids ids_VK = ids_of(table);
      EXPECT_TRUE(data::valid_ids(ids_VK, experts));
      const double mean = static_cast<double>(vocabulary) / static_cast<double>(experts);
      for (Index j = 0; j < top_k; ++j) {
        for (Index e = 0; e < experts; ++e) {
          const auto id = static_cast<std::int32_t>(e);
          const auto count = static_cast<double>((ids_VK.col(j).array() == id).count());
          ASSERT_NEAR(count, mean, 5 * std::sqrt(mean)) << experts << " " << j;
        }
      }
    }
  }
}

TEST(RandomHashTable, IsAFunctionOfTheSeed) {
  const Ids ids_VK = ids_of(gatepro::random_hash_table(50, 16, 4, 1));
  EXPECT_EQ(ids_of(gatepro::random_hash_table(50, 16, 4, 1)), ids_VK);
  EXPECT_EQ(ids_of(gatepro::random_hash_table(90, 16, 4, 1)).topRows(50), ids_VK);
  EXPECT_NE(ids_of(gatepro::random_hash_table(50, 16, 4, 2)), ids_VK);
  Ids want(2, 4);
  want << 6, 8, 10, 9, 10, 13, 3, 8;
  EXPECT_EQ(ids_VK.topRows(2), want);
}

// As words of a language: the token of rank r occurs about 1 / r as often as the first.
TEST(BalancedHashTable, LevelsTheLoadOfTheSample) {
  constexpr Index vocabulary = 3000, experts = 16;
  Counts counts(vocabulary);
  for (Index v = 0; v < vocabulary; ++v) {
    counts[static_cast<std::size_t>(v)] = v % 7 == 0 ? 0 : 1000000 / (10 + (v * 1237) % vocabulary);
  }
  const auto imbalance = [&](const HashTable& table) {
    const Counts loads_E = loads(table, counts);
    const auto [least, most] = std::minmax_element(loads_E.begin(), loads_E.end());
    return static_cast<double>(*most) / static_cast<double>(*least);
  };
  for (Index top_k : {1, 2, 5}) {
    const HashTable table = gatepro::balanced_hash_table(counts, experts, top_k, 4);
    EXPECT_TRUE(data::valid_ids(ids_of(table), experts));
    EXPECT_LT(imbalance(table), 1.001);
    EXPECT_GT(imbalance(gatepro::random_hash_table(vocabulary, experts, top_k, 4)), 1.05);
    const Ids other = ids_of(gatepro::balanced_hash_table(counts, experts, top_k, 5));
    EXPECT_NE(other, ids_of(table));
    EXPECT_EQ(ids_of(gatepro::balanced_hash_table(counts, experts, top_k, 5)), other);
  }
}

TEST(BalancedHashTable, TokensThatTheSampleLacksAreSpread) {
  const Counts none(400), ones(400, 1);
  const HashTable table = gatepro::balanced_hash_table(none, 8, 2, 1);
  EXPECT_EQ(loads(table, ones), Counts(8, 100));
}

TEST(BalancedHashTable, TheMostFrequentTokensComeFirst) {
  const Counts counts{5, 100, 60, 50};
  const Ids ids_V1 = ids_of(gatepro::balanced_hash_table(counts, 2, 1, 1));
  EXPECT_NE(ids_V1(1, 0), ids_V1(2, 0));
  EXPECT_EQ(ids_V1(2, 0), ids_V1(3, 0));  // 61 + 51 against 101
  EXPECT_EQ(ids_V1(0, 0), ids_V1(1, 0));
}

TEST(HashTables, BadSizesAreRefused) {
  expect_error([] { gatepro::random_hash_table(-1, 4, 1, 0); }, {"vocabulary"});
  expect_error([] { gatepro::random_hash_table(4, 4, 5, 0); }, {"random_hash_table", "top_k"});
  expect_error([] { gatepro::random_hash_table(4, 0, 1, 0); }, {"num_experts"});
  const Counts negative{1, -1};
  expect_error([&] { gatepro::balanced_hash_table(negative, 4, 1, 0); },
               {"balanced_hash_table", "token_counts_V", "-1"});
  const Counts many{(std::numeric_limits<std::int64_t>::max)(), 1};
  expect_error([&] { gatepro::balanced_hash_table(many, 4, 1, 0); }, {"sum within int64"});
}

template <class Id>
class HashIdsTest : public ::testing::Test {};
using IdTypes = ::testing::Types<std::int32_t, std::int64_t, std::uint64_t>;
TYPED_TEST_SUITE(HashIdsTest, IdTypes, TypeNames);

TYPED_TEST(HashIdsTest, AreTheRowsOfTheTable) {
  using Id = TypeParam;
  Ids ids_VK = ids_of(gatepro::random_hash_table(20, 9, 3, 1));
  ids_VK(4, 1) = -1;
  const HashTable table(9, ids_VK);
  const Counts token_ids_T{4, 19, -7, 0, 4};
  const std::vector<std::uint8_t> padding{0, 0, 1, 0, 0};
  Eigen::Matrix<Id, Eigen::Dynamic, Eigen::Dynamic> planes(5, 3);
  gatepro::hash_ids(table, token_ids_T, padding, gatepro::strided_view(planes));
  for (Index t = 0; t < 5; ++t) {
    for (Index j = 0; j < 3; ++j) {
      const auto at = static_cast<std::size_t>(t);
      const std::int32_t want = t == 2 ? -1 : ids_VK(token_ids_T[at], j);
      EXPECT_EQ(planes(t, j), static_cast<Id>(want));
    }
  }
}

TEST(HashIds, BadInputIsRefused) {
  const HashTable table = gatepro::random_hash_table(20, 9, 3, 1);
  Counts token_ids_T{0, 20};
  Ids ids_TK = Ids::Constant(2, 3, 77);
  const auto call = [&] {
    gatepro::hash_ids(table, token_ids_T, {}, gatepro::strided_view(ids_TK));
  };
  expect_error(call, {"hash_ids", "token_ids_T", "id=20", "token=1", "vocabulary=20"});
  token_ids_T[1] = -1;
  expect_error(call, {"token_ids_T", "id=-1"});
  token_ids_T = {0};
  expect_error(call, {"token_ids_T", "size"});
  EXPECT_EQ(ids_TK, Ids::Constant(2, 3, 77));
  ids_TK.resize(1, 2);
  expect_error(call, {"expert_ids_TK"});
  expect_error(
      [&] {
        gatepro::hash_ids(table, token_ids_T, {},
                          gatepro::StridedView<std::int64_t>(token_ids_T.data(), 1, 3, 3, 1));
      },
      {"expert_ids_TK", "token_ids_T"});
}

}  // namespace
