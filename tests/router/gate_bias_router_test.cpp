// SPDX-License-Identifier: MIT
// Both routers with a learned bias of the logits: as if it was added by hand, and its gradient
// against finite differences.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/bits.hpp"
#include "support/complete_data.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/reference/matrix.hpp"

namespace {

using complete_data::outcome_of;
using complete_data::zeros;
using data::random_matrix;
using data::same_bits;
using gatepro::BiasedWeights;
using gatepro::Competition;
using gatepro::CompleteConfig;
using gatepro::CompleteRouter;
using gatepro::GateArithmetic;
using gatepro::Index;
using gatepro::PackedWeights;
using gatepro::Router;
using gatepro::RouterConfig;
using gatepro::RoutingBuffers;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;
using gatepro::VectorView;

constexpr Index T = 70, H = 9, E = 12, K = 3;

template <class A>
std::vector<A> random_bias(std::uint64_t seed = 3) {
  const auto values = random_matrix<A>(1, E, seed);
  return {values.data(), values.data() + E};
}

template <class X, class W>
RowMatrix<gatepro::accumulator_t<X, W>> logits_by_hand(const RowMatrix<X>& x_TH,
                                                       const RowMatrix<W>& w_EH) {
  using A = gatepro::accumulator_t<X, W>;
  RowMatrix<A> logits_TE(x_TH.rows(), w_EH.rows());
  auto memory = data::scratch(gatepro::gate_logits_workspace_bytes<X, W>(E, H));
  gatepro::gate_logits(gatepro::view(x_TH), gatepro::view(w_EH), gatepro::view(logits_TE), memory);
  const auto bias_E = random_bias<A>();
  for (Index t = 0; t < T; ++t) {
    for (Index e = 0; e < E; ++e) logits_TE(t, e) += bias_E[static_cast<std::size_t>(e)];
  }
  return logits_TE;
}

template <class X, class W>
void expect_plain_router_adds_it() {
  using A = gatepro::accumulator_t<X, W>;
  const auto x_TH = random_matrix<X>(T, H, 1);
  const auto w_EH = random_matrix<W>(E, H, 2);
  const auto bias_E = random_bias<A>();
  Router<X, W> router(RouterConfig{H, E, K, Competition::penalty(0.2)});
  router.refresh_now(w_EH, 0);
  RoutingBuffers<Router<X, W>> want(router, T), got(router, T, 3);
  const auto logits_TE = logits_by_hand(x_TH, w_EH);
  router.forward_logits(logits_TE, want.view(T), want.workspace());
  const BiasedWeights<W, A> weights{w_EH, bias_E};
  const PackedWeights<A> packed(weights);
  const auto expect_same = [&] {
    EXPECT_TRUE(same_bits(data::copy<std::int32_t>(got.expert_ids_TK()),
                          data::copy<std::int32_t>(want.expert_ids_TK())));
    EXPECT_TRUE(same_bits(data::copy<A>(got.weights_TK()), data::copy<A>(want.weights_TK())));
  };
  router.forward(x_TH, weights, got);
  expect_same();
  router.forward(x_TH, weights, got, ThreadExecutor(3));
  expect_same();
  router.forward(x_TH, packed, got);
  expect_same();
}

TEST(GateBiasRouter, PlainGivesTheBitsOfLogitsWithIt) {
  expect_plain_router_adds_it<float, float>();
  expect_plain_router_adds_it<gatepro::bfloat16, float>();
  expect_plain_router_adds_it<gatepro::half, gatepro::bfloat16>();
  expect_plain_router_adds_it<double, double>();
}

TEST(GateBiasRouter, CompleteGivesTheBitsOfLogitsWithIt) {
  const auto x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  const auto bias_E = random_bias<float>();
  CompleteConfig config = complete_data::full_config(H, E, K);
  config.noise.jitter = 0;
  const std::vector<std::int64_t> sequences = {0, 30, T};
  gatepro::ForwardInputs<> in;
  in.sequence_begin_S1 = sequences;
  const gatepro::BufferShape shape{T, 3, 2, true, true};
  const auto run = [&](const auto& forward) {
    CompleteRouter<float> router(config);
    router.refresh(w_EH, 0);
    RoutingBuffers<CompleteRouter<float>> buffers(router, shape);
    forward(router, buffers);
    return outcome_of(buffers);
  };
  const auto want = run([&](auto& router, auto& buffers) {
    const auto out = buffers.view();
    const auto logits_TE = logits_by_hand(x_TH, w_EH);
    for (Index t = 0; t < T; ++t) std::copy_n(logits_TE.row(t).data(), E, out.logits_TE.row(t));
    buffers.set_report(router.forward_logits(in, out, buffers.workspace()));
  });
  complete_data::expect_same_outcome(run([&](auto& router, auto& buffers) {
                                       router.forward(x_TH, {w_EH, bias_E}, in, buffers);
                                     }),
                                     want);
  complete_data::expect_same_outcome(
      run([&](auto& router, auto& buffers) {
        router.forward(x_TH, {w_EH, bias_E}, in, buffers, gatepro::NoReduce{}, ThreadExecutor(3));
      }),
      want);
  complete_data::expect_same_outcome(
      run([&](auto& router, auto& buffers) {
        const PackedWeights<float> packed(BiasedWeights<float>{w_EH, bias_E});
        buffers.set_report(router.forward(x_TH, packed, in, buffers.view(T), buffers.workspace()));
      }),
      want);
}

// A column of ones in X and the bias in W would have a say in the cosines.
TEST(GateBiasRouter, PartnersAreThoseOfTheWeightsAlone) {
  const auto x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  const auto partners_with = [&](float scale) {
    auto bias_E = random_bias<float>();
    for (float& b : bias_E) b *= scale;
    Router<float> router(RouterConfig{H, E, K});
    RoutingBuffers<Router<float>> buffers(router, T);
    router.refresh_now(w_EH, 0);
    router.forward(x_TH, BiasedWeights<float>{w_EH, bias_E}, buffers);
    router.refresh_now(w_EH, 1);
    return data::copy<std::int32_t>(router.similarity_cache().partners());
  };
  const auto want_E1 = partners_with(0);
  EXPECT_TRUE((partners_with(100).array() == want_E1.array()).all());
  RowMatrix<float> with_ones_EH(E, H + 1);
  with_ones_EH.leftCols(H) = w_EH;
  for (Index e = 0; e < E; ++e) with_ones_EH(e, H) = random_bias<float>()[std::size_t(e)];
  Router<float> by_column(RouterConfig{H + 1, E, K});
  by_column.refresh_now(with_ones_EH, 0);
  EXPECT_FALSE(
      (data::copy<std::int32_t>(by_column.similarity_cache().partners()).array() == want_E1.array())
          .all());
}

TEST(GateBiasRouter, NonfiniteValuesActAsInLogits) {
  const auto x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  auto bias_E = random_bias<float>();
  Router<float> router(RouterConfig{H, E, K, Competition::off()});
  RoutingBuffers<Router<float>> buffers(router, T);
  bias_E[4] = -data::infinity<float>();
  router.forward(x_TH, BiasedWeights<float>{w_EH, bias_E}, buffers);
  EXPECT_EQ(buffers.report().nonfinite_rows, 0);
  for (Index t = 0; t < T; ++t) {
    for (Index j = 0; j < K; ++j) EXPECT_NE(buffers.expert_ids_TK()(t, j), 4);
  }
  bias_E[4] = data::infinity<float>();
  router.forward(x_TH, BiasedWeights<float>{w_EH, bias_E}, buffers);
  EXPECT_EQ(buffers.report().nonfinite_rows, T);
}

TEST(GateBiasRouter, ASoftCapMakesMinusInfinityALogitLikeOthers) {
  const auto x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  auto bias_E = random_bias<float>();
  bias_E[4] = -data::infinity<float>();
  CompleteConfig config{{H, E, E}};
  config.competition = Competition::off();
  config.logit_soft_cap = 5;
  CompleteRouter<float> router(config);
  RoutingBuffers<CompleteRouter<float>> buffers(router, T);
  router.forward(x_TH, BiasedWeights<float>{w_EH, bias_E}, {}, buffers);
  EXPECT_EQ(buffers.report().nonfinite_rows, 0);
  for (Index t = 0; t < T; ++t) EXPECT_EQ(buffers.logits_TE()(t, 4), -5);
  EXPECT_GT(buffers.weights_TK().row(0)[E - 1], 0);
}

/// What a gradient is checked for: a sum over the weights, of a router whose losses are on or off.
struct Problem {
  using R = CompleteRouter<double>;

