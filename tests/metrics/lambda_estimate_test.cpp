// SPDX-License-Identifier: MIT
// The estimate of the lambda that changes a share of the choices: what it is, how it follows, and
// that ranks, parts and checkpoints agree.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include "support/errors.hpp"
#include "support/ids.hpp"
#include "support/memory.hpp"
#include "support/ranks.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::AdaptiveLambda;
using gatepro::Index;
using gatepro::LambdaEstimate;
using gatepro::RivalTable;
using gatepro::RowMatrix;

constexpr Index experts = 16, top_k = 3;

RivalTable rivals() {
  const RowMatrix<std::int32_t> partners = data::random_partners(experts, 1, 3);
  return RivalTable(partners, false);
}

template <class A>
RowMatrix<A> batch(std::uint64_t seed, double scale = 1, Index tokens = 400) {
  return data::random_matrix<A>(tokens, experts, seed, scale);
}

template <class A>
void observe(LambdaEstimate& estimate, const RowMatrix<A>& logits_TE) {
  auto memory = data::scratch(gatepro::count_margins_workspace_bytes<A>(experts, top_k));
  estimate.observe(gatepro::view(logits_TE), rivals(), {top_k}, {}, memory);
}

/// The least lambda that changes each token's set, by its closed form; infinity for none.
std::vector<double> least_lambdas(const RowMatrix<double>& logits_TE) {
  const RowMatrix<std::int32_t> partners = data::random_partners(experts, 1, 3);
  std::vector<double> lambdas;
  for (Index t = 0; t < logits_TE.rows(); ++t) {
    std::vector<double> sorted(logits_TE.row(t).begin(), logits_TE.row(t).end());
    std::sort(sorted.rbegin(), sorted.rend());
    const double infinity = std::numeric_limits<double>::infinity();
    double loser = infinity, survivor = -infinity;
    for (Index e = 0; e < experts; ++e) {
      const double logit = logits_TE(t, e);
      const bool selected = logit >= sorted[static_cast<std::size_t>(top_k) - 1];
      const bool loses = logit < logits_TE(t, partners(e, 0));
      if (selected && loses) loser = std::min(loser, logit);
      if (!selected && !loses) survivor = std::max(survivor, logit);
    }
    lambdas.push_back(loser - survivor);
  }
  std::sort(lambdas.begin(), lambdas.end());
  return lambdas;
}

template <class A>
class LambdaEstimateTest : public ::testing::Test {};
using Types = ::testing::Types<float, double>;
TYPED_TEST_SUITE(LambdaEstimateTest, Types, TypeNames);

// With a memory of one step lambda is the quantile of that step's tokens, but for the bins.
TYPED_TEST(LambdaEstimateTest, IsTheQuantileOfTheLeastLambdas) {
  for (const double scale : {1e-6, 1e-3, 1.0, 1e3}) {
    const RowMatrix<TypeParam> logits = batch<TypeParam>(5, scale, 4000);
    const std::vector<double> sorted = least_lambdas(logits.template cast<double>());
    for (const double share : {0.01, 0.1, 0.2}) {
      LambdaEstimate estimate({share, 1});
      observe(estimate, logits);
      EXPECT_EQ(estimate.lambda(), 0);  // not before the step
      estimate.step();
      const double exact = sorted[static_cast<std::size_t>(share * 4000)];
      EXPECT_NEAR(estimate.lambda(), exact, exact * 0.03)
          << "scale=" << scale << " share=" << share;
    }
  }
}

// Elimination changes the set of fewer tokens than this share: lambda is what changes them all.
TEST(LambdaEstimate, SharesOutOfReachTakeAllThatCanBeChanged) {
  const RowMatrix<double> logits = batch<double>(6);
  std::vector<double> sorted = least_lambdas(logits);
  sorted.erase(std::find(sorted.begin(), sorted.end(), std::numeric_limits<double>::infinity()),
               sorted.end());
  LambdaEstimate estimate({0.99, 1});
  observe(estimate, logits);
  estimate.step();
  EXPECT_GE(estimate.lambda(), sorted.back());
  EXPECT_LE(estimate.lambda(), sorted.back() * 1.125);
}

// When the scale jumps, what is left of the old step fades by 1 - 1/memory a step.
TEST(LambdaEstimate, FollowsTheScaleAtThePaceOfItsMemory) {
  for (const double memory : {1.0, 4.0, 16.0}) {
    LambdaEstimate estimate({0.1, memory}), fresh({0.1, memory});
    for (std::uint64_t step = 0; step < 50; ++step) {
      observe(estimate, batch<float>(step, 1e-3));
      estimate.step();
    }
    const double before = estimate.lambda();
    std::uint64_t steps = 0;
    do {
      observe(estimate, batch<float>(100 + steps, 1));
      estimate.step();
      ++steps;
    } while (estimate.lambda() < 0.9 * 1000 * before && steps < 1000);
    // Until the old weigh 0.1 * 0.1 of the sum, or thereabouts.
    EXPECT_LE(static_cast<double>(steps), memory * 7) << memory;
    for (std::uint64_t step = 0; step < 10; ++step) {
      observe(fresh, batch<float>(200 + step, 1));
      fresh.step();
    }
    EXPECT_NEAR(fresh.lambda(), 1000 * before, 300 * before);
  }
}

