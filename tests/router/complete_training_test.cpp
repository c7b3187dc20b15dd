// SPDX-License-Identifier: MIT
// What a complete router keeps over a training run: counters, checkpoints, records; and that a step
// gives the same gradients however it is cut into ranks and micro-batches.
#include <gatepro/router/complete_router.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <vector>

#include "support/bits.hpp"
#include "support/complete_data.hpp"
#include "support/conversions.hpp"
#include "support/errors.hpp"
#include "support/inputs.hpp"
#include "support/ranks.hpp"
#include "support/reference/scores.hpp"

namespace {

using complete_data::expect_same_outcome;
using complete_data::expect_same_state;
using complete_data::Outcome;
using complete_data::rows;
using complete_data::zeros;
using data::random_matrix;
using data::same_bits;
using gatepro::Competition;
using gatepro::CompleteConfig;
using gatepro::CountSource;
using gatepro::ForwardInputs;
using gatepro::Index;
using gatepro::LossValues;
using gatepro::Pass;
using gatepro::RefreshSchedule;
using gatepro::RowMatrix;

using R = gatepro::CompleteRouter<float>;
constexpr Index T = 60, H = 16, E = 12, K = 3;

const std::vector<std::int64_t>& sequences() {
  static const std::vector<std::int64_t> begin = {0, 20, 45, T};
  return begin;
}

ForwardInputs<> inputs(Pass pass = Pass::training) {
  ForwardInputs<> in;
  in.pass = pass;
  in.sequence_begin_S1 = sequences();
  return in;
}

RowMatrix<float> tokens_of_step(std::int64_t step, unsigned micro_batch = 0) {
  return random_matrix<float>(T, H, static_cast<unsigned>(1000 + 10 * step) + micro_batch);
}

/// A toy trainer: two micro-batches per step, plain gradient descent.
struct Trainer {
  explicit Trainer(const CompleteConfig& config)
      : router(config), w_EH(random_matrix<float>(E, H, 2)) {}

  void micro_batch(std::int64_t step, unsigned number) {
    last = complete_data::step(router, tokens_of_step(step, number), w_EH, inputs(), dweights_TK,
                               dw_EH);
    dw_EH = last.dw_EH;
  }
  void finish(std::int64_t step) {
    router.end_step();
    w_EH -= 0.3F * dw_EH;
    dw_EH.setZero();
    router.refresh(w_EH, step + 1);
  }
  void train(std::int64_t first, std::int64_t end) {
    for (std::int64_t step = first; step < end; ++step) {
      micro_batch(step, 0);
      micro_batch(step, 1);
      finish(step);
    }
  }

