// SPDX-License-Identifier: MIT
// A complete router whose choices a hash table makes: logits weigh them, and nothing else has a
// say.
#include <gatepro/gatepro.hpp>
#include <gatepro/setup.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "support/bits.hpp"
#include "support/complete_data.hpp"
#include "support/conversions.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/reference/complete.hpp"

namespace {

using complete_data::zeros;
using data::random_matrix;
using data::same_bits;
using gatepro::Competition;
using gatepro::CompleteConfig;
using gatepro::CompleteRouter;
using gatepro::ForwardInputs;
using gatepro::HashTable;
using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;

constexpr Index T = 83, H = 6, E = 8, K = 3, V = 40;

/// Every seventh token of the vocabulary lacks a choice, and every thirteenth has none at all.
HashTable some_table() {
  RowMatrix<std::int32_t> ids_VK =
      data::copy<std::int32_t>(gatepro::random_hash_table(V, E, K, 1).expert_ids());
  for (Index v = 0; v < V; ++v) {
    if (v % 7 == 3) ids_VK(v, v % K) = -1;
    if (v % 13 == 5) ids_VK.row(v).setConstant(-1);
  }
  return HashTable(E, ids_VK);
}

struct Hashed {
  HashTable table = some_table();
  std::vector<std::int64_t> token_ids;
  std::vector<std::uint8_t> padding;
  std::vector<std::int64_t> sequences{0, 50, T};
  ForwardInputs<> in;