  explicit Problem(const CompleteConfig& c) : config(c) { padding[3] = padding[20] = 1; }

  /// The objective, for a bias and weights; gradients if wanted.
  double run(const std::vector<double>& bias_E, std::vector<double>* dbias_E) const {
    R router(config);
    router.refresh(w_EH, 0);
    RoutingBuffers<R> buffers(router, gatepro::BufferShape{T, 1, 2});
    gatepro::ForwardInputs<> in;
    in.is_padding_T = padding;
    in.sequence_begin_S1 = sequences;
    const auto report = router.forward(x_TH, {w_EH, bias_E}, in, buffers);
    double sum = report.losses.sum();
    for (Index t = 0; t < T; ++t) {
      for (Index j = 0; j < K; ++j) sum += buffers.view().weights_TK(t, j) * dweights_TK(t, j);
    }
    if (dbias_E != nullptr) {
      gatepro::GateGradients<double> gradients;
      gradients.dbias_E = *dbias_E;
      router.backward(x_TH, w_EH, in, buffers, {dweights_TK}, gradients);
    }
    return sum;
  }

  CompleteConfig config;
  RowMatrix<double> x_TH = random_matrix<double>(T, H, 1), w_EH = random_matrix<double>(E, H, 2);
  RowMatrix<double> dweights_TK = random_matrix<double>(T, K, 4);
  std::vector<std::uint8_t> padding = std::vector<std::uint8_t>(T, 0);
  std::vector<std::int64_t> sequences = {0, 30, T};
};

TEST(GateBiasGradient, AgainstFiniteDifferences) {
  for (const auto function : data::score_functions) {
    for (const bool losses : {false, true}) {
      CompleteConfig config{{H, E, K, Competition::penalty(0.1)}};
      config.scores.function = function;
      if (losses) config.losses = {0.3, 0.2, 0.1, 0.05, gatepro::CountSource::dispatched};
      const Problem problem(config);
      const auto bias_E = random_bias<double>();
      std::vector<double> dbias_E(E, 0.0);
      problem.run(bias_E, &dbias_E);
      for (std::size_t e = 0; e < dbias_E.size(); ++e) {
        const double slope = reference::derivative(
            [&](double offset) {
              auto moved_E = bias_E;
              moved_E[e] += offset;
              return problem.run(moved_E, nullptr);
            },
            1e-4);
        EXPECT_NEAR(dbias_E[e], slope, 1e-8 * std::max(1.0, std::abs(slope)));
      }
    }
  }
}

// Whoever has a GEMM adds c to the logits, and sums the gradient of the logits that comes back.
TEST(GateBiasGradient, ComesWithLogitsFromOutside) {
  const auto x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  const auto dweights_TK = random_matrix<float>(T, K, 4);
  const auto dense_TE = random_matrix<float>(T, E, 5);
  const auto logits_TE = logits_by_hand(x_TH, w_EH);
  Router<float> router(RouterConfig{H, E, K, Competition::penalty(0.2)});
  router.refresh_now(w_EH, 0);
  RoutingBuffers<Router<float>> buffers(router, T);
  router.forward_logits(logits_TE, buffers.view(T), buffers.workspace());
  for (const bool dense : {false, true}) {
    gatepro::WeightGradients<float> incoming{dweights_TK};
    if (dense) incoming.dlogits_TE = dense_TE;
    std::vector<float> fused_E = random_bias<float>(6), staged_E = fused_E;
    gatepro::GateGradients<float> gradients;
    gradients.dbias_E = fused_E;
    router.backward(x_TH, w_EH, buffers, incoming, gradients, ThreadExecutor(1));
    RowMatrix<float> dlogits_TE = zeros<float>(T, E);
    router.backward_logits({buffers.expert_ids_TK(), buffers.weights_TK()}, incoming,
                           gatepro::view(dlogits_TE), buffers.workspace());
    gatepro::gate_backward_bias(gatepro::view(dlogits_TE), VectorView<float>(staged_E));
    EXPECT_EQ(fused_E, staged_E) << dense;
  }
}

TEST(GateBiasRouter, BadInputIsRefused) {
  const auto x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  const RowMatrix<float> dweights_TK = zeros<float>(T, K);
  std::vector<float> long_E(E + 1, 0.0F);
  Router<float> plain(RouterConfig{H, E, K, Competition::off()});
  RoutingBuffers<Router<float>> plain_buffers(plain, T);
  CompleteRouter<float> complete(CompleteConfig{{H, E, K, Competition::off()}});
  RoutingBuffers<CompleteRouter<float>> buffers(complete, T);
  const char* size = "size=13";
  expect_error(
      [&] {
        plain.forward(x_TH, BiasedWeights<float>{w_EH, long_E}, plain_buffers);
      },
      {"Router::forward", "bias_E", size});
  expect_error(
      [&] {
        complete.forward(x_TH, {w_EH, long_E}, {}, buffers);
      },
      {"CompleteRouter::forward", "bias_E", size});
  auto out = buffers.view();
  expect_error(
      [&] {
        complete.forward(x_TH, {w_EH, {out.weights_TK.data, E}}, {}, out, buffers.workspace());
      },
      {"CompleteRouter::forward", "weights_TK and bias_E overlap"});
  plain.forward(x_TH, w_EH, plain_buffers);
  complete.forward(x_TH, w_EH, {}, buffers);
  gatepro::GateGradients<float> gradients;
  gradients.dbias_E = long_E;
  expect_error([&] { plain.backward(x_TH, w_EH, plain_buffers, {dweights_TK}, gradients); },
               {"Router::backward", "dbias_E", size});
  expect_error([&] { complete.backward(x_TH, w_EH, {}, buffers, {dweights_TK}, gradients); },
               {"CompleteRouter::backward", "dbias_E", size});
  gradients.dbias_E = {plain_buffers.view(T).weights_TK.data, E};
  expect_error([&] { plain.backward(x_TH, w_EH, plain_buffers, {dweights_TK}, gradients); },
               {"Router::backward", "dbias_E and weights_TK overlap"});
}

}  // namespace
