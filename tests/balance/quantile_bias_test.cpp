// SPDX-License-Identifier: MIT
// Biases at quantiles of what each expert needs: against sorted numbers in double.
#include <gatepro/balance/quantile_bias.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "support/bits.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/ranks.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::ExpertBias;
using gatepro::Index;
using gatepro::MatrixView;
using gatepro::NoReduce;
using gatepro::QuantileCounts;
using gatepro::QuantileRule;
using gatepro::RowMatrix;
using Counts = RowMatrix<std::int64_t>;
using Mask = std::vector<std::uint8_t>;

constexpr double infinite = std::numeric_limits<double>::infinity();

QuantileRule rule_of(Index bins, double reach = 1, double memory = 0) {
  QuantileRule rule;
  rule.enabled = true;
  rule.bins = bins;
  rule.reach = reach;
  rule.memory = memory;
  return rule;
}

template <class A, class Executor = gatepro::SerialExecutor>
Counts count(const RowMatrix<A>& scores_TE, const std::vector<A>& bias_E, Index top_k,
             const QuantileRule& rule, const Mask& mask = {}, const Executor& executor = {},
             std::int64_t* choices = nullptr) {
  const Index experts = scores_TE.cols();
  Counts counts_EB = Counts::Constant(experts, 1 + rule.bins, -1);
  auto memory =
      data::scratch(gatepro::count_needed_bias_workspace_bytes<A>(experts, top_k, rule, executor));
  const std::int64_t made =
      gatepro::count_needed_bias(gatepro::view(scores_TE), bias_E, data::optional(mask), top_k,
                                 rule, gatepro::view(counts_EB), memory, executor);
  if (choices != nullptr) *choices = made;
  return counts_EB;
}

/// What token t needs to choose each expert: +infinity if it cannot, -infinity if it does anyway.
template <class A>
std::vector<double> needed_biases(const RowMatrix<A>& scores_TE, const std::vector<A>& bias_E,
                                  Index top_k, Index t) {
  std::vector<double> choice_E, sorted;
  for (Index e = 0; e < scores_TE.cols(); ++e) {
    const double score = static_cast<double>(scores_TE(t, e));
    choice_E.push_back(std::isnan(score) ? -infinite
                                         : score + static_cast<double>(bias_E[std::size_t(e)]));
  }
  sorted = choice_E;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  const double cutoff = sorted[std::size_t(top_k)];
  std::vector<double> needed_E;
  for (Index e = 0; e < scores_TE.cols(); ++e) {
    const bool can = choice_E[std::size_t(e)] != -infinite;
    needed_E.push_back(can ? cutoff - static_cast<double>(scores_TE(t, e)) : infinite);
  }
  return needed_E;
}

/// The quantile of sorted numbers that count_needed_bias and quantile_bias estimate.
template <class A>
std::vector<double> exact_next(const RowMatrix<A>& scores_TE, const std::vector<A>& bias_E,
                               Index top_k) {
  const Index tokens = scores_TE.rows(), experts = scores_TE.cols();
  std::vector<std::vector<double>> needed_ET(static_cast<std::size_t>(experts));
  for (Index t = 0; t < tokens; ++t) {
    const auto needed_E = needed_biases(scores_TE, bias_E, top_k, t);
    for (std::size_t e = 0; e < needed_E.size(); ++e) needed_ET[e].push_back(needed_E[e]);
  }
  const double target = double(tokens) * double(top_k) / double(experts);
  std::vector<double> next_E;
  double sum = 0;
  for (auto& needed_T : needed_ET) {
    std::sort(needed_T.begin(), needed_T.end());
    next_E.push_back(needed_T[std::size_t(std::ceil(target)) - 1]);
    sum += next_E.back();
  }
  for (double& bias : next_E) bias -= sum / double(experts);
  return next_E;
}

template <class A>
std::vector<A> next_of(const Counts& counts_EB, std::int64_t tokens, Index top_k,
                       const QuantileRule& rule, std::vector<A> bias_E) {
  gatepro::quantile_bias<A>(gatepro::view(counts_EB), tokens * top_k, rule, bias_E, bias_E);
  return bias_E;
}

