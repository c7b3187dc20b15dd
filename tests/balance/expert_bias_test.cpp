// SPDX-License-Identifier: MIT
// The bias moves by the sign of the load error, in integers, once per step.
#include <gatepro/balance/expert_bias.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "support/bits.hpp"
#include "support/errors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/ranks.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::ExpertBias;
using gatepro::Index;
using gatepro::NoReduce;
using gatepro::VectorView;
using Counts = std::vector<std::int64_t>;

constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();

/// The bias after one step from zero, with a rate that is exact.
template <class B>
std::vector<B> after_step(const Counts& counts, double rate, bool centre = false) {
  ExpertBias<B> bias(static_cast<Index>(counts.size()));
  bias.accumulate(counts);
  bias.step(NoReduce(), rate, centre);
  return data::copy(bias.values());
}

template <class B>
class ExpertBiasTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(ExpertBiasTest, Scalars, TypeNames);

TYPED_TEST(ExpertBiasTest, MovesByTheSignOfTheError) {
  using Bias = std::vector<TypeParam>;
  EXPECT_EQ(after_step<TypeParam>({1, 5, 3, 3}, 0.5), (Bias{0.5, -0.5, 0, 0}));
  EXPECT_EQ(after_step<TypeParam>({4, 4, 4}, 0.5), (Bias{0, 0, 0}));
  EXPECT_EQ(after_step<TypeParam>({0, 0, 0}, 0.5), (Bias{0, 0, 0}));
  EXPECT_EQ(after_step<TypeParam>({9}, 0.5), (Bias{0}));
  // A mean of 4/3: 1 is below, 2 above.
  EXPECT_EQ(after_step<TypeParam>({1, 1, 2}, 0.5), (Bias{0.5, 0.5, -0.5}));
  EXPECT_EQ(after_step<TypeParam>({1, 5, 3, 3}, 0), (Bias{0, 0, 0, 0}));
}

TYPED_TEST(ExpertBiasTest, CentringKeepsTheMean) {
  using Bias = std::vector<TypeParam>;
  // Signs 1, 1, 1, -1: their mean is 0.5.
  EXPECT_EQ(after_step<TypeParam>({1, 1, 1, 9}, 1, true), (Bias{0.5, 0.5, 0.5, -1.5}));
  EXPECT_EQ(after_step<TypeParam>({2, 2}, 1, true), (Bias{0, 0}));
}

TYPED_TEST(ExpertBiasTest, StepsAddUpAndZeroTheCounts) {
  ExpertBias<TypeParam> bias(2);
  const Counts low_high{0, 4}, more{0, 1}, high_low{3, 1};
  bias.accumulate(low_high);
  bias.accumulate(more);
  EXPECT_EQ(data::copy(bias.counts()), (Counts{0, 5}));
  bias.step(NoReduce(), 0.25);
  EXPECT_EQ(data::copy(bias.counts()), (Counts{0, 0}));
  bias.accumulate(low_high);
  bias.step(NoReduce(), 0.25);
  EXPECT_EQ(data::copy(bias.values()), (std::vector<TypeParam>{0.5, -0.5}));
  bias.accumulate(high_low);
  bias.step(NoReduce(), 0.25);
  EXPECT_EQ(data::copy(bias.values()), (std::vector<TypeParam>{0.25, -0.25}));
  // Nobody accumulated, as in evaluation.
  bias.step(NoReduce(), 0.25);
  EXPECT_EQ(data::copy(bias.values()), (std::vector<TypeParam>{0.25, -0.25}));
  bias.accumulate(high_low);
  bias.zero();
  EXPECT_EQ(data::copy(bias.values()), (std::vector<TypeParam>{0, 0}));
  EXPECT_EQ(data::copy(bias.counts()), (Counts{0, 0}));
}

// One token decides, however many there are, and E n_i may leave the range of int64.
TYPED_TEST(ExpertBiasTest, TheSignIsExact) {
  using Bias = std::vector<TypeParam>;
  const std::int64_t large = (std::int64_t{1} << 60) + 1;
  EXPECT_EQ(after_step<TypeParam>({large, large, large + 1}, 1), (Bias{1, 1, -1}));
  EXPECT_EQ(after_step<TypeParam>({large, large, large}, 1), (Bias{0, 0, 0}));
  EXPECT_EQ(after_step<TypeParam>({most, 0}, 1), (Bias{-1, 1}));
  for (std::uint64_t round = 0; round < 50; ++round) {
    Counts counts;
    std::int64_t total = 0;
    for (std::uint64_t e = 0; e < 13; ++e) {
      counts.push_back(data::random_below(5, 3, round * 13 + e));
      total += counts.back();
    }
    const Bias got = after_step<TypeParam>(counts, 1);
    for (std::size_t e = 0; e < 13; ++e) {
      const std::int64_t error = total - 13 * counts[e];
      EXPECT_EQ(got[e], TypeParam((error > 0) - (error < 0)));
    }
  }
}

