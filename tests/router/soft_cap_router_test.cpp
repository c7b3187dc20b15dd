// SPDX-License-Identifier: MIT
// The complete router with a soft cap of its logits: as if they were capped by hand, and gradients
// through the slope.
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
using gatepro::Competition;
using gatepro::CompleteConfig;
using gatepro::CompleteRouter;
using gatepro::Index;
using gatepro::RoutingBuffers;
using gatepro::RowMatrix;

constexpr Index T = 70, H = 9, E = 12, K = 3;
constexpr double cap = 0.8;

/// Runs `forward(router, buffers)` and returns what it wrote.
template <class Forward>
auto run(const CompleteConfig& config, const RowMatrix<float>& w_EH, const Forward& forward) {
  CompleteRouter<float> router(config);
  router.refresh(w_EH, 0);
  RoutingBuffers<CompleteRouter<float>> buffers(router, gatepro::BufferShape{T, 3, 2, true, true});
  forward(router, buffers);
  return outcome_of(buffers);
}

// Everything behind sees the capped logits: losses, competition, scores, outputs.
TEST(SoftCapRouter, GivesTheBitsOfLogitsCappedBefore) {
  const auto x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  const std::vector<std::int64_t> sequences = {0, 30, T};
  gatepro::ForwardInputs<> in;
  in.sequence_begin_S1 = sequences;
  CompleteConfig config = complete_data::full_config(H, E, K);
  config.noise = {};
  config.logit_soft_cap = cap;
  CompleteConfig plain = config;
  plain.logit_soft_cap = 0;
  RowMatrix<float> logits_TE(T, E);
  auto memory = data::scratch(gatepro::gate_logits_workspace_bytes<float, float>(E, H));
  gatepro::gate_logits(gatepro::view(x_TH), gatepro::view(w_EH), gatepro::view(logits_TE), memory);
  RowMatrix<float> capped_TE = logits_TE;
  gatepro::soft_cap_logits(cap, gatepro::view(capped_TE));

  const auto from_logits = [&](const CompleteConfig& c, const RowMatrix<float>& given_TE) {
    return run(c, w_EH, [&](auto& router, auto& buffers) {
      const auto out = buffers.view();
      for (Index t = 0; t < T; ++t) std::copy_n(&given_TE(t, 0), E, out.logits_TE.row(t));
      buffers.set_report(router.forward_logits(in, out, buffers.workspace()));
    });
  };
  const auto want = from_logits(plain, capped_TE);
  EXPECT_TRUE(data::same_bits(want.logits_TE, capped_TE));
  complete_data::expect_same_outcome(from_logits(config, logits_TE), want);
  for (int workers : {1, 3}) {
    complete_data::expect_same_outcome(
        run(config, w_EH,
            [&](auto& router, auto& buffers) {
              router.forward(x_TH, w_EH, in, buffers, gatepro::NoReduce{}, ThreadExecutor(workers));
            }),
        want);
  }
}

TEST(SoftCapRouter, CapsNoisyLogitsAlsoAgainAndInEvaluation) {
  const auto x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  CompleteConfig config{{H, E, K}};
  config.noise.logit_sigma = 3;
  const auto logits = [&](double soft_cap, gatepro::Pass pass) {
    config.logit_soft_cap = soft_cap;
    return run(config, w_EH,
               [&](auto& router, auto& buffers) {
                 gatepro::RoutingRecord<> record;
                 gatepro::ForwardInputs<> in;
                 in.record = &record;
                 if (pass == gatepro::Pass::recompute) {
                   router.forward(x_TH, w_EH, in, buffers);
                   in.record = nullptr;
                   in.replay = &record;
                 }
                 in.pass = pass;
                 router.forward(x_TH, w_EH, in, buffers);
               })
        .logits_TE;
  };
  for (const auto pass :
       {gatepro::Pass::training, gatepro::Pass::recompute, gatepro::Pass::evaluation}) {
    RowMatrix<float> want_TE = logits(0, pass);
    gatepro::soft_cap_logits(cap, gatepro::view(want_TE));
    EXPECT_TRUE(data::same_bits(logits(cap, pass), want_TE));
    EXPECT_LE(want_TE.cwiseAbs().maxCoeff(), float(cap));
  }
}

/// A router in double, its objective and its gradients.
struct Problem {
  using R = CompleteRouter<double>;

