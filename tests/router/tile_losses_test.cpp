// SPDX-License-Identifier: MIT
// What a complete router's losses take from its tiles: shares, log-sum-exps, and the values.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "support/bits.hpp"
#include "support/conversions.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/reference/scores.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::CompleteConfig;
using gatepro::CompleteRouter;
using gatepro::ForwardInputs;
using gatepro::Index;
using gatepro::LossWeight;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;
using gatepro::SerialExecutor;

// More groups of tokens than one total holds, and a last one that is not full.
constexpr Index T = 1005, E = 21, K = 3;

CompleteConfig config_of(ScoreFunction function) {
  CompleteConfig config{{/*hidden_size=*/4, E, K}};
  config.scores.function = function;
  config.losses.batch = 0.02;
  config.losses.global = 0.03;
  config.losses.z = 0.001;
  return config;
}

std::vector<std::uint8_t> every_ninth() {
  std::vector<std::uint8_t> padding(T);
  for (std::size_t t = 0; t < padding.size(); t += 9) padding[t] = 1;
  return padding;
}

template <class A>
struct Outcome {
  gatepro::LossValues values;
  std::vector<double> share_sums_E;
  std::vector<A> log_sum_exp_T;
};

/// A forward of given logits. `see(in, out, report)` is shown what it wrote.
template <class A, class Executor, class See>
Outcome<A> forward(const CompleteConfig& config, const RowMatrix<A>& logits_TE,
                   const std::vector<std::uint8_t>& padding, const Executor& executor,
                   const See& see) {
  CompleteRouter<A> router(config);
  const auto w_EH = data::random_matrix<A>(E, config.hidden_size, 8);
  router.refresh(w_EH, 0);
  gatepro::RoutingBuffers<CompleteRouter<A>> buffers(
      router, gatepro::BufferShape{logits_TE.rows(), executor.workers()});
  auto out = buffers.view();
  std::copy_n(logits_TE.data(), logits_TE.size(), out.logits_TE.data);
  ForwardInputs<> in;
  in.is_padding_T = padding;
  std::memset(buffers.workspace().data, 0xee, buffers.workspace().bytes);
  const auto report =
      router.forward_logits(in, out, buffers.workspace(), gatepro::NoReduce{}, executor);
  see(in, out, report);
  return {report.losses,
          {out.share_sums_E.data, out.share_sums_E.data + out.share_sums_E.size},
          {out.log_sum_exp_T.data, out.log_sum_exp_T.data + out.log_sum_exp_T.size}};
}
template <class A, class Executor = SerialExecutor>
Outcome<A> forward(const CompleteConfig& config, const RowMatrix<A>& logits_TE,
                   const std::vector<std::uint8_t>& padding, const Executor& executor = {}) {
  return forward<A>(config, logits_TE, padding, executor,
                    [](const auto&, const auto&, const auto&) {});
}