  R router;
  RowMatrix<float> w_EH;
  RowMatrix<float> dw_EH = zeros<float>(E, H);
  RowMatrix<float> dweights_TK = random_matrix<float>(T, K, 3);
  Outcome<R> last;
};

// ---- Checkpoints -------------------------------------------------------------------------------

TEST(CompleteState, AResumedRunIsBitIdenticalUnderEverySchedule) {
  for (const RefreshSchedule& schedule :
       {RefreshSchedule::every_step(), RefreshSchedule::every(3), RefreshSchedule::on_demand(),
        RefreshSchedule::frozen()}) {
    CompleteConfig config = complete_data::full_config(H, E, K);
    config.refresh = schedule;
    for (std::int64_t cut = 1; cut < 6; ++cut) {
      Trainer whole(config);
      whole.router.refresh_now(whole.w_EH, 0);
      whole.train(0, cut);
      whole.micro_batch(cut, 0);  // a checkpoint in the middle of a step

      Trainer resumed(config);
      resumed.w_EH = whole.w_EH;
      resumed.dw_EH = whole.dw_EH;
      resumed.router.restore(whole.router.state());
      expect_same_state(resumed.router.state(), whole.router.state());

      for (Trainer* trainer : {&whole, &resumed}) {
        trainer->micro_batch(cut, 1);
        trainer->finish(cut);
        trainer->train(cut + 1, 7);
      }
      expect_same_outcome(resumed.last, whole.last);
      expect_same_state(resumed.router.state(), whole.router.state());
      EXPECT_TRUE(same_bits(resumed.w_EH, whole.w_EH));
    }
  }
}

TEST(CompleteState, RestoresTheTimeBeforeTheFirstRefresh) {
  CompleteConfig config = complete_data::full_config(H, E, K);
  config.refresh = RefreshSchedule::frozen();
  const R fresh(config);
  R router(config);
  const auto w_EH = random_matrix<float>(E, H, 2);
  router.refresh(w_EH, 5);
  router.restore(fresh.state());
  expect_same_state(router.state(), fresh.state());
  EXPECT_TRUE(router.refresh(w_EH, 6)) << "due, since there are no partners";
}

/// Empty means "has none", member by member.
TEST(CompleteState, AnEmptyStateIsThatOfANewRouter) {
  const CompleteConfig config = complete_data::full_config(H, E, K);
  const R fresh(config);
  Trainer trainer(config);
  trainer.router.refresh(trainer.w_EH, 0);
  trainer.train(0, 2);
  trainer.micro_batch(2, 0);
  const gatepro::RouterState trained = trainer.router.state();
  trainer.router.restore({});
  expect_same_state(trainer.router.state(), fresh.state());
  EXPECT_FALSE(trainer.router.similarity_cache().has_partners());

  gatepro::RouterState some = trained;
  some.balance_counts_E.clear();
  some.balance_tokens = 0;
  some.bias_counts_E.clear();  // a bias from elsewhere
  trainer.router.restore(some);
  some.balance_counts_E.assign(E, 0);
  some.bias_counts_E.assign(E, 0);
  expect_same_state(trainer.router.state(), some);

  some = trained;
  some.expert_bias_E.clear();
  some.bias_counts_E.clear();
  trainer.router.restore(some);
  EXPECT_EQ(trainer.router.state().expert_bias_E, std::vector<double>(E, 0));
  EXPECT_EQ(trainer.router.state().partners_EM, trained.partners_EM);
}

TEST(CompleteState, WhatDoesNotFitIsNamedAndChangesNothing) {
  Trainer trainer(complete_data::full_config(H, E, K));
  trainer.router.refresh(trainer.w_EH, 0);
  trainer.train(0, 2);
  const gatepro::RouterState good = trainer.router.state();
  const auto refused = [&](const auto& spoil, std::initializer_list<const char*> parts) {
    gatepro::RouterState bad = good;
    spoil(bad);
    expect_error([&] { trainer.router.restore(bad); }, parts);
    expect_same_state(trainer.router.state(), good);
  };
  const auto inf = std::numeric_limits<double>::infinity();
  refused([](auto& s) { s.partners_EM.pop_back(); }, {"partners_EM", "size=11, size needed=12"});
  refused([](auto& s) { s.partners_EM[0] = static_cast<std::int32_t>(E); }, {"partners_EM", "=12"});
  refused([](auto& s) { s.expert_bias_E.clear(); }, {"expert_bias_E", "bias_counts_E=12"});
  refused([](auto& s) { s.expert_bias_E.push_back(0); }, {"expert_bias_E", "size=13"});
  refused([&](auto& s) { s.expert_bias_E[1] = inf; }, {"expert_bias_E", "value=inf"});
  refused([&](auto& s) { s.expert_bias_E[1] = 1e300; }, {"expert_bias_E", "value=1e+300"});
  refused([](auto& s) { s.bias_counts_E[1] = -1; }, {"bias_counts_E", "count=-1"});
  refused([](auto& s) { s.bias_counts_E.push_back(0); }, {"bias_counts_E", "size=13"});
  refused([](auto& s) { s.balance_counts_E.pop_back(); }, {"balance_counts_E", "size=11"});
  refused([](auto& s) { s.balance_counts_E[0] = -1; }, {"balance_counts_E", "count=-1"});
  refused([](auto& s) { s.balance_counts_E[0] = 1; }, {"balance_counts_E", "balance_tokens=0"});
  refused([](auto& s) { s.balance_counts_E.assign(E, 100), s.balance_tokens = 100; },
          {"balance_counts_E", "choices=1200, tokens=100, top_k=3"});
  refused([](auto& s) { s.balance_tokens = -1; }, {"balance_tokens=-1"});
  refused([](auto& s) { s.balance_counts_E.clear(), s.balance_tokens = 3; }, {"balance_tokens=3"});
  refused([](auto& s) { s.noise_position = -1; }, {"noise_position=-1"});
}

/// States of routers with other settings.
TEST(CompleteState, AnotherRoutersStateNamesWhatDiffers) {
  const auto state_of = [](const CompleteConfig& config) {
    R router(config);
    const auto w_EH = random_matrix<float>(config.num_experts, H, 2);
    router.refresh(w_EH, 0);
    return router.state();
  };
  const auto refused = [&](const CompleteConfig& from, const CompleteConfig& to,
                           std::initializer_list<const char*> parts) {
    R router(to);
    expect_error([&] { router.restore(state_of(from)); }, parts);
  };
  const CompleteConfig plain{{H, E, K}};
  CompleteConfig biased = plain, two_partners = plain, half_as_many{{H, E / 2, K}};
  biased.bias.enabled = true;
  two_partners.pairing.partners_per_expert = 2;
  half_as_many.pairing.partners_per_expert = 2;  // E m is the same
  refused(biased, plain, {"expert_bias_E", "BiasRule::enabled is false"});
  refused(two_partners, plain, {"partners_EM", "size=24, size needed=12"});
  refused(half_as_many, plain, {"balance_counts_E", "size=6, size needed=12"});
  R router(biased);
  router.restore(state_of(plain));  // has no bias yet
  EXPECT_EQ(router.state().expert_bias_E, std::vector<double>(E, 0));
}

// ---- Evaluation and recomputation
// ----------------------------------------------------------------

/// torchtitan#4148: an evaluation leaked into the counts of training.
TEST(CompleteRegression, EvaluationCountsNothing) {
  Trainer trainer(complete_data::full_config(H, E, K));
  trainer.router.refresh(trainer.w_EH, 0);
  trainer.train(0, 2);
  trainer.micro_batch(2, 0);
  const gatepro::RouterState before = trainer.router.state();
  const auto x_TH = tokens_of_step(7);
  int reductions = 0;
  const auto reduce = [&](std::int64_t*, Index) { ++reductions; };
  const auto first =
      complete_data::forward(trainer.router, x_TH, trainer.w_EH, inputs(Pass::evaluation), reduce);
  const auto second =
      complete_data::forward(trainer.router, x_TH, trainer.w_EH, inputs(Pass::evaluation), reduce);
  expect_same_state(trainer.router.state(), before);
  EXPECT_EQ(reductions, 0);
  EXPECT_TRUE(same_bits(first.weights_TK, second.weights_TK)) << "no noise";
  EXPECT_EQ(first.report.losses.sum(), 0);
}

/// torchtitan#1593, Automodel#3247: recomputation counted tokens twice, and a bias divided by 2.
TEST(CompleteRegression, RecomputationCountsNothingTwice) {
  Trainer trainer(complete_data::full_config(H, E, K));
  trainer.router.refresh(trainer.w_EH, 0);
  trainer.train(0, 2);
  trainer.micro_batch(2, 0);
  gatepro::RoutingRecord<> record;
  auto in = inputs();
  in.record = &record;
  const auto x_TH = tokens_of_step(2, 1);
  const auto original = complete_data::step(trainer.router, x_TH, trainer.w_EH, in,
                                            trainer.dweights_TK, zeros<float>(E, H));
  // Other forwards may come in between.
  trainer.micro_batch(3, 0);
  const gatepro::RouterState before = trainer.router.state();
  auto again = inputs(Pass::recompute);
  again.replay = &record;
  int reductions = 0;
  const auto reduce = [&](std::int64_t*, Index) { ++reductions; };
  const auto recomputed = complete_data::step(trainer.router, x_TH, trainer.w_EH, again,
                                              trainer.dweights_TK, zeros<float>(E, H), {}, reduce);
  expect_same_outcome(recomputed, original);
  expect_same_state(trainer.router.state(), before);
  EXPECT_EQ(reductions, 0);
}

/// torchtitan#3336, Automodel#2635: near-ties fell the other way in recomputation.
TEST(CompleteRegression, RecomputationCannotFlipNearTies) {
  for (const Competition& competition : {Competition::penalty(0.5), Competition::eliminate()}) {
    CompleteConfig config{{H, E, K}};
    config.competition = competition;
    R router(config);
    const auto w_EH = random_matrix<float>(E, H, 2);
    const auto x_TH = tokens_of_step(0);
    router.refresh(w_EH, 0);
    gatepro::RoutingRecord<> record;
    ForwardInputs<> in;
    in.record = &record;
    const auto original = complete_data::forward(router, x_TH, w_EH, in);
    // Another machine or kernel: logits that differ enough to change choices and losers.
    const RowMatrix<float> other_w_EH = w_EH + random_matrix<float>(E, H, 9, 0.1);
    ForwardInputs<> again;
    again.pass = Pass::recompute;
    again.replay = &record;
    const auto recomputed = complete_data::forward(router, x_TH, other_w_EH, again);
    EXPECT_TRUE(same_bits(recomputed.ids_TK, original.ids_TK));
    EXPECT_TRUE(same_bits(recomputed.penalised_TK, original.penalised_TK));
    EXPECT_EQ(recomputed.counts_E, original.counts_E);
    const auto free = complete_data::forward(router, x_TH, other_w_EH);
    EXPECT_FALSE(same_bits(free.ids_TK, original.ids_TK)) << "the test needs other logits";
    for (Index t = 0; t < T; ++t) {
      for (Index j = 0; j < K; ++j) {
        const bool loses = competition.mode == gatepro::CompetitionMode::eliminate &&
                           original.penalised_TK(t, j) != 0;
        EXPECT_EQ(recomputed.weights_TK(t, j) == 0, loses) << "token " << t;
      }
    }
  }
}

/// What was set since the recorded forward plays no part.
TEST(CompleteRegression, RecomputationAppliesTheRuleOfTheRecord) {
  for (const auto function :
       {gatepro::ScoreFunction::softmax_before_top_k, gatepro::ScoreFunction::sigmoid}) {
    for (const Competition& before : {Competition::off(), Competition::penalty(0.4)}) {
      CompleteConfig config{{H, E, K}};
      config.scores.function = function;
      config.competition = before;
      R router(config);
      const auto w_EH = random_matrix<float>(E, H, 2);
      const auto other_EH = random_matrix<float>(E, H, 9);
      const auto x_TH = tokens_of_step(0);
      const auto dweights_TK = random_matrix<float>(T, K, 3);
      router.refresh(w_EH, 0);
      gatepro::RoutingRecord<> record;
      ForwardInputs<> in, again;
      in.record = &record;
      again.pass = Pass::recompute;
      again.replay = &record;
      const auto step = [&](const ForwardInputs<>& inputs) {
        return complete_data::step(router, x_TH, w_EH, inputs, dweights_TK, zeros<float>(E, H));
      };
      const auto original = step(in);
      for (const Competition& after : {Competition::penalty(2), Competition::eliminate()}) {
        router.set_competition(after);
        expect_same_outcome(step(again), original);
      }
      router.refresh(other_EH, 1);
      if (before.active() && function == gatepro::ScoreFunction::softmax_before_top_k) {
        expect_error([&] { step(again); }, {"partners of the record"});
      } else {
        expect_same_outcome(step(again), original);
      }
    }
  }
}

/// Two tokens want the only slot of an expert, and a recomputation finds the other one heavier.
TEST(CompleteRegression, RecomputationCannotFlipDrops) {
  for (bool renormalise : {false, true}) {
    CompleteConfig config{{1, 4, 1}};
    config.competition = Competition::off();
    config.scores = {gatepro::ScoreFunction::sigmoid, false, 1};
    config.capacity = gatepro::CapacityRule{};
    config.capacity->renormalise = renormalise;
    config.losses.z = 1e-3;
    R router(config);
    gatepro::RoutingBuffers<R> buffers(router, 2);
    const auto route = [&](float first, float second, const ForwardInputs<>& in) {
      const auto out = buffers.view();
      for (Index e = 0; e < 4; ++e) out.logits_TE(0, e) = out.logits_TE(1, e) = -1;
      out.logits_TE(0, 0) = first;
      out.logits_TE(1, 0) = second;
      buffers.set_report(router.forward_logits(in, out, buffers.workspace()));
      return complete_data::outcome_of(buffers);
    };
    gatepro::RoutingRecord<> record, of_recomputation;
    ForwardInputs<> in, again;
    in.record = &record;
    again.pass = Pass::recompute;
    again.replay = &record;
    again.record = &of_recomputation;
    const auto original = route(0.5F, 0.500001F, in);
    ASSERT_EQ(original.kept_TK(0, 0), 0);
    ASSERT_EQ(original.kept_TK(1, 0), 1);
    EXPECT_EQ(record.capacity, 1);
    const auto recomputed = route(0.500001F, 0.5F, again);
    EXPECT_TRUE(same_bits(recomputed.kept_TK, original.kept_TK));
    EXPECT_EQ(recomputed.kept_E, original.kept_E);
    EXPECT_EQ(recomputed.report.capacity, 1);
    EXPECT_EQ(recomputed.report.dropped_choices, 1);
    EXPECT_EQ(recomputed.report.tokens_without_expert, 1);
    EXPECT_EQ(recomputed.weights_TK(0, 0), 0);
    EXPECT_GT(recomputed.weights_TK(1, 0), 0);
    EXPECT_EQ(of_recomputation.kept_TK, record.kept_TK);
    // Padding has no slot, whatever the record says.
    const std::vector<std::uint8_t> padding = {0, 1};
    again.is_padding_T = padding;
    const auto masked = route(0.5F, 0.5F, again);
    EXPECT_EQ(masked.kept_TK(1, 0), 0);
    EXPECT_EQ(masked.kept_E[0], 0);
    EXPECT_EQ(masked.report.dropped_choices, 1);
  }
}

/// Megatron-LM's router replay: also a routing that nobody would choose is honoured.
TEST(CompleteRecord, ARoutingMadeElsewhereIsFollowed) {
  CompleteConfig config{{H, E, K}};
  config.competition = Competition::off();
  config.scores = {gatepro::ScoreFunction::sigmoid, true, 1};
  R router(config);
  const auto w_EH = random_matrix<float>(E, H, 2);
  const auto x_TH = tokens_of_step(0);
  gatepro::RoutingRecord<> record;
  record.tokens = T;
  record.top_k = K;
  record.penalised_TK.assign(static_cast<std::size_t>(T * K), 0);
  for (Index t = 0; t < T; ++t) {
    for (Index j = 0; j < K; ++j) {
      record.expert_ids_TK.push_back(static_cast<std::int32_t>((5 * t + j) % E));
    }
  }
  ForwardInputs<> in;
  in.replay = &record;
  const auto outcome = complete_data::forward(router, x_TH, w_EH, in);
  for (Index t = 0; t < T; ++t) {
    double sum = 0, scores[K];
    for (Index j = 0; j < K; ++j) {
      const auto id = static_cast<std::int32_t>((5 * t + j) % E);
      ASSERT_EQ(outcome.ids_TK(t, j), id);
      scores[j] = 1 / (1 + std::exp(-static_cast<double>(outcome.logits_TE(t, id))));
      sum += scores[j];
    }
    for (Index j = 0; j < K; ++j) EXPECT_NEAR(outcome.weights_TK(t, j), scores[j] / sum, 1e-6);
  }
}

/// A bias that its loads do not answer would grow without end.
TEST(CompleteRecord, ReplayedChoicesCountForLossesAndNotForTheBias) {
  CompleteConfig config = complete_data::full_config(H, E, K);
  Trainer trainer(config);
  trainer.router.refresh(trainer.w_EH, 0);
  trainer.train(0, 1);
  gatepro::RoutingRecord<> record;
  auto in = inputs();
  in.record = &record;
  const auto x_TH = tokens_of_step(1);
  const auto chosen = complete_data::forward(trainer.router, x_TH, trainer.w_EH, in);
  EXPECT_EQ(trainer.router.state().bias_counts_E, chosen.counts_E);
  trainer.router.end_step();
  const gatepro::RouterState before = trainer.router.state();
  in.record = nullptr;
  in.replay = &record;
  for (int repeat = 1; repeat <= 3; ++repeat) {
    const auto replayed = complete_data::forward(trainer.router, x_TH, trainer.w_EH, in);
    EXPECT_TRUE(same_bits(replayed.ids_TK, chosen.ids_TK));
    EXPECT_EQ(replayed.counts_E, chosen.counts_E);
    const gatepro::RouterState after = trainer.router.state();
    EXPECT_EQ(after.balance_tokens, repeat * T);
    EXPECT_EQ(after.noise_position, before.noise_position + repeat * T);
    EXPECT_EQ(after.bias_counts_E, std::vector<std::int64_t>(E, 0));
  }
  trainer.router.end_step();
  EXPECT_EQ(trainer.router.state().expert_bias_E, before.expert_bias_E);
}

/// The recorded ids of padding may be anything, and -1 is no choice.
TEST(CompleteRecord, IdsOfPaddingMayBeAnything) {
  CompleteConfig config = complete_data::full_config(H, E, K);
  config.groups = {};
  config.capacity->renormalise = true;
  R router(config);
  const auto w_EH = random_matrix<float>(E, H, 2);
  const auto dweights_TK = random_matrix<float>(T, K, 3);
  router.refresh(w_EH, 0);
  std::vector<std::uint8_t> padding(T);
  for (std::size_t t = 0; t < padding.size(); t += 4) padding[t] = 1;
  gatepro::RoutingRecord<> record;
  ForwardInputs<> in = inputs();
  in.is_padding_T = padding;
  in.record = &record;
  complete_data::forward(router, tokens_of_step(0), w_EH, in);
  in.record = nullptr;
  in.replay = &record;
  in.pass = Pass::recompute;
  const auto run = [&] {
    return complete_data::step(router, tokens_of_step(0), w_EH, in, dweights_TK,
                               zeros<float>(E, H));
  };
  const auto set_padding = [&](const std::vector<std::int32_t>& ids) {
    for (std::size_t i = 0; i < record.expert_ids_TK.size(); ++i) {
      const auto j = i % static_cast<std::size_t>(K);
      if (padding[i / static_cast<std::size_t>(K)] != 0) record.expert_ids_TK[i] = ids[j];
    }
  };
  set_padding({0, 1, 2});
  const auto want = run();
  for (const std::vector<std::int32_t>& ids :
       std::vector<std::vector<std::int32_t>>{{-1, -1, -1}, {E, E, -9}, {0, 0, 0}}) {
    set_padding(ids);
    auto got = run();
    for (Index i = 0; i < got.ids_TK.size(); ++i) {
      EXPECT_EQ(got.ids_TK.data()[i], record.expert_ids_TK[static_cast<std::size_t>(i)]);
    }
    got.ids_TK = want.ids_TK;
    complete_data::expect_same_outcome(got, want);
  }
  // Two tokens lose a choice, and a token all of them.
  in.pass = Pass::training;
  record.kept_TK.clear();
  record.capacity.reset();
  for (const Index i : {1 * K + 1, 2 * K + 0, 3 * K + 0, 3 * K + 1, 3 * K + 2}) {
    record.expert_ids_TK[static_cast<std::size_t>(i)] = -1;
  }
  const auto less = run();
  const auto counted = [](const Outcome<R>& outcome) {
    return std::accumulate(outcome.counts_E.begin(), outcome.counts_E.end(), std::int64_t{0});
  };
  EXPECT_EQ(counted(less), counted(want) - 5);
  EXPECT_EQ(less.weights_TK(1, 1), 0);
  EXPECT_EQ(less.weights_TK.row(3), zeros<float>(1, K));
  EXPECT_EQ(less.report.nonfinite_rows, 0);
  EXPECT_TRUE(less.dx_TH.allFinite());
  EXPECT_TRUE(less.dw_EH.allFinite());
}

TEST(CompleteRecord, WhatDoesNotFitIsRefused) {
  R router(complete_data::full_config(H, E, K));
  const auto w_EH = random_matrix<float>(E, H, 2);
  const auto x_TH = tokens_of_step(0);
  router.refresh(w_EH, 0);
  gatepro::RoutingRecord<> good;
  auto in = inputs();
  in.record = &good;
  complete_data::forward(router, x_TH, w_EH, in);
  const auto refused = [&](const auto& spoil) {
    gatepro::RoutingRecord<> bad = good;
    spoil(bad);
    auto again = inputs(Pass::recompute);
    again.replay = &bad;
    EXPECT_THROW(complete_data::forward(router, x_TH, w_EH, again), gatepro::Error);
  };
  refused([](auto& r) { r.expert_ids_TK[4] = static_cast<std::int32_t>(E); });
  refused([](auto& r) { r.expert_ids_TK[4] = -2; });
  refused([](auto& r) { r.expert_ids_TK[4] = r.expert_ids_TK[3]; });
  refused([](auto& r) { r.expert_ids_TK.pop_back(); });
  refused([](auto& r) { r.penalised_TK.pop_back(); });
  refused([](auto& r) { --r.tokens; });
  refused([](auto& r) { --r.top_k; });
  refused([](auto& r) { r.totals.clear(); });
  refused([](auto& r) { r.kept_TK.clear(); });
  refused([](auto& r) { r.kept_TK.pop_back(); });
  refused([](auto& r) { r.capacity = -1; });
  refused([](auto& r) { r.capacity.reset(); });
  refused([](auto& r) { r.capacity = 1; });
  auto nothing = inputs(Pass::recompute);
  EXPECT_THROW(complete_data::forward(router, x_TH, w_EH, nothing), gatepro::Error);
}

// ---- Capacity ----------------------------------------------------------------------------------

TEST(CompleteCapacity, EvaluationsHaveTheirOwn) {
  CompleteConfig config{{H, E, K}};
  config.capacity = gatepro::CapacityRule{/*factor=*/0.5};
  const auto w_EH = random_matrix<float>(E, H, 2);
  const auto capacity = [&](double factor, Pass pass) {
    config.capacity->evaluation_factor = factor;
    R router(config);
    router.refresh(w_EH, 0);
    const auto outcome = complete_data::forward(router, tokens_of_step(0), w_EH, inputs(pass));
    EXPECT_EQ(outcome.report.dropped_choices == 0, outcome.report.capacity == T);
    return outcome.report.capacity;
  };
  for (const double factor : {0.0, 0.1, 1.0, 4.0}) EXPECT_EQ(capacity(factor, Pass::training), 8);
  EXPECT_EQ(capacity(0, Pass::evaluation), 8);
  EXPECT_EQ(capacity(0.1, Pass::evaluation), 2);
  EXPECT_EQ(capacity(1, Pass::evaluation), 15);
  EXPECT_EQ(capacity(static_cast<double>(E) / K, Pass::evaluation), T);  // dropless
  for (const double bad :
       {-1.0, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    config.capacity->evaluation_factor = bad;
    EXPECT_THROW(R{config}, gatepro::Error);
  }
}

// Ranks with 60, 40, 20 and 0 valid tokens, 30 each on average; the last has padding or nothing.
TEST(CompleteCapacity, RanksAgree) {
  constexpr int ranks = 4;
  const auto agree = [](bool losses, Index last_tokens) {
    CompleteConfig config{{H, E, K}};
    config.capacity = gatepro::CapacityRule{/*factor=*/1.5};
    config.capacity->alignment = 4;
    config.capacity->over_ranks = true;
    config.losses.batch = losses ? 1e-2 : 0;
    const Index want = gatepro::expert_capacity(30, E, K, *config.capacity);
    run_ranks(ranks, [&](int rank, const auto& all_reduce) {
      int calls = 0;
      const auto reduce = [&](std::int64_t* counts, Index size) {
        ++calls;
        all_reduce(counts, size);
      };
      R router(config);
      const auto w_EH = random_matrix<float>(E, H, 2);
      router.refresh(w_EH, 0);
      const Index tokens = rank + 1 < ranks ? T : last_tokens;
      const RowMatrix<float> x_TH = tokens_of_step(0).topRows(tokens);
      std::vector<std::uint8_t> padding(static_cast<std::size_t>(tokens));
      std::fill_n(padding.begin(), std::min<Index>(20 * rank, tokens), std::uint8_t{1});
      gatepro::RoutingRecord<> record;
      auto in = inputs();
      in.is_padding_T = padding;
      in.sequence_begin_S1 = {};
      in.record = &record;
      const auto run = [&](int calls_more) {
        const int before = calls;
        const auto outcome = complete_data::forward(router, x_TH, w_EH, in, reduce);
        EXPECT_EQ(outcome.report.capacity, want);
        EXPECT_EQ(calls, before + calls_more);
      };
      run(1);
      in.record = nullptr;
      in.pass = Pass::evaluation;
      run(1);
      in.pass = Pass::recompute;
      in.replay = &record;
      run(0);
      in.pass = Pass::training;  // whose losses count, and whose drops are those of the record
      run(losses ? 1 : 0);
    });
  };
  for (const bool losses : {false, true}) {
    for (const Index last_tokens : {T, Index{0}}) agree(losses, last_tokens);
  }
}

// A rank may hold more than the mean, and an expert be chosen by all of its tokens.
TEST(CompleteCapacity, UnequalRanksMayBeDropless) {
  constexpr double dropless = static_cast<double>(E) / K;
  const auto run = [&](double factor, Index want) {
    CompleteConfig config{{H, E, K}};
    config.capacity = gatepro::CapacityRule{};
    config.capacity->over_ranks = true;
    config.capacity->evaluation_factor = factor;
    run_ranks(2, [&](int rank, const auto& reduce) {
      R router(config);
      const auto w_EH = random_matrix<float>(E, H, 2);
      router.refresh(w_EH, 0);
      const RowMatrix<float> x_TH = tokens_of_step(0).row(0).replicate(rank == 0 ? 10 : 2, 1);
      ForwardInputs<> in;
      in.pass = Pass::evaluation;
      const auto outcome = complete_data::forward(router, x_TH, w_EH, in, reduce);
      EXPECT_EQ(outcome.report.capacity, want);
      EXPECT_EQ(outcome.report.dropped_choices, std::max<Index>(0, (x_TH.rows() - want) * K));
    });
  };
  run(dropless, 6);  // the mean
  run(dropless * 10 / 6, 10);
  run(dropless * 2, 12);
  run(dropless * 64, 12);
}

// ---- Ranks and micro-batches
// ---------------------------------------------------------------------

/// What does not depend on the forward's own borders: no capacity, no loss of the batch alone.
CompleteConfig config_of_a_step() {
  CompleteConfig config = complete_data::full_config(H, E, K);
  config.capacity.reset();
  config.losses.batch = 0;
  return config;
}

TEST(CompleteTraining, TheGlobalLossComparesWithAllForwardsSinceEndStep) {
  CompleteConfig config{{H, E, K}};
  config.losses.batch = config.losses.global = 0.1;
  R router(config);
  const auto w_EH = random_matrix<float>(E, H, 2);
  router.refresh(w_EH, 0);
  const auto first = complete_data::forward(router, tokens_of_step(0), w_EH);
  EXPECT_EQ(first.report.losses.global, first.report.losses.batch);

  const auto x_TH = tokens_of_step(1);
  const auto dweights_TK = random_matrix<float>(T, K, 3);
  const auto second = complete_data::step(router, x_TH, w_EH, {}, dweights_TK, zeros<float>(E, H));
  double expected = 0;
  for (Index t = 0; t < T; ++t) {
    const auto logits = data::to_reference(second.logits_TE)[static_cast<std::size_t>(t)];
    const auto scores = reference::normalised_scores(logits, config.scores.function).scores;
    for (std::size_t e = 0; e < scores.size(); ++e) {
      const double counts = static_cast<double>(first.counts_E[e] + second.counts_E[e]);
      expected += 0.1 * E / (K * 2.0 * T * T) * counts * scores[e];
    }
  }
  EXPECT_NEAR(second.report.losses.global, expected, 1e-6);
  EXPECT_NE(second.report.losses.global, second.report.losses.batch);
  // The gradient compares with the same load.
  gatepro::BackwardInputs<float> more;
  more.global_load = router.balance().total();
  R same(config);
  same.refresh(w_EH, 0);
  complete_data::forward(same, tokens_of_step(0), w_EH);
  const auto given =
      complete_data::step(same, x_TH, w_EH, {}, dweights_TK, zeros<float>(E, H), more);
  EXPECT_TRUE(same_bits(given.dw_EH, second.dw_EH));

  const std::vector<std::int64_t> too_many(E, T);
  more.global_load = {too_many, T};
  expect_error(
      [&] { complete_data::step(same, x_TH, w_EH, {}, dweights_TK, zeros<float>(E, H), more); },
      {"CompleteRouter::backward", "at most top_k choices per token"});

  router.end_step();
  const auto third = complete_data::forward(router, x_TH, w_EH);
  EXPECT_EQ(third.report.losses.global, third.report.losses.batch);
}

/// Megatron-LM#7213: the global loss divided accumulated counts by the tokens of one micro-batch.
TEST(CompleteRegression, GradientsDoNotDependOnTheMicroBatchSplit) {
  for (CountSource counts : {CountSource::dispatched, CountSource::unpenalised}) {
    CompleteConfig config = config_of_a_step();
    config.losses.counts = counts;
    const auto x_TH = tokens_of_step(0);
    const auto w_EH = random_matrix<float>(E, H, 2);
    const auto dweights_TK = random_matrix<float>(T, K, 3);
    R whole_router(config);
    whole_router.refresh(w_EH, 0);
    const auto whole =
        complete_data::step(whole_router, x_TH, w_EH, inputs(), dweights_TK, zeros<float>(E, H));

    // Unequal micro-batches: all forwards, then all backwards, as a pipeline does.
    R router(config);
    router.refresh(w_EH, 0);
    const Index borders[] = {0, 20, T};
    const std::vector<std::int64_t> begin[] = {{0, 20}, {0, 25, 40}};
    std::vector<gatepro::RoutingBuffers<R>> buffers;
    std::vector<ForwardInputs<>> in(2);
    double z = 0;
    for (std::size_t i = 0; i < 2; ++i) {
      buffers.emplace_back(router, gatepro::BufferShape{T, 1, 2});
      in[i].sequence_begin_S1 = begin[i];
      in[i].tokens_in_mean = T;
      in[i].sequences_in_mean = 3;
      const auto part = rows(x_TH, borders[i], borders[i + 1] - borders[i]);
      z += router.forward(part, w_EH, in[i], buffers[i]).losses.z;
    }
    EXPECT_NEAR(z, whole.report.losses.z, 1e-12 * z);
    gatepro::BackwardInputs<float> more;
    more.global_load = router.balance().total();
    RowMatrix<float> dw_EH = zeros<float>(E, H);
    for (std::size_t i = 0; i < 2; ++i) {
      const Index first = borders[i], count = borders[i + 1] - borders[i];
      RowMatrix<float> dx_TH = zeros<float>(count, H);
      const auto part = rows(x_TH, first, count);
      const auto dpart = rows(dweights_TK, first, count);
      more.dweights_TK = dpart;
      router.backward(part, w_EH, in[i], buffers[i], more, {dx_TH, dw_EH});
      EXPECT_TRUE(same_bits(dx_TH, rows(whole.dx_TH, first, count)));
    }
    EXPECT_TRUE(same_bits(dw_EH, whole.dw_EH));
    router.end_step();
    whole_router.end_step();
    expect_same_state(router.state(), whole_router.state());
  }
}

/// Megatron-LM#5047, #1652: gradients of the losses depended on the number of shards.
TEST(CompleteRegression, GradientsDoNotDependOnTheNumberOfRanks) {
  CompleteConfig config = config_of_a_step();
  config.losses.batch = 1e-2;
  config.noise = {};  // ranks draw different noise
  const auto x_TH = tokens_of_step(0);
  const auto w_EH = random_matrix<float>(E, H, 2);
  const auto dweights_TK = random_matrix<float>(T, K, 3);
  R one(config);
  one.refresh(w_EH, 0);
  const auto whole =
      complete_data::step(one, x_TH, w_EH, inputs(), dweights_TK, zeros<float>(E, H));
  one.end_step();

  const Index borders[] = {0, 20, 45, T};  // a sequence per rank
  std::vector<Outcome<R>> parts(3);
  std::vector<gatepro::RouterState> states(3);
  run_ranks(3, [&](int rank, const auto& reduce) {
    const Index first = borders[rank], count = borders[rank + 1] - first;
    R router(config);
    router.refresh(w_EH, 0);
    const std::vector<std::int64_t> begin = {0, count};
    ForwardInputs<> in;
    in.sequence_begin_S1 = begin;
    const auto mine = static_cast<std::size_t>(rank);
    parts[mine] =
        complete_data::step(router, rows(x_TH, first, count), w_EH, in,
                            rows(dweights_TK, first, count), zeros<float>(E, H), {}, reduce);
    router.end_step(reduce);
    states[mine] = router.state();
  });
  gatepro::LossValues losses;
  RowMatrix<double> dw_EH = zeros<double>(E, H);
  for (std::size_t rank = 0; rank < 3; ++rank) {
    const Index first = borders[rank];
    const auto& part = parts[rank];
    EXPECT_TRUE(same_bits(part.dx_TH, rows(whole.dx_TH, first, part.dx_TH.rows())));
    EXPECT_EQ(part.totals, whole.totals);
    EXPECT_EQ(states[rank].expert_bias_E, one.state().expert_bias_E);
    dw_EH += part.dw_EH.cast<double>();
    losses.batch += part.report.losses.batch;
    losses.global += part.report.losses.global;
    losses.sequence += part.report.losses.sequence;
    losses.z += part.report.losses.z;
  }
  EXPECT_LT((dw_EH - whole.dw_EH.cast<double>()).cwiseAbs().maxCoeff(), 1e-5);
  EXPECT_NEAR(losses.batch, whole.report.losses.batch, 1e-12);
  EXPECT_NEAR(losses.global, whole.report.losses.global, 1e-12);
  EXPECT_NEAR(losses.sequence, whole.report.losses.sequence, 1e-12);
  EXPECT_NEAR(losses.z, whole.report.losses.z, 1e-12);
}

/// Each loss has the coefficient under balanced loads, whatever number of ranks its mean is over.
/// The second rank has padding only, and an empty sequence belongs to no mean.
TEST(CompleteTraining, LossesOfBalancedRanksAddUpToTheCoefficient) {
  CompleteConfig config{{H, E, K}};
  config.competition = gatepro::Competition::off();
  config.losses = {1, 1, 1, 0, CountSource::dispatched};
  config.noise.forced = gatepro::ForcedRouting::round_robin;
  const auto w_EH = random_matrix<float>(E, H, 2);
  std::vector<LossValues> losses(4), repeated(4);
  std::vector<std::vector<std::int64_t>> totals(4);
  run_ranks(4, [&](int rank, const auto& reduce) {
    const auto mine = static_cast<std::size_t>(rank);
    R router(config);
    const auto x_TH = rows(tokens_of_step(rank), 0, 2 * E);
    const std::vector<std::uint8_t> is_padding(2 * E, rank == 1);
    const std::vector<std::int64_t> begin = {0, E, E, 2 * E};
    gatepro::RoutingRecord<> record;
    ForwardInputs<> in;
    in.sequence_begin_S1 = begin;
    in.is_padding_T = is_padding;
    in.record = &record;
    const auto first = complete_data::forward(router, x_TH, w_EH, in, reduce);
    losses[mine] = first.report.losses;
    totals[mine] = first.totals;
    in.record = nullptr;
    in.replay = &record;
    in.pass = gatepro::Pass::recompute;
    repeated[mine] = complete_data::forward(router, x_TH, w_EH, in).report.losses;
  });
  LossValues sum;
  for (std::size_t rank = 0; rank < 4; ++rank) {
    sum.batch += losses[rank].batch;
    sum.sequence += losses[rank].sequence;
    sum.global += losses[rank].global;
    EXPECT_EQ(totals[rank].back(), 6) << "sequences over all ranks";
    EXPECT_EQ(repeated[rank].sequence, losses[rank].sequence);
  }
  EXPECT_NEAR(sum.batch, 1, 1e-6);
  EXPECT_NEAR(sum.sequence, 1, 1e-6);
  EXPECT_NEAR(sum.global, 1, 1e-6);
}

}  // namespace
