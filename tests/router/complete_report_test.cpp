// SPDX-License-Identifier: MIT
// What the complete router's backward takes from the report of its forward, and which reports,
// inputs and outputs it refuses because they are not of one forward.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/bits.hpp"
#include "support/complete_data.hpp"
#include "support/errors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/routing_data.hpp"

namespace {

using complete_data::rows;
using complete_data::zeros;
using data::random_matrix;
using data::same_bits;
using gatepro::Competition;
using gatepro::CompleteConfig;
using gatepro::ForwardInputs;
using gatepro::Index;
using gatepro::Pass;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;

using R = gatepro::CompleteRouter<float>;
using Buffers = gatepro::RoutingBuffers<R>;
constexpr Index T = 40, H = 8, E = 8, K = 2;

/// Five micro-batches.
const RowMatrix<float>& tokens_of(std::size_t micro_batch) {
  static const RowMatrix<float> all[] = {
      random_matrix<float>(T, H, 100), random_matrix<float>(T, H, 101),
      random_matrix<float>(T, H, 102), random_matrix<float>(T, H, 103),
      random_matrix<float>(T, H, 104)};
  return all[micro_batch];
}
const RowMatrix<float>& weights() {
  static const RowMatrix<float> w_EH = random_matrix<float>(E, H, 2);
  return w_EH;
}
const RowMatrix<float>& other_weights() {
  static const RowMatrix<float> w_EH = random_matrix<float>(E, H, 9);
  return w_EH;
}

struct Gradients {
  RowMatrix<float> dx_TH, dw_EH;
};

void expect_same(const Gradients& a, const Gradients& b) {
  EXPECT_TRUE(same_bits(a.dx_TH, b.dx_TH));
  EXPECT_TRUE(same_bits(a.dw_EH, b.dw_EH));
}

Gradients backward(const R& router, const RowMatrix<float>& x_TH, const ForwardInputs<>& in,
                   const R::Routing& out, const gatepro::CompleteReport& report,
                   gatepro::Workspace workspace) {
  Gradients g{zeros<float>(x_TH.rows(), H), zeros<float>(E, H)};
  const auto dweights_TK = random_matrix<float>(x_TH.rows(), K, 3);
  const auto& w_EH = weights();
  router.backward(x_TH, w_EH, {in, out, report}, {dweights_TK}, {g.dx_TH, g.dw_EH}, workspace);
  return g;
}
Gradients backward(const R& router, const RowMatrix<float>& x_TH, const ForwardInputs<>& in,
                   Buffers& buffers) {
  return backward(router, x_TH, in, buffers.view(), buffers.report(), buffers.workspace());
}

CompleteConfig jittering() {
  CompleteConfig config{{H, E, K}};
  config.noise.jitter = 0.3;
  config.losses.batch = 0.1;
  return config;
}

// ---- What the report knows ---------------------------------------------------------------------

TEST(CompleteReport, AForwardFromLogitsHasNoJitter) {
  const auto& x_TH = tokens_of(0);
  const auto& w_EH = weights();
  const auto gradients = [&](const CompleteConfig& config) {
    R router(config);
    router.refresh(w_EH, 0);
    Buffers buffers(router, T);
    auto out = buffers.view();
    if (out.jittered_TH.given()) std::fill_n(out.jittered_TH.data, T * H, 1e30F);
    out.jittered_TH = {};
    auto scratch = data::scratch(gatepro::gate_logits_workspace_bytes<float, float>(E, H));
    gatepro::gate_logits(gatepro::view(x_TH), gatepro::view(w_EH), out.logits_TE, scratch);
    const auto report = router.forward_logits({}, out, buffers.workspace());
    EXPECT_FALSE(report.jittered);
    return backward(router, x_TH, {}, out, report, buffers.workspace());
  };
  CompleteConfig calm = jittering();
  calm.noise.jitter = 0;
  const Gradients expected = gradients(calm);
  EXPECT_GT(expected.dw_EH.cwiseAbs().maxCoeff(), 0);
  expect_same(gradients(jittering()), expected);
}

TEST(CompleteReport, AnEvaluationNeedsNoRoomForJitter) {
  R router(jittering());
  router.refresh(weights(), 0);
  Buffers buffers(router, T);
  auto out = buffers.view();
  out.jittered_TH = {};
  ForwardInputs<> in;
  in.pass = Pass::evaluation;
  const auto report = router.forward(tokens_of(0), weights(), in, out, buffers.workspace());
  EXPECT_FALSE(report.jittered);
  EXPECT_GT(backward(router, tokens_of(0), in, out, report, buffers.workspace()).dw_EH.norm(), 0);
}

/// A penalty that changes choices, and its gradient under every score function.
TEST(CompleteReport, SettingsThatChangedSinceTheForwardPlayNoPart) {
  const Competition kinds[] = {Competition::off(), Competition::penalty(0.4),
                               Competition::eliminate()};
  const auto& x_TH = tokens_of(0);
  for (ScoreFunction function :
       {ScoreFunction::softmax_after_top_k, ScoreFunction::softmax_before_top_k,
        ScoreFunction::sigmoid, ScoreFunction::sqrt_softplus}) {
    for (bool renormalise : {false, true}) {
      const bool dense = function == ScoreFunction::softmax_before_top_k && !renormalise;
      for (const Competition& before : kinds) {
        CompleteConfig config{{H, E, K}};
        config.scores = {function, renormalise, 1};
        config.competition = before;
        R router(config);
        router.refresh_now(weights(), 0);
        Buffers buffers(router, T);
        router.forward(x_TH, weights(), {}, buffers);
        const Gradients expected = backward(router, x_TH, {}, buffers);
        for (const Competition& after : kinds) {
          router.set_competition(after);
          expect_same(backward(router, x_TH, {}, buffers), expected);
        }
        router.refresh_now(weights(), 1);  // the same partners again
        expect_same(backward(router, x_TH, {}, buffers), expected);
        router.refresh_now(other_weights(), 2);
        if (dense && before.active()) {
          expect_error([&] { backward(router, x_TH, {}, buffers); }, {"partners of the forward"});
        } else {
          expect_same(backward(router, x_TH, {}, buffers), expected);
        }
      }
    }
  }
}

TEST(CompleteReport, BackwardsFollowInAnyOrder) {
  constexpr std::size_t count = 3;
  R router(jittering());
  router.refresh(weights(), 0);
  std::vector<Gradients> expected;
  std::vector<Buffers> in_flight;
  for (std::size_t i = 0; i < count; ++i) {
    in_flight.emplace_back(router, T);
    router.forward(tokens_of(i), weights(), {}, in_flight.back());
    expected.push_back(backward(router, tokens_of(i), {}, in_flight.back()));
  }
  // A vector of layers that grows moves them.
  static_assert(std::is_nothrow_move_constructible_v<R>);
  R moved(std::move(router));
  for (std::size_t i : {1U, 2U, 0U}) {
    expect_same(backward(moved, tokens_of(i), {}, in_flight[i]), expected[i]);
  }
}

/// The plain router's backward has no report: ids and weights say it all.
TEST(PlainRouter, SettingsThatChangedSinceTheForwardPlayNoPart) {
  const auto& x_TH = tokens_of(0);
  for (const Competition& before : {Competition::penalty(0.4), Competition::eliminate()}) {
    gatepro::RouterConfig config{H, E, K};
    config.competition = before;
    gatepro::Router<float> router(config);
    router.refresh_now(weights(), 0);
    const auto outcome = routing_data::forward(router, x_TH, weights());
    const auto gradients = [&] {
      return routing_data::backward(router, x_TH, weights(), outcome, random_matrix<float>(T, K, 3),
                                    RowMatrix<float>(), {zeros<float>(T, H), zeros<float>(E, H)});
    };
    const auto expected = gradients();
    router.set_competition(Competition::penalty(3));
    router.refresh_now(other_weights(), 1);
    EXPECT_TRUE(same_bits(gradients().dx_TH, expected.dx_TH));
    EXPECT_TRUE(same_bits(gradients().dw_EH, expected.dw_EH));
  }
}

// ---- What does not fit -------------------------------------------------------------------------

class CompleteReportRefusal : public testing::Test {
 public:
  CompleteReportRefusal() : router(jittering()), first(router, T), second(router, T) {
    router.refresh(w_EH, 0);
    router.forward(tokens_of(0), w_EH, {}, first);
    router.forward(tokens_of(1), w_EH, {}, second);
  }

