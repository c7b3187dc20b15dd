// SPDX-License-Identifier: MIT
// Gradients of tokens in 16 bits: those in float, each rounded once.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "support/bits.hpp"
#include "support/complete_data.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/ids.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/reference/rounding.hpp"
#include "support/type_names.hpp"

namespace {

using data::random_matrix;
using gatepro::GateGradients;
using gatepro::GradientMode;
using gatepro::Index;
using gatepro::MatrixView;
using gatepro::RowMatrix;
using gatepro::SerialExecutor;
using gatepro::strided_view;
using gatepro::view;

/// Each element of `wide` rounded, by the definition.
template <class D>
RowMatrix<D> rounded(const RowMatrix<float>& wide) {
  const auto format =
      std::is_same_v<D, gatepro::half> ? reference::half_format : reference::bfloat16_format;
  return wide.unaryExpr([&](float value) {
    return static_cast<D>(static_cast<float>(reference::rounded(double{value}, format)));
  });
}

/// Any bits, as rows hold that nobody wrote: NaNs that signal among them.
template <class D>
RowMatrix<D> any_bits(Index rows, Index cols) {
  RowMatrix<D> bits(rows, cols);
  std::memset(static_cast<void*>(bits.data()), 0x7f, std::size_t(bits.size()) * sizeof(D));
  std::uint16_t signalling = 0x7f81;  // of bfloat16, and a NaN of half
  for (Index i = 0; i < bits.size(); i += 3) {
    std::memcpy(static_cast<void*>(bits.data() + i), &signalling, sizeof signalling);
    signalling ^= 0x8000;
  }
  return bits;
}

template <class D>
class NarrowGradient : public testing::Test {};
using Scalars = testing::Types<gatepro::bfloat16, gatepro::half>;
TYPED_TEST_SUITE(NarrowGradient, Scalars, TypeNames);

/// Tokens of which each third is padding, and each fifth has no expert.
struct Batch {
  RowMatrix<std::int32_t> ids_TK;
  std::vector<std::uint8_t> is_padding_T;
  RowMatrix<float> dselected_TK, dlogits_TE;

  Batch(Index tokens, Index experts, Index top_k)
      : ids_TK(data::random_ids<std::int32_t>(tokens, experts, top_k, 2)),
        is_padding_T(std::size_t(tokens), 0),
        dselected_TK(random_matrix<float>(tokens, top_k, 3)),
        dlogits_TE(random_matrix<float>(tokens, experts, 4)) {
    for (Index t = 0; t < tokens; t += 3) is_padding_T[std::size_t(t)] = 1;
    for (Index t = 1; t < tokens; t += 5) ids_TK.row(t).setConstant(-1);
  }

  bool adds_nothing(Index t, bool dense) const {
    return is_padding_T[std::size_t(t)] != 0 || (!dense && ids_TK(t, 0) < 0);
  }

