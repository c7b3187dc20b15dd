// SPDX-License-Identifier: MIT
// Gradients of a whole layer of experts around a complete router, and what moves the router.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "support/complete_data.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/reference/complete.hpp"

namespace {

using complete_data::zeros;
using data::random_matrix;
using gatepro::Competition;
using gatepro::CompleteConfig;
using gatepro::CompleteRouter;
using gatepro::CountSource;
using gatepro::ForwardInputs;
using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;

/// Tokens to experts and back; expert e multiplies by e + 1.
struct Layer {
  using R = CompleteRouter<double>;
  static constexpr Index T = 24, H = 6, E = 8, K = 3;

  Layer(const CompleteConfig& settings, Index most, const RowMatrix<double>& x,
        const RowMatrix<double>& w, const RowMatrix<double>& bias)
      : x_TH(x), w_EH(w), bias_1E(bias), router(settings) {
    router.refresh(w_EH, 0);
    padding[5] = padding[17] = 1;
    in.is_padding_T = padding;
    in.sequence_begin_S1 = sequences;
    in.top_k = most;
    report = router.forward(x_TH, {w_EH, {bias_1E.data(), E}}, in, buffers);
    const auto out = buffers.view();
    gatepro::DispatchPlan<std::int32_t> plan;
    plan.offsets_E1 = offsets_E1;
    plan.token_of_row_N = token_of_row_N;
    plan.choice_of_row_N = choice_of_row_N;
    plan.row_TK = {row_TK.data(), T, K};
    auto memory = data::scratch(gatepro::plan_dispatch_workspace_bytes(E));
    rows = gatepro::plan_dispatch(gatepro::Choices{out.expert_ids_TK, in.is_padding_T, out.kept_TK},
                                  E, gatepro::DispatchRule{}, plan, memory);
    sent_NH.resize(rows, H);
    gatepro::permute(gatepro::VectorView<const std::int32_t>(token_of_row_N.data(), rows), x_TH,
                     gatepro::view(sent_NH));
    scale_by_expert(sent_NH, returned_NH);
    y_TH = zeros<double>(T, H);
    gatepro::combine(plan.row_TK, out.weights_TK, gatepro::view(returned_NH), gatepro::view(y_TH));
  }

  static CompleteConfig config() {
    CompleteConfig config = complete_data::full_config(H, E, K);
    config.competition = Competition::penalty(0.3);
    config.losses = {0.3, 0.2, 0.1, 0.05, CountSource::dispatched};
    return config;
  }
  void scale_by_expert(const RowMatrix<double>& from, RowMatrix<double>& to) const {
    to = from;
    for (Index e = 0; e < E; ++e) {
      for (auto r = offsets_E1[static_cast<std::size_t>(e)];
           r < offsets_E1[static_cast<std::size_t>(e) + 1]; ++r) {
        to.row(r) *= static_cast<double>(e + 1);
      }
    }
  }
  /// sum of y dy + losses.
  double objective(const RowMatrix<double>& dy_TH) const {
    return y_TH.cwiseProduct(dy_TH).sum() + report.losses.sum();
  }
  void backward(const RowMatrix<double>& dy_TH, RowMatrix<double>& dx_TH, RowMatrix<double>& dw_EH,
                RowMatrix<double>& dbias_1E) {
    const auto out = buffers.view();
    const gatepro::StridedView<const std::int32_t> row(row_TK.data(), T, K, K, 1);
    RowMatrix<double> dweights_TK = zeros<double>(T, K), dreturned_NH = zeros<double>(rows, H);
    gatepro::combine_backward_weights(row, gatepro::view(returned_NH), dy_TH,
                                      gatepro::strided_view(dweights_TK));
    gatepro::combine_backward_rows(
        gatepro::VectorView<const std::int32_t>(choice_of_row_N.data(), rows), out.weights_TK,
        dy_TH, gatepro::view(dreturned_NH));
    RowMatrix<double> dsent_NH;
    scale_by_expert(dreturned_NH, dsent_NH);
    gatepro::permute_backward(row, dsent_NH, gatepro::view(dx_TH));
    gatepro::GateGradients<double> gradients{dx_TH, dw_EH};
    gradients.dbias_E = {dbias_1E.data(), E};
    router.backward(x_TH, w_EH, in, buffers, {dweights_TK}, gradients);
  }

