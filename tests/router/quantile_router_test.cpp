// SPDX-License-Identifier: MIT
// Quantile balancing in the complete router: which choices count, and that no cut of a step shows.
#include <gatepro/router/complete_router.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "support/bits.hpp"
#include "support/complete_data.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/ranks.hpp"

namespace {

using data::random_matrix;
using gatepro::Competition;
using gatepro::CompleteConfig;
using gatepro::ForwardInputs;
using gatepro::Index;
using gatepro::Pass;
using gatepro::RouterState;
using gatepro::RowMatrix;

using R = gatepro::CompleteRouter<float>;
using Counts = std::vector<std::int64_t>;
using Mask = std::vector<std::uint8_t>;
constexpr Index T = 96, H = 16, E = 12, K = 3;
constexpr double infinite = std::numeric_limits<double>::infinity();

/// Everything on, with quantiles in place of the bias that is stepped.
CompleteConfig full_config() {
  CompleteConfig config = complete_data::full_config(H, E, K);
  config.bias = {};
  config.quantile.enabled = true;
  config.quantile.bins = 200;
  config.quantile.memory = 0.25;
  return config;
}

/// The same without what ranks and micro-batches draw or cut for themselves.
CompleteConfig even_config() {
  CompleteConfig config = full_config();
  config.noise = {};
  config.capacity.reset();
  config.losses = {};
  return config;
}

/// Logits and biases in units of 2^-6, so that bins of that width are exact.
struct Case {
  CompleteConfig config{{H, E, K}};
  RowMatrix<float> logits_TE{T, E};
  std::vector<std::int32_t> partner_E;
  RouterState state;
  Mask mask = Mask(T);

  explicit Case(const Competition& competition) {
    config.competition = competition;
    config.quantile.enabled = true;
    for (Index i = 0; i < T * E; ++i) {
      logits_TE.data()[i] =
          static_cast<float>(data::random_below(129, 1, std::uint64_t(i)) - 64) / 64;
    }
    for (Index e = 0; e < E; ++e) {
      partner_E.push_back(static_cast<std::int32_t>((e + 5) % E));
      state.expert_bias_E.push_back(double(data::random_below(33, 2, std::uint64_t(e)) - 16) / 64);
    }
    for (std::size_t t = 0; t < mask.size(); t += 7) mask[t] = 1;
    const auto [low, high] =
        std::minmax_element(state.expert_bias_E.begin(), state.expert_bias_E.end());
    config.quantile.reach = 2;
    config.quantile.bins = Index((*high - *low + 4) * 64);
  }

  /// s + b of the experts of a token as the choice sees them, -infinity for those it cannot take.
  std::vector<double> choice_values(Index t) const {
    std::vector<double> values_E;
    for (Index e = 0; e < E; ++e) {
      const double logit = double(logits_TE(t, e));
      const bool loses = logit < double(logits_TE(t, partner_E[std::size_t(e)]));
      double value = logit + state.expert_bias_E[std::size_t(e)];
      if (config.competition.mode == gatepro::CompetitionMode::penalty && loses) {
        value -= config.competition.lambda;
      }
      if (config.competition.mode == gatepro::CompetitionMode::eliminate && loses) {
        value = -infinite;
      }
      values_E.push_back(value);
    }
    forbid_groups(values_E);
    return values_E;
  }

  Counts naive_counts() const {
    const auto& bias_E = state.expert_bias_E;
    const double low = *std::min_element(bias_E.begin(), bias_E.end()) - config.quantile.reach;
    const Index columns = 1 + config.quantile.bins;
    Counts counts_EB(static_cast<std::size_t>(E * columns));
    for (Index t = 0; t < T; ++t) {
      if (mask[std::size_t(t)] != 0) continue;
      const std::vector<double> values_E = choice_values(t);
      std::vector<double> sorted = values_E;
      std::sort(sorted.begin(), sorted.end(), std::greater<>());
      const double cutoff = sorted[K];
      for (Index e = 0; e < E; ++e) {
        const double value = values_E[std::size_t(e)];
        if (value == -infinite) continue;
        const double needed = cutoff - value + bias_E[std::size_t(e)];
        const Index bin = cutoff == -infinite ? -1 : Index((needed - low) * 64);
        ++counts_EB[std::size_t(e * columns + 1 + std::min(bin, config.quantile.bins - 1))];
      }
    }
    return counts_EB;
  }

