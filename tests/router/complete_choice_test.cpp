// SPDX-License-Identifier: MIT
// What moves the choice of a complete router and nothing else: a fixed bias beside the moving one,
// and choices in order of their ids.
#include <gatepro/router/complete_router.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "support/bits.hpp"
#include "support/complete_data.hpp"
#include "support/errors.hpp"
#include "support/inputs.hpp"

namespace {

using complete_data::Batch;
using complete_data::expect_same_outcome;
using complete_data::expect_same_state;
using complete_data::Outcome;
using data::random_matrix;
using gatepro::CompleteConfig;
using gatepro::DropPolicy;
using gatepro::ForwardInputs;
using gatepro::Index;
using gatepro::Pass;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;
using R = gatepro::CompleteRouter<float>;

/// A router of the batch with partners.
R router_of(const CompleteConfig& config, const Batch& batch) {
  R router(config);
  router.refresh(batch.w_EH, 0);
  return router;
}

CompleteConfig sigmoid_config() {
  CompleteConfig config{{Batch::H, Batch::E, Batch::K}};
  config.scores = {ScoreFunction::sigmoid, true, 2.5};
  return config;
}

const std::vector<float>& correction() {
  static const std::vector<float> bias_E = {0.5F, -0.25F, 0, 0.125F, 1, -1, 0.75F, 0.0625F};
  return bias_E;
}

/// A router whose moving bias starts from the given values.
R with_moving_bias(const CompleteConfig& config, const Batch& batch,
                   const std::vector<float>& bias_E) {
  R router = router_of(config, batch);
  gatepro::RouterState state = router.state();
  state.expert_bias_E.assign(bias_E.begin(), bias_E.end());
  router.restore(state);
  return router;
}

// Alone it does what a moving bias of its values does, but that end_step leaves it.
TEST(CorrectionBias, ChoosesAsAMovingBiasOfItsValues) {
  const Batch batch;
  CompleteConfig config = sigmoid_config();
  R fixed = router_of(config, batch);
  const auto plain = complete_data::forward(fixed, batch.x_TH, batch.w_EH);
  fixed.set_correction_bias(correction());
  const auto got = complete_data::forward(fixed, batch.x_TH, batch.w_EH);
  config.bias.enabled = true;
  R moving = with_moving_bias(config, batch, correction());
  expect_same_outcome(got, complete_data::forward(moving, batch.x_TH, batch.w_EH));
  EXPECT_FALSE(data::same_bits(got.ids_TK, plain.ids_TK));

  fixed.end_step();
  moving.end_step();
  EXPECT_EQ(data::copy(fixed.correction_bias()), correction());
  EXPECT_EQ(data::copy(fixed.bias().values()), std::vector<float>(Batch::E, 0));
  EXPECT_EQ(data::copy(fixed.bias().counts()), std::vector<std::int64_t>(Batch::E, 0));
  expect_same_outcome(got, complete_data::forward(fixed, batch.x_TH, batch.w_EH));
  fixed.set_correction_bias({});
  EXPECT_FALSE(fixed.correction_bias().given());
  expect_same_outcome(plain, complete_data::forward(fixed, batch.x_TH, batch.w_EH));
}

// With a moving bias the sum decides, and only the other part moves, centred or not.
TEST(CorrectionBias, StaysWhereItIsWhileTheOtherMoves) {
  const Batch batch;
  for (bool centre : {false, true}) {
    CompleteConfig config = sigmoid_config();
    config.bias = {true, 0.0625, centre};
    R router = router_of(config, batch);
    router.set_correction_bias(correction());
    for (int step = 0; step < 5; ++step) {
      const auto got = complete_data::forward(router, batch.x_TH, batch.w_EH);
      std::vector<float> sum_E = data::copy(router.bias().values());
      for (std::size_t e = 0; e < sum_E.size(); ++e) sum_E[e] += correction()[e];
      R other = with_moving_bias(config, batch, sum_E);
      expect_same_outcome(got, complete_data::forward(other, batch.x_TH, batch.w_EH));
      EXPECT_EQ(data::copy(router.bias().counts()), got.counts_E);
      router.end_step();
      EXPECT_EQ(data::copy(router.correction_bias()), correction());
      if (centre) {
        const auto moved_E = data::copy(router.bias().values());
        EXPECT_NEAR(std::accumulate(moved_E.begin(), moved_E.end(), 0.0), 0, 1e-6);
      }
    }
    EXPECT_NE(data::copy(router.bias().values()), std::vector<float>(Batch::E, 0));
  }
}

TEST(CorrectionBias, IsPartOfTheState) {
  const Batch batch;
  CompleteConfig config = complete_data::full_config(Batch::H, Batch::E, Batch::K);
  const std::vector<std::int64_t> begin = {0, 20, Batch::T};
  ForwardInputs<> in;
  in.sequence_begin_S1 = begin;
  R router = router_of(config, batch);
  router.set_correction_bias(correction());
  complete_data::forward(router, batch.x_TH, batch.w_EH, in);
  router.end_step();
  R resumed(config);
  resumed.restore(router.state());
  expect_same_state(resumed.state(), router.state());
  EXPECT_EQ(data::copy(resumed.correction_bias()), correction());
  expect_same_outcome(complete_data::forward(resumed, batch.x_TH, batch.w_EH, in),
                      complete_data::forward(router, batch.x_TH, batch.w_EH, in));
  resumed.restore({});
  EXPECT_FALSE(resumed.correction_bias().given());
}

TEST(CorrectionBias, HasNoSayInChoicesThatAreMade) {
  const Batch batch;
  R router = router_of(sigmoid_config(), batch);
  gatepro::RoutingRecord<> record;
  ForwardInputs<> in;
  in.record = &record;
  const auto want = complete_data::forward(router, batch.x_TH, batch.w_EH, in);
  router.set_correction_bias(correction());
  in.record = nullptr;
  in.replay = &record;
  in.pass = Pass::recompute;
  expect_same_outcome(want, complete_data::forward(router, batch.x_TH, batch.w_EH, in));

  for (auto forced : {gatepro::ForcedRouting::random, gatepro::ForcedRouting::round_robin}) {
    CompleteConfig config = sigmoid_config();
    config.noise.forced = forced;
    R without = router_of(config, batch), with = router_of(config, batch);
    with.set_correction_bias(correction());
    expect_same_outcome(complete_data::forward(without, batch.x_TH, batch.w_EH),
                        complete_data::forward(with, batch.x_TH, batch.w_EH));
  }
}

TEST(CorrectionBias, BadInputChangesNothing) {
  const Batch batch;
  R router = router_of(sigmoid_config(), batch);
  router.set_correction_bias(correction());
  const gatepro::RouterState good = router.state();
  const auto refused = [&](std::vector<float> bad, std::initializer_list<const char*> parts) {
    expect_error([&] { router.set_correction_bias(bad); }, parts);
    expect_same_state(router.state(), good);
  };
  const float inf = std::numeric_limits<float>::infinity();
  refused(std::vector<float>(7), {"CompleteRouter::set_correction_bias", "bias_E", "size=7"});
  for (float bad : {inf, -inf, std::numeric_limits<float>::quiet_NaN()}) {
    refused({0, 0, 0, bad, 0, 0, 0, 0}, {"bias_E", "finite", "expert=3"});
  }
  const auto state_refused = [&](const auto& spoil, std::initializer_list<const char*> parts) {
    gatepro::RouterState bad = good;
    spoil(bad.correction_bias_E);
    expect_error([&] { router.restore(bad); }, parts);
    expect_same_state(router.state(), good);
  };
  state_refused([](auto& b) { b.pop_back(); }, {"correction_bias_E", "size=7"});
  state_refused([](auto& b) { b[2] = 1e300; }, {"correction_bias_E", "value=1e+300"});
}

// A coarse step would make random choices tie, and the lowest ids busy.
TEST(RoundedScores, HaveNoSayInForcedLoads) {
  const Batch batch;
  CompleteConfig config = sigmoid_config();
  config.noise.forced = gatepro::ForcedRouting::random;
  R exact = router_of(config, batch);
  config.choice.step = 4;
  R rounded = router_of(config, batch);
  expect_same_outcome(complete_data::forward(exact, batch.x_TH, batch.w_EH),
                      complete_data::forward(rounded, batch.x_TH, batch.w_EH));
}

// ---- Choices by id ----------------------------------------------------------------------------

/// Of each token and expert: 1 where it keeps a slot, 0 where it lost it, -1 where it is not
/// chosen.
RowMatrix<int> kept_by_expert(const Outcome<R>& outcome) {
  RowMatrix<int> kept_TE = RowMatrix<int>::Constant(Batch::T, Batch::E, -1);
  for (Index t = 0; t < Batch::T; ++t) {
    for (Index j = 0; j < Batch::K; ++j) {
      kept_TE(t, outcome.ids_TK(t, j)) = outcome.kept_TK(t, j) != 0 ? 1 : 0;
    }
  }
  return kept_TE;
}

// Who keeps a slot by weight or position does not depend on how a token's choices stand; a
// recomputation repeats them as they stand.
TEST(ChoicesById, CapacityAndRecordsFollow) {
  const Batch batch;
  CompleteConfig config = complete_data::full_config(Batch::H, Batch::E, Batch::K);
  const std::vector<std::int64_t> begin = {0, 20, Batch::T};
  const auto dweights_TK = random_matrix<float>(Batch::T, Batch::K, 3);
  const auto none_EH = complete_data::zeros<float>(Batch::E, Batch::H);
  for (DropPolicy policy : {DropPolicy::probability, DropPolicy::position}) {
    config.capacity->factor = 0.75;
    config.capacity->policy = policy;
    gatepro::RoutingRecord<> record;
    ForwardInputs<> in;
    in.sequence_begin_S1 = begin;
    in.record = &record;
    config.choice.order = gatepro::ChoiceOrder::best_first;
    R ranked = router_of(config, batch);
    const auto best_first = complete_data::forward(ranked, batch.x_TH, batch.w_EH, in);
    config.choice.order = gatepro::ChoiceOrder::ascending_ids;
    R router = router_of(config, batch);
    const auto by_id =
        complete_data::step(router, batch.x_TH, batch.w_EH, in, dweights_TK, none_EH);
    EXPECT_GT(by_id.report.dropped_choices, 0);
    EXPECT_EQ(kept_by_expert(by_id), kept_by_expert(best_first));
    EXPECT_FALSE(data::same_bits(by_id.ids_TK, best_first.ids_TK));
    for (Index t = 0; t < Batch::T; ++t) {
      for (Index j = 1; j < Batch::K; ++j) ASSERT_LT(by_id.ids_TK(t, j - 1), by_id.ids_TK(t, j));
    }
    ForwardInputs<> again = in;
    again.record = nullptr;
    again.replay = &record;
    again.pass = Pass::recompute;
    expect_same_outcome(
        complete_data::step(router, batch.x_TH, batch.w_EH, again, dweights_TK, none_EH), by_id);
  }
}

TEST(ChoicesById, KnowNoFirstChoices) {
  CompleteConfig config = sigmoid_config();
  config.capacity = gatepro::CapacityRule{};
  config.capacity->policy = DropPolicy::choice_major;
  EXPECT_NO_THROW(R{config});
  config.choice.order = gatepro::ChoiceOrder::ascending_ids;
  expect_error([&] { R{config}; }, {"CompleteRouter", "DropPolicy::choice_major", "order=1"});
}

}  // namespace