  /// Nothing is written, not even to gradients that are wanted.
  void expect_refused(const R& by, Index tokens, const ForwardInputs<>& in, const R::Routing& out,
                      const gatepro::CompleteReport& report,
                      std::initializer_list<const char*> parts) {
    const RowMatrix<float> x_TH = rows(tokens_of(0), 0, tokens);
    const RowMatrix<float> dweights_TK = zeros<float>(tokens, K);
    RowMatrix<float> dx_TH = zeros<float>(tokens, H), dw_EH = zeros<float>(E, H);
    RowMatrix<float> dlogits_TE = zeros<float>(tokens, E);
    expect_error(
        [&] {
          by.backward(x_TH, w_EH, {in, out, report}, {dweights_TK}, {dx_TH, dw_EH},
                      first.workspace());
        },
        parts);
    expect_error(
        [&] {
          by.backward_logits({in, out, report}, {dweights_TK}, dlogits_TE, first.workspace());
        },
        parts);
    EXPECT_TRUE(dx_TH.isZero(0) && dw_EH.isZero(0) && dlogits_TE.isZero(0));
  }

  RowMatrix<float> w_EH = weights();
  R router;
  Buffers first, second;
};

TEST_F(CompleteReportRefusal, OfAnotherMicroBatch) {
  expect_refused(router, T, {}, first.view(), second.report(), {"the same forward", "forward_id"});
  // Through the same memory.
  const auto kept = first.report();
  const auto out = first.view();
  router.forward(tokens_of(2), w_EH, {}, first);
  expect_refused(router, T, {}, out, kept, {"the same forward"});
  backward(router, tokens_of(2), {}, out, first.report(), first.workspace());
}

TEST_F(CompleteReportRefusal, OfViewsKeptAcrossASmallerBatch) {
  const auto kept = first.report();
  const auto large = first.view();
  const RowMatrix<float> few = rows(tokens_of(3), 0, 10);
  router.forward(few, w_EH, {}, first);
  expect_refused(router, T, {}, large, first.report(), {"tokens of the report=10"});
  expect_refused(router, T, {}, large, kept, {"the same forward"});
  // What the smaller batch wrote stands where the larger view shows it.
  const auto small = first.view();
  EXPECT_EQ(small.logits_TE.data, large.logits_TE.data);
  EXPECT_EQ(small.weights_TK.data, large.weights_TK.data);
  EXPECT_EQ(small.jittered_TH.data, large.jittered_TH.data);
  EXPECT_EQ(small.forward_id.data, large.forward_id.data);
  backward(router, few, {}, first);
  router.forward(tokens_of(4), w_EH, {}, first);
  expect_refused(router, 10, {}, small, first.report(), {"tokens of the report=40"});
}

TEST_F(CompleteReportRefusal, OfAnotherRouterOrNone) {
  const char* rule = "a forward of this router";
  expect_refused(router, T, {}, first.view(), {}, {rule});
  gatepro::CompleteReport by_hand = first.report();
  by_hand.forward_id += 100;
  expect_refused(router, T, {}, first.view(), by_hand, {rule});
  R other(jittering());
  other.refresh(w_EH, 0);
  expect_refused(other, T, {}, first.view(), first.report(), {rule});
  Buffers of_other(router, T);
  other.forward(tokens_of(0), w_EH, {}, of_other);
  expect_refused(router, T, {}, of_other.view(), of_other.report(), {rule});
  const R copy = router;
  expect_refused(copy, T, {}, first.view(), first.report(), {rule});
  router.restore(router.state());
  expect_refused(router, T, {}, first.view(), first.report(), {rule});
}

// Neither a restored router nor one that another was assigned to counts its forwards anew.
TEST_F(CompleteReportRefusal, OfAForwardBeforeTheLastRestore) {
  const char* rule = "a forward of this router";
  const R untrained(jittering());
  const auto expect_forgotten = [&](const auto& reset) {
    router.refresh(w_EH, 0);
    router.forward(tokens_of(0), w_EH, {}, first);
    for (int i = 0; i < 20; ++i) {  // some of them in the memory of the first
      reset();
      expect_refused(router, T, {}, first.view(), first.report(), {rule});
      router.refresh(w_EH, 0);
      for (int forward = 0; forward < 5; ++forward) {
        router.forward(tokens_of(1), w_EH, {}, second);
        EXPECT_NE(second.report().forward_id, first.report().forward_id);
        expect_refused(router, T, {}, first.view(), first.report(), {rule});
      }
      backward(router, tokens_of(1), {}, second);
    }
  };
  expect_forgotten([&] { router.restore({}); });
  expect_forgotten([&] { router = untrained; });
  R moved = std::move(router);
  router = untrained;
  expect_refused(router, T, {}, second.view(), second.report(), {rule});
  backward(moved, tokens_of(1), {}, second);
}

TEST_F(CompleteReportRefusal, OfOtherInputs) {
  std::vector<std::uint8_t> padding(T);
  padding[3] = 1;
  ForwardInputs<> in;
  in.is_padding_T = padding;
  expect_refused(router, T, in, first.view(), first.report(), {"is_padding_T of the forward"});
  in = {};
  in.pass = Pass::evaluation;
  expect_refused(router, T, in, first.view(), first.report(), {"the same forward"});
  auto out = first.view();
  out.forward_id = {};
  expect_refused(router, T, {}, out, first.report(), {"forward_id"});
  expect_error([&] { router.forward(tokens_of(0), w_EH, {}, out, first.workspace()); },
               {"forward_id"});
}

}  // namespace
