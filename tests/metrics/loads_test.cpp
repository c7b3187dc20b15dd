// SPDX-License-Identifier: MIT
// How even loads are: each measure against its definition, over micro-batches, threads and ranks.
#include <gatepro/metrics/loads.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include "support/errors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/ranks.hpp"

namespace {

using gatepro::Index;
using gatepro::LoadCounts;
using gatepro::LoadMetrics;
using gatepro::VectorView;
using Counts = std::vector<std::int64_t>;

LoadMetrics metrics_of(const Counts& counts_E) {
  Counts sorted_E(counts_E.size(), -7);
  return gatepro::load_metrics(counts_E, VectorView<std::int64_t>(sorted_E));
}

/// The definitions, as sums over experts and over pairs of experts.
LoadMetrics reference(const Counts& n) {
  const auto experts = static_cast<double>(n.size());
  double total = 0, largest = 0, squares = 0, differences = 0, entropy = 0, zeros = 0;
  for (const std::int64_t count : n) {
    const auto load = static_cast<double>(count);
    total += load;
    largest = std::max(largest, load);
    zeros += load == 0 ? 1 : 0;
  }
  const double mean = total / experts;
  for (const std::int64_t a : n) {
    const auto load = static_cast<double>(a);
    squares += (load - mean) * (load - mean);
    if (load > 0) entropy -= load / total * std::log(load / total);
    for (const std::int64_t b : n) differences += std::abs(load - static_cast<double>(b));
  }
  return {static_cast<Index>(zeros),
          zeros / experts,
          largest / mean - 1,
          std::sqrt(squares / experts) / mean,
          differences / (2 * experts * experts * mean),
          entropy / std::log(experts),
          std::exp(total * std::log1p(-1 / experts))};
}

void expect_near(const LoadMetrics& got, const LoadMetrics& want) {
  EXPECT_EQ(got.zero_token_experts, want.zero_token_experts);
  EXPECT_NEAR(got.inactive_share, want.inactive_share, 1e-12);
  EXPECT_NEAR(got.max_violation, want.max_violation, 1e-12);
  EXPECT_NEAR(got.variation, want.variation, 1e-12);
  EXPECT_NEAR(got.gini, want.gini, 1e-12);
  EXPECT_NEAR(got.normalised_entropy, want.normalised_entropy, 1e-12);
  EXPECT_NEAR(got.chance_inactive_share, want.chance_inactive_share, 1e-12);
}

Counts random_counts(Index experts, std::uint64_t seed) {
  Counts counts(static_cast<std::size_t>(experts));
  for (std::size_t e = 0; e < counts.size(); ++e) {
    const Index count = data::random_below(50, seed, e);
    counts[e] = count < 15 ? 0 : count;
  }
  return counts;
}

TEST(Loads, ZeroTokenExpertsAndMaxViolation) {
  const Counts even{4, 4, 4}, uneven{0, 9, 0}, none{0, 0, 0}, one{7};
  const std::int64_t large = std::int64_t{1} << 60;
  const Counts many{large, large, 2 * large, 0};
  EXPECT_EQ(gatepro::zero_token_experts(even), 0);
  EXPECT_EQ(gatepro::zero_token_experts(uneven), 2);
  EXPECT_EQ(gatepro::zero_token_experts(none), 3);
  EXPECT_EQ(gatepro::zero_token_experts(VectorView<const std::int64_t>()), 0);
  EXPECT_EQ(gatepro::max_violation(even), 0);
  EXPECT_EQ(gatepro::max_violation(uneven), 2);
  EXPECT_EQ(gatepro::max_violation(none), 0);
  EXPECT_EQ(gatepro::max_violation(one), 0);
  EXPECT_EQ(gatepro::max_violation(many), 1);
  EXPECT_EQ(gatepro::max_violation(VectorView<const std::int64_t>()), 0);
}

// Worked by hand: the first has a mean of 2, a variance of 6, differences of ordered pairs that sum
// to 40, and shares of 6/8 and 2/8.
TEST(Loads, HandWorkedCases) {
  const double entropy = -(0.75 * std::log(0.75) + 0.25 * std::log(0.25)) / std::log(4.0);
  expect_near(metrics_of({0, 6, 0, 2}),
              {2, 0.5, 2, std::sqrt(24.0 / 4) / 2, 40.0 / 64, entropy, std::pow(0.75, 8)});
  expect_near(metrics_of({1, 1}), {0, 0, 0, 0, 0, 1, 0.25});
  expect_near(metrics_of({0, 0, 0, 2}), {3, 0.75, 3, std::sqrt(3.0), 0.75, 0, 9.0 / 16});
  expect_near(metrics_of({3}), {0, 0, 0, 0, 0, 1, 0});
  expect_near(metrics_of({0, 0}), {2, 1, 0, 0, 0, 1, 1});
}

TEST(Loads, EveryMeasureMatchesItsDefinition) {
  for (const Index experts : {2, 3, 8, 61, 256}) {
    for (std::uint64_t seed = 0; seed < 5; ++seed) {
      const Counts counts = random_counts(experts, seed);
      SCOPED_TRACE(testing::Message() << "E=" << experts << " seed=" << seed);
      expect_near(metrics_of(counts), reference(counts));
    }
  }
}

// Random choices leave the share of the experts that they are said to.
TEST(Loads, ChanceIsWhatRandomChoicesLeave) {
  EXPECT_EQ(gatepro::chance_inactive_share(0, 5), 1);
  EXPECT_EQ(gatepro::chance_inactive_share(3, 1), 0);
  EXPECT_EQ(gatepro::chance_inactive_share(2, 4), 9.0 / 16);
  const Index experts = 128, batches = 200;
  double idle = 0;
  for (std::uint64_t batch = 0; batch < batches; ++batch) {
    Counts counts(static_cast<std::size_t>(experts));
    for (std::uint64_t c = 0; c < 128; ++c) {
      ++counts[static_cast<std::size_t>(data::random_below(experts, batch, c))];
    }
    idle += metrics_of(counts).inactive_share / static_cast<double>(batches);
  }
  EXPECT_NEAR(idle, gatepro::chance_inactive_share(128, experts), 0.01);
}

TEST(LoadCounts, OneBigBatchAndItsPartsAgree) {
  const Index experts = 13;
  LoadCounts parts(experts), first(experts), second(experts);
  Counts sum(static_cast<std::size_t>(experts));
  double largest = 0, total = 0;
  for (std::uint64_t batch = 0; batch < 6; ++batch) {
    const Counts counts = random_counts(experts, batch + 10);
    parts.add(counts);
    (batch < 2 ? first : second).add(counts);
    std::int64_t most = 0;
    for (std::size_t e = 0; e < sum.size(); ++e) {
      sum[e] += counts[e];
      total += static_cast<double>(counts[e]);
      most = std::max(most, counts[e]);
    }
    largest += static_cast<double>(most);
  }
  first.merge(second);
  EXPECT_EQ(data::copy(first.counts()), data::copy(parts.counts()));
  EXPECT_EQ(data::copy(parts.tokens_per_expert()), sum);
  expect_near(parts.metrics(), reference(sum));
  EXPECT_NEAR(parts.micro_batch_max_violation(), largest * 13 / total - 1, 1e-12);
  EXPECT_GT(parts.micro_batch_max_violation(), parts.metrics().max_violation);
  LoadCounts restored(experts);
  restored.restore(parts.counts());
  EXPECT_EQ(data::copy(restored.counts()), data::copy(parts.counts()));
  parts.reset();
  EXPECT_EQ(data::copy(parts.tokens_per_expert()), Counts(13, 0));
  EXPECT_EQ(parts.micro_batch_max_violation(), 0);
}

TEST(LoadCounts, RanksSeeTheSameSums) {
  LoadCounts all(7);
  std::vector<LoadCounts> ranks(4, LoadCounts(7));
  for (std::uint64_t rank = 0; rank < 4; ++rank) {
    for (std::uint64_t batch = 0; batch < 3; ++batch) {
      const Counts counts = random_counts(7, rank * 3 + batch);
      ranks[rank].add(counts);
      all.add(counts);
    }
  }
  run_ranks(4, [&](int rank, const auto& reduce) {
    ranks[static_cast<std::size_t>(rank)].all_reduce(reduce);
  });
  for (const LoadCounts& rank : ranks) {
    EXPECT_EQ(data::copy(rank.counts()), data::copy(all.counts()));
  }
}

TEST(LoadCounts, AFailureChangesNothing) {
  LoadCounts sums(2), other(3);
  const Counts good{1, 2}, negative{1, -1}, three{1, 1, 1};
  sums.add(good);
  const Counts before = data::copy(sums.counts());
  const auto broken = [](std::int64_t*, Index) { throw std::runtime_error("connection lost"); };
  EXPECT_THROW(sums.all_reduce(broken), std::runtime_error);
  const auto overflow = [](std::int64_t* counts, Index) { counts[1] = -4; };
  expect_error([&] { sums.all_reduce(overflow); }, {"LoadCounts", "reduce hook", "count=-4"});
  expect_error([&] { sums.add(negative); }, {"LoadCounts", "count=-1", "position=1"});
  expect_error([&] { sums.add(three); }, {"LoadCounts", "tokens_per_expert_E", "size=3"});
  expect_error([&] { sums.merge(other); }, {"LoadCounts", "counts", "size=4", "size needed=3"});
  expect_error([&] { sums.restore(good); }, {"LoadCounts", "counts", "size=2"});
  const Counts large{std::numeric_limits<std::int64_t>::max(), 0};
  expect_error([&] { sums.add(large); }, {"LoadCounts", "fits int64"});
  EXPECT_EQ(data::copy(sums.counts()), before);
}

TEST(Loads, BadInput) {
  Counts three{1, 2, 3}, two{1, 2}, negative{1, -2};
  const VectorView<std::int64_t> room(two);
  expect_error([] { LoadCounts(0); }, {"LoadCounts", "num_experts=0"});
  expect_error([] { gatepro::chance_inactive_share(1, 0); },
               {"chance_inactive_share", "num_experts=0"});
  expect_error([] { gatepro::chance_inactive_share(-1, 2); }, {"choices >= 0", "choices=-1"});
  expect_error([&] { gatepro::load_metrics({}, room); }, {"load_metrics", "num_experts=0"});
  expect_error([&] { gatepro::load_metrics(three, room); }, {"sorted_E", "size=2"});
  expect_error([&] { gatepro::load_metrics(negative, room); }, {"tokens_per_expert_E", "count=-2"});
  expect_error([&] { gatepro::load_metrics(two, room); }, {"sorted_E", "tokens_per_expert_E"});
  EXPECT_EQ(two, (Counts{1, 2}));
}

}  // namespace
