// SPDX-License-Identifier: MIT
// A lambda relative to the gap: the wanted share of choices changes while the router learns, at
// every scale of the logits and in every precision; and what else that touches.
#include <gatepro/gatepro.hpp>
#include <gatepro/setup.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/complete_data.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/ranks.hpp"

namespace {

using complete_data::expect_same_state;
using data::random_matrix;
using gatepro::Competition;
using gatepro::CompleteConfig;
using gatepro::Index;
using gatepro::Pass;
using gatepro::RowMatrix;

using R = gatepro::CompleteRouter<float>;
constexpr Index T = 512, H = 16, E = 32, K = 4;

CompleteConfig adaptive(double share, double memory = 4) {
  CompleteConfig config{{H, E, K}};
  config.adaptive_lambda = {share, memory};
  return config;
}

/// A router that learns which experts are good for a token: the better, the larger <x, good_e>.
struct Trainer {
  Trainer(const CompleteConfig& config, double scale)
      : router(config),
        w_EH(random_matrix<float>(E, H, 2, scale)),
        good_EH(random_matrix<float>(E, H, 3)),
        rate(scale / 50),
        buffers(router, gatepro::BufferShape{T}) {
    router.refresh_now(w_EH, 0);
  }

  /// The share of tokens whose set the penalty changed. With `rounded`, logits are bfloat16.
  double step(bool rounded) {
    ++number;
    const RowMatrix<float> x_TH = random_matrix<float>(T, H, 100 + number);
    gatepro::PenaltyStatistics statistics;
    auto out = buffers.view();
    out.statistics = &statistics;
    if (rounded) {
      const RowMatrix<float> logits_TE =
          (x_TH * w_EH.transpose()).cast<gatepro::bfloat16>().cast<float>();
      Eigen::Map<RowMatrix<float>>(out.logits_TE.data, T, E) = logits_TE;
      buffers.set_report(router.forward_logits({}, out, buffers.workspace()));
    } else {
      buffers.set_report(router.forward(x_TH, w_EH, {}, out, buffers.workspace()));
    }
    RowMatrix<float> dweights_TK(T, K), dw_EH = RowMatrix<float>::Zero(E, H);
    for (Index t = 0; t < T; ++t) {
      for (Index j = 0; j < K; ++j)
        dweights_TK(t, j) = -x_TH.row(t).dot(good_EH.row(out.expert_ids_TK(t, j)));
    }
    router.backward(x_TH, w_EH, {{}, out, buffers.report()}, {dweights_TK}, {{}, dw_EH},
                    buffers.workspace());
    // Where softmax is saturated gradients vanish, and logits still grow.
    w_EH = 1.01F * w_EH - static_cast<float>(rate) * dw_EH;
    router.end_step();
    router.refresh(w_EH, static_cast<std::int64_t>(number));
    return statistics.changed_rate();
  }