// Split over ranks and micro-batches in any way, the bias has the same bits.
TYPED_TEST(ExpertBiasTest, RanksAndMicroBatchesDoNotMatter) {
  const Index experts = 6;
  const auto share = [](int step, int part) {
    Counts counts(6);
    for (std::size_t e = 0; e < 6; ++e) {
      counts[e] = data::random_below(9, 4, static_cast<std::uint64_t>((step * 12 + part) * 6) + e);
    }
    return counts;
  };
  std::vector<TypeParam> want;
  for (const int ranks : {1, 2, 3, 4}) {
    std::vector<ExpertBias<TypeParam>> biases(static_cast<std::size_t>(ranks),
                                              ExpertBias<TypeParam>(experts));
    run_ranks(ranks, [&](int rank, const auto& reduce) {
      auto& bias = biases[static_cast<std::size_t>(rank)];
      for (int step = 0; step < 5; ++step) {
        for (int part = rank; part < 12; part += ranks) {
          const Counts counts = share(step, part);
          bias.accumulate(counts);
        }
        bias.step(reduce, 1e-3, true);
      }
    });
    if (want.empty()) want = data::copy(biases[0].values());
    for (const auto& bias : biases) {
      for (std::size_t e = 0; e < 6; ++e) {
        EXPECT_TRUE(data::same_bits(bias.values()[static_cast<Index>(e)], want[e])) << ranks;
      }
    }
  }
  EXPECT_NE(want, std::vector<TypeParam>(6, 0));
}

TYPED_TEST(ExpertBiasTest, AResumedRunHasTheSameBits) {
  ExpertBias<TypeParam> kept(3);
  const Counts a{5, 1, 0}, b{2, 2, 9};
  kept.accumulate(a);
  kept.step(NoReduce(), 1e-3);
  kept.accumulate(b);
  ExpertBias<TypeParam> resumed(3);
  resumed.restore(kept.values(), kept.counts());
  for (auto* bias : {&kept, &resumed}) {
    bias->accumulate(a);
    bias->step(NoReduce(), 1e-3);
  }
  EXPECT_EQ(data::copy(resumed.values()), data::copy(kept.values()));
  EXPECT_EQ(data::copy(resumed.counts()), data::copy(kept.counts()));
}

TYPED_TEST(ExpertBiasTest, AFailureChangesNothing) {
  ExpertBias<TypeParam> bias(2);
  const Counts counts{1, 3}, large{most, 0};
  bias.accumulate(counts);
  const auto broken = [](std::int64_t* reduced, Index) {
    reduced[0] = 1000;
    throw std::runtime_error("connection lost");
  };
  const auto negative = [](std::int64_t* reduced, Index) { reduced[1] = -1; };
  const auto overflow = [](std::int64_t* reduced, Index) { reduced[1] = most; };
  EXPECT_THROW(bias.step(broken, 0.5), std::runtime_error);
  expect_error([&] { bias.step(negative, 0.5); }, {"ExpertBias::step", "reduce hook", "count=-1"});
  expect_error([&] { bias.step(overflow, 0.5); }, {"ExpertBias::step", "fits int64"});
  expect_error([&] { bias.accumulate(large); }, {"ExpertBias::accumulate", "fits int64"});
  EXPECT_EQ(data::copy(bias.values()), (std::vector<TypeParam>{0, 0}));
  EXPECT_EQ(data::copy(bias.counts()), counts);
}

// One sum may leave the range where both terms are in it.
TYPED_TEST(ExpertBiasTest, StaysFinite) {
  const TypeParam largest = (std::numeric_limits<TypeParam>::max)();
  ExpertBias<TypeParam> bias(2);
  const Counts counts{1, 3}, zeros(2);
  const std::vector<TypeParam> values{0, -largest};
  bias.restore(values, counts);
  const double rate = static_cast<double>(largest) / 2;
  expect_error([&] { bias.step(NoReduce(), rate); }, {"ExpertBias::step", "finite", "expert=1"});
  EXPECT_EQ(data::copy(bias.values()), values);
  EXPECT_EQ(data::copy(bias.counts()), counts);
  bias.zero();
  bias.accumulate(counts);
  bias.step(NoReduce(), rate);
  EXPECT_EQ(data::copy(bias.values()), (std::vector<TypeParam>{largest / 2, -largest / 2}));
  EXPECT_EQ(data::copy(bias.counts()), zeros);
}

TYPED_TEST(ExpertBiasTest, BadInput) {
  using B = TypeParam;
  using Limits = std::numeric_limits<double>;
  expect_error([] { ExpertBias<B>(0); }, {"ExpertBias", "num_experts=0"});
  ExpertBias<B> bias(2);
  const Counts three(3, 1), good{1, 3}, negative{0, -2};
  expect_error([&] { bias.accumulate(three); }, {"tokens_per_expert_E", "size=3"});
  expect_error([&] { bias.accumulate(negative); }, {"tokens_per_expert_E", "count=-2"});
  bias.accumulate(good);
  for (const double rate : {-1.0, Limits::infinity(), -Limits::infinity(), Limits::quiet_NaN()}) {
    expect_error([&] { bias.step(NoReduce(), rate); },
                 {"ExpertBias::step", "update_rate finite and >= 0", "update_rate="});
  }
  if (std::is_same_v<B, float>) {
    expect_error([&] { bias.step(NoReduce(), 1e39); }, {"ExpertBias::step", "update_rate=1e+39"});
  }
  const std::vector<B> fine{1, 2}, one{1};
  expect_error([&] { bias.restore(one, good); }, {"ExpertBias::restore", "bias_E", "size=1"});
  expect_error([&] { bias.restore(fine, three); }, {"ExpertBias::restore", "counts", "size=3"});
  expect_error([&] { bias.restore(fine, negative); }, {"counts >= 0", "count=-2"});
  for (const B bad : {data::infinity<B>(), -data::infinity<B>(), data::marked_nan<B>()}) {
    const std::vector<B> values{1, bad};
    expect_error([&] { bias.restore(values, good); }, {"bias_E", "finite values", "expert=1"});
  }
  EXPECT_EQ(data::copy(bias.values()), (std::vector<B>{0, 0}));
  EXPECT_EQ(data::copy(bias.counts()), good);
}

}  // namespace
