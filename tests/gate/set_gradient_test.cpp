// SPDX-License-Identifier: MIT
// A gradient of tokens that takes the place of what was there: the bits of adding to zeros.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "support/bits.hpp"
#include "support/complete_data.hpp"
#include "support/executors.hpp"
#include "support/ids.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/type_names.hpp"

namespace {

using data::random_matrix;
using gatepro::GradientMode;
using gatepro::Index;
using gatepro::MatrixView;
using gatepro::RowMatrix;
using gatepro::strided_view;
using gatepro::view;

/// Somebody's NaNs.
template <class A>
RowMatrix<A> garbage(Index rows, Index cols) {
  return RowMatrix<A>::Constant(rows, cols, std::numeric_limits<A>::quiet_NaN());
}

template <class W>
class SetGradient : public testing::Test {};
using Scalars = testing::Types<float, double, gatepro::bfloat16, gatepro::half>;
TYPED_TEST_SUITE(SetGradient, Scalars, TypeNames);

TYPED_TEST(SetGradient, HasTheBitsOfAddingToZeros) {
  using A = gatepro::accumulator_t<TypeParam>;
  constexpr Index top_k = 2, gap = 5;
  for (const Index experts : {3, 70, 600}) {  // the last one takes several depth blocks
    for (const Index tokens : {0, 1, 40, 700}) {
      for (const Index hidden : {7, 300}) {
        const auto w = random_matrix<TypeParam>(experts, hidden, 1);
        auto ids = data::random_ids<std::int32_t>(tokens, experts, top_k, 2);
        std::vector<std::uint8_t> padding(std::size_t(tokens), 0);
        for (Index t = 0; t < tokens; t += 3) padding[std::size_t(t)] = 1;
        for (Index t = 1; t < tokens; t += 5) ids.row(t).setConstant(-1);
        const gatepro::Choices<const std::int32_t> choices{strided_view(ids), padding};
        const auto dselected = random_matrix<A>(tokens, top_k, 3);
        const auto dlogits = random_matrix<A>(tokens, experts, 4);
        for (const bool dense : {false, true}) {
          gatepro::LogitGradients<A> gradients{strided_view(dselected)};
          if (dense) gradients.dlogits_TE = view(dlogits);
          const auto run = [&](RowMatrix<A> wide, GradientMode mode, const auto& executor) {
            auto memory =
                data::scratch(gatepro::gate_backward_tokens_workspace_bytes<A>(experts, executor));
            const MatrixView<A> dx = view(wide).middle_cols(0, hidden);
            gatepro::gate_backward_tokens(choices, gradients, view(w), dx, memory, executor, mode);
            return wide;
          };
          RowMatrix<A> want = garbage<A>(tokens, hidden + gap);
          want.leftCols(hidden).setZero();
          want = run(want, GradientMode::add, gatepro::SerialExecutor{});
          const auto start = garbage<A>(tokens, hidden + gap);
          EXPECT_TRUE(
              data::same_bits(run(start, GradientMode::set, gatepro::SerialExecutor{}), want))
              << experts << ", " << tokens << ", " << hidden << ", " << dense;
          EXPECT_TRUE(data::same_bits(run(start, GradientMode::set, LastWorkerFirst(3)), want));
        }
      }
    }
  }
}

TEST(SetGradientOfRouters, LeavesTheWeightsAlone) {
  constexpr Index tokens = 90, hidden = 40, experts = 12, top_k = 3;
  gatepro::Router<float> router(gatepro::RouterConfig{hidden, experts, top_k});
  const auto x = random_matrix<float>(tokens, hidden, 1);
  const auto w = random_matrix<float>(experts, hidden, 2);
  const auto dweights = random_matrix<float>(tokens, top_k, 3);
  const auto start = random_matrix<float>(experts, hidden, 4);
  router.refresh(w, 0);
  gatepro::RoutingBuffers buffers(router, tokens);
  router.forward(x, w, buffers);
  RowMatrix<float> want = RowMatrix<float>::Zero(tokens, hidden), want_dw = start;
  router.backward(x, w, buffers, {dweights}, {want, want_dw});
  RowMatrix<float> got = garbage<float>(tokens, hidden), got_dw = start;
  router.backward(x, w, buffers, {dweights}, {got, got_dw, GradientMode::set});
  EXPECT_TRUE(data::same_bits(got, want));
  EXPECT_TRUE(data::same_bits(got_dw, want_dw));
}

TEST(SetGradientOfRouters, OfACompleteRouterWithAndWithoutJitter) {
  constexpr Index tokens = 90, hidden = 40, experts = 16, top_k = 3;
  for (const double jitter : {0.0, 0.1}) {
    auto config = complete_data::full_config(hidden, experts, top_k);
    config.noise.jitter = jitter;
    gatepro::CompleteRouter<float> router(config);
    const auto x = random_matrix<float>(tokens, hidden, 1);
    const auto w = random_matrix<float>(experts, hidden, 2);
    const auto dweights = random_matrix<float>(tokens, top_k, 3);
    const std::vector<std::int64_t> begin = {0, tokens};
    const std::vector<std::uint8_t> padding = [] {
      std::vector<std::uint8_t> mask(tokens, 0);
      mask[0] = mask[17] = mask[89] = 1;
      return mask;
    }();
    gatepro::ForwardInputs<> in;
    in.sequence_begin_S1 = begin;
    in.is_padding_T = padding;
    router.refresh(w, 0);
    gatepro::RoutingBuffers buffers(router, tokens);
    router.forward(x, w, in, buffers);
    RowMatrix<float> want = RowMatrix<float>::Zero(tokens, hidden);
    router.backward(x, w, in, buffers, {dweights}, {want, {}});
    RowMatrix<float> got = garbage<float>(tokens, hidden);
    router.backward(x, w, in, buffers, {dweights}, {got, {}, GradientMode::set});
    EXPECT_TRUE(data::same_bits(got, want));
  }
}

}  // namespace