  Hashed() {
    for (Index t = 0; t < T; ++t) {
      token_ids.push_back(data::random_below(V, 2, static_cast<std::uint64_t>(t)));
      padding.push_back(t % 9 == 4);
      if (t % 18 == 4) token_ids.back() = -5;
    }
    in.hash = &table;
    in.token_ids_T = token_ids;
    in.is_padding_T = padding;
    in.sequence_begin_S1 = sequences;
  }
};

/// Everything on that could have a say.
CompleteConfig config_of(ScoreFunction function, bool renormalise) {
  CompleteConfig config = complete_data::full_config(H, E, K);
  config.scores = {function, renormalise, 2.5};
  config.capacity.reset();
  config.noise = {};
  return config;
}

// A bias that would turn all choices over.
template <class Router>
void set_bias(Router& router) {
  gatepro::RouterState state = router.state();
  state.expert_bias_E.clear();
  for (Index e = 0; e < E; ++e) state.expert_bias_E.push_back(static_cast<double>(100 * e));
  router.restore(state);
}

TEST(CompleteHash, ChoicesAreTheTablesAndWeightsTheLogits) {
  const auto x_TH = random_matrix<double>(T, H, 1);
  const auto w_EH = random_matrix<double>(E, H, 2);
  const reference::Matrix logits_TE =
      data::to_reference(RowMatrix<double>(x_TH * w_EH.transpose()));
  const Hashed hashed;
  for (ScoreFunction function : data::score_functions) {
    for (bool renormalise : {false, true}) {
      CompleteConfig config = config_of(function, renormalise);
      config.logit_soft_cap = 0;
      CompleteRouter<double> router(config);  // without partners: nobody asks for them
      set_bias(router);
      const auto got = complete_data::forward(router, x_TH, w_EH, hashed.in);
      gatepro::SelectionRule rule = config.selection();
      rule.competition = Competition::off();
      std::vector<std::int64_t> counts_E(E);
      for (Index t = 0; t < T; ++t) {
        const auto at = static_cast<std::size_t>(t);
        std::vector<int> ids;
        for (Index j = 0; j < K; ++j) {
          const bool counts = hashed.padding[at] == 0;
          const std::int32_t id = counts ? hashed.table.expert_ids()(hashed.token_ids[at], j) : -1;
          ASSERT_EQ(got.ids_TK(t, j), id);
          ASSERT_EQ(got.penalised_TK(t, j), 0);
          if (id < 0) {
            ASSERT_EQ(got.weights_TK(t, j), 0);
            continue;
          }
          ids.push_back(id);
          ++counts_E[static_cast<std::size_t>(id)];
        }
        if (ids.empty()) continue;
        const auto contest = reference::contest(logits_TE[at], reference::Flags(E), rule, {},
                                                [](double v) { return v; });
        const auto want = reference::weigh(contest, ids, rule, false);
        std::size_t next = 0;
        for (Index j = 0; j < K; ++j) {
          if (got.ids_TK(t, j) < 0) continue;
          ASSERT_NEAR(got.weights_TK(t, j), want.weights[next++], 1e-13);
        }
      }
      EXPECT_EQ(got.counts_E, counts_E);
      EXPECT_EQ(got.report.nonfinite_rows, 0);
    }
  }
}

TEST(CompleteHash, GradientsMatchDifferences) {
  const auto x_TH = random_matrix<double>(T, H, 3);
  const auto w_EH = random_matrix<double>(E, H, 4);
  const auto dweights_TK = random_matrix<double>(T, K, 5);
  const Hashed hashed;
  for (ScoreFunction function : data::score_functions) {
    for (bool renormalise : {false, true}) {
      CompleteConfig config = config_of(function, renormalise);
      config.capacity.emplace();
      config.capacity->factor = 1;
      config.capacity->policy = gatepro::DropPolicy::position;
      const auto objective = [&](const RowMatrix<double>& x, const RowMatrix<double>& w) {
        CompleteRouter<double> router(config);
        const auto out = complete_data::forward(router, x, w, hashed.in);
        EXPECT_GT(out.report.dropped_choices, 0);
        double sum = out.report.losses.sum();
        for (Index i = 0; i < T * K; ++i) {
          sum += out.weights_TK.data()[i] * dweights_TK.data()[i];
        }
        return sum;
      };
      CompleteRouter<double> router(config);
      const auto got =
          complete_data::step(router, x_TH, w_EH, hashed.in, dweights_TK, zeros<double>(E, H));
      for (Index e = 0; e < E; ++e) {
        const auto moved = [&](double offset) {
          RowMatrix<double> there_EH = w_EH;
          there_EH(e, e % H) += offset;
          return objective(x_TH, there_EH);
        };
        EXPECT_NEAR(got.dw_EH(e, e % H), reference::derivative(moved, 1e-4), 1e-8);
      }
      for (Index t = 0; t < T; t += 7) {
        const auto moved = [&](double offset) {
          RowMatrix<double> there_TH = x_TH;
          there_TH(t, t % H) += offset;
          return objective(there_TH, w_EH);
        };
        EXPECT_NEAR(got.dx_TH(t, t % H), reference::derivative(moved, 1e-4), 1e-8);
      }
    }
  }
}

TEST(CompleteHash, MovesNoBiasButCountsForLosses) {
  const auto x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  const Hashed hashed;
  CompleteRouter<float> router(config_of(ScoreFunction::sigmoid, true));
  set_bias(router);
  const gatepro::RouterState before = router.state();
  const auto got = complete_data::forward(router, x_TH, w_EH, hashed.in);
  EXPECT_EQ(router.state().balance_counts_E, got.counts_E);
  router.end_step();
  EXPECT_EQ(router.state().expert_bias_E, before.expert_bias_E);
}

TEST(CompleteHash, BitsDoNotDependOnTheBatchOrTheExecutor) {
  const auto x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  const Hashed hashed;
  CompleteConfig config = config_of(ScoreFunction::softmax_before_top_k, true);
  config.losses = {};
  CompleteRouter<float> router(config);
  const auto want = complete_data::forward(router, x_TH, w_EH, hashed.in);
  const auto threads =
      complete_data::forward(router, x_TH, w_EH, hashed.in, gatepro::NoReduce(), ThreadExecutor(3));
  EXPECT_TRUE(same_bits(threads.weights_TK, want.weights_TK));
  for (Index first = 0; first < T; first += 20) {
    const Index count = std::min<Index>(20, T - first);
    ForwardInputs<> part = hashed.in;
    part.token_ids_T = {hashed.in.token_ids_T.data + first, count};
    part.is_padding_T = {hashed.in.is_padding_T.data + first, count};
    part.sequence_begin_S1 = {};
    const auto got =
        complete_data::forward(router, complete_data::rows(x_TH, first, count), w_EH, part);
    EXPECT_TRUE(same_bits(got.ids_TK, complete_data::rows(want.ids_TK, first, count)));
    EXPECT_TRUE(same_bits(got.weights_TK, complete_data::rows(want.weights_TK, first, count)));
  }
}

// With the table or by the record alone; an evaluation is hashed, too.
TEST(CompleteHash, ARecomputationHasTheSameBits) {
  const auto x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  const auto dweights_TK = random_matrix<float>(T, K, 3);
  Hashed hashed;
  CompleteConfig config = complete_data::full_config(H, E, K);
  CompleteRouter<float> router(config);
  gatepro::RoutingRecord<> record;
  hashed.in.record = &record;
  const auto want =
      complete_data::step(router, x_TH, w_EH, hashed.in, dweights_TK, zeros<float>(E, H));
  const gatepro::RouterState state = router.state();
  ForwardInputs<> again = hashed.in;
  again.record = nullptr;
  again.replay = &record;
  again.pass = gatepro::Pass::recompute;
  complete_data::expect_same_outcome(
      complete_data::step(router, x_TH, w_EH, again, dweights_TK, zeros<float>(E, H)), want);
  again.hash = nullptr;
  again.token_ids_T = {};
  complete_data::expect_same_outcome(
      complete_data::step(router, x_TH, w_EH, again, dweights_TK, zeros<float>(E, H)), want);
  complete_data::expect_same_state(router.state(), state);
  ForwardInputs<> evaluation = hashed.in;
  evaluation.record = nullptr;
  evaluation.pass = gatepro::Pass::evaluation;
  EXPECT_TRUE(
      same_bits(complete_data::forward(router, x_TH, w_EH, evaluation).ids_TK, want.ids_TK));
}

// A row of the table counts as best first.
TEST(CompleteHash, FewerChoicesAreTheFirstOfTheTable) {
  const auto x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  Hashed hashed;
  CompleteRouter<float> router(config_of(ScoreFunction::sigmoid, true));
  const auto all = complete_data::forward(router, x_TH, w_EH, hashed.in);
  hashed.in.top_k = K - 1;
  const auto got = complete_data::forward(router, x_TH, w_EH, hashed.in);
  EXPECT_EQ(got.ids_TK.leftCols(K - 1), all.ids_TK.leftCols(K - 1));
  EXPECT_TRUE((got.ids_TK.col(K - 1).array() == -1).all());
}

// Not even the competition goes by a table that has no say.
TEST(CompleteHash, ReplaysGoBeforeIt) {
  const auto x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  const Hashed hashed;
  ForwardInputs<> plain = hashed.in;
  plain.hash = nullptr;
  plain.token_ids_T = {};
  for (const ForwardInputs<>& recorded : {plain, hashed.in}) {
    for (const gatepro::Pass pass : {gatepro::Pass::training, gatepro::Pass::evaluation}) {
      CompleteConfig config = config_of(ScoreFunction::softmax_before_top_k, false);
      config.competition = Competition::penalty(2);
      CompleteRouter<float> router(config);
      router.refresh(w_EH, 0);
      gatepro::RoutingRecord<> record;
      ForwardInputs<> in = recorded;
      in.pass = pass;
      in.record = &record;
      const auto first = complete_data::forward(router, x_TH, w_EH, in);
      ForwardInputs<> with = hashed.in, without = plain;
      with.pass = without.pass = gatepro::Pass::evaluation;
      with.replay = without.replay = &record;
      const auto got = complete_data::forward(router, x_TH, w_EH, with);
      complete_data::expect_same_outcome(got, complete_data::forward(router, x_TH, w_EH, without));
      EXPECT_EQ(got.report.competition.mode, gatepro::CompetitionMode::penalty);
      EXPECT_EQ(same_bits(got.weights_TK, first.weights_TK), recorded.hash == nullptr);
    }
  }
}

TEST(CompleteHash, ForcedRoutingGoesBeforeIt) {
  const auto x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  const Hashed hashed;
  ForwardInputs<> plain = hashed.in;
  plain.hash = nullptr;
  plain.token_ids_T = {};
  for (const auto forced : {gatepro::ForcedRouting::round_robin, gatepro::ForcedRouting::random}) {
    CompleteConfig config = config_of(ScoreFunction::sigmoid, true);
    config.noise.forced = forced;
    CompleteRouter<float> router(config), other(config);
    complete_data::expect_same_outcome(complete_data::forward(router, x_TH, w_EH, hashed.in),
                                       complete_data::forward(other, x_TH, w_EH, plain));
  }
}

TEST(CompleteHash, HasNoChoiceValues) {
  const auto x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  const Hashed hashed;
  CompleteConfig config{{H, E, K}};
  CompleteRouter<float> router(config);
  gatepro::RoutingBuffers<CompleteRouter<float>> buffers(router, gatepro::BufferShape{T});
  RowMatrix<float> values_TK = RowMatrix<float>::Constant(T, K, 42);
  auto out = buffers.view();
  out.choice_values_TK = values_TK;
  router.forward(x_TH, w_EH, hashed.in, out, buffers.workspace());
  EXPECT_TRUE((values_TK.array() == -std::numeric_limits<float>::infinity()).all());
}

TEST(CompleteHash, BadInputIsRefused) {
  const auto x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  CompleteConfig config{{H, E, K}};
  config.competition = Competition::off();
  CompleteRouter<float> router(config);
  const auto refused = [&](const ForwardInputs<>& in, std::initializer_list<const char*> parts) {
    expect_error([&] { complete_data::forward(router, x_TH, w_EH, in); }, parts);
  };
  Hashed hashed;
  ForwardInputs<> in = hashed.in;
  in.token_ids_T = {};
  refused(in, {"CompleteRouter::forward", "token_ids_T"});
  in = hashed.in;
  in.hash = nullptr;
  refused(in, {"hash table", "token_ids_T"});
  const HashTable few = gatepro::random_hash_table(V, E - 1, K, 1);
  const HashTable narrow = gatepro::random_hash_table(V, E, K - 1, 1);
  in = hashed.in;
  for (const HashTable* table : {&few, &narrow}) {
    in.hash = table;
    refused(in, {"hash table", "num_experts=8", "top_k=3"});
  }
  hashed.token_ids[1] = V;
  refused(hashed.in, {"token_ids_T", "id=40", "token=1"});
  hashed.token_ids[1] = 0;
  gatepro::PenaltyStatistics statistics;
  gatepro::RoutingBuffers<CompleteRouter<float>> buffers(router, gatepro::BufferShape{T});
  auto out = buffers.view();
  out.statistics = &statistics;
  expect_error([&] { router.forward(x_TH, w_EH, hashed.in, out, buffers.workspace()); },
               {"no statistics", "hashed"});
}

}  // namespace