/// Scores like those of a sigmoid, of which experts in front get more, as multiples of 2^-16.
template <class A>
RowMatrix<A> skewed_scores(Index tokens, Index experts, unsigned seed, double spread = 2,
                           double most_skew = 1) {
  const auto noise_TE = data::random_matrix<double>(tokens, experts, seed);
  RowMatrix<A> scores_TE(tokens, experts);
  for (Index t = 0; t < tokens; ++t) {
    for (Index e = 0; e < experts; ++e) {
      const double skew = most_skew * (1 - 2 * double(e) / double(experts));
      const double score = 1 / (1 + std::exp(-spread * (noise_TE(t, e) + skew)));
      scores_TE(t, e) = static_cast<A>(std::round(score * 65536) / 65536);
    }
  }
  return scores_TE;
}

/// The deviation of the loads over their mean.
template <class A>
double load_variation(const RowMatrix<A>& scores_TE, const std::vector<A>& bias_E, Index top_k) {
  const Index tokens = scores_TE.rows(), experts = scores_TE.cols();
  std::vector<double> loads(static_cast<std::size_t>(experts));
  for (Index t = 0; t < tokens; ++t) {
    std::vector<std::pair<double, Index>> choice;
    for (Index e = 0; e < experts; ++e) {
      choice.emplace_back(-double(scores_TE(t, e)) - double(bias_E[std::size_t(e)]), e);
    }
    std::sort(choice.begin(), choice.end());
    for (Index j = 0; j < top_k; ++j) loads[std::size_t(choice[std::size_t(j)].second)] += 1;
  }
  const double mean = double(tokens) * double(top_k) / double(experts);
  double square = 0;
  for (const double load : loads) square += (load - mean) * (load - mean);
  return std::sqrt(square / double(experts)) / mean;
}

template <class A>
class QuantileBiasTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(QuantileBiasTest, Scalars, TypeNames);

// Scores and biases are multiples of 2^-6 and bins are 2^-6 wide, so that every bin is exact. Many
// tie for the last place. With NaNs and -inf, some tokens have fewer than k + 1 to choose from.
TYPED_TEST(QuantileBiasTest, CountsWhatEachTokenNeeds) {
  using A = TypeParam;
  for (const Index experts : {2, 5, 16, 33}) {
    for (const Index top_k : {Index{1}, experts / 2, experts - 1}) {
      constexpr Index tokens = 70;
      std::vector<A> bias_E;
      RowMatrix<A> scores_TE(tokens, experts);
      for (Index e = 0; e < experts; ++e) {
        bias_E.push_back(static_cast<A>(data::random_below(64, 1, std::uint64_t(e)) - 32) / 64);
        for (Index t = 0; t < tokens; ++t) {
          const auto counter = static_cast<std::uint64_t>(t * experts + e);
          scores_TE(t, e) = static_cast<A>(data::random_below(65, 2, counter)) / 64;
          const Index special = data::random_below(12, 3, counter);
          if (t % 2 == 0 && special == 0) scores_TE(t, e) = data::marked_nan<A>();
          if (t % 2 == 0 && special == 1) scores_TE(t, e) = -data::infinity<A>();
        }
      }
      const double low = double(*std::min_element(bias_E.begin(), bias_E.end())) - 1;
      const double high = double(*std::max_element(bias_E.begin(), bias_E.end())) + 1;
      const QuantileRule rule = rule_of(Index((high - low) * 64));
      Mask mask(tokens);
      for (Index t = 0; t < tokens; t += 5) mask[std::size_t(t)] = 1;

      Counts want_EB = Counts::Zero(experts, 1 + rule.bins);
      for (Index t = 0; t < tokens; ++t) {
        if (mask[std::size_t(t)] != 0) continue;
        const auto needed_E = needed_biases(scores_TE, bias_E, top_k, t);
        for (Index e = 0; e < experts; ++e) {
          const double needed = needed_E[std::size_t(e)];
          if (needed == infinite) continue;
          const Index bin = needed == -infinite ? -1 : Index((needed - low) * 64);
          ++want_EB(e, 1 + std::min(bin, rule.bins - 1));
        }
      }
      const Counts got_EB = count(scores_TE, bias_E, top_k, rule, mask);
      EXPECT_EQ(got_EB, want_EB) << experts << " experts, top " << top_k;
    }
  }
}

