// SPDX-License-Identifier: MIT
// Who is selected with whom: counts, lift over chance, the strongest pairs, and partners.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <thread>
#include <vector>

#include "support/errors.hpp"
#include "support/ids.hpp"
#include "support/memory.hpp"
#include "support/ranks.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::Choices;
using gatepro::CoactivatedPair;
using gatepro::Coactivation;
using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::StridedView;
using gatepro::VectorView;
using Ids = RowMatrix<std::int32_t>;

template <class Id>
Choices<const Id> choices_of(const RowMatrix<Id>& ids_TK) {
  return Choices<const Id>{gatepro::strided_view(ids_TK)};
}

RowMatrix<std::int64_t> matrix_of(const Coactivation& counts) {
  return data::copy<std::int64_t>(counts.counts_EE());
}

template <class Id>
class CoactivationTest : public ::testing::Test {};
using IdTypes = ::testing::Types<std::int32_t, std::int64_t, std::uint64_t>;
TYPED_TEST_SUITE(CoactivationTest, IdTypes, TypeNames);

TYPED_TEST(CoactivationTest, CountsPairsOfChoicesThatCount) {
  const Index tokens = 200, experts = 9, top_k = 4;
  RowMatrix<TypeParam> ids = data::random_ids<TypeParam>(tokens, experts, top_k, 3);
  RowMatrix<std::uint8_t> kept = RowMatrix<std::uint8_t>::Ones(tokens, top_k);
  const std::vector<std::uint8_t> mask = data::random_mask(tokens, 4);
  RowMatrix<std::int64_t> want = RowMatrix<std::int64_t>::Zero(experts, experts);
  for (Index t = 0; t < tokens; ++t) {
    ids(t, t % top_k) = t % 3 == 0 ? static_cast<TypeParam>(-1) : ids(t, t % top_k);
    kept(t, (t + 1) % top_k) = t % 5 == 0 ? 0 : 1;
    for (Index a = 0; a < top_k; ++a) {
      for (Index b = 0; b < top_k; ++b) {
        const auto counts = [&](Index j) {
          return mask[static_cast<std::size_t>(t)] == 0 && kept(t, j) != 0 &&
                 ids(t, j) != static_cast<TypeParam>(-1);
        };
        if (counts(a) && counts(b))
          ++want(static_cast<Index>(ids(t, a)), static_cast<Index>(ids(t, b)));
      }
    }
  }
  Coactivation counts(experts);
  counts.add(
      Choices<const TypeParam>{gatepro::strided_view(ids), mask, gatepro::strided_view(kept)});
  EXPECT_EQ(matrix_of(counts), want);
  EXPECT_EQ(matrix_of(counts), matrix_of(counts).transpose());
  EXPECT_EQ(counts.load(3), want(3, 3));
  EXPECT_EQ(counts.choices(), want.diagonal().sum());
}