  R router;
  RowMatrix<float> w_EH, good_EH;
  double rate;
  gatepro::RoutingBuffers<R> buffers;
  unsigned number = 0;
};

TEST(CompleteLambda, HoldsTheShareThroughATrainingAtEveryScaleAndPrecision) {
  for (const double share : {0.02, 0.1, 0.25}) {
    for (const double scale : {1e-3, 1.0, 1e3}) {
      for (const bool rounded : {false, true}) {
        SCOPED_TRACE(testing::Message()
                     << "share=" << share << " scale=" << scale << " rounded=" << rounded);
        Trainer trainer(adaptive(share), scale);
        const RowMatrix<float> start_EH = trainer.w_EH;
        double sum = 0, worst = 0;
        for (int step = 0; step < 60; ++step) {
          const double changed = trainer.step(rounded);
          if (step < 20) continue;  // most of what changes, and the estimate fills
          sum += changed / 40;
          worst = std::max(worst, std::abs(changed - share));
        }
        EXPECT_NEAR(sum, share, 0.1 * share + 0.004);
        EXPECT_LT(worst, 5 * std::sqrt(share / T) + 0.02);  // chance, and what the logits move
        EXPECT_GT((trainer.w_EH - start_EH).norm(), 0.5F * start_EH.norm());  // it has learned
      }
    }
  }
}

TEST(CompleteLambda, OffLeavesLambdaAsItWasSet) {
  Trainer trainer(adaptive(0), 1);
  trainer.router.set_competition(Competition::penalty(0.25));
  trainer.step(false);
  EXPECT_EQ(trainer.router.config().competition.lambda, 0.25);
  EXPECT_TRUE(trainer.router.state().lambda_estimate.empty());
}

TEST(CompleteLambda, LambdaIsTheGivenOneUntilThereIsAnEstimate) {
  CompleteConfig config = adaptive(0.1);
  config.competition = Competition::penalty(0.5);
  Trainer trainer(config, 1);
  EXPECT_EQ(trainer.router.config().competition.lambda, 0.5);
  trainer.step(false);
  EXPECT_EQ(trainer.buffers.report().competition.lambda, 0.5);
  const double found = trainer.router.config().competition.lambda;
  EXPECT_NE(found, 0.5);
  trainer.step(false);
  EXPECT_EQ(trainer.buffers.report().competition.lambda, found);
  // Switching changes the mode; coming back, lambda is the one that was found.
  const double last = trainer.router.config().competition.lambda;
  trainer.router.set_competition(Competition::off());
  EXPECT_FALSE(trainer.router.config().competition.active());
  trainer.router.set_competition(Competition::eliminate());
  EXPECT_EQ(trainer.router.config().competition.lambda, 0);
  trainer.router.set_competition(Competition::penalty(7));
  EXPECT_EQ(trainer.router.config().competition.lambda, last);
  expect_error([&] { trainer.router.set_competition(Competition::penalty(-1)); }, {"lambda=-1"});
  // A new router has nothing to go by.
  trainer.router.restore({});
  EXPECT_EQ(trainer.router.config().competition.lambda, 7);
}

template <class Router, class = void>
constexpr bool takes_competition = false;
template <class Router>
constexpr bool takes_competition<
    Router, std::void_t<decltype(std::declval<Router&>().set_competition(Competition()))>> = true;

// What routers share knows of no estimate, and so has no setter for users.
TEST(CompleteLambda, IsNotBypassedThroughTheBase) {
  using gatepro::PartneredRouter;
  EXPECT_TRUE(takes_competition<R>);
  EXPECT_TRUE(takes_competition<gatepro::Router<float>>);
  EXPECT_FALSE((takes_competition<PartneredRouter<float, float, CompleteConfig>>));
}

// Without the penalty nothing is to be estimated; nor do evaluations teach, nor choices that the
// logits did not make.
TEST(CompleteLambda, OnlyTrainingForwardsThatComputeWithAPenaltyCount) {
  const RowMatrix<float> x = random_matrix<float>(T, H, 1), w = random_matrix<float>(E, H, 2);
  const gatepro::HashTable table = gatepro::random_hash_table(T, E, K, 3);
  std::vector<std::int64_t> token_ids(T);
  std::iota(token_ids.begin(), token_ids.end(), std::int64_t{0});
  for (const int which : {0, 1, 2, 3, 4, 5}) {
    R router(adaptive(0.1));
    router.refresh_now(w, 0);
    gatepro::RoutingBuffers<R> buffers(router, gatepro::BufferShape{T, 1, 1, true, true});
    gatepro::RoutingRecord<> record;
    gatepro::ForwardInputs<> in;
    in.record = &record;
    router.forward(x, w, in, buffers);
    const std::int64_t before = router.state().lambda_counts[0];
    EXPECT_EQ(before, T);
    in.record = nullptr;
    if (which == 1) in.pass = Pass::evaluation;
    if (which == 2 || which == 3) in.replay = &record;
    if (which == 3) in.pass = Pass::recompute;
    if (which == 4) router.set_competition(Competition::eliminate());
    if (which == 5) {
      in.hash = &table;
      in.token_ids_T = token_ids;
    }
    router.forward(x, w, in, buffers);
    EXPECT_EQ(router.state().lambda_counts[0], which == 0 ? 2 * T : before) << which;
  }
  for (const auto forced : {gatepro::ForcedRouting::random, gatepro::ForcedRouting::round_robin}) {
    CompleteConfig config = adaptive(0.1);
    config.noise.forced = forced;
    R router(config);
    router.refresh_now(w, 0);
    complete_data::forward(router, x, w);
    EXPECT_EQ(router.state().lambda_counts[0], 0);
  }
}

// A warm-up without a penalty, and without the partners that only a penalty needs.
TEST(CompleteLambda, TokensBeforeThereArePartnersDoNotCount) {
  CompleteConfig config = adaptive(0.1, 16);
  config.competition = Competition::penalty(0);
  R router(config), late(config);
  const RowMatrix<float> x = random_matrix<float>(T, H, 1), w = random_matrix<float>(E, H, 2);
  for (int step = 0; step < 16; ++step) {
    complete_data::forward(late, x, w);
    late.end_step();
    EXPECT_EQ(late.config().competition.lambda, 0);
  }
  for (R* each : {&router, &late}) {
    each->refresh_now(w, 0);
    complete_data::forward(*each, x, w);
    each->end_step();
  }
  EXPECT_GT(late.config().competition.lambda, 0);
  EXPECT_EQ(late.config().competition.lambda, router.config().competition.lambda);
}

TEST(CompleteLambda, AResumedRunHasTheSameBits) {
  Trainer whole(adaptive(0.1), 1), resumed(adaptive(0.1), 1);
  for (int step = 0; step < 4; ++step) whole.step(false);
  for (int step = 0; step < 2; ++step) resumed.step(true);  // another past, which is forgotten
  resumed.w_EH = whole.w_EH;
  resumed.number = whole.number;
  resumed.router.restore(whole.router.state());
  for (int step = 0; step < 3; ++step) {
    EXPECT_EQ(resumed.router.config().competition.lambda, whole.router.config().competition.lambda);
    EXPECT_EQ(resumed.step(false), whole.step(false));
    expect_same_state(resumed.router.state(), whole.router.state());
  }
}

// Two ranks with half of the tokens each, or one with all: one lambda.
TEST(CompleteLambda, RanksAndThreadsAgree) {
  const RowMatrix<float> x = random_matrix<float>(T, H, 1), w = random_matrix<float>(E, H, 2);
  R whole(adaptive(0.1));
  whole.refresh_now(w, 0);
  complete_data::forward(whole, x, w, {}, gatepro::NoReduce(), ThreadExecutor(3));
  whole.end_step();
  std::vector<R> ranks(2, R(adaptive(0.1)));
  run_ranks(2, [&](int rank, const auto& reduce) {
    R& router = ranks[static_cast<std::size_t>(rank)];
    router.refresh_now(w, 0);
    complete_data::forward(router, complete_data::rows(x, rank * T / 2, T / 2), w, {}, reduce);
    router.end_step(reduce);
  });
  for (const R& router : ranks) {
    EXPECT_EQ(router.config().competition.lambda, whole.config().competition.lambda);
    EXPECT_EQ(router.state().lambda_estimate, whole.state().lambda_estimate);
  }
}

TEST(CompleteLambda, AFailedStepChangesNothing) {
  CompleteConfig config = adaptive(0.1);
  config.bias.enabled = true;
  Trainer trainer(config, 1);
  trainer.step(false);
  const RowMatrix<float> x = random_matrix<float>(T, H, 1);
  complete_data::forward(trainer.router, x, trainer.w_EH);
  const gatepro::RouterState before = trainer.router.state();
  const double lambda = trainer.router.config().competition.lambda;
  for (const int good : {0, 1}) {
    int calls = 0;
    const auto breaks = [&](std::int64_t*, Index) {
      if (calls++ == good) throw std::runtime_error("connection lost");
    };
    EXPECT_THROW(trainer.router.end_step(breaks), std::runtime_error);
    expect_same_state(trainer.router.state(), before);
    EXPECT_EQ(trainer.router.config().competition.lambda, lambda);
  }
  for (const int bodies : {0, 1, 2}) {  // in the last, the routing is done
    EXPECT_THROW(complete_data::forward(trainer.router, x, trainer.w_EH, {}, gatepro::NoReduce(),
                                        ThrowingExecutor(bodies)),
                 std::runtime_error);
    expect_same_state(trainer.router.state(), before);
  }
}

TEST(CompleteLambda, BadSettingsAndStates) {
  expect_error([] { R(adaptive(1.5)); }, {"CompleteRouter", "0 <= share <= 1", "share=1.5"});
  expect_error([] { R(adaptive(0.1, 0)); }, {"CompleteRouter", "memory=0"});
  R router(adaptive(0.1)), plain(adaptive(0));
  gatepro::RouterState state = router.state();
  expect_error([&] { plain.restore(state); }, {"lambda_estimate", "share is 0"});
  state.lambda_counts.clear();
  expect_error([&] { router.restore(state); }, {"lambda_estimate and lambda_counts"});
  state = router.state();
  state.lambda_estimate.pop_back();
  expect_error([&] { router.restore(state); }, {"lambda_estimate", "size"});
  state = router.state();
  state.lambda_estimate[5] = -2;
  expect_error([&] { router.restore(state); }, {"estimate", "value=-2", "position=5"});
}

}  // namespace