TEST(LambdaEstimate, StepsWithoutTokensChangeNothing) {
  for (const double memory : {1.0, 4.0}) {
    LambdaEstimate estimate({0.1, memory});
    estimate.step();
    EXPECT_EQ(estimate.lambda(), 0);
    observe(estimate, batch<float>(7));
    estimate.step();
    const double lambda = estimate.lambda();
    const std::vector<double> before = data::copy(estimate.estimate());
    EXPECT_GT(lambda, 0);
    for (int step = 0; step < 5; ++step) estimate.step();
    EXPECT_EQ(estimate.lambda(), lambda) << memory;
    EXPECT_EQ(data::copy(estimate.estimate()), before) << memory;
  }
}

// They would count as tokens that no lambda changes, and be made up for by too large a lambda.
TEST(LambdaEstimate, TokensBeforeThereArePartnersDoNotCount) {
  LambdaEstimate estimate({0.1, 16}), late({0.1, 16});
  auto memory = data::scratch(gatepro::count_margins_workspace_bytes<float>(experts, top_k));
  for (std::uint64_t step = 0; step < 16; ++step) {
    const RowMatrix<float> logits = batch<float>(step);
    late.observe(gatepro::view(logits), RivalTable(), {top_k}, {}, memory);
    late.step();
    EXPECT_EQ(late.lambda(), 0);
  }
  for (LambdaEstimate* each : {&estimate, &late}) {
    observe(*each, batch<float>(7));
    each->step();
  }
  EXPECT_GT(late.lambda(), 0);
  EXPECT_EQ(late.lambda(), estimate.lambda());
}

TEST(LambdaEstimate, MicroBatchesRanksAndCheckpointsGiveTheSameBits) {
  constexpr int ranks = 3;
  const AdaptiveLambda rule{0.05, 4};
  LambdaEstimate whole(rule);
  std::vector<LambdaEstimate> parts(ranks, LambdaEstimate(rule));
  for (std::uint64_t step = 0; step < 6; ++step) {
    for (std::uint64_t rank = 0; rank < ranks; ++rank) {
      const RowMatrix<float> logits = batch<float>(10 * step + rank);
      observe(whole, logits);
      const RowMatrix<float> first = logits.topRows(150), second = logits.bottomRows(250);
      observe(parts[rank], first);
      LambdaEstimate resumed(rule);  // a checkpoint in the middle of a step
      resumed.restore(parts[rank].estimate(), parts[rank].counts());
      EXPECT_EQ(resumed.lambda(), parts[rank].lambda());
      observe(resumed, second);
      parts[rank] = resumed;
    }
    whole.step();
    run_ranks(ranks, [&](int rank, const auto& reduce) {
      parts[static_cast<std::size_t>(rank)].step(reduce);
    });
    for (const LambdaEstimate& part : parts) {
      EXPECT_EQ(part.lambda(), whole.lambda());
      EXPECT_EQ(data::copy(part.estimate()), data::copy(whole.estimate()));
    }
  }
}

TEST(LambdaEstimate, AFailureChangesNothing) {
  LambdaEstimate estimate({0.1, 4});
  observe(estimate, batch<float>(8));
  estimate.step();
  observe(estimate, batch<float>(9));
  const double lambda = estimate.lambda();
  const std::vector<double> before = data::copy(estimate.estimate());
  const std::vector<std::int64_t> counts = data::copy(estimate.counts());
  const auto broken = [](std::int64_t*, Index) { throw std::runtime_error("connection lost"); };
  EXPECT_THROW(estimate.step(broken), std::runtime_error);
  const auto overflow = [](std::int64_t* all, Index) { all[1] = -4; };
  expect_error([&] { estimate.step(overflow); }, {"LambdaEstimate", "reduce hook", "count=-4"});
  std::vector<double> bad = before;
  std::vector<std::int64_t> negative = counts;
  bad[3] = -1;
  negative[2] = -1;
  expect_error([&] { estimate.restore(bad, counts); },
               {"LambdaEstimate", "estimate", "value=-1", "position=3"});
  bad[3] = std::numeric_limits<double>::quiet_NaN();
  expect_error([&] { estimate.restore(bad, counts); }, {"estimate", "position=3"});
  std::vector<std::int64_t> many = counts;
  many[5] = many[0] + 1;
  expect_error([&] { estimate.restore(before, many); },
               {"LambdaEstimate", "a lambda per token", "tokens=400"});
  LambdaEstimate full({0.1, 4});
  std::fill(many.begin(), many.end(), std::int64_t{0});
  many[0] = std::numeric_limits<std::int64_t>::max();
  full.restore(before, many);
  expect_error([&] { observe(full, batch<float>(9)); }, {"LambdaEstimate", "fits int64"});
  EXPECT_EQ(data::copy(full.counts()), many);
  expect_error([&] { estimate.restore(before, negative); }, {"counts", "count=-1", "position=2"});
  bad.pop_back();
  expect_error([&] { estimate.restore(bad, counts); }, {"estimate", "size needed"});
  EXPECT_EQ(estimate.lambda(), lambda);
  EXPECT_EQ(data::copy(estimate.estimate()), before);
  EXPECT_EQ(data::copy(estimate.counts()), counts);
}

TEST(LambdaEstimate, BadSettings) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const double share : {-0.1, 1.1, nan}) {
    expect_error(
        [&] {
          LambdaEstimate({share, 4});
        },
        {"LambdaEstimate", "0 <= share <= 1", "share="});
  }
  for (const double memory : {0.5, 0.0, nan, std::numeric_limits<double>::infinity()}) {
    expect_error([&] { LambdaEstimate({0.1, memory}); }, {"LambdaEstimate", "memory", "memory="});
  }
}

}  // namespace
