// SPDX-License-Identifier: MIT
// Calls that fail half-way, in an executor or a reduce hook, or that are refused: counters, record
// and buffers are as they were, and the call may be repeated.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include "support/bits.hpp"
#include "support/complete_data.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"

namespace {

using complete_data::expect_same_outcome;
using complete_data::expect_same_state;
using data::random_matrix;
using data::same_bits;
using gatepro::CompleteConfig;
using gatepro::ForwardInputs;
using gatepro::Index;
using gatepro::Pass;
using gatepro::RowMatrix;

using R = gatepro::CompleteRouter<float>;
constexpr Index T = 40, H = 8, E = 12, K = 3;

/// Spoils what it is given, and throws.
void spoil_and_throw(std::int64_t* counts, Index size) {
  for (Index i = 0; i < size; ++i) counts[i] = -7;
  throw std::runtime_error("no connection");
}

/// Calls `call` with executors that fail after 0, 1, 2, ... bodies until it succeeds.
template <class Call, class Check>
void fail_everywhere(const Call& call, const Check& nothing_changed) {
  for (int bodies = 0; bodies < 1000; ++bodies) {
    try {
      call(ThrowingExecutor(bodies));
      EXPECT_GT(bodies, 2) << "the test needs failures";
      return;
    } catch (const std::runtime_error&) {
      nothing_changed();
    }
    if (testing::Test::HasFailure()) return;
  }
  ADD_FAILURE() << "the call never succeeds";
}

// ---- The complete router -----------------------------------------------------------------------

/// A router in the middle of a step, with everything on; and what a next forward needs.
struct Trained {
  explicit Trained(const CompleteConfig& config = complete_data::full_config(H, E, K))
      : router(config), buffers(router, T, 2) {
    in.sequence_begin_S1 = sequences;
    in.record = &record;
    router.refresh(w_EH, 0);
    forward(first_TH);
    router.end_step();
    forward(first_TH);
  }
  template <class Reduce = gatepro::NoReduce, class Executor = gatepro::SerialExecutor>
  void forward(const RowMatrix<float>& x_TH, const Reduce& reduce = {},
               const Executor& executor = {}) {
    sequences[1] = x_TH.rows();
    router.forward(x_TH, w_EH, in, buffers, reduce, executor);
  }

  R router;
  gatepro::RoutingBuffers<R> buffers;
  gatepro::RoutingRecord<> record;
  std::vector<std::int64_t> sequences = {0, T};
  ForwardInputs<> in;
  RowMatrix<float> w_EH = random_matrix<float>(E, H, 1);
  RowMatrix<float> first_TH = random_matrix<float>(30, H, 2);
  RowMatrix<float> next_TH = random_matrix<float>(T, H, 3);
};

void expect_same_record(const gatepro::RoutingRecord<>& a, const gatepro::RoutingRecord<>& b) {
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.top_k, b.top_k);
  EXPECT_EQ(a.expert_ids_TK, b.expert_ids_TK);
  EXPECT_EQ(a.penalised_TK, b.penalised_TK);
  EXPECT_EQ(a.kept_TK, b.kept_TK);
  EXPECT_EQ(a.capacity, b.capacity);
  ASSERT_EQ(a.competition.has_value(), b.competition.has_value());
  if (a.competition) {
    EXPECT_EQ(a.competition->mode, b.competition->mode);
    EXPECT_EQ(a.competition->lambda, b.competition->lambda);
    EXPECT_EQ(a.competition->ties, b.competition->ties);
  }
  EXPECT_EQ(a.partners, b.partners);
  EXPECT_EQ(a.totals, b.totals);
  EXPECT_EQ(a.noise_position, b.noise_position);
}

/// All that a failed forward must leave alone.
struct Before {
  explicit Before(Trained& trained)
      : state(trained.router.state()),
        latest(data::copy(trained.router.balance().latest().tokens_per_expert_E)),
        record(trained.record),
        forward_id(trained.buffers.report().forward_id) {}
  void expect_unchanged(Trained& trained) const {
    expect_same_state(trained.router.state(), state);
    EXPECT_EQ(data::copy(trained.router.balance().latest().tokens_per_expert_E), latest);
    expect_same_record(trained.record, record);
    EXPECT_EQ(trained.buffers.report().forward_id, forward_id);
    EXPECT_EQ(trained.buffers.view().logits_TE.rows, 30) << "T of the forward before";
  }

  gatepro::RouterState state;
  std::vector<std::int64_t> latest;
  gatepro::RoutingRecord<> record;
  std::uint64_t forward_id;
};