 private:
  void forbid_groups(std::vector<double>& values_E) const {
    if (!config.groups.active()) return;
    const Index size = E / config.groups.num_groups;
    std::vector<std::pair<double, Index>> ranked;  // the best one alone ranks a group
    for (Index g = 0; g < config.groups.num_groups; ++g) {
      const auto first = values_E.begin() + g * size;
      ranked.emplace_back(-*std::max_element(first, first + size), g);
    }
    std::sort(ranked.begin(), ranked.end());
    for (Index i = config.groups.groups_per_token; i < config.groups.num_groups; ++i) {
      std::fill_n(values_E.begin() + ranked[std::size_t(i)].second * size, size, -infinite);
    }
  }
};

void expect_naive_counts(const Case& c) {
  R router(c.config);
  RouterState state = c.state;
  state.partners_EM = c.partner_E;
  router.restore(state);
  gatepro::RoutingBuffers<R> buffers(router, T);
  std::copy_n(c.logits_TE.data(), T * E, buffers.view().logits_TE.data);
  ForwardInputs<> in;
  in.is_padding_T = c.mask;
  router.forward_logits(in, buffers.view(), buffers.workspace());
  const RouterState after = router.state();
  EXPECT_EQ(after.quantile_counts_EB, c.naive_counts());
  EXPECT_EQ(after.quantile_choices, K * std::count(c.mask.begin(), c.mask.end(), 0));
}

TEST(QuantileRouter, CountsWhatChoicesNeed) {
  for (const Competition& competition :
       {Competition::off(), Competition::penalty(0.5), Competition::eliminate()}) {
    Case c(competition);
    expect_naive_counts(c);
    c.config.choice.step = 1.0 / 64;  // rounds nothing
    expect_naive_counts(c);
    c.config.groups = {4, 2, gatepro::GroupScore::top_1};
    expect_naive_counts(c);
    c.config.groups.groups_per_token = 1;  // K experts: chosen whatever their biases are
    expect_naive_counts(c);
  }
}

// A router that competes for scores of [0, 1] has the counts of the stage.
TEST(QuantileRouter, HasTheCountsOfTheStage) {
  for (const auto function :
       {gatepro::ScoreFunction::sigmoid, gatepro::ScoreFunction::softmax_before_top_k}) {
    CompleteConfig config{{H, E, E}};
    config.competition = Competition::off();
    config.scores.function = function;
    const auto x_TH = random_matrix<float>(T, H, 1), w_EH = random_matrix<float>(E, H, 2);
    R everyone(config);  // whose weights are the scores of all experts
    const auto all = complete_data::forward(everyone, x_TH, w_EH);
    RowMatrix<float> scores_TE(T, E);
    for (Index t = 0; t < T; ++t) {
      for (Index j = 0; j < E; ++j) scores_TE(t, all.ids_TK(t, j)) = all.weights_TK(t, j);
    }
    config.top_k = K;
    config.quantile.enabled = true;
    R router(config);
    complete_data::forward(router, x_TH, w_EH);
    RowMatrix<std::int64_t> counts_EB = RowMatrix<std::int64_t>::Zero(E, 1001);
    auto memory =
        data::scratch(gatepro::count_needed_bias_workspace_bytes<float>(E, K, config.quantile));
    gatepro::count_needed_bias(gatepro::view(scores_TE), router.bias().values(), {}, K,
                               config.quantile, gatepro::view(counts_EB), memory);
    EXPECT_EQ(router.state().quantile_counts_EB,
              Counts(counts_EB.data(), counts_EB.data() + counts_EB.size()));
  }
}

/// Two steps, each cut into parts of so many tokens.
template <class Executor>
RouterState trained(const CompleteConfig& config, Index part, const Executor& executor) {
  R router(config);
  const auto w_EH = random_matrix<float>(E, H, 2);
  router.refresh_now(w_EH, 0);
  for (unsigned step = 0; step < 2; ++step) {
    const auto x_TH = random_matrix<float>(T, H, 10 + step);
    for (Index first = 0; first < T; first += part) {
      // Padding behind the tokens takes no part.
      const Index count = std::min(part, T - first);
      RowMatrix<float> padded_TH = random_matrix<float>(count + 5, H, 99);
      padded_TH.topRows(count) = x_TH.middleRows(first, count);
      Mask mask(static_cast<std::size_t>(count), 0);
      mask.resize(static_cast<std::size_t>(count + 5), 1);
      ForwardInputs<> in;
      in.is_padding_T = mask;
      complete_data::forward(router, padded_TH, w_EH, in, gatepro::NoReduce(), executor);
      in.pass = Pass::evaluation;
      complete_data::forward(router, padded_TH, w_EH, in, gatepro::NoReduce(), executor);
    }
    if (step == 0) router.end_step();
  }
  RouterState state = router.state();
  state.noise_position = 0;  // counts padding, too
  return state;
}

TEST(QuantileRouter, DoesNotDependOnCutsThreadsOrPadding) {
  const CompleteConfig config = even_config();
  const RouterState whole = trained(config, T, gatepro::SerialExecutor());
  EXPECT_EQ(whole.quantile_choices, T * K);
  EXPECT_GT(*std::max_element(whole.expert_bias_E.begin(), whole.expert_bias_E.end()), 0.01);
  for (const Index part : {Index{1}, Index{17}, Index{48}, T}) {
    complete_data::expect_same_state(trained(config, part, ThreadExecutor(3)), whole);
    complete_data::expect_same_state(trained(config, part, LastWorkerFirst(4)), whole);
  }
}

// Rows of NaNs choose nobody: experts need not make up for them.
TEST(QuantileRouter, RowsWithoutNumbersDoNotMoveIt) {
  const CompleteConfig config = even_config();
  const auto good_TH = random_matrix<float>(T / 2, H, 10), w_EH = random_matrix<float>(E, H, 2);
  RowMatrix<float> all_TH = RowMatrix<float>::Constant(T, H, data::marked_nan<float>());
  for (Index t = 0; t < T / 2; ++t) all_TH.row(2 * t) = good_TH.row(t);
  R good(config), all(config);
  for (R* router : {&good, &all}) {
    router->refresh_now(w_EH, 0);
    const auto got = complete_data::forward(*router, router == &good ? good_TH : all_TH, w_EH);
    EXPECT_EQ(got.report.nonfinite_rows, router == &good ? 0 : T / 2);
    EXPECT_EQ(router->state().quantile_choices, T / 2 * K);
    router->end_step();
  }
  EXPECT_EQ(all.state().expert_bias_E, good.state().expert_bias_E);
}

TEST(QuantileRouter, HasOneBiasOnAllRanks) {
  const CompleteConfig config = even_config();
  const auto x_TH = random_matrix<float>(T, H, 10), w_EH = random_matrix<float>(E, H, 2);
  R alone(config);
  alone.refresh_now(w_EH, 0);
  complete_data::forward(alone, x_TH, w_EH);
  alone.end_step();
  run_ranks(4, [&](int rank, const auto& reduce) {
    R router(config);
    router.refresh_now(w_EH, 0);
    const Index first = rank * 20, count = rank == 3 ? T - first : 20;
    complete_data::forward(router, complete_data::rows(x_TH, first, count), w_EH, {}, reduce);
    router.end_step(reduce);
    EXPECT_EQ(router.state().expert_bias_E, alone.state().expert_bias_E);
    EXPECT_EQ(router.state().quantile_choices, 0);
  });
}

TEST(QuantileRouter, AResumedRunIsBitIdentical) {
  const CompleteConfig config = full_config();
  const std::vector<std::int64_t> begin{0, 40, T};
  const auto w_EH = random_matrix<float>(E, H, 2);
  const auto micro_batch = [&](R& router, unsigned number) {
    ForwardInputs<> in;
    in.sequence_begin_S1 = begin;
    return complete_data::forward(router, random_matrix<float>(T, H, number), w_EH, in);
  };
  R whole(config);
  whole.refresh_now(w_EH, 0);
  micro_batch(whole, 1);
  whole.end_step();
  micro_batch(whole, 2);  // a checkpoint in the middle of a step
  R resumed(config);
  resumed.restore(whole.state());
  complete_data::expect_same_state(resumed.state(), whole.state());
  EXPECT_EQ(whole.state().quantile_choices, T * K);
  complete_data::Outcome<R> last[2];
  for (R* router : {&whole, &resumed}) {
    micro_batch(*router, 3);
    router->end_step();
    last[router == &resumed] = micro_batch(*router, 4);
  }
  complete_data::expect_same_outcome(last[0], last[1]);
  complete_data::expect_same_state(resumed.state(), whole.state());
}

// What the bias had no say in does not move it.
TEST(QuantileRouter, CountsOnlyChoicesOfItsOwnInTraining) {
  CompleteConfig config = full_config();
  const std::vector<std::int64_t> begin{0, 40, T};
  const auto x_TH = random_matrix<float>(T, H, 1), w_EH = random_matrix<float>(E, H, 2);
  gatepro::RoutingRecord<> record;
  const auto tokens_after = [&](R& router, Pass pass, bool replays) {
    ForwardInputs<> in;
    in.sequence_begin_S1 = begin;
    in.pass = pass;
    if (replays) {
      in.replay = &record;
    } else {
      in.record = &record;
    }
    complete_data::forward(router, x_TH, w_EH, in);
    return router.state().quantile_choices;
  };
  R router(config);
  router.refresh_now(w_EH, 0);
  EXPECT_EQ(tokens_after(router, Pass::evaluation, false), 0);
  EXPECT_EQ(tokens_after(router, Pass::training, false), T * K);
  EXPECT_EQ(tokens_after(router, Pass::recompute, true), T * K);
  EXPECT_EQ(tokens_after(router, Pass::training, true), T * K);
  for (const auto forced : {gatepro::ForcedRouting::random, gatepro::ForcedRouting::round_robin}) {
    config.noise.forced = forced;
    R made_up(config);
    made_up.refresh_now(w_EH, 0);
    EXPECT_EQ(tokens_after(made_up, Pass::training, false), 0);
    made_up.end_step();
    EXPECT_EQ(made_up.state().expert_bias_E, std::vector<double>(E, 0));
  }
}

// Counting chooses nobody else.
TEST(QuantileRouter, RoutesByItsBiasAsTheSteppedOneDoes) {
  CompleteConfig config = full_config(), stepped = config;
  stepped.quantile = {};
  stepped.bias.enabled = true;
  const std::vector<std::int64_t> begin{0, 40, T};
  const auto w_EH = random_matrix<float>(E, H, 2);
  R a(config), b(stepped);
  a.refresh_now(w_EH, 0);
  RouterState state = a.state();
  for (Index e = 0; e < E; ++e) state.expert_bias_E[std::size_t(e)] = 0.05 * double(e % 5);
  a.restore(state);
  b.restore(state);
  ForwardInputs<> in;
  in.sequence_begin_S1 = begin;
  const auto x_TH = random_matrix<float>(T, H, 1);
  complete_data::expect_same_outcome(complete_data::forward(a, x_TH, w_EH, in),
                                     complete_data::forward(b, x_TH, w_EH, in));
}

// A skewed router whose loads even out.
TEST(QuantileRouter, EvensTheLoads) {
  CompleteConfig config{{H, E, K}};
  config.scores.function = gatepro::ScoreFunction::sigmoid;
  config.competition = Competition::off();
  config.quantile.enabled = true;
  R router(config);
  auto w_EH = random_matrix<float>(E, H, 2);
  for (Index e = 0; e < E; ++e) w_EH(e, 0) += 2 - 4 * float(e) / float(E);
  auto x_TH = random_matrix<float>(2048, H, 3);
  x_TH.col(0).setOnes();
  const auto most = [&] {
    const auto counts_E = complete_data::forward(router, x_TH, w_EH).counts_E;
    return double(*std::max_element(counts_E.begin(), counts_E.end())) * double(E) / (2048.0 * K);
  };
  const double before = most();
  EXPECT_GT(before, 2);
  for (int step = 0; step < 6; ++step) {
    router.end_step();
    most();
  }
  EXPECT_LT(most(), 1.1);
}

TEST(QuantileRouter, RefusesWhatDoesNotFit) {
  const auto refused = [](const auto& change, std::initializer_list<const char*> parts) {
    CompleteConfig config{{H, E, K}};
    config.quantile.enabled = true;
    change(config);
    expect_error([&] { R router(config); }, parts);
  };
  refused([](auto& c) { c.bias.enabled = true; }, {"BiasRule or QuantileRule, not both"});
  refused([](auto& c) { c.top_k = E; }, {"top_k < num_experts"});
  refused([](auto& c) { c.quantile.bins = 1; }, {"bins=1"});
  refused([](auto& c) { c.quantile.reach = 0; }, {"reach=0"});
  refused([](auto& c) { c.quantile.memory = 1; }, {"memory=1"});

  CompleteConfig config{{H, E, K}};
  config.quantile.enabled = true;
  config.quantile.bins = 4;
  R router(config);
  const RouterState good = router.state();
  const auto not_restored = [&](const auto& change, std::initializer_list<const char*> parts) {
    RouterState state = good;
    state.quantile_counts_EB.assign(E * 5, 1);
    state.quantile_choices = 5;
    change(state);
    expect_error([&] { router.restore(state); }, parts);
    complete_data::expect_same_state(router.state(), good);
  };
  not_restored([](auto& s) { s.expert_bias_E[0] = 3e38, s.expert_bias_E[1] = -3e38; },
               {"restore", "biases that stay finite"});
  not_restored([](auto& s) { s.quantile_counts_EB.pop_back(); }, {"quantile_counts_EB", "size=59"});
  not_restored([](auto& s) { s.quantile_counts_EB.clear(); }, {"quantile_choices=5"});
  not_restored([](auto& s) { s.quantile_counts_EB[7] = -1; }, {"quantile_counts_EB", "count=-1"});
  not_restored([](auto& s) { s.quantile_choices = 4; }, {"counts=5", "choices=4"});
  not_restored([](auto& s) { s.bias_counts_E.assign(E, 0); }, {"bias_counts_E", "BiasRule"});
  config.quantile.enabled = false;
  R without(config);
  expect_error([&] { without.restore(good); }, {"expert_bias_E"});
  RouterState counted;
  counted.quantile_counts_EB.assign(E * 5, 0);
  expect_error([&] { without.restore(counted); },
               {"quantile_counts_EB", "QuantileRule::enabled is false"});
}

}  // namespace