TEST(Coactivation, PartsThreadsAndRanksAddUpToOneBatch) {
  const Index experts = 11;
  const Ids ids = data::random_ids<std::int32_t>(300, experts, 3, 5);
  Coactivation whole(experts), merged(experts);
  whole.add(choices_of(ids));
  std::vector<Coactivation> parts(3, merged);
  std::vector<std::thread> threads;
  for (std::size_t part = 0; part < 3; ++part) {
    threads.emplace_back([&, part] {
      const auto rows = gatepro::strided_view(ids).middle_rows(static_cast<Index>(100 * part), 100);
      parts[part].add(Choices<const std::int32_t>{rows});
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Coactivation& part : parts) merged.merge(part);
  EXPECT_EQ(matrix_of(merged), matrix_of(whole));
  run_ranks(3, [&](int rank, const auto& reduce) {
    parts[static_cast<std::size_t>(rank)].all_reduce(reduce);
  });
  for (const Coactivation& part : parts) EXPECT_EQ(matrix_of(part), matrix_of(whole));
  merged.reset();
  EXPECT_EQ(matrix_of(merged).sum(), 0);
}

// Loads 3, 2, 2, 1 and the pairs 01 twice, 02, 23: products sum to 6 + 6 + 3 + 4 + 2 + 2 = 23.
TEST(Coactivation, HandWorkedLifts) {
  Ids ids(4, 2);
  ids << 0, 1, 1, 0, 2, 0, 3, 2;
  Coactivation counts(4);
  counts.add(choices_of(ids));
  const double chance = 4.0 / 23;  // pairs per product
  EXPECT_DOUBLE_EQ(counts.lift(0, 1), 2 / (6 * chance));
  EXPECT_DOUBLE_EQ(counts.lift(1, 0), counts.lift(0, 1));
  EXPECT_DOUBLE_EQ(counts.lift(2, 3), 1 / (2 * chance));
  EXPECT_EQ(counts.lift(1, 3), 0);
  RowMatrix<double> lifts(4, 4);
  counts.lifts(lifts);
  EXPECT_EQ(lifts(0, 0), 0);
  EXPECT_EQ(lifts(2, 3), counts.lift(2, 3));

  std::vector<CoactivatedPair> pairs(2);
  const VectorView<CoactivatedPair> pairs_view(pairs);
  ASSERT_EQ(counts.top_pairs(pairs_view), 2);
  EXPECT_EQ(pairs[0].first, 2);
  EXPECT_EQ(pairs[0].second, 3);
  EXPECT_EQ(pairs[0].tokens, 1);
  EXPECT_EQ(pairs[1].first, 0);
  EXPECT_EQ(pairs[1].second, 1);
  ASSERT_EQ(counts.top_pairs(pairs_view, 2), 1);  // one token may be chance
  EXPECT_EQ(pairs[0].second, 1);
  EXPECT_EQ(counts.top_pairs({}), 0);

  Ids partners(4, 1);
  partners << 1, 0, 3, 3;  // 3 has none
  EXPECT_DOUBLE_EQ(counts.partner_rate(partners), 5.0 / 7);
  EXPECT_DOUBLE_EQ(counts.partner_lift(partners), 5 / ((6 + 6 + 2) * chance));
}

TEST(Coactivation, NothingCountedIsNothingExpected) {
  Coactivation counts(3);
  counts.add(choices_of(Ids(0, 2)));
  Ids partners(3, 1);
  partners << 1, 0, 1;
  std::vector<CoactivatedPair> pairs(4);
  EXPECT_EQ(counts.lift(0, 1), 0);
  EXPECT_EQ(counts.partner_rate(partners), 0);
  EXPECT_EQ(counts.partner_lift(partners), 0);
  EXPECT_EQ(counts.top_pairs(VectorView<CoactivatedPair>(pairs)), 0);
  counts.add(choices_of(data::random_ids<std::int32_t>(20, 3, 1, 2)));  // K = 1: loads, no pairs
  EXPECT_EQ(counts.choices(), 20);
  EXPECT_EQ(counts.lift(0, 1), 0);
  EXPECT_EQ(counts.partner_rate(partners), 0);
  EXPECT_EQ(counts.partner_lift(partners), 0);
  EXPECT_EQ(counts.top_pairs(VectorView<CoactivatedPair>(pairs)), 0);
}

TEST(Coactivation, RefusesMoreChoicesThanInt64Holds) {
  Coactivation counts(2);
  const std::vector<std::int64_t> full{std::numeric_limits<std::int64_t>::max(), 0, 0, 1};
  counts.restore(VectorView<const std::int64_t>(full));
  expect_error([&] { (void)counts.choices(); }, {"Coactivation", "fits int64", "load=1"});
}

// Equal loads and random sets: every lift is near 1, though no token selects an expert twice.
TEST(Coactivation, ChanceHasALiftOfOne) {
  const Index experts = 6;
  Coactivation counts(experts);
  counts.add(choices_of(data::random_ids<std::int32_t>(60000, experts, 4, 6)));
  for (Index i = 0; i < experts; ++i) {
    for (Index j = 0; j < i; ++j) EXPECT_NEAR(counts.lift(i, j), 1, 0.02);
  }
}

TEST(Coactivation, TopPairsAreThoseOfAFullSort) {
  const Index experts = 14;
  Coactivation counts(experts);
  counts.add(choices_of(data::random_ids<std::int32_t>(80, experts, 3, 7)));
  std::vector<CoactivatedPair> all;
  for (Index i = 0; i < experts; ++i) {
    for (Index j = i + 1; j < experts; ++j) {
      const std::int64_t tokens = counts.counts_EE()(i, j);
      if (tokens >= 2) all.push_back({i, j, tokens, counts.lift(i, j)});
    }
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const auto& a, const auto& b) { return a.lift > b.lift; });
  for (const std::size_t wanted : {std::size_t{1}, std::size_t{10}, std::size_t{1000}}) {
    std::vector<CoactivatedPair> pairs(wanted);
    const Index found = counts.top_pairs(VectorView<CoactivatedPair>(pairs), 2);
    ASSERT_EQ(found, static_cast<Index>(std::min(wanted, all.size())));
    for (std::size_t p = 0; p < static_cast<std::size_t>(found); ++p) {
      EXPECT_EQ(pairs[p].first, all[p].first) << p;
      EXPECT_EQ(pairs[p].second, all[p].second) << p;
      EXPECT_EQ(pairs[p].lift, all[p].lift) << p;
    }
  }
}

// As the statistics of a forward count it.
TEST(Coactivation, PartnerRateIsThatOfPenaltyStatistics) {
  gatepro::RouterConfig config{8, 12, 3};
  config.competition = gatepro::Competition::eliminate();
  gatepro::Router<float> router(config);
  const RowMatrix<float> x = data::random_matrix<float>(90, 8, 8),
                         w = data::random_matrix<float>(12, 8, 9);
  router.refresh_now(w, 0);
  gatepro::RoutingBuffers<gatepro::Router<float>> routed(router, 90);
  gatepro::PenaltyStatistics statistics;
  auto out = routed.view();
  out.statistics = &statistics;
  router.forward(x, w, out, routed.workspace());
  Coactivation counts(12);
  counts.add(Choices{routed.expert_ids_TK()});
  EXPECT_DOUBLE_EQ(counts.partner_rate(router.similarity_cache().partners()),
                   statistics.coactivation_rate());
}

TEST(Coactivation, AFailureChangesNothing) {
  Coactivation counts(3);
  Ids good(1, 2), twice(2, 2), large(1, 2), partners = Ids::Zero(3, 1);
  good << 0, 2;
  twice << 0, 1, 1, 1;
  large << 3, 0;
  counts.add(choices_of(good));
  const RowMatrix<std::int64_t> before = matrix_of(counts);
  expect_error([] { Coactivation(0); }, {"Coactivation", "num_experts=0"});
  expect_error([&] { counts.add(choices_of(twice)); },
               {"Coactivation", "expert_ids_TK", "distinct", "id=1", "row=1"});
  expect_error([&] { counts.add(choices_of(large)); }, {"expert_ids_TK", "id=3", "num_experts=3"});
  const std::vector<std::uint8_t> mask(3);
  expect_error(
      [&] {
        counts.add(Choices<const std::int32_t>{gatepro::strided_view(good), mask});
      },
      {"is_padding_T", "size=3"});
  expect_error([&] { counts.merge(Coactivation(2)); }, {"Coactivation", "size=4", "size needed=9"});
  Coactivation full(3);
  std::vector<std::int64_t> most(9);
  most[1] = std::numeric_limits<std::int64_t>::max();
  full.restore(VectorView<const std::int64_t>(most));
  expect_error([&] { full.add(choices_of(good)); }, {"Coactivation", "fits int64", "count=1"});
  EXPECT_EQ(full.load(0), 0);
  RowMatrix<double> narrow(3, 2);
  expect_error([&] { counts.lifts(narrow); }, {"lift_EE", "cols=2"});
  expect_error([&] { counts.top_pairs({}, 0); }, {"least_tokens=0"});
  partners(1, 0) = 7;
  expect_error([&] { counts.partner_rate(partners); }, {"partners_EM", "id=7"});
  expect_error([&] { counts.partner_lift(partners); }, {"partners_EM", "id=7"});
  EXPECT_EQ(matrix_of(counts), before);
}

}  // namespace
