// SPDX-License-Identifier: MIT
// Choices that the router has no part in: made up ones, to measure a balanced system.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "support/bits.hpp"
#include "support/complete_data.hpp"
#include "support/ids.hpp"
#include "support/inputs.hpp"

namespace {

using complete_data::Batch;
using complete_data::zeros;
using data::random_matrix;
using data::same_bits;
using gatepro::Competition;
using gatepro::CompleteConfig;
using gatepro::CompleteRouter;
using gatepro::ForwardInputs;
using gatepro::GroupScore;
using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;

TEST(CompleteRouter, ForcedRoutingsAreBalanced) {
  constexpr Index T = 64, H = 6, E = 8, K = 2;
  RowMatrix<float> x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  x_TH.rowwise() += 3 * w_EH.row(0);  // everybody likes expert 0
  CompleteConfig config{{H, E, K}};
  config.scores.function = ScoreFunction::sigmoid;
  config.noise.seed = 3;
  const auto violation = [&](gatepro::ForcedRouting forced, gatepro::Pass pass) {
    config.noise.forced = forced;
    CompleteRouter<float> router(config);
    router.refresh(w_EH, 0);
    ForwardInputs<> in;
    in.pass = pass;
    const auto outcome = complete_data::forward(router, x_TH, w_EH, in);
    EXPECT_TRUE(data::valid_ids(outcome.ids_TK, E));
    return gatepro::max_violation(outcome.counts_E);
  };
  using gatepro::ForcedRouting;
  using gatepro::Pass;
  const double free = violation(ForcedRouting::none, Pass::training);
  EXPECT_GT(free, 2);
  EXPECT_EQ(violation(ForcedRouting::round_robin, Pass::training), 0);
  EXPECT_LT(violation(ForcedRouting::random, Pass::training), 0.8);
  EXPECT_EQ(violation(ForcedRouting::round_robin, Pass::evaluation), free);
}

/// A bias, rivals and logits that all want something else.
TEST(CompleteRouter, WhatIsForcedIgnoresWhatSteers) {
  constexpr Index T = 4096, H = 6, E = 16, K = 2;
  const auto x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  std::vector<std::uint8_t> padding(T);
  for (std::size_t t = 0; t < padding.size(); ++t) padding[t] = t / 8 % 4 == 0;
  ForwardInputs<> in;
  in.is_padding_T = padding;
  for (const auto forced : {gatepro::ForcedRouting::random, gatepro::ForcedRouting::round_robin}) {
    for (ScoreFunction function : {ScoreFunction::softmax_before_top_k, ScoreFunction::sigmoid}) {
      for (const gatepro::GroupLimit& groups :
           {gatepro::GroupLimit{}, gatepro::GroupLimit{4, 2, GroupScore::top_2}}) {
        CompleteConfig plain{{H, E, K}};
        plain.competition = Competition::off();
        plain.scores.function = function;
        plain.groups = groups;
        plain.noise.forced = forced;
        CompleteConfig steered = plain;
        steered.competition = Competition::eliminate();
        steered.bias.enabled = true;
        CompleteRouter<float> expected(plain), router(steered), without_partners(steered);
        gatepro::RouterState state = router.state();
        for (Index e = 0; e < E; ++e) {
          state.partners_EM.push_back(e == 0 ? 1 : 0);
          state.expert_bias_E[static_cast<std::size_t>(e)] = static_cast<double>(e - E / 2);
        }
        router.restore(state);
        const auto dweights_TK = random_matrix<float>(T, K, 3);
        const auto step = [&](CompleteRouter<float>& r) {
          return complete_data::step(r, x_TH, w_EH, in, dweights_TK, zeros<float>(E, H));
        };
        const auto outcome = step(router);
        complete_data::expect_same_outcome(outcome, step(expected));
        step(without_partners);
        // 384 tokens on average, with a deviation of 18.
        for (const std::int64_t count : outcome.counts_E) EXPECT_LT(std::abs(count - 384), 110);
        router.end_step();
        EXPECT_EQ(router.state().expert_bias_E, state.expert_bias_E);
        // An evaluation is the router's own.
        in.pass = gatepro::Pass::evaluation;
        EXPECT_FALSE(same_bits(complete_data::forward(router, x_TH, w_EH, in).ids_TK,
                               complete_data::forward(expected, x_TH, w_EH, in).ids_TK));
        in.pass = gatepro::Pass::training;
      }
    }
  }
}

/// Few tokens per rank: the ranks together reach every expert, equally often.
TEST(CompleteRouter, RanksTakeTurnsInARoundRobin) {
  struct Shape {
    Index tokens, experts, top_k, ranks;
    std::uint64_t first_seed;
  };
  for (const Shape& s : {Shape{16, 256, 8, 64, 0}, Shape{16, 256, 8, 64, 12345678901234567890U},
                         Shape{7, 30, 4, 6, 5}, Shape{1, 8, 1, 5, 3}, Shape{300, 8, 3, 2, 9}}) {
    std::vector<std::int64_t> counts_E(static_cast<std::size_t>(s.experts));
    CompleteConfig config{{4, s.experts, s.top_k}};
    config.competition = Competition::off();
    config.noise.forced = gatepro::ForcedRouting::round_robin;
    std::vector<CompleteRouter<float>> routers;
    for (Index rank = 0; rank < s.ranks; ++rank) {
      config.noise.seed = s.first_seed + static_cast<std::uint64_t>(rank);
      routers.emplace_back(config);
    }
    const auto x_TH = random_matrix<float>(s.tokens, 4, 1);
    const auto w_EH = random_matrix<float>(s.experts, 4, 2);
    for (int forward = 0; forward < 3; ++forward) {
      std::fill(counts_E.begin(), counts_E.end(), std::int64_t{0});
      for (CompleteRouter<float>& router : routers) {
        const auto outcome = complete_data::forward(router, x_TH, w_EH);
        EXPECT_TRUE(data::valid_ids(outcome.ids_TK, s.experts));
        for (std::size_t e = 0; e < counts_E.size(); ++e) counts_E[e] += outcome.counts_E[e];
      }
      const auto ends = std::minmax_element(counts_E.begin(), counts_E.end());
      EXPECT_LE(*ends.second - *ends.first, 1) << "E = " << s.experts << ", forward " << forward;
    }
  }
}

// Nobody loses among choices that are made up.
TEST(CompleteRouter, ForcedChoicesHaveNoLosers) {
  const Batch data;
  CompleteConfig config{{Batch::H, Batch::E, Batch::K}};
  config.noise.forced = gatepro::ForcedRouting::round_robin;
  CompleteRouter<float> router(config);
  router.refresh(data.w_EH, 0);
  gatepro::RoutingBuffers buffers(router, gatepro::BufferShape{Batch::T, 1, 1, true, true});
  const auto marks_TK = buffers.view().penalised_TK;
  for (Index t = 0; t < Batch::T; ++t) {
    for (Index j = 0; j < Batch::K; ++j) marks_TK(t, j) = 77;
  }
  router.forward(data.x_TH, data.w_EH, {}, buffers);
  for (Index t = 0; t < Batch::T; ++t) {
    for (Index j = 0; j < Batch::K; ++j) ASSERT_EQ(int{marks_TK(t, j)}, 0);
  }
}

}  // namespace