// Rows that can choose nobody make no choices that others would have to make up for.
TYPED_TEST(QuantileBiasTest, RowsWithoutNumbersMakeNoChoices) {
  using A = TypeParam;
  constexpr Index tokens = 200, experts = 12, top_k = 3;
  const auto good_TE = skewed_scores<A>(tokens, experts, 9);
  RowMatrix<A> all_TE(2 * tokens, experts);
  for (Index t = 0; t < tokens; ++t) {
    all_TE.row(2 * t) = good_TE.row(t);
    all_TE.row(2 * t + 1).setConstant(t % 2 == 0 ? data::marked_nan<A>() : -data::infinity<A>());
  }
  Mask mask(2 * tokens), good_mask(tokens);
  for (Index t = 0; t < tokens; t += 5) mask[std::size_t(2 * t)] = good_mask[std::size_t(t)] = 1;
  const std::vector<A> bias_E(experts);
  const QuantileRule rule = rule_of(100);
  std::int64_t want = 0, got = 0;
  const Counts want_EB =
      count(good_TE, bias_E, top_k, rule, good_mask, gatepro::SerialExecutor(), &want);
  EXPECT_EQ(want, (tokens - tokens / 5) * top_k);
  EXPECT_EQ(count(all_TE, bias_E, top_k, rule, mask, ThreadExecutor(3), &got), want_EB);
  EXPECT_EQ(got, want);
  // One number is enough to count.
  all_TE(1, 4) = 0;
  count(all_TE, bias_E, top_k, rule, mask, ThreadExecutor(3), &got);
  EXPECT_EQ(got, want + top_k);
}

// Wherever the quantile falls, the estimate is in its bin or, if that is empty, in the next.
TYPED_TEST(QuantileBiasTest, IsTheQuantileToABin) {
  using A = TypeParam;
  for (const Index bins : {64, 1000, 4096}) {
    constexpr Index tokens = 2000, experts = 12, top_k = 3;
    const auto scores_TE = skewed_scores<A>(tokens, experts, 7);
    std::vector<A> bias_E(experts);
    for (int step = 0; step < 4; ++step) {
      const QuantileRule rule = rule_of(bins);
      const auto exact_E = exact_next(scores_TE, bias_E, top_k);
      const gatepro::VectorView<const A> view(bias_E);
      const auto range = gatepro::detail::bias_range(view, 1);
      const double width = range.span / double(bins);
      bias_E = next_of(count(scores_TE, bias_E, top_k, rule), tokens, top_k, rule, bias_E);
      double sum = 0, largest = 0;
      for (Index e = 0; e < experts; ++e) {
        sum += double(bias_E[std::size_t(e)]);
        largest =
            std::max(largest, std::abs(double(bias_E[std::size_t(e)]) - exact_E[std::size_t(e)]));
      }
      // Of both the mean was taken away, which errs as they do.
      EXPECT_LT(largest, 2 * width + 1e-6) << bins << " bins, step " << step;
      EXPECT_NEAR(sum, 0, 1e-5);
    }
  }
}

// Near-equal scores: a bin of 512 holds many. torchtitan's figures for a router of these sizes:
// 0.607 at the start, 0.147 with 512 bins, 0.092 with 8192, 0.053 with the exact quantile.
TYPED_TEST(QuantileBiasTest, BalancesTheBetterTheMoreBins) {
  using A = TypeParam;
  constexpr Index tokens = 4096, experts = 16, top_k = 2;
  const auto scores_TE = skewed_scores<A>(tokens, experts, 11, 0.03, 0.25);
  const auto settled = [&](const auto& next) {
    std::vector<A> bias_E(experts);
    double variation = 0;  // the mean of the last steps
    for (int step = 1; step <= 8; ++step) {
      bias_E = next(bias_E);
      if (step > 4) variation += load_variation(scores_TE, bias_E, top_k) / 4;
    }
    return variation;
  };
  const auto by_bins = [&](Index bins) {
    return settled([&, rule = rule_of(bins)](const std::vector<A>& bias_E) {
      return next_of(count(scores_TE, bias_E, top_k, rule), tokens, top_k, rule, bias_E);
    });
  };
  const double start = load_variation(scores_TE, std::vector<A>(experts), top_k);
  const double exact = settled([&](const std::vector<A>& bias_E) {
    const auto next_E = exact_next(scores_TE, bias_E, top_k);
    return std::vector<A>(next_E.begin(), next_E.end());
  });
  const double at_512 = by_bins(512), at_8192 = by_bins(8192);
  EXPECT_GT(start, 2 * at_512);
  EXPECT_GT(at_512, 2 * at_8192);
  EXPECT_GT(at_8192, exact);
  EXPECT_LT(exact, 0.05);
}