void expect_next_step_as_without_failure(Trained& failed) {
  Trained smooth;
  failed.forward(failed.next_TH);
  smooth.forward(smooth.next_TH);
  expect_same_outcome(complete_data::outcome_of(failed.buffers),
                      complete_data::outcome_of(smooth.buffers));
  expect_same_record(failed.record, smooth.record);
  failed.router.end_step();
  smooth.router.end_step();
  expect_same_state(failed.router.state(), smooth.router.state());
}

TEST(FailedForward, OfAnExecutorMovesNoCounter) {
  Trained trained, smooth;
  const Before before(trained);
  fail_everywhere(
      [&](const ThrowingExecutor& executor) {
        trained.forward(trained.next_TH, gatepro::NoReduce{}, executor);
      },
      [&] {
        before.expect_unchanged(trained);
        const RowMatrix<float> dweights_TK = RowMatrix<float>::Zero(30, K);
        RowMatrix<float> dw_EH = RowMatrix<float>::Zero(E, H);
        trained.sequences[1] = 30;
        expect_error(
            [&] {
              trained.router.backward(trained.first_TH, trained.w_EH, trained.in, trained.buffers,
                                      {dweights_TK}, {{}, dw_EH});
            },
            {"the same forward"});
      });
  smooth.forward(smooth.next_TH);
  expect_same_outcome(complete_data::outcome_of(trained.buffers),
                      complete_data::outcome_of(smooth.buffers));
  expect_same_state(trained.router.state(), smooth.router.state());
}

TEST(FailedForward, OfAReduceHookMovesNoCounter) {
  Trained trained;
  const Before before(trained);
  EXPECT_THROW(trained.forward(trained.next_TH, spoil_and_throw), std::runtime_error);
  before.expect_unchanged(trained);
  EXPECT_THROW(trained.forward(trained.next_TH, [](std::int64_t* counts, Index) { *counts = -1; }),
               gatepro::Error);
  before.expect_unchanged(trained);
  expect_next_step_as_without_failure(trained);
}

TEST(FailedForward, OfCountsBeyondInt64MovesNoCounter) {
  Trained trained;
  gatepro::RouterState full = trained.router.state();
  full.bias_counts_E.assign(E, std::numeric_limits<std::int64_t>::max());
  trained.router.restore(full);
  const Before before(trained);
  EXPECT_THROW(trained.forward(trained.next_TH), gatepro::Error);
  before.expect_unchanged(trained);
  full = before.state;
  full.bias_counts_E.assign(E, 0);
  full.noise_position = std::numeric_limits<std::int64_t>::max() - T + 1;
  trained.router.restore(full);
  const Before end_of_noise(trained);
  expect_error([&] { trained.forward(trained.next_TH); }, {"noise_position + T within int64"});
  end_of_noise.expect_unchanged(trained);
}

TEST(FailedForward, OfBadInputLeavesTheBuffers) {
  Trained trained;
  const Before before(trained);
  const auto outcome = complete_data::outcome_of(trained.buffers);
  const auto refused = [&] {
    EXPECT_THROW(trained.forward(trained.next_TH), gatepro::Error);
    before.expect_unchanged(trained);
    expect_same_outcome(complete_data::outcome_of(trained.buffers), outcome);
  };
  const std::vector<std::uint8_t> padding(T - 1);
  trained.in.is_padding_T = padding;
  refused();
  trained.in.is_padding_T = {};
  const RowMatrix<float> good = trained.w_EH;
  trained.w_EH = RowMatrix<float>(E, H + 1);
  refused();
  trained.w_EH = good;

  // Records that nobody recorded.
  gatepro::RoutingRecord<> recorded, by_hand;
  Trained other;
  other.in.record = &recorded;
  other.forward(other.next_TH);
  trained.in.pass = Pass::recompute;
  trained.in.replay = &by_hand;
  const auto refused_with = [&](const auto& spoil) {
    by_hand = recorded;
    spoil(by_hand);
    refused();
  };
  refused_with([](auto& r) { r.noise_position = -1; });
  refused_with([](auto& r) { r.noise_position = std::numeric_limits<std::int64_t>::max(); });
  for (std::size_t i = 0; i < recorded.totals.size(); ++i) {
    refused_with([&](auto& r) { r.totals[i] = -1; });
  }
  refused_with([](auto& r) { r.totals[2] = r.totals[static_cast<std::size_t>(E)] + 1; });
  for (const Index first : {Index{0}, E + 1}) {
    refused_with([&](auto& r) {
      std::int64_t* counts_E = r.totals.data() + first;
      std::fill_n(counts_E, E, counts_E[E]);
    });
  }
  refused_with([](auto& r) { r.kept_TK[0] = 1, r.capacity = 0; });
  refused_with([](auto& r) { r.expert_ids_TK.back() = -2; });
}