  double run(const RowMatrix<double>& x, const RowMatrix<double>& w,
             const gatepro::GateGradients<double>& gradients = {},
             RowMatrix<double>* dlogits_TE = nullptr) const {
    R router(config);
    router.refresh(w_EH, 0);  // partners of the weights before they moved
    RoutingBuffers<R> buffers(router, gatepro::BufferShape{T, 1, 2});
    gatepro::ForwardInputs<> in;
    in.is_padding_T = padding;
    in.sequence_begin_S1 = sequences;
    const auto report = router.forward(x, w, in, buffers);
    const auto out = buffers.view();
    double sum = report.losses.sum();
    for (Index t = 0; t < T; ++t) {
      for (Index j = 0; j < K; ++j) sum += out.weights_TK(t, j) * dweights_TK(t, j);
      const bool counts = uses_logits && padding[static_cast<std::size_t>(t)] == 0;
      for (Index e = 0; e < E && counts; ++e) sum += out.logits_TE(t, e) * dense_TE(t, e);
    }
    gatepro::BackwardInputs<double> incoming{dweights_TK};
    if (uses_logits) incoming.dlogits_TE = dense_TE;
    if (gradients.dx_TH.given()) {
      router.backward(x, w, {in, out, report}, incoming, gradients, buffers.workspace());
    }
    if (dlogits_TE != nullptr) {
      *dlogits_TE = zeros<double>(T, E);
      router.backward_logits({in, out, report}, incoming, gatepro::view(*dlogits_TE),
                             buffers.workspace());
    }
    return sum;
  }

  CompleteConfig config;
  bool uses_logits = false;
  RowMatrix<double> x_TH = random_matrix<double>(T, H, 1), w_EH = random_matrix<double>(E, H, 2);
  RowMatrix<double> dweights_TK = random_matrix<double>(T, K, 4);
  RowMatrix<double> dense_TE = random_matrix<double>(T, E, 5);
  std::vector<std::uint8_t> padding = std::vector<std::uint8_t>(T, 0);
  std::vector<std::int64_t> sequences = {0, 30, T};
};

TEST(SoftCapRouter, GradientsMatchDifferences) {
  for (const auto function : data::score_functions) {
    for (const bool losses : {false, true}) {
      for (const bool uses_logits : {false, true}) {
        Problem problem;
        problem.config = CompleteConfig{{H, E, K, Competition::penalty(0.1)}};
        problem.config.scores.function = function;
        problem.config.logit_soft_cap = cap;
        if (losses) {
          problem.config.losses = {0.3, 0.2, 0.1, 0.05, gatepro::CountSource::dispatched};
        }
        problem.uses_logits = uses_logits;
        problem.padding[3] = problem.padding[20] = 1;
        const auto &x_TH = problem.x_TH, &w_EH = problem.w_EH;
        RowMatrix<double> dx_TH = zeros<double>(T, H), dw_EH = zeros<double>(E, H), dlogits_TE;
        problem.run(x_TH, w_EH, {dx_TH, dw_EH}, &dlogits_TE);
        const auto expect_near = [&](bool of_x, Index r, Index c, double got) {
          const double want = reference::derivative(
              [&](double offset) {
                RowMatrix<double> moved[] = {x_TH, w_EH};
                moved[of_x ? 0 : 1](r, c) += offset;
                return problem.run(moved[0], moved[1]);
              },
              1e-4);
          EXPECT_NEAR(got, want, 1e-8 * std::max(1.0, std::abs(want))) << of_x << " " << r;
        };
        for (Index t = 0; t < T; t += 17) expect_near(true, t, t % H, dx_TH(t, t % H));
        for (Index e = 0; e < E; e += 3) expect_near(false, e, e % H, dw_EH(e, e % H));
        // A GEMM of the trainer makes the same of the gradient of the logits before the cap.
        EXPECT_LT((dlogits_TE * w_EH - dx_TH).cwiseAbs().maxCoeff(), 1e-13);
      }
    }
  }
}

TEST(SoftCapRouter, BadCapsAreRefused) {
  CompleteConfig config{{H, E, K}};
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = data::infinity<double>();
  for (const double bad : {-1.0, nan, inf, -inf, 1e-60, 1e60}) {
    config.logit_soft_cap = bad;
    expect_error([&] { CompleteRouter<float> router(config); },
                 {"CompleteRouter", "a soft cap that is finite and > 0", "cap="});
  }
  config.logit_soft_cap = -0.0;
  EXPECT_NO_THROW(CompleteRouter<float> router(config));
  config.logit_soft_cap = 1e-60;
  EXPECT_NO_THROW(CompleteRouter<double> router(config));
}

}  // namespace