// The sign-step bias goes a fixed way at a time; quantiles go all of it.
TYPED_TEST(QuantileBiasTest, ConvergesInFewerStepsThanSigns) {
  using A = TypeParam;
  constexpr Index tokens = 2048, experts = 16, top_k = 2;
  const auto scores_TE = skewed_scores<A>(tokens, experts, 13);
  const QuantileRule rule = rule_of(1000);
  QuantileCounts<A> quantiles(experts, rule);
  ExpertBias<A> set(experts), stepped(experts);
  const auto variation = [&](const ExpertBias<A>& bias) {
    return load_variation(scores_TE, data::copy(bias.values()), top_k);
  };
  const double start = variation(set);
  for (int step = 0; step < 10; ++step) {
    auto memory =
        data::scratch(gatepro::count_needed_bias_workspace_bytes<A>(experts, top_k, rule));
    quantiles.commit(gatepro::count_needed_bias(gatepro::view(scores_TE), set.values(), {}, top_k,
                                                rule, quantiles.next(), memory));
    quantiles.step(NoReduce(), set);
    std::vector<std::int64_t> loads(experts);
    for (Index t = 0; t < tokens; ++t) {
      std::vector<std::pair<double, Index>> choice;
      for (Index e = 0; e < experts; ++e) {
        choice.emplace_back(-double(scores_TE(t, e)) - double(stepped.values()[e]), e);
      }
      std::sort(choice.begin(), choice.end());
      for (Index j = 0; j < top_k; ++j) ++loads[std::size_t(choice[std::size_t(j)].second)];
    }
    stepped.accumulate(loads);
    stepped.step(NoReduce(), 1e-3);
  }
  EXPECT_GT(start, 0.5);
  EXPECT_LT(variation(set), 0.05);
  EXPECT_GT(variation(stepped), 0.4);
}

TYPED_TEST(QuantileBiasTest, InterpolatesInsideABin) {
  using Bias = std::vector<TypeParam>;
  // Two experts, top 1, 8 tokens: each is to have 4. Bins of width 1 from -1 to 1.
  const QuantileRule rule = rule_of(2);
  const auto next = [&](std::initializer_list<std::int64_t> counts, double memory = 0) {
    Counts counts_EB(2, 3);
    std::copy(counts.begin(), counts.end(), counts_EB.data());
    return next_of<TypeParam>(counts_EB, 8, 1, rule_of(2, 1, memory), {0, 0});
  };
  EXPECT_EQ(next({0, 8, 0, 0, 0, 8}), (Bias{-0.5, 0.5}));  // the middles of the two bins
  EXPECT_EQ(next({0, 8, 0, 0, 0, 8}, 0.5), (Bias{-0.25, 0.25}));
  EXPECT_EQ(next({3, 4, 0, 2, 4, 0}), (Bias{-0.125, 0.125}));
  // All that depend on the bias are too many, or too few.
  EXPECT_EQ(next({8, 0, 0, 0, 4, 0}), (Bias{0, 0}));
  EXPECT_EQ(next({5, 0, 3, 0, 2, 0}), (Bias{0, 0}));
  EXPECT_EQ(next({5, 2, 1, 0, 2, 1}), (Bias{-1, 1}));
  EXPECT_EQ(next_of<TypeParam>(Counts::Zero(2, 3), 0, 1, rule, {1, 3}), (Bias{1, 3}));
  // A bias that nothing depends on stays, but for the centre.
  EXPECT_EQ(next_of<TypeParam>(Counts::Zero(2, 3), 8, 1, rule, {1, 3}), (Bias{-1, 1}));
}