  /// The gradient of W's tokens, on top of `dx` or in its place.
  template <class D, class W, class Executor = SerialExecutor>
  RowMatrix<D> to_tokens(const RowMatrix<W>& w, RowMatrix<D> dx, bool dense, GradientMode mode,
                         const Executor& executor = {}) const {
    gatepro::LogitGradients<float> gradients{strided_view(dselected_TK)};
    if (dense) gradients.dlogits_TE = view(dlogits_TE);
    auto memory =
        data::scratch(gatepro::gate_backward_tokens_workspace_bytes<D>(w.rows(), executor));
    const gatepro::Choices<const std::int32_t> choices{strided_view(ids_TK), is_padding_T};
    gatepro::gate_backward_tokens(choices, gradients, view(w), view(dx).middle_cols(0, w.cols()),
                                  memory, executor, mode);
    return dx;
  }
};

/// Both modes of a batch, with columns behind those of dX that stay as they are.
template <class D, class W>
void expect_rounded_once(const Batch& batch, const RowMatrix<W>& w, bool dense) {
  constexpr Index gap = 5;
  const Index tokens = batch.ids_TK.rows(), hidden = w.cols();
  const auto start = random_matrix<D>(tokens, hidden + gap, 6);
  const RowMatrix<float> wide_start = start.template cast<float>();
  for (const GradientMode mode : {GradientMode::add, GradientMode::set}) {
    const auto want = rounded<D>(batch.to_tokens(w, wide_start, dense, mode));
    const auto got = batch.to_tokens(w, start, dense, mode);
    EXPECT_TRUE(data::same_bits(got, want)) << w.rows() << ", " << tokens << ", " << hidden;
    const auto cut = batch.to_tokens(w, start, dense, mode, LastWorkerFirst(3));
    EXPECT_TRUE(data::same_bits(cut, want));
  }
}

TYPED_TEST(NarrowGradient, IsTheWideOneRoundedOnce) {
  for (const Index experts : {3, 70, 600}) {  // the last one takes several depth blocks
    for (const Index tokens : {0, 1, 40, 700}) {
      for (const Index hidden : {7, 300}) {
        const Batch batch(tokens, experts, 2);
        for (const bool dense : {false, true}) {
          expect_rounded_once<TypeParam>(batch, random_matrix<TypeParam>(experts, hidden, 1),
                                         dense);
        }
      }
    }
  }
  expect_rounded_once<TypeParam>(Batch(40, 70, 2), random_matrix<float>(70, 300, 1), false);
}

TYPED_TEST(NarrowGradient, LeavesRowsAloneThatNothingIsAddedTo) {
  const Index tokens = 100, hidden = 70;
  const Batch batch(tokens, 12, 2);
  const auto w = random_matrix<TypeParam>(12, hidden, 1);
  const auto start = any_bits<TypeParam>(tokens, hidden);
  for (const bool dense : {false, true}) {
    const auto got = batch.to_tokens(w, start, dense, GradientMode::add);
    for (Index t = 0; t < tokens; ++t) {
      if (!batch.adds_nothing(t, dense)) continue;
      EXPECT_TRUE(data::same_bits<TypeParam>(got.row(t), start.row(t))) << t;
    }
    // A NaN stays one, and nothing of it is left if it is replaced.
    EXPECT_TRUE(data::is_nan(static_cast<float>(got(2, 1))));
    const auto set = batch.to_tokens(w, start, dense, GradientMode::set);
    const RowMatrix<float> zeros = RowMatrix<float>::Zero(tokens, hidden);
    EXPECT_TRUE(data::same_bits(
        set, rounded<TypeParam>(batch.to_tokens(w, zeros, dense, GradientMode::add))));
  }
}

TYPED_TEST(NarrowGradient, BadArgumentsAreRefused) {
  const Batch batch(6, 4, 2);
  auto w = random_matrix<TypeParam>(4, 8, 1);
  RowMatrix<TypeParam> dx = RowMatrix<TypeParam>::Zero(6, 8);
  auto memory = data::scratch(gatepro::gate_backward_tokens_workspace_bytes<TypeParam>(4));
  const gatepro::Choices<const std::int32_t> choices{strided_view(batch.ids_TK)};
  const gatepro::LogitGradients<float> gradients{strided_view(batch.dselected_TK)};
  const auto run = [&](MatrixView<TypeParam> out, gatepro::Workspace workspace) {
    gatepro::gate_backward_tokens(choices, gradients, view(w), out, workspace);
  };
  expect_error([&] { run({dx.data(), 6, 8, 7}, memory); }, {"dx_TH", "row_stride"});
  expect_error([&] { run({dx.data(), 6, 7}, memory); }, {"w_EH", "cols"});
  expect_error([&] { run({w.data(), 4, 8}, memory); }, {"tokens"});
  expect_error([&] { run({w.data() + 8, 2, 8}, memory); }, {"rows"});
  const std::size_t wide = gatepro::gate_backward_tokens_workspace_bytes<float>(4);
  EXPECT_LT(wide, memory.size());
  expect_error([&] { run(view(dx), {memory.data(), wide}); }, {"workspace"});
  EXPECT_TRUE(data::same_bits<TypeParam>(dx, RowMatrix<TypeParam>::Zero(6, 8)));
}

TYPED_TEST(NarrowGradient, OfRouters) {
  constexpr Index tokens = 90, hidden = 40, experts = 12, top_k = 3;
  gatepro::Router<TypeParam> router(gatepro::RouterConfig{hidden, experts, top_k});
  const auto x = random_matrix<TypeParam>(tokens, hidden, 1);
  const auto w = random_matrix<TypeParam>(experts, hidden, 2);
  const auto dweights = random_matrix<float>(tokens, top_k, 3);
  const auto dlogits = random_matrix<float>(tokens, experts, 4);
  const auto start = random_matrix<TypeParam>(tokens, hidden, 5);
  router.refresh(w, 0);
  gatepro::RoutingBuffers buffers(router, tokens);
  router.forward(x, w, buffers);
  for (const auto& incoming : {gatepro::WeightGradients<float>{dweights}, {dweights, dlogits}}) {
    RowMatrix<float> want = start.template cast<float>();
    RowMatrix<float> want_dw = RowMatrix<float>::Zero(experts, hidden), got_dw = want_dw;
    RowMatrix<TypeParam> got = start;
    router.backward(x, w, buffers, incoming, {want, want_dw});
    router.backward(x, w, buffers, incoming, GateGradients<float, TypeParam>{got, got_dw});
    EXPECT_TRUE(data::same_bits(got, rounded<TypeParam>(want)));
    EXPECT_TRUE(data::same_bits(got_dw, want_dw));
  }
  RowMatrix<TypeParam> read = x;
  expect_error(
      [&] {
        router.backward(read, w, buffers, {dweights}, GateGradients<float, TypeParam>{read, {}});
      },
      {"dx_TH", "x_TH"});
  EXPECT_TRUE(data::same_bits(read, x));
}

TYPED_TEST(NarrowGradient, OfCompleteRoutersWithAndWithoutJitter) {
  constexpr Index tokens = 90, hidden = 40, experts = 16, top_k = 3;
  const std::vector<std::int64_t> begin = {0, tokens};
  std::vector<std::uint8_t> padding(tokens, 0);
  padding[0] = padding[17] = padding[89] = 1;
  for (const double jitter : {0.0, 0.1}) {
    auto config = complete_data::full_config(hidden, experts, top_k);
    config.noise.jitter = jitter;
    gatepro::CompleteRouter<TypeParam, float> router(config);
    const auto x = random_matrix<TypeParam>(tokens, hidden, 1);
    const auto w = random_matrix<float>(experts, hidden, 2);
    const auto dweights = random_matrix<float>(tokens, top_k, 3);
    const auto start = random_matrix<TypeParam>(tokens, hidden, 5);
    gatepro::ForwardInputs<> in;
    in.sequence_begin_S1 = begin;
    in.is_padding_T = padding;
    router.refresh(w, 0);
    gatepro::RoutingBuffers buffers(router, tokens);
    router.forward(x, w, in, buffers);
    for (const GradientMode mode : {GradientMode::add, GradientMode::set}) {
      RowMatrix<float> want = start.template cast<float>();
      RowMatrix<TypeParam> got = start;
      router.backward(x, w, in, buffers, {dweights}, {want, {}, mode});
      router.backward(x, w, in, buffers, {dweights},
                      GateGradients<float, TypeParam>{got, {}, mode});
      EXPECT_TRUE(data::same_bits(got, rounded<TypeParam>(want))) << jitter;
    }
  }
}

}  // namespace
