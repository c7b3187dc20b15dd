// SPDX-License-Identifier: MIT
// Faults of routers that their users reported, of other stacks and of this one.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "support/complete_data.hpp"
#include "support/errors.hpp"
#include "support/ids.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"

namespace {

using complete_data::zeros;
using data::random_matrix;
using gatepro::CapacityRule;
using gatepro::Competition;
using gatepro::CompleteConfig;
using gatepro::CompleteRouter;
using gatepro::ForwardInputs;
using gatepro::GroupScore;
using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;

/// Megatron-LM#894: softmax over one expert teaches the router nothing.
TEST(CompleteRegression, OneNormalisedExpertWithoutALossIsRefused) {
  const auto x_TH = random_matrix<float>(10, 6, 1);
  const auto w_EH = random_matrix<float>(8, 6, 2);
  for (bool renormalise : {false, true}) {
    for (ScoreFunction f : {ScoreFunction::softmax_after_top_k, ScoreFunction::sigmoid}) {
      for (double z : {0.0, 1e-3}) {
        CompleteConfig config{{6, 8, 1}};
        config.scores = {f, renormalise, 1};
        config.losses.z = z;
        CompleteRouter<float> router(config);
        router.refresh(w_EH, 0);
        const auto step = [&] {
          complete_data::step(router, x_TH, w_EH, {}, RowMatrix<float>(x_TH.leftCols(1)),
                              zeros<float>(8, 6));
        };
        const bool constant = renormalise || f == ScoreFunction::softmax_after_top_k;
        if (constant && z == 0) {
          expect_error(step, {"constant"});
        } else {
          step();
        }
      }
    }
  }
}

/// CapacityRule::renormalise changes no token that lost nothing, so that one expert still learns.
TEST(CompleteRegression, RenormalisationLeavesTokensAloneThatLostNothing) {
  const auto x_TH = random_matrix<float>(10, 6, 1);
  const auto w_EH = random_matrix<float>(8, 6, 2);
  const auto dweights_TK = random_matrix<float>(10, 2, 3);
  for (Index k : {1, 2}) {
    CompleteConfig config{{6, 8, k}};
    config.scores.function = ScoreFunction::sigmoid;
    config.capacity = CapacityRule{/*factor=*/8};
    const auto run = [&](bool renormalise) {
      config.capacity->renormalise = renormalise;
      CompleteRouter<float> router(config);
      router.refresh(w_EH, 0);
      return complete_data::step(router, x_TH, w_EH, {}, RowMatrix<float>(dweights_TK.leftCols(k)),
                                 zeros<float>(8, 6));
    };
    const auto got = run(true);
    EXPECT_EQ(got.report.dropped_choices, 0);
    EXPECT_GT(got.dw_EH.cwiseAbs().maxCoeff(), 0);
    complete_data::expect_same_outcome(got, run(false));
  }
}

/// A choice that was never made is not lost.
TEST(CompleteRegression, RenormalisationLeavesTokensAloneThatChoseLess) {
  constexpr Index T = 200, K = 3, E = 8;
  CompleteConfig config{{6, E, K}};
  config.scores.function = ScoreFunction::sigmoid;
  config.capacity = CapacityRule{/*factor=*/E};
  gatepro::RoutingRecord<> record;
  record.tokens = T;
  record.top_k = K;
  record.penalised_TK.resize(T * K);
  for (std::int32_t t = 0; t < T; ++t) {
    const std::int32_t none = t % 5 == 0 ? -1 : t % 8;
    record.expert_ids_TK.insert(record.expert_ids_TK.end(), {none, (t + 3) % 8, -1});
  }
  record.expert_ids_TK[1] = -1;  // a token that chose nothing
  gatepro::ForwardInputs<> in;
  in.replay = &record;
  const auto run = [&](bool renormalise) {
    config.capacity->renormalise = renormalise;
    CompleteRouter<float> router(config);
    const auto w_EH = random_matrix<float>(E, 6, 2);
    router.refresh(w_EH, 0);
    return complete_data::step(router, random_matrix<float>(T, 6, 1), w_EH, in,
                               random_matrix<float>(T, K, 3), zeros<float>(E, 6));
  };
  const auto got = run(true);
  EXPECT_EQ(got.report.dropped_choices, 0);
  EXPECT_EQ(got.report.tokens_without_expert, 0);
  complete_data::expect_same_outcome(got, run(false));
}

/// vllm#39391, sglang#30079: a NaN logit row gave experts twice, or none.
TEST(CompleteRegression, NanRowsGiveDistinctIdsInRange) {
  constexpr Index T = 9, E = 8, K = 3;
  for (ScoreFunction f : data::score_functions) {
    CompleteConfig config = complete_data::full_config(4, E, K);
    config.scores.function = f;
    config.noise = {};
    config.losses = {};
    CompleteRouter<float> router(config);
    const auto w_EH = random_matrix<float>(E, 4, 1);
    router.refresh(w_EH, 0);
    gatepro::RoutingBuffers buffers(router, T);
    auto out = buffers.view();
    const auto logits_TE = random_matrix<float>(T, E, 2);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (Index t = 0; t < T; ++t) {
      for (Index e = 0; e < E; ++e)
        out.logits_TE(t, e) = t == 4 || e < t - 4 ? nan : logits_TE(t, e);
    }
    router.forward_logits({}, out, buffers.workspace());
    const auto ids_TK = data::copy<std::int32_t>(out.expert_ids_TK);
    EXPECT_TRUE(data::valid_ids(ids_TK, E));
    for (Index j = 0; j < K; ++j) {
      // A choice that was dropped weighs 0 whatever it held.
      EXPECT_TRUE(std::isnan(out.weights_TK(4, j)) || out.kept_TK(4, j) == 0);
      EXPECT_FALSE(std::isnan(out.weights_TK(0, j)));
    }
  }
}

/// transformers#45440, vllm#13474: experts of masked groups got the score 0, which beats a
/// negative one.
TEST(CompleteRegression, MaskedGroupsNeverBeatNegativeBias) {
  constexpr Index T = 20, E = 8, K = 4;
  CompleteConfig config{{4, E, K}};
  config.competition = Competition::off();
  config.scores.function = ScoreFunction::sigmoid;
  config.bias.enabled = true;
  for (GroupScore score : {GroupScore::share_of_top_k, GroupScore::top_2}) {
    config.groups = {4, 2, score};
    CompleteRouter<float> router(config);
    gatepro::RouterState state = router.state();
    state.expert_bias_E.assign(E, -5);  // every choice value is negative
    router.restore(state);
    gatepro::RoutingBuffers buffers(router, T);
    auto out = buffers.view();
    const auto logits_TE = random_matrix<float>(T, E, 2);
    for (Index t = 0; t < T; ++t) std::copy_n(logits_TE.row(t).data(), E, out.logits_TE.row(t));
    router.forward_logits({}, out, buffers.workspace());
    for (Index t = 0; t < T; ++t) {
      std::vector<bool> used(4, false);
      for (Index j = 0; j < K; ++j) {
        used[static_cast<std::size_t>(out.expert_ids_TK(t, j) / 2)] = true;
      }
      EXPECT_EQ(std::count(used.begin(), used.end(), true), 2) << "token " << t;
    }
  }
}

}  // namespace