TYPED_TEST(QuantileBiasTest, DoesNotDependOnTheCut) {
  using A = TypeParam;
  constexpr Index tokens = 700, experts = 20, top_k = 4;
  const auto scores_TE = skewed_scores<A>(tokens, experts, 5);
  std::vector<A> bias_E(experts);
  for (Index e = 0; e < experts; ++e) bias_E[std::size_t(e)] = static_cast<A>(0.01 * double(e));
  const QuantileRule rule = rule_of(300);
  const Counts whole_EB = count(scores_TE, bias_E, top_k, rule);
  EXPECT_EQ(count(scores_TE, bias_E, top_k, rule, {}, ThreadExecutor(3)), whole_EB);
  EXPECT_EQ(count(scores_TE, bias_E, top_k, rule, {}, LastWorkerFirst(5)), whole_EB);
  Counts sum_EB = Counts::Zero(experts, 301);
  for (Index first = 0; first < tokens; first += 123) {
    const RowMatrix<A> part_TE = scores_TE.middleRows(first, std::min<Index>(123, tokens - first));
    sum_EB += count(part_TE, bias_E, top_k, rule);
  }
  EXPECT_EQ(sum_EB, whole_EB);
  const auto next = next_of(whole_EB, tokens, top_k, rule, bias_E);

  run_ranks(3, [&](int rank, const auto& reduce) {
    ExpertBias<A> bias(experts);
    bias.restore(bias_E, bias.counts());
    QuantileCounts<A> quantiles(experts, rule);
    for (Index first = rank * 100; first < tokens; first += 300) {
      const RowMatrix<A> part_TE =
          scores_TE.middleRows(first, std::min<Index>(100, tokens - first));
      const Counts part_EB = count(part_TE, bias_E, top_k, rule);
      auto next_EB = quantiles.next();
      std::copy_n(part_EB.data(), part_EB.size(), next_EB.data);
      quantiles.commit(part_TE.rows() * top_k);
    }
    quantiles.step(reduce, bias);
    EXPECT_EQ(data::copy(bias.values()), next) << rank;
    EXPECT_EQ(quantiles.choices(), 0);
    const auto left = quantiles.counts();
    EXPECT_TRUE(std::all_of(left.data, left.data + left.rows * left.cols,
                            [](std::int64_t n) { return n == 0; }));
  });
}

TYPED_TEST(QuantileBiasTest, KeepsEverythingWhereAReductionFails) {
  using A = TypeParam;
  ExpertBias<A> bias(2);
  QuantileCounts<A> quantiles(2, rule_of(2));
  std::fill_n(quantiles.next().data, 6, 0);
  quantiles.next()(0, 1) = 3;
  quantiles.commit(4);
  quantiles.next()(1, 2) = 4;  // not committed
  const auto broken = [](std::int64_t*, Index) { throw 1; };
  EXPECT_THROW(quantiles.step(broken, bias), int);
  const auto negative = [](std::int64_t* counts, Index) { counts[2] = -1; };
  expect_error([&] { quantiles.step(negative, bias); }, {"counts from the reduce hook", "-1"});
  const auto fewer = [](std::int64_t* counts, Index size) { counts[size - 1] = 1; };
  expect_error([&] { quantiles.step(fewer, bias); }, {"counts_EB", "counts=3", "choices=1"});
  EXPECT_EQ(quantiles.choices(), 4);
  EXPECT_EQ(quantiles.counts()(0, 1), 3);
  EXPECT_EQ(quantiles.counts()(1, 2), 0);
  EXPECT_EQ(data::copy(bias.values()), (std::vector<A>{0, 0}));
}

// Scores beyond the reach, huge biases, and a token that holds +inf fall in some bin.
TYPED_TEST(QuantileBiasTest, TakesAnyNumbers) {
  using A = TypeParam;
  const std::vector<A> special = data::special_values<A>();
  for (const double reach : {1e-30, 1.0, 1e30}) {
    for (const A huge : {A(0), A(1e30)}) {
      const auto scores_TE = data::special_matrix<A>(300, 9, 3, 2);
      const std::vector<A> bias_E{huge, 0, 0, 1, -1, 0, -huge, 0, 0};
      const QuantileRule rule = rule_of(50, reach);
      const Counts counts_EB = count(scores_TE, bias_E, 3, rule);
      EXPECT_GE(counts_EB.minCoeff(), 0);
      EXPECT_LE(counts_EB.rowwise().sum().maxCoeff(), 300);
      EXPECT_GT(counts_EB.sum(), 0);
      for (const A bias : next_of(counts_EB, 300, 3, rule, bias_E)) {
        EXPECT_TRUE(std::isfinite(bias)) << reach;
      }
    }
  }
}

// What all biases have in common plays no part, also where it is so large that a small reach is
// lost beside it.
TYPED_TEST(QuantileBiasTest, CommonPartsOfBiasesCancel) {
  using A = TypeParam;
  constexpr Index tokens = 200, experts = 9, top_k = 2;
  const RowMatrix<A> scores_TE =
      (skewed_scores<A>(tokens, experts, 15) * A(8192)).array().round() / A(8192);
  for (const double reach : {std::ldexp(1.0, -50), 1.0}) {
    const QuantileRule rule = rule_of(50, reach, 0.25);
    for (const A step : {A(0), A(0.125)}) {
      std::vector<A> bias_E(experts), raised_E(experts);
      for (std::size_t e = 0; e < bias_E.size(); ++e) {
        bias_E[e] = step * A(e);
        raised_E[e] = bias_E[e] + 1024;
      }
      const Counts counts_EB = count(scores_TE, bias_E, top_k, rule);
      EXPECT_EQ(count(scores_TE, raised_E, top_k, rule), counts_EB) << reach;
      EXPECT_EQ(next_of(counts_EB, tokens, top_k, rule, raised_E),
                next_of(counts_EB, tokens, top_k, rule, bias_E))
          << reach;
    }
  }
}

