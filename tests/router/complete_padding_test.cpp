// SPDX-License-Identifier: MIT
// Padding influences nothing in a complete router, whatever it holds.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "support/bits.hpp"
#include "support/complete_data.hpp"
#include "support/inputs.hpp"

namespace {

using complete_data::zeros;
using data::random_matrix;
using data::same_bits;
using gatepro::CompleteConfig;
using gatepro::CompleteRouter;
using gatepro::ForwardInputs;
using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;

/// Tokens at the places of `keep`, others full of what must not matter.
RowMatrix<float> spread(const RowMatrix<float>& m, const std::vector<std::uint8_t>& padding) {
  RowMatrix<float> result = RowMatrix<float>::Constant(static_cast<Index>(padding.size()), m.cols(),
                                                       std::numeric_limits<float>::quiet_NaN());
  Index from = 0;
  for (std::size_t t = 0; t < padding.size(); ++t) {
    if (padding[t] == 0) result.row(static_cast<Index>(t)) = m.row(from++);
  }
  return result;
}

/// A batch with padding that holds NaNs is the batch without it, the trainer's own gradients too.
void expect_inert_padding(CompleteConfig config, Index H, Index E) {
  const Index K = config.top_k;
  std::vector<std::uint8_t> padding(50);
  for (std::size_t t = 0; t < 20; ++t) padding[(t * t + t / 2) % 50] = 1;
  const Index padded = static_cast<Index>(padding.size());
  const Index masked = std::count(padding.begin(), padding.end(), 1);
  const auto short_x_TH = random_matrix<float>(padded - masked, H, 1);
  const auto short_dweights_TK = random_matrix<float>(padded - masked, K, 3);
  const auto short_dlogits_TE = random_matrix<float>(padded - masked, E, 4);
  const auto dlogits_TE = spread(short_dlogits_TE, padding);
  const auto w_EH = random_matrix<float>(E, H, 2);
  CompleteRouter<float> without(config), with(config);
  without.refresh(w_EH, 0);
  with.refresh(w_EH, 0);
  const std::vector<std::int64_t> one_sequence = {0, short_x_TH.rows()};
  const std::vector<std::int64_t> padded_sequence = {0, padded};
  ForwardInputs<> in, padded_in;
  in.sequence_begin_S1 = one_sequence;
  padded_in.sequence_begin_S1 = padded_sequence;
  padded_in.is_padding_T = padding;
  gatepro::BackwardInputs<float> more, padded_more;
  more.dlogits_TE = short_dlogits_TE;
  padded_more.dlogits_TE = dlogits_TE;
  const auto expected = complete_data::step(without, short_x_TH, w_EH, in, short_dweights_TK,
                                            zeros<float>(E, H), more);
  const auto actual =
      complete_data::step(with, spread(short_x_TH, padding), w_EH, padded_in,
                          spread(short_dweights_TK, padding), zeros<float>(E, H), padded_more);
  without.end_step();
  with.end_step();
  Index from = 0;
  for (Index t = 0; t < padded; ++t) {
    if (padding[static_cast<std::size_t>(t)] != 0) {
      EXPECT_EQ(actual.weights_TK.row(t), zeros<float>(1, K));
      EXPECT_EQ(actual.dx_TH.row(t), zeros<float>(1, H));
      continue;
    }
    EXPECT_TRUE(same_bits<float>(actual.weights_TK.row(t), expected.weights_TK.row(from)));
    EXPECT_TRUE(same_bits<float>(actual.dx_TH.row(t), expected.dx_TH.row(from)));
    EXPECT_TRUE(same_bits<std::int32_t>(actual.ids_TK.row(t), expected.ids_TK.row(from)));
    if (config.capacity) {
      EXPECT_TRUE(same_bits<std::uint8_t>(actual.kept_TK.row(t), expected.kept_TK.row(from)));
    }
    ++from;
  }
  EXPECT_TRUE(same_bits(actual.dw_EH, expected.dw_EH));
  EXPECT_EQ(actual.counts_E, expected.counts_E);
  EXPECT_EQ(actual.kept_E, expected.kept_E);
  EXPECT_EQ(actual.totals, expected.totals);
  EXPECT_EQ(actual.report.capacity, expected.report.capacity);
  EXPECT_EQ(actual.report.dropped_choices, expected.report.dropped_choices);
  const auto near = [](double a, double b) { EXPECT_NEAR(a, b, 1e-12 * b); };
  near(actual.report.losses.batch, expected.report.losses.batch);
  near(actual.report.losses.sequence, expected.report.losses.sequence);
  near(actual.report.losses.global, expected.report.losses.global);
  near(actual.report.losses.z, expected.report.losses.z);
  EXPECT_EQ(with.state().expert_bias_E, without.state().expert_bias_E);
}

TEST(CompleteRouter, PaddingInfluencesNothing) {
  constexpr Index H = 16, E = 12, K = 3;
  CompleteConfig full = complete_data::full_config(H, E, K);
  full.noise = {};  // noise depends on the position
  CompleteConfig all_logits{{H, E, K}};
  all_logits.scores.function = ScoreFunction::softmax_before_top_k;
  for (const CompleteConfig& config : {full, all_logits, CompleteConfig{{H, E, K}}}) {
    expect_inert_padding(config, H, E);
  }
}

/// The gradient of the logits of padding stays as it was, whatever comes in.
// The dense gradient of a padded token is zero, and zero times infinity is not.
TEST(CompleteRouter, PaddingGetsNoTokenGradientFromInfiniteWeights) {
  constexpr Index T = 5, H = 6, E = 8, K = 2;
  auto w_EH = random_matrix<float>(E, H, 2);
  const auto x_TH = spread(random_matrix<float>(3, H, 1), {0, 1, 0, 1, 0});
  const std::vector<std::uint8_t> padding{0, 1, 0, 1, 0};
  const RowMatrix<float> dweights_TK = random_matrix<float>(T, K, 3);
  CompleteConfig config{{H, E, K}};
  config.losses.z = 1e-3;
  CompleteRouter<float> router(config);
  router.refresh(w_EH, 0);
  gatepro::RoutingBuffers<CompleteRouter<float>> buffers(router, T);
  ForwardInputs<> in;
  in.is_padding_T = padding;
  router.forward(x_TH, w_EH, in, buffers);
  w_EH(3, 2) = std::numeric_limits<float>::infinity();
  RowMatrix<float> dx_TH = RowMatrix<float>::Constant(T, H, 77);
  router.backward(x_TH, w_EH, in, buffers, {dweights_TK}, {dx_TH, {}});
  for (Index t : {1, 3}) EXPECT_TRUE((dx_TH.row(t).array() == 77).all()) << t;
  for (Index t : {0, 2, 4}) EXPECT_FALSE((dx_TH.row(t).array() == 77).any()) << t;
}

TEST(CompleteRouter, PaddingGetsNoLogitGradient) {
  constexpr Index T = 5, H = 6, E = 8, K = 2;
  const auto w_EH = random_matrix<float>(E, H, 2);
  const auto x_TH = spread(random_matrix<float>(3, H, 1), {0, 1, 0, 1, 0});
  const std::vector<std::uint8_t> padding{0, 1, 0, 1, 0};
  const auto nan_TE = spread(random_matrix<float>(3, E, 3), padding);
  const auto nan_TK = spread(random_matrix<float>(3, K, 3), padding);
  for (double z : {0.0, 1e-3}) {
    CompleteConfig config{{H, E, K}};
    config.losses.z = z;
    CompleteRouter<float> router(config);
    router.refresh(w_EH, 0);
    gatepro::RoutingBuffers<CompleteRouter<float>> buffers(router, T);
    ForwardInputs<> in;
    in.is_padding_T = padding;
    router.forward(x_TH, w_EH, in, buffers);
    gatepro::BackwardInputs<float> more;
    more.dweights_TK = nan_TK;
    more.dlogits_TE = nan_TE;
    RowMatrix<float> dlogits_TE = RowMatrix<float>::Constant(T, E, 77);
    router.backward_logits({in, buffers.view(), buffers.report()}, more, dlogits_TE,
                           buffers.workspace());
    for (Index t = 0; t < T; ++t) {
      const bool untouched = (dlogits_TE.row(t).array() == 77).all();
      EXPECT_EQ(untouched, padding[static_cast<std::size_t>(t)] != 0);
      EXPECT_TRUE(dlogits_TE.row(t).allFinite());
    }
  }
}

}  // namespace