template <class A>
class TileLossesTest : public testing::Test {
 public:
  static constexpr double eps = static_cast<double>(std::numeric_limits<A>::epsilon());
  const RowMatrix<A> logits_TE = data::random_matrix<A>(T, E, 3, 2);
  const std::vector<std::uint8_t> padding = every_ninth();
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(TileLossesTest, Scalars, TypeNames);

TYPED_TEST(TileLossesTest, SharesAndLogSumExpsAreThoseOfTheReference) {
  using A = TypeParam;
  const reference::Matrix l_TE = data::to_reference(this->logits_TE);
  for (ScoreFunction function : data::score_functions) {
    const auto got = forward<A>(config_of(function), this->logits_TE, this->padding);
    std::vector<double> want_E(E);
    for (std::size_t t = 0; t < l_TE.size(); ++t) {
      ASSERT_NEAR(static_cast<double>(got.log_sum_exp_T[t]), reference::log_sum_exp(l_TE[t]),
                  40 * this->eps);
      if (this->padding[t] != 0) continue;
      const auto shares = reference::normalised_scores(l_TE[t], function).scores;
      for (std::size_t e = 0; e < shares.size(); ++e) want_E[e] += shares[e];
    }
    for (std::size_t e = 0; e < want_E.size(); ++e) {
      EXPECT_NEAR(got.share_sums_E[e] / want_E[e], 1, 4 * this->eps + 1e-14) << e;
    }
  }
}

// The largest sum that there is: a share of 1 from each token.
TYPED_TEST(TileLossesTest, OneExpertHasItAll) {
  using A = TypeParam;
  RowMatrix<A> one_sided_TE = this->logits_TE;
  one_sided_TE.col(5).array() += A(900);
  const auto got = forward<A>(config_of(ScoreFunction::softmax_after_top_k), one_sided_TE,
                              std::vector<std::uint8_t>(T));
  for (std::size_t e = 0; e < E; ++e) EXPECT_EQ(got.share_sums_E[e], e == 5 ? T : 0);
}

// The stage adds up mean prices, token by token.
TYPED_TEST(TileLossesTest, ValuesAreThoseOfTheStages) {
  using A = TypeParam;
  for (ScoreFunction function : data::score_functions) {
    const CompleteConfig config = config_of(function);
    std::vector<std::byte> memory(gatepro::load_balancing_loss_workspace_bytes<A>(T, E) +
                                  gatepro::z_loss_workspace_bytes<A>(T, E));
    const auto see = [&](const auto& in, const auto& out, const auto& report) {
      const gatepro::LossLogits<A> logits{out.logits_TE, in.is_padding_T};
      const gatepro::BalanceCounts counts{out.tokens_per_expert_E, report.valid_tokens};
      const auto weight = [](double coefficient) { return LossWeight{coefficient}; };
      const double batch = gatepro::load_balancing_loss(logits, counts, {function, K},
                                                        weight(config.losses.batch), memory);
      EXPECT_NEAR(report.losses.batch / batch, 1, 4 * this->eps);
      EXPECT_NEAR(report.losses.global / report.losses.batch, 1.5, 1e-12);
      const double z = gatepro::z_loss(logits, weight(config.losses.z), memory);
      EXPECT_EQ(report.losses.z, z);
      EXPECT_EQ(report.losses.z,
                gatepro::z_loss_value(out.log_sum_exp_T, in.is_padding_T, weight(config.losses.z)));
    };
    forward<A>(config, this->logits_TE, this->padding, SerialExecutor{}, see);
  }
}

TYPED_TEST(TileLossesTest, NeitherThreadsNorTheOrderOfTokensShow) {
  using A = TypeParam;
  const RowMatrix<A> reversed_TE = this->logits_TE.colwise().reverse();
  const std::vector<std::uint8_t> reversed(this->padding.rbegin(), this->padding.rend());
  for (ScoreFunction function : data::score_functions) {
    const CompleteConfig config = config_of(function);
    const auto one = forward<A>(config, this->logits_TE, this->padding);
    for (int workers : {2, 3, 16}) {
      const auto many = forward<A>(config, this->logits_TE, this->padding, ThreadExecutor(workers));
      EXPECT_EQ(many.share_sums_E, one.share_sums_E);
      EXPECT_EQ(many.log_sum_exp_T, one.log_sum_exp_T);
      EXPECT_EQ(many.values.sum(), one.values.sum());
    }
    const auto backwards = forward<A>(config, reversed_TE, reversed);
    EXPECT_EQ(backwards.share_sums_E, one.share_sums_E);
    EXPECT_EQ(backwards.values.batch, one.values.batch);
  }
}

TYPED_TEST(TileLossesTest, ATokenWithoutSharesSpoilsTheValuesUnlessItIsPadding) {
  using A = TypeParam;
  for (A bad : {std::numeric_limits<A>::quiet_NaN(), std::numeric_limits<A>::infinity()}) {
    for (Index t : {Index{9}, Index{10}, T - 1}) {
      RowMatrix<A> spoiled_TE = this->logits_TE;
      spoiled_TE(t, E - 1) = bad;
      const bool masked = this->padding[static_cast<std::size_t>(t)] != 0;
      const auto got =
          forward<A>(config_of(ScoreFunction::softmax_after_top_k), spoiled_TE, this->padding);
      for (double sum : got.share_sums_E) EXPECT_EQ(std::isnan(sum), !masked);
      EXPECT_EQ(std::isnan(got.values.batch), !masked);
      EXPECT_EQ(std::isnan(got.values.z), !masked);
    }
  }
}

// One loss alone takes nothing that it does not need.
TYPED_TEST(TileLossesTest, OnlyWhatALossNeedsIsThere) {
  using A = TypeParam;
  CompleteConfig config = config_of(ScoreFunction::sigmoid);
  const auto all = forward<A>(config, this->logits_TE, this->padding);
  config.losses.batch = config.losses.global = 0;
  const auto z = forward<A>(config, this->logits_TE, this->padding);
  EXPECT_TRUE(z.share_sums_E.empty());
  EXPECT_EQ(z.values.z, all.values.z);
  EXPECT_EQ(z.values.batch, 0);
  config.losses.z = 0;
  config.losses.batch = 0.02;
  const auto batch = forward<A>(config, this->logits_TE, this->padding);
  EXPECT_TRUE(batch.log_sum_exp_T.empty());
  EXPECT_EQ(batch.values.batch, all.values.batch);
  EXPECT_EQ(batch.values.global, 0);
}

TEST(TileLosses, AnEvaluationLeavesThemAlone) {
  CompleteConfig config = config_of(ScoreFunction::sigmoid);
  config.competition = gatepro::Competition::off();
  CompleteRouter<float> router(config);
  gatepro::RoutingBuffers<CompleteRouter<float>> buffers(router, 40);
  auto out = buffers.view();
  std::fill_n(out.logits_TE.data, 40 * E, 0.5F);
  std::fill_n(out.share_sums_E.data, E, -1.0);
  std::fill_n(out.log_sum_exp_T.data, 40, -1.0F);
  ForwardInputs<> in;
  in.pass = gatepro::Pass::evaluation;
  const auto report = router.forward_logits(in, out, buffers.workspace());
  EXPECT_EQ(report.losses.sum(), 0);
  for (Index e = 0; e < E; ++e) EXPECT_EQ(out.share_sums_E[e], -1);
  for (Index t = 0; t < 40; ++t) EXPECT_EQ(out.log_sum_exp_T[t], -1);
}

TEST(TileLosses, AForwardNeedsThem) {
  const auto refused = [](auto take, const char* name) {
    CompleteRouter<float> router(config_of(ScoreFunction::sigmoid));
    router.set_competition(gatepro::Competition::off());
    gatepro::RoutingBuffers<CompleteRouter<float>> buffers(router, 4);
    auto out = buffers.view();
    take(out);
    expect_error([&] { router.forward_logits({}, out, buffers.workspace()); },
                 {"CompleteRouter::forward", name});
  };
  refused([](auto& out) { out.share_sums_E = {}; }, "share_sums_E");
  refused([](auto& out) { out.log_sum_exp_T = {}; }, "log_sum_exp_T");
}

TEST(LossValues, RefuseWhatDoesNotFit) {
  const std::vector<double> sums(E, 1.0);
  const std::vector<std::int64_t> loads(E, 4);
  const gatepro::BalanceCounts counts{loads, E * 2};
  const auto value = [&](const gatepro::BalanceCounts& of, Index k, double c) {
    return gatepro::load_balancing_loss_value(sums, of, k, LossWeight{c, E});
  };
  // E / (K N M) * sum over e of n_e * 1 = E / (2 * 2 E * E) * 4 E = 1.
  EXPECT_EQ(value(counts, 2, 0.5), 0.5);
  // By default the mean is over the tokens of the counts, of which there are twice as many.
  EXPECT_EQ(gatepro::load_balancing_loss_value(sums, counts, 2, LossWeight{0.5}), 0.25);
  EXPECT_EQ(value(counts, 2, 0), 0);
  expect_error([&] { value(counts, 0, 1); }, {"load_balancing_loss_value", "top_k"});
  expect_error([&] { value(counts, 2, -1); }, {"load_balancing_loss_value", "coefficient"});
  expect_error([&] { value(counts, 1, 1); }, {"load_balancing_loss_value"});
  const std::vector<float> logs = {1, 2, 3};
  const std::vector<std::uint8_t> padding = {0, 1, 0}, too_short(2);
  EXPECT_EQ(gatepro::z_loss_value<const float>(logs, padding, {0.5}), 2.5);
  EXPECT_EQ(gatepro::z_loss_value<const float>(logs, {}, {0.5, 7}), 1);
  expect_error([&] { gatepro::z_loss_value<const float>(logs, too_short, {0.5}); },
               {"z_loss_value", "is_padding_T"});
}

}  // namespace
