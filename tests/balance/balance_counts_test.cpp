// SPDX-License-Identifier: MIT
// Counts that are summed over ranks and micro-batches: exact, reduced once, whole after a failure.
#include <gatepro/balance/balance_counts.hpp>

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "support/errors.hpp"
#include "support/memory.hpp"
#include "support/ranks.hpp"

namespace {

using gatepro::BalanceAccumulator;
using gatepro::BalanceCounts;
using gatepro::Index;
using gatepro::NoReduce;
using Counts = std::vector<std::int64_t>;

constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();

Counts of(const BalanceCounts& counts) { return data::copy(counts.tokens_per_expert_E); }

TEST(BalanceAccumulator, AddsMicroBatchesUntilReset) {
  BalanceAccumulator sums(3);
  EXPECT_EQ(sums.num_experts(), 3);
  EXPECT_EQ(of(sums.total()), (Counts{0, 0, 0}));
  EXPECT_EQ(sums.total().tokens, 0);
  const Counts first{4, 0, 2}, second{1, 1, 0};
  sums.add({first, 4});
  sums.add({second, 2});
  EXPECT_EQ(of(sums.latest()), second);
  EXPECT_EQ(sums.latest().tokens, 2);
  EXPECT_EQ(of(sums.total()), (Counts{5, 1, 2}));
  EXPECT_EQ(sums.total().tokens, 6);
  sums.reset();
  EXPECT_EQ(of(sums.latest()), (Counts{0, 0, 0}));
  EXPECT_EQ(of(sums.total()), (Counts{0, 0, 0}));
  EXPECT_EQ(sums.total().tokens, 0);
}

// Counts, tokens, sequences and ranks pass the hook in one array, once per micro-batch.
TEST(BalanceAccumulator, TheHookSeesCountsAndTheirOriginOnce) {
  BalanceAccumulator sums(2);
  std::vector<Counts> seen;
  const auto triple = [&](std::int64_t* counts, Index size) {
    seen.emplace_back(counts, counts + size);
    for (Index i = 0; i < size; ++i) counts[i] *= 3;
  };
  const Counts counts{5, 7};
  sums.add({counts, 10, 2}, triple);
  EXPECT_EQ(sums.latest().sequences, 6);
  sums.add({counts, 11}, triple);
  EXPECT_EQ(seen, (std::vector<Counts>{{5, 7, 10, 2, 1}, {5, 7, 11, 0, 1}}));
  EXPECT_EQ(of(sums.latest()), (Counts{15, 21}));
  EXPECT_EQ(sums.latest().tokens, 33);
  EXPECT_EQ(sums.latest().sequences, 0);
  EXPECT_EQ(sums.latest().ranks, 3);
  EXPECT_EQ(of(sums.total()), (Counts{30, 42}));
  EXPECT_EQ(sums.total().tokens, 63);
  EXPECT_EQ(sums.total().sequences, 0);
}

TEST(BalanceAccumulator, RanksSeeTheSameSums) {
  for (const int ranks : {1, 2, 5}) {
    const Index experts = 7;
    std::vector<BalanceAccumulator> sums(static_cast<std::size_t>(ranks),
                                         BalanceAccumulator(experts));
    Counts want(7, 0);
    std::int64_t tokens = 0;
    const auto batch = [&](int rank, int step, Counts& counts) {
      for (std::size_t e = 0; e < counts.size(); ++e) {
        counts[e] = static_cast<std::int64_t>(e) * rank + step;
      }
      return BalanceCounts{counts, 100 + rank};
    };
    for (int rank = 0; rank < ranks; ++rank) {
      for (int step = 0; step < 4; ++step) {
        Counts counts(7);
        tokens += batch(rank, step, counts).tokens;
        for (std::size_t e = 0; e < 7; ++e) want[e] += counts[e];
      }
    }
    run_ranks(ranks, [&](int rank, const auto& reduce) {
      for (int step = 0; step < 4; ++step) {
        Counts counts(7);
        sums[static_cast<std::size_t>(rank)].add(batch(rank, step, counts), reduce);
      }
    });
    for (const BalanceAccumulator& each : sums) {
      EXPECT_EQ(of(each.total()), want) << ranks;
      EXPECT_EQ(each.total().tokens, tokens);
    }
  }
}

// 2^53 + 1 is no double, and 2^24 + 1 no float.
TEST(BalanceAccumulator, CountsAreExact) {
  BalanceAccumulator sums(2);
  const std::int64_t large = (std::int64_t{1} << 53) + 1;
  const Counts counts{large, 1};
  sums.add({counts, large});
  sums.add({counts, large});
  EXPECT_EQ(of(sums.total()), (Counts{2 * large, 2}));
}

TEST(BalanceAccumulator, RestoresATotal) {
  BalanceAccumulator before(3), after(3);
  const Counts a{1, 2, 3}, b{3, 0, 0};
  before.add({a, 3});
  after.add({b, 9});
  after.restore(before.total());
  EXPECT_EQ(of(after.latest()), (Counts{0, 0, 0}));
  before.add({b, 3});
  after.add({b, 3});
  EXPECT_EQ(of(after.total()), of(before.total()));
  EXPECT_EQ(after.total().tokens, before.total().tokens);
}

TEST(BalanceAccumulator, AFailureChangesNoTotal) {
  BalanceAccumulator sums(2);
  const Counts good{1, 2};
  sums.add({good, 2});
  const auto expect_whole = [&] {
    EXPECT_EQ(of(sums.total()), good);
    EXPECT_EQ(sums.total().tokens, 2);
  };
  const auto broken = [](std::int64_t*, Index) { throw std::runtime_error("connection lost"); };
  EXPECT_THROW(sums.add({good, 2}, broken), std::runtime_error);
  expect_whole();
  const auto overflow = [](std::int64_t* counts, Index) { counts[1] = -4; };
  expect_error([&] { sums.add({good, 2}, overflow); }, {"reduce hook", "count=-4", "position=1"});
  expect_whole();
  const auto forget_tokens = [](std::int64_t* counts, Index) { counts[0] = 5; };
  expect_error([&] { sums.add({good, 2}, forget_tokens); }, {"count=5", "tokens=2"});
  expect_whole();
  const Counts large{most, 0};
  expect_error([&] { sums.add({large, most}); }, {"BalanceAccumulator", "fits int64", "sum=1"});
  expect_whole();
}

TEST(BalanceAccumulator, MovedFromIsEmpty) {
  BalanceAccumulator sums(2);
  const Counts good{1, 2};
  sums.add({good, 3});
  const BalanceAccumulator other = std::move(sums);
  EXPECT_EQ(other.total().tokens, 3);
  EXPECT_EQ(sums.num_experts(), 0);
  for (const BalanceCounts& counts : {sums.total(), sums.latest()}) {
    EXPECT_FALSE(counts.tokens_per_expert_E.given());
    EXPECT_EQ(counts.tokens, 0);
  }
  expect_error([&] { sums.add({good, 3}); }, {"BalanceAccumulator", "num_experts=0"});
  expect_error([&] { sums.add({}); }, {"BalanceAccumulator", "num_experts=0"});
  expect_error([&] { sums.restore({}); }, {"BalanceAccumulator", "num_experts=0"});
}

TEST(BalanceAccumulator, BadInput) {
  expect_error([] { BalanceAccumulator(0); }, {"BalanceAccumulator", "num_experts=0"});
  BalanceAccumulator sums(2);
  const Counts three{1, 1, 1}, negative{1, -1}, good{1, 2};
  const BalanceCounts null{{nullptr, 2}, 3};
  for (const bool restore : {false, true}) {
    const auto give = [&](const BalanceCounts& counts) {
      restore ? sums.restore(counts) : sums.add(counts);
    };
    expect_error([&] { give({three, 3}); }, {"tokens_per_expert_E", "size=3", "size needed=2"});
    expect_error([&] { give({negative, 3}); }, {"tokens_per_expert_E", "count=-1", "position=1"});
    expect_error([&] { give(null); }, {"tokens_per_expert_E", "not null"});
    expect_error([&] { give({good, -1}); }, {"tokens >= 0", "tokens=-1"});
    expect_error([&] { give({good, 3, 4}); }, {"sequences <= tokens", "sequences=4", "tokens=3"});
    expect_error([&] { give({good, 1}); }, {"none above", "count=2", "expert=1", "tokens=1"});
  }
  EXPECT_EQ(of(sums.total()), (Counts{0, 0}));
}

}  // namespace