  RowMatrix<double> x_TH, w_EH, bias_1E, sent_NH, returned_NH, y_TH;
  std::vector<std::uint8_t> padding = std::vector<std::uint8_t>(T, 0);
  std::vector<std::int64_t> sequences = {0, 10, T};
  R router;
  gatepro::RoutingBuffers<R> buffers{router, gatepro::BufferShape{T, 1, 2}};
  ForwardInputs<> in;
  gatepro::CompleteReport report;
  std::vector<std::int64_t> offsets_E1 = std::vector<std::int64_t>(E + 1);
  std::vector<std::int32_t> token_of_row_N = std::vector<std::int32_t>(T * K);
  std::vector<std::int32_t> choice_of_row_N = std::vector<std::int32_t>(T * K);
  std::vector<std::int32_t> row_TK = std::vector<std::int32_t>(T * K);
  Index rows = 0;
};

/// The gradients of a layer with these settings and up to `most` choices, 0 for all, against
/// differences.
void expect_differences(const CompleteConfig& settings, Index most = 0) {
  const auto x_TH = random_matrix<double>(Layer::T, Layer::H, 7);
  const auto w_EH = random_matrix<double>(Layer::E, Layer::H, 2);
  const auto dy_TH = random_matrix<double>(Layer::T, Layer::H, 3);
  const auto bias_1E = random_matrix<double>(1, Layer::E, 4);
  Layer layer(settings, most, x_TH, w_EH, bias_1E);
  ASSERT_GT(layer.report.dropped_choices, 0) << "the test needs drops";
  const bool fewer = settings.fewer || most != 0;
  ASSERT_EQ(layer.report.choices < layer.report.valid_tokens * Layer::K, fewer);
  RowMatrix<double> dx_TH = zeros<double>(Layer::T, Layer::H);
  RowMatrix<double> dw_EH = zeros<double>(Layer::E, Layer::H);
  RowMatrix<double> dbias_1E = zeros<double>(1, Layer::E);
  layer.backward(dy_TH, dx_TH, dw_EH, dbias_1E);
  const auto expect_near = [&](int of, Index r, Index c, double actual) {
    const auto objective = [&](double offset) {
      RowMatrix<double> moved[] = {x_TH, w_EH, bias_1E};
      moved[of](r, c) += offset;
      return Layer(settings, most, moved[0], moved[1], moved[2]).objective(dy_TH);
    };
    const double expected = reference::derivative(objective, 1e-4);
    EXPECT_NEAR(actual, expected, 1e-9 * std::max(1.0, std::abs(expected))) << r << ", " << c;
  };
  for (Index t = 0; t < Layer::T; t += 3) expect_near(0, t, t % Layer::H, dx_TH(t, t % Layer::H));
  for (Index e = 0; e < Layer::E; ++e) {
    expect_near(1, e, e % Layer::H, dw_EH(e, e % Layer::H));
    expect_near(2, 0, e, dbias_1E(0, e));
  }
}

TEST(CompleteRouter, GradientsOfAWholeLayerMatchDifferences) {
  expect_differences(Layer::config());
}

// The number of choices is piecewise constant.
TEST(CompleteRouter, GradientsOfALayerWithFewerChoicesMatchDifferences) {
  for (const ScoreFunction function : data::score_functions) {
    for (const bool renormalise : {false, true}) {
      for (const CountSource counts : {CountSource::dispatched, CountSource::unpenalised}) {
        SCOPED_TRACE(testing::Message() << static_cast<int>(function) << renormalise);
        CompleteConfig config = Layer::config();
        config.scores = {function, renormalise, 2};
        config.losses.counts = counts;
        config.capacity->renormalise = renormalise;
        config.capacity->factor = 0.8;
        expect_differences(config, 2);
        config.fewer = gatepro::FewerChoices{0.9, 1.75, 1};
        expect_differences(config);
        config.fewer = gatepro::FewerChoices{1, 2, 0};
        expect_differences(config);
      }
    }
  }
}

/// Megatron-LM's test_aux_loss: without a gradient from the weights only the losses move the
/// router.
TEST(CompleteRouter, OnlyLossesMoveTheRouterWhenNothingElseDoes) {
  constexpr Index T = 20, H = 6, E = 8, K = 2;
  const auto x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  for (int loss = 0; loss < 5; ++loss) {
    CompleteConfig config{{H, E, K}};
    config.scores.function = ScoreFunction::softmax_before_top_k;
    double* coefficients[] = {&config.losses.batch, &config.losses.sequence, &config.losses.global,
                              &config.losses.z};
    if (loss < 4) *coefficients[loss] = 0.1;
    CompleteRouter<float> router(config);
    router.refresh(w_EH, 0);
    const std::vector<std::int64_t> sequences = {0, T};
    ForwardInputs<> in;
    in.sequence_begin_S1 = sequences;
    const auto outcome =
        complete_data::step(router, x_TH, w_EH, in, zeros<float>(T, K), zeros<float>(E, H));
    EXPECT_EQ(outcome.dw_EH.cwiseAbs().maxCoeff() > 0, loss < 4);
    EXPECT_EQ(outcome.dx_TH.cwiseAbs().maxCoeff() > 0, loss < 4);
    EXPECT_EQ(outcome.report.losses.sum() > 0, loss < 4);
  }
}

}  // namespace