TYPED_TEST(QuantileBiasTest, RefusesBadInput) {
  using A = TypeParam;
  constexpr Index experts = 4;
  RowMatrix<A> scores_TE = RowMatrix<A>::Zero(3, experts);
  const RowMatrix<A> const_scores_TE = scores_TE;
  std::vector<A> bias_E(experts), short_E(experts - 1);
  const QuantileRule good = rule_of(8);
  Counts counts_EB = Counts::Constant(experts, 9, 7);
  auto memory = data::scratch(1 << 16);
  const auto counted = [&](Index top_k, const QuantileRule& rule, const std::vector<A>& bias,
                           gatepro::Workspace workspace) {
    gatepro::count_needed_bias(gatepro::view(const_scores_TE), bias, {}, top_k, rule,
                               gatepro::view(counts_EB), workspace);
  };
  expect_error([&] { counted(0, good, bias_E, memory); }, {"1 <= top_k", "top_k=0"});
  expect_error([&] { counted(4, good, bias_E, memory); }, {"top_k < num_experts", "top_k=4"});
  expect_error([&] { counted(1, rule_of(1), bias_E, memory); }, {"2 <= bins", "bins=1"});
  expect_error([&] { counted(1, rule_of(1 << 21), bias_E, memory); }, {"2^20", "bins=2097152"});
  for (const double reach : {0.0, -1.0, infinite, 1e300, std::nan("")}) {
    expect_error([&] { counted(1, rule_of(8, reach), bias_E, memory); }, {"reach"});
  }
  // In units so small bins have no number as float; as double they have.
  const bool is_float = sizeof(A) == sizeof(float);
  if (is_float) {
    expect_error([&] { counted(1, rule_of(8, 1e-38), bias_E, memory); }, {"bins / (2 reach)"});
    expect_error([&] { QuantileCounts<A>(experts, rule_of(1 << 20, 1e-33)); }, {"reach=1e-33"});
  } else {
    QuantileCounts<A>(experts, rule_of(8, 1e-38));
  }
  for (const double memory_rule : {1.0, -0.1, std::nan("")}) {
    expect_error([&] { counted(1, rule_of(8, 1, memory_rule), bias_E, memory); }, {"memory"});
  }
  expect_error([&] { counted(1, good, short_E, memory); }, {"bias_E"});
  bias_E[2] = data::infinity<A>();
  expect_error([&] { counted(1, good, bias_E, memory); }, {"bias_E", "finite", "expert=2"});
  bias_E[2] = 0;
  expect_error([&] { counted(1, rule_of(9), bias_E, memory); }, {"counts_EB"});
  auto far_E = bias_E;
  far_E[0] = std::numeric_limits<A>::max(), far_E[1] = -far_E[0];
  expect_error([&] { counted(1, good, far_E, memory); }, {"count_needed_bias", "stay finite"});
  expect_error([&] { counted(1, good, bias_E, {memory.data(), 8}); }, {"workspace"});
  EXPECT_EQ(counts_EB, Counts::Constant(experts, 9, 7)) << "nothing was written";

  const auto moved = [&](const Counts& counts, std::int64_t tokens) {
    std::vector<A> next_E(experts);
    gatepro::quantile_bias<A>(gatepro::view(counts), tokens, good, bias_E, next_E);
  };
  expect_error([&] { moved(Counts::Zero(experts, 8), 1); }, {"counts_EB"});
  expect_error([&] { moved(Counts::Zero(experts, 9), -1); }, {"choices >= 0"});
  expect_error([&] { moved(Counts::Constant(experts, 9, 1), 8); }, {"counts=9", "choices=8"});
  expect_error([&] { moved(Counts::Constant(experts, 9, -1), 8); }, {"counts_EB", "count=-1"});
  bias_E = {std::numeric_limits<A>::max(), 0, 0, std::numeric_limits<A>::lowest()};
  expect_error([&] { moved(Counts::Zero(experts, 9), 1); }, {"stay finite"});
  expect_error([] { QuantileCounts<A>(0, rule_of(8)); }, {"num_experts"});
}

}  // namespace