TEST(FailedEndStep, MovesNeitherBiasNorLoads) {
  Trained trained, smooth;
  const auto before = trained.router.state();
  EXPECT_THROW(trained.router.end_step(spoil_and_throw), std::runtime_error);
  expect_same_state(trained.router.state(), before);
  EXPECT_THROW(trained.router.end_step([](std::int64_t* counts, Index) { counts[1] = -1; }),
               gatepro::Error);
  expect_same_state(trained.router.state(), before);
  trained.router.end_step();
  smooth.router.end_step();
  expect_same_state(trained.router.state(), smooth.router.state());
}

// ---- The plain router and the counters ---------------------------------------------------------

TEST(FailedForward, OfThePlainRouterLeavesTheBuffers) {
  gatepro::Router<float> router({H, E, K});
  gatepro::RoutingBuffers buffers(router, T);
  const auto w_EH = random_matrix<float>(E, H, 1);
  const auto x_TH = random_matrix<float>(30, H, 2);
  router.refresh(w_EH, 0);
  router.forward(gatepro::view(x_TH), gatepro::view(w_EH), buffers);
  const RowMatrix<float> weights_TK = data::copy<float>(buffers.weights_TK());
  const RowMatrix<float> few(10, H), wide(E, H + 1), many(T + 1, H);
  EXPECT_THROW(router.forward(gatepro::view(few), gatepro::view(wide), buffers), gatepro::Error);
  EXPECT_THROW(router.forward(gatepro::view(many), gatepro::view(w_EH), buffers), gatepro::Error);
  EXPECT_TRUE(same_bits(data::copy<float>(buffers.weights_TK()), weights_TK));
}

TEST(FailedRefresh, LeavesThePartners) {
  gatepro::Router<float> router({H, E, K});
  const auto w_EH = random_matrix<float>(E, H, 1);
  const auto other_EH = random_matrix<float>(E, H, 2);
  router.refresh(w_EH, 3);
  const auto& cache = router.similarity_cache();
  const auto partners_EM = data::copy<std::int32_t>(cache.partners());
  const auto similarity_EE = data::copy<float>(cache.similarity());
  const auto fingerprint = cache.rivals().fingerprint();
  const Index changed = cache.partners_changed();
  fail_everywhere([&](const ThrowingExecutor& executor) { router.refresh(other_EH, 4, executor); },
                  [&] {
                    EXPECT_TRUE(same_bits(data::copy<std::int32_t>(cache.partners()), partners_EM));
                    EXPECT_TRUE(same_bits(data::copy<float>(cache.similarity()), similarity_EE));
                    EXPECT_EQ(cache.rivals().fingerprint(), fingerprint);
                    EXPECT_EQ(cache.last_refresh_step(), 3);
                    EXPECT_EQ(cache.partners_changed(), changed);
                    EXPECT_TRUE(cache.is_due(4));
                  });
  gatepro::Router<float> smooth({H, E, K});
  smooth.refresh(w_EH, 3);
  smooth.refresh(other_EH, 4);
  EXPECT_EQ(cache.rivals().fingerprint(), smooth.similarity_cache().rivals().fingerprint());
  EXPECT_EQ(cache.partners_changed(), smooth.similarity_cache().partners_changed());
}

TEST(FailedCounters, AreAsBefore) {
  const std::vector<std::int64_t> counts = {1, 2, 3};
  gatepro::BalanceAccumulator balance(3);
  balance.add({counts, 4});
  gatepro::ExpertBias<float> bias(3);
  bias.accumulate(counts);
  EXPECT_THROW(balance.add({counts, 9}, spoil_and_throw), std::runtime_error);
  EXPECT_THROW(bias.step(spoil_and_throw, 1), std::runtime_error);
  const std::vector<std::int64_t> most(3, std::numeric_limits<std::int64_t>::max());
  EXPECT_THROW(balance.add({most, most[0]}), gatepro::Error);
  EXPECT_THROW(bias.accumulate(most), gatepro::Error);
  for (const gatepro::BalanceCounts& load : {balance.latest(), balance.total()}) {
    EXPECT_EQ(data::copy(load.tokens_per_expert_E), counts);
    EXPECT_EQ(load.tokens, 4);
  }
  EXPECT_EQ(data::copy(bias.counts()), counts);
  EXPECT_EQ(data::copy(bias.values()), std::vector<float>(3, 0));
}

}  // namespace
