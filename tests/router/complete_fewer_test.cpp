// SPDX-License-Identifier: MIT
// A complete router whose tokens make fewer than K choices: in one call, by a threshold, within a
// budget; recorded, cut up, lost and balanced. Gradients: complete_layer_test.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "support/complete_data.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/scored_data.hpp"

namespace {

using complete_data::expect_same_outcome;
using complete_data::Outcome;
using complete_data::zeros;
using data::random_matrix;
using data::same_bits;
using gatepro::CompleteConfig;
using gatepro::CountSource;
using gatepro::FewerChoices;
using gatepro::ForwardInputs;
using gatepro::GroupScore;
using gatepro::Index;
using gatepro::Pass;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;

using R = gatepro::CompleteRouter<float>;
constexpr Index T = 83, H = 12, E = 12, K = 4;

struct Data {
  RowMatrix<float> x_TH = random_matrix<float>(T, H, 1), w_EH = random_matrix<float>(E, H, 2);
  RowMatrix<float> dweights_TK = random_matrix<float>(T, K, 3);
  std::vector<std::uint8_t> is_padding = scored_data::padding(T, 6);
  std::vector<std::int64_t> begin{0, 30, 31, T};
};

/// Plain, and with everything on.
std::vector<CompleteConfig> all_settings() {
  CompleteConfig plain{{H, E, K}};
  CompleteConfig softmax{{H, E, K}};
  softmax.scores = {ScoreFunction::softmax_before_top_k, true, 2};
  softmax.competition = gatepro::Competition::penalty(0.3);
  softmax.losses = {1e-2, 2e-2, 3e-2, 1e-3, CountSource::unpenalised};
  CompleteConfig full = complete_data::full_config(H, E, K);
  full.capacity->renormalise = true;
  CompleteConfig groups = full;
  groups.groups = {4, 2, GroupScore::share_of_top_k};
  CompleteConfig by_id = full;
  by_id.choice = {0.0625, gatepro::ChoiceOrder::ascending_ids};
  return {plain, softmax, full, groups, by_id};
}

template <class Executor = gatepro::SerialExecutor>
Outcome<R> step(const CompleteConfig& config, const Data& data, const ForwardInputs<>& given,
                Index columns = K, const Executor& executor = {}) {
  R router(config);
  router.refresh(data.w_EH, 0);
  ForwardInputs<> in = given;
  in.is_padding_T = data.is_padding;
  in.sequence_begin_S1 = data.begin;
  return complete_data::step(router, data.x_TH, data.w_EH, in,
                             RowMatrix<float>(data.dweights_TK.leftCols(columns)),
                             zeros<float>(E, H), {}, gatepro::NoReduce(), executor);
}

// A router of that k, in the first columns; the others hold no choice. To the bit.
TEST(FewerChoices, OfOneCallAreThoseOfARouterWithThatTopK) {
  const Data data;
  for (const CompleteConfig& config : all_settings()) {
    for (const Index k : {2, 3, 4}) {
      for (const Pass pass : {Pass::training, Pass::evaluation}) {
        ForwardInputs<> in;
        in.pass = pass;
        CompleteConfig smaller = config;
        smaller.top_k = k;
        if (config.groups.score == GroupScore::share_of_top_k) {
          smaller.groups.score = GroupScore::best_n;
          smaller.groups.best = K / config.groups.groups_per_token;
        }
        const auto want = step(smaller, data, in, k);
        in.top_k = k;
        const auto got = step(config, data, in);
        EXPECT_TRUE(same_bits(RowMatrix<std::int32_t>(got.ids_TK.leftCols(k)), want.ids_TK));
        EXPECT_TRUE(same_bits(RowMatrix<float>(got.weights_TK.leftCols(k)), want.weights_TK));
        EXPECT_TRUE((got.ids_TK.rightCols(K - k).array() == -1).all());
        EXPECT_TRUE((got.weights_TK.rightCols(K - k).array() == 0).all());
        EXPECT_EQ(got.counts_E, want.counts_E);
        EXPECT_EQ(got.kept_E, want.kept_E);
        EXPECT_EQ(got.totals, want.totals);
        EXPECT_EQ(got.report.choices, want.report.choices);
        EXPECT_EQ(got.report.choices, k * got.report.valid_tokens);
        EXPECT_EQ(got.report.top_k, k);
        EXPECT_EQ(got.report.capacity, want.report.capacity);
        EXPECT_EQ(got.report.dropped_choices, want.report.dropped_choices);
        EXPECT_EQ(got.report.losses.sum(), want.report.losses.sum());
        EXPECT_TRUE(same_bits(got.dx_TH, want.dx_TH));
        EXPECT_TRUE(same_bits(got.dw_EH, want.dw_EH));
      }
    }
  }
}

std::vector<FewerChoices> all_fewer() { return {{0.7}, {1, 2.25, 1}, {0.9, 1.5, 0}}; }

/// All ways to fewer choices, with all settings: `body(config, top_k)`.
template <class Body>
void for_each_way(const Body& body) {
  for (CompleteConfig config : all_settings()) {
    body(config, Index{2});
    for (const FewerChoices& fewer : all_fewer()) {
      config.fewer = fewer;
      body(config, Index{0});
      body(config, Index{3});
    }
  }
}

TEST(FewerChoices, CountsAreThoseOfTheIds) {
  const Data data;
  for_each_way([&](const CompleteConfig& config, Index top_k) {
    ForwardInputs<> in;
    in.top_k = top_k;
    const auto got = step(config, data, in);
    std::vector<std::int64_t> counts(E, 0);
    for (Index t = 0; t < T; ++t) {
      Index left = 0;
      for (Index j = 0; j < K; ++j) {
        const auto id = got.ids_TK(t, j);
        if (data.is_padding[static_cast<std::size_t>(t)] != 0) continue;
        if (id >= 0) ++counts[static_cast<std::size_t>(id)];
        left += id >= 0 ? 1 : 0;
        EXPECT_EQ(id >= 0, left == j + 1);
        EXPECT_TRUE(id >= 0 || got.weights_TK(t, j) == 0);
      }
      EXPECT_LE(left, top_k == 0 ? K : top_k);
    }
    EXPECT_EQ(got.counts_E, counts);
    const auto choices = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
    EXPECT_EQ(got.report.choices, choices);
    EXPECT_LT(choices, K * got.report.valid_tokens);
    if (config.losses.any() && config.losses.counts == CountSource::dispatched) {
      EXPECT_TRUE(std::equal(counts.begin(), counts.end(), got.totals.begin()));
    }
    if (config.fewer && config.fewer->budget > 0) {
      const double most = config.fewer->budget * static_cast<double>(got.report.valid_tokens);
      EXPECT_LE(static_cast<double>(choices), most);
    }
  });
}

// Also for tokens whose weights are NaN, of which choices that are not made still weigh 0.
TEST(FewerChoices, ARecomputationRepeatsThem) {
  const Data finite;
  Data nonfinite;
  nonfinite.x_TH.row(0).setConstant(std::numeric_limits<float>::quiet_NaN());
  nonfinite.x_TH(40, 3) = std::numeric_limits<float>::infinity();
  const auto repeat = [](const CompleteConfig& config, Index top_k, const Data& data) {
    gatepro::RoutingRecord<> record;
    ForwardInputs<> in;
    in.top_k = top_k;
    in.record = &record;
    const auto want = step(config, data, in);
    in.pass = Pass::recompute;
    in.record = nullptr;
    in.replay = &record;
    in.top_k = 0;  // the record knows
    const auto got = step(config, data, in);
    expect_same_outcome(want, got);
    EXPECT_EQ(want.report.choices, got.report.choices);
    EXPECT_EQ(want.report.top_k, got.report.top_k);
    EXPECT_EQ(want.report.nonfinite_rows, got.report.nonfinite_rows);
    EXPECT_EQ(want.report.tokens_short_of_survivors, got.report.tokens_short_of_survivors);
    return got.report.nonfinite_rows;
  };
  for_each_way([&](CompleteConfig config, Index top_k) {
    EXPECT_EQ(repeat(config, top_k, finite), 0);
    config.losses = {};  // of NaNs they are NaN
    EXPECT_GE(repeat(config, top_k, nonfinite), 1);
  });
}

TEST(FewerChoices, ThreadsGiveTheSameBits) {
  const Data data;
  for_each_way([&](const CompleteConfig& config, Index top_k) {
    ForwardInputs<> in;
    in.top_k = top_k;
    expect_same_outcome(step(config, data, in), step(config, data, in, K, ThreadExecutor(3)));
  });
}

// Without what tokens share, a sequence does not know of the others.
TEST(FewerChoices, SequencesStandAlone) {
  const Data data;
  for (CompleteConfig config : all_settings()) {
    config.losses = {};
    config.capacity.reset();
    config.noise = {};
    for (const FewerChoices& fewer : all_fewer()) {
      config.fewer = fewer;
      const auto whole = step(config, data, {});
      for (std::size_t s = 0; s + 1 < data.begin.size(); ++s) {
        const Index first = static_cast<Index>(data.begin[s]);
        const Index count = static_cast<Index>(data.begin[s + 1]) - first;
        Data part;
        part.x_TH = data.x_TH.middleRows(first, count);
        part.dweights_TK = data.dweights_TK.middleRows(first, count);
        part.is_padding.assign(data.is_padding.begin() + first,
                               data.is_padding.begin() + first + count);
        part.begin = {0, count};
        const auto got = step(config, part, {});
        EXPECT_TRUE(same_bits(got.ids_TK, complete_data::rows(whole.ids_TK, first, count)));
        EXPECT_TRUE(same_bits(got.weights_TK, complete_data::rows(whole.weights_TK, first, count)));
        EXPECT_TRUE(same_bits(got.dx_TH, complete_data::rows(whole.dx_TH, first, count)));
      }
    }
  }
}

// Rules that take nothing away leave every bit as it is.
TEST(FewerChoices, OffIsOff) {
  const Data data;
  for (CompleteConfig config : all_settings()) {
    const auto want = step(config, data, {});
    ForwardInputs<> in;
    in.top_k = K;
    expect_same_outcome(want, step(config, data, in));
    config.fewer = FewerChoices{1, static_cast<double>(K), K};
    expect_same_outcome(want, step(config, data, {}));
    EXPECT_EQ(want.report.choices, K * want.report.valid_tokens);
  }
}

// Whatever a rule for groups says that is off.
TEST(FewerChoices, OfOneCallDoNotLookAtGroupsThatAreOff) {
  const Data data;
  CompleteConfig config{{H, E, K}};
  ForwardInputs<> in;
  in.top_k = 2;
  const auto want = step(config, data, in);
  for (const Index groups_per_token : {0, -3, 7}) {
    config.groups = {1, groups_per_token, GroupScore::share_of_top_k};
    expect_same_outcome(want, step(config, data, in));
  }
}

// Choices that the router has no part in stay.
TEST(FewerChoices, ForcedRoundRobinIsLeftAlone) {
  const Data data;
  CompleteConfig config{{H, E, K}};
  config.fewer = FewerChoices{0.5, 1.5, 1};
  config.noise.forced = gatepro::ForcedRouting::round_robin;
  const auto got = step(config, data, {});
  EXPECT_EQ(got.report.choices, K * got.report.valid_tokens);
}

// Those of choices that were not made are -inf.
TEST(FewerChoices, ChoiceValuesAreThoseOfTheChoicesMade) {
  const Data data;
  for_each_way([&](const CompleteConfig& config, Index top_k) {
    if (!config.fewer && config.choice.order == gatepro::ChoiceOrder::ascending_ids) return;
    R router(config);
    router.refresh(data.w_EH, 0);
    gatepro::RoutingRecord<> record;
    ForwardInputs<> in;
    in.sequence_begin_S1 = data.begin;
    in.top_k = top_k;
    in.record = &record;
    gatepro::RoutingBuffers<R> buffers(
        router, gatepro::BufferShape{T, 1, complete_data::sequences_of(data.begin), true, true});
    RowMatrix<float> values_TK = RowMatrix<float>::Constant(T, K, 42);
    auto out = buffers.view();
    out.choice_values_TK = values_TK;
    router.forward(data.x_TH, data.w_EH, in, out, buffers.workspace());
    for (Index t = 0; t < T; ++t) {
      for (Index j = 0; j < K; ++j) {
        ASSERT_NE(values_TK(t, j), 42);
        const bool lost = config.competition.mode == gatepro::CompetitionMode::eliminate &&
                          out.penalised_TK(t, j) != 0;
        ASSERT_EQ(std::isinf(values_TK(t, j)), lost || out.expert_ids_TK(t, j) < 0);
      }
    }
    in.record = nullptr;
    in.replay = &record;
    router.forward(data.x_TH, data.w_EH, in, out, buffers.workspace());
    EXPECT_TRUE((values_TK.array() == -std::numeric_limits<float>::infinity()).all());
  });
}

TEST(FewerChoices, BadInputIsRefused) {
  const Data data;
  CompleteConfig config{{H, E, K}};
  ForwardInputs<> in;
  in.top_k = K + 1;
  expect_error([&] { step(config, data, in); },
               {"CompleteRouter::forward", "ForwardInputs::top_k", "ForwardInputs::top_k=5"});
  in.top_k = -1;
  expect_error([&] { step(config, data, in); }, {"ForwardInputs::top_k=-1"});
  in.top_k = 1;  // a constant weight
  expect_error([&] { step(config, data, in); }, {"CompleteRouter::backward", "top_k=1"});
  in.top_k = 0;

  config.fewer = FewerChoices{1, K + 0.5};
  expect_error([&] { R router(config); }, {"CompleteRouter", "least <= budget <= top_k"});
  config.fewer = FewerChoices{1, 2};
  R router(config);
  router.refresh(data.w_EH, 0);
  expect_error([&] { complete_data::forward(router, data.x_TH, data.w_EH); },
               {"CompleteRouter::forward", "sequence_begin_S1"});
  in.sequence_begin_S1 = data.begin;
  gatepro::RoutingBuffers<R> buffers(router, T);
  const auto refuse = [&](auto change, const char* name) {
    auto out = buffers.view();
    change(out);
    expect_error([&] { router.forward(data.x_TH, data.w_EH, in, out, buffers.workspace()); },
                 {"CompleteRouter::forward", name});
  };
  refuse([](auto& out) { out.choice_values_TK = {}; }, "choice_values_TK");
  refuse([](auto& out) { out.penalised_TK = {}; }, "penalised_TK");
  refuse([](auto& out) { out.choice_values_TK = out.weights_TK; }, "overlap");
  gatepro::RoutingRecord<> record;
  in.record = &record;
  router.forward(data.x_TH, data.w_EH, in, buffers);
  record.most_choices = K + 1;
  in.record = nullptr;
  in.replay = &record;
  expect_error([&] { router.forward(data.x_TH, data.w_EH, in, buffers); },
               {"most_choices=5", "top_k=4"});
}

}  // namespace
