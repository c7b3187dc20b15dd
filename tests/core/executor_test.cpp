// SPDX-License-Identifier: MIT
// Workers are started for enough work only, and how many are does not change a bit.
#include <gatepro/gatepro.hpp>
#ifdef _OPENMP
#include <gatepro/openmp.hpp>
#endif

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "support/bits.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/routing_data.hpp"

namespace {

using data::random_matrix;
using gatepro::Index;
using gatepro::RowMatrix;
using TestedRouter = gatepro::Router<float>;

constexpr Index hidden = 40, experts = 20, top_k = 3;

/// All that a trainer does with a router, and the most workers that any part of it started.
template <class Executor>
int most_started(Executor executor, Index tokens, bool dense) {
  gatepro::RouterConfig config{hidden, experts, top_k};
  config.competition = gatepro::Competition::penalty(0.3);
  const RowMatrix<float> x = random_matrix<float>(tokens, hidden, 1);
  const RowMatrix<float> w = random_matrix<float>(experts, hidden, 2);
  const RowMatrix<float> dweights = random_matrix<float>(tokens, top_k, 3);
  RowMatrix<float> dlogits;
  if (dense) dlogits = random_matrix<float>(tokens, experts, 4);
  const routing_data::Gradients<float> start{RowMatrix<float>::Zero(tokens, hidden),
                                             RowMatrix<float>::Zero(experts, hidden)};
  int most = 0;
  executor.most = &most;
  const auto run = [&](const auto& with) {
    TestedRouter router(config);
    router.refresh_now(gatepro::view(w), 0, with);
    const auto outcome = routing_data::forward(router, x, w, with);
    return std::make_pair(
        outcome, routing_data::backward(router, x, w, outcome, dweights, dlogits, start, with));
  };
  const auto got = run(executor);
  const auto want = run(gatepro::SerialExecutor{});
  routing_data::expect_same_outcome(got.first, want.first);
  EXPECT_TRUE(data::same_bits(got.second.dx_TH, want.second.dx_TH));
  EXPECT_TRUE(data::same_bits(got.second.dw_EH, want.second.dw_EH));
  return most;
}

TEST(Executor, WorkersAreStartedForEnoughWork) {
  for (const bool dense : {false, true}) {
    for (const Index tokens : {1, 49, 500}) {
      EXPECT_EQ(most_started(NotingExecutor{1e9, nullptr}, tokens, dense), 1);
    }
    EXPECT_EQ(most_started(NotingExecutor{1, nullptr}, 500, dense), 7);
    // (500 - 48) * 20 * 40 multiply-adds in the gate, fewer elsewhere.
    EXPECT_EQ(most_started(NotingExecutor{361600 / 3., nullptr}, 500, false), 3);
  }
}

TEST(Executor, NobodyNeedsToKnowAboutWork) {
  EXPECT_EQ(gatepro::detail::useful_workers(ThreadExecutor(5), 5, {1, 1}), 5);
  EXPECT_EQ(gatepro::detail::useful_workers(NotingExecutor{10, nullptr}, 5, {6, 5}), 3);
  EXPECT_EQ(gatepro::detail::useful_workers(NotingExecutor{10, nullptr}, 5, {0, 5}), 1);
}

// More than an Index can count.
TEST(Executor, HugeWorkIsEnough) {
  constexpr Index huge = std::numeric_limits<Index>::max();
  EXPECT_EQ(gatepro::detail::useful_workers(NotingExecutor{1, nullptr}, 5, {huge, huge, huge}), 5);
}

// Tiles are cut so that the workers get as many.
TEST(Executor, AnyNumberOfTokensAndWorkersGivesTheSameBits) {
  const RowMatrix<float> w = random_matrix<float>(experts, hidden, 2);
  TestedRouter router(gatepro::RouterConfig{hidden, experts, top_k});
  router.refresh_now(gatepro::view(w), 0);
  for (const Index tokens : {1, 23, 48, 49, 95, 100, 145, 290, 400}) {
    const RowMatrix<float> x = random_matrix<float>(tokens, hidden, 1);
    const auto want = routing_data::forward(router, x, w, gatepro::SerialExecutor{});
    for (const int workers : {2, 3, 7}) {
      routing_data::expect_same_outcome(
          routing_data::forward(router, x, w, LastWorkerFirst(workers)), want);
    }
  }
}

TEST(Executor, TileRows) {
  EXPECT_EQ(gatepro::detail::tile_rows(4096, 1), 48);
  EXPECT_EQ(gatepro::detail::tile_rows(4096, 2), 48);
  EXPECT_EQ(gatepro::detail::tile_rows(49, 2), 30);
  EXPECT_EQ(gatepro::detail::tile_rows(144, 2), 36);
  EXPECT_EQ(gatepro::detail::tile_rows(10, 2), 24);
  EXPECT_EQ(gatepro::detail::tile_rows(0, 2), 24);
  EXPECT_EQ(gatepro::detail::tile_rows(512, 16), 36);
}

/// Notes a count that no executor needs to expect.
struct StrictExecutor {
  int workers() const { return 3; }
  template <class Body>
  void run(int count, Body body) const {
    EXPECT_GE(count, 1);
    EXPECT_LE(count, workers());
    for (int worker = 0; worker < count; ++worker) body(worker);
  }
};

TEST(Executor, IsNotAskedToRunNothing) {
  const StrictExecutor executor;
  gatepro::CompleteConfig config{{hidden, experts, top_k}};
  config.scores = {gatepro::ScoreFunction::sigmoid, true, 1};
  config.losses = {1, 1, 1, 1, gatepro::CountSource::unpenalised};
  config.capacity = gatepro::CapacityRule{};
  config.noise.jitter = config.noise.logit_sigma = 0.1;
  gatepro::CompleteRouter<float> router(config);
  const RowMatrix<float> w = random_matrix<float>(experts, hidden, 2);
  RowMatrix<float> dw = RowMatrix<float>::Zero(experts, hidden);
  router.refresh_now(w, 0, executor);
  for (const Index tokens : {0, 1, 500}) {
    const RowMatrix<float> x = random_matrix<float>(tokens, hidden, 1);
    const RowMatrix<float> dweights = random_matrix<float>(tokens, top_k, 3);
    RowMatrix<float> dx = RowMatrix<float>::Zero(tokens, hidden);
    const std::vector<std::int64_t> borders{0, tokens};
    gatepro::ForwardInputs<> in;
    in.sequence_begin_S1 = borders;
    gatepro::RoutingBuffers<gatepro::CompleteRouter<float>> buffers(router, tokens,
                                                                    executor.workers());
    router.forward(x, w, in, buffers, gatepro::NoReduce{}, executor);
    router.backward(x, w, in, buffers, {dweights}, {dx, dw}, executor);
  }
}

#ifdef _OPENMP
// Of a count of 0 OpenMP makes "as many threads as you like".
TEST(OpenMPExecutor, StartsNoThreadForNothing) {
  const auto threads = [] {
    std::ifstream status("/proc/self/status");
    std::string line;
    while (std::getline(status, line) && line.rfind("Threads:", 0) != 0) {
    }
    return line;
  };
  omp_set_num_threads(5);
  const std::string before = threads();
  int runs = 0;
  gatepro::OpenMPExecutor().run(0, [&](int) { ++runs; });
  EXPECT_EQ(runs, 0);
  EXPECT_EQ(threads(), before);
}

TEST(OpenMPExecutor, RefusesNoThreadsAndNoWork) {
  using gatepro::OpenMPExecutor;
  EXPECT_EQ(OpenMPExecutor(3, 5).workers(), 3);
  EXPECT_EQ(OpenMPExecutor(3, 5).least_work(), 5);
  EXPECT_THROW(OpenMPExecutor(0), gatepro::Error);
  EXPECT_THROW(OpenMPExecutor(1, 0), gatepro::Error);
  EXPECT_THROW(OpenMPExecutor(1, -1), gatepro::Error);
  EXPECT_THROW(OpenMPExecutor(1, std::numeric_limits<double>::quiet_NaN()), gatepro::Error);
}
#endif

}  // namespace
