// SPDX-License-Identifier: MIT
// The gradient of the raw logits, for trainers that make dX and dW with a GEMM of their own.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "support/bits.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/reference/matrix.hpp"

namespace {

using data::random_matrix;
using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::strided_view;
using gatepro::view;

constexpr Index tokens = 200, hidden = 24, experts = 9, top_k = 3;

template <class A>
class BackwardLogits : public testing::Test {
 public:
  using Router = gatepro::Router<A>;

  BackwardLogits() : router(config()), buffers(router, gatepro::BufferShape{tokens, 3, 1, true}) {
    router.refresh(w_EH, 0);
    router.forward(x_TH, w_EH, buffers);
  }

  static gatepro::RouterConfig config() {
    gatepro::RouterConfig config{hidden, experts, top_k};
    config.competition = gatepro::Competition::penalty(0.3);
    return config;
  }

  gatepro::RoutedChoices<A> routed() const {
    return {buffers.expert_ids_TK(), buffers.weights_TK()};
  }

  /// What it adds to `start`.
  template <class Executor = gatepro::SerialExecutor>
  RowMatrix<A> dlogits(RowMatrix<A> start, const gatepro::WeightGradients<A>& incoming,
                       const Executor& executor = {}) {
    std::vector<std::byte> memory(router.backward_logits_workspace_bytes(tokens));
    router.backward_logits(routed(), incoming, start, memory, executor);
    return start;
  }

  RowMatrix<A> x_TH = random_matrix<A>(tokens, hidden, 1);
  RowMatrix<A> w_EH = random_matrix<A>(experts, hidden, 2);
  RowMatrix<A> dweights_TK = random_matrix<A>(tokens, top_k, 3);
  RowMatrix<A> dlogits_TE = random_matrix<A>(tokens, experts, 4);
  RowMatrix<A> zeros_TE = RowMatrix<A>::Zero(tokens, experts);
  Router router;
  gatepro::RoutingBuffers<Router> buffers;
};
using Accumulators = testing::Types<float, double>;
TYPED_TEST_SUITE(BackwardLogits, Accumulators, );

using BackwardLogitsOfDouble = BackwardLogits<double>;

// The loss is the sum of weights times dweights; a logit moves the weights of its own token only.
TEST_F(BackwardLogitsOfDouble, AgreesWithFiniteDifferences) {
  const RowMatrix<double> got = dlogits(zeros_TE, {dweights_TK});
  RowMatrix<double> logits_TE(tokens, experts);
  for (Index t = 0; t < tokens; ++t) {
    for (Index e = 0; e < experts; ++e) logits_TE(t, e) = buffers.logits_TE()(t, e);
  }
  RowMatrix<std::int32_t> ids(1, top_k);
  RowMatrix<double> weights(1, top_k);
  std::vector<std::byte> memory(router.forward_workspace_bytes());
  for (Index t = 0; t < 20; ++t) {
    for (Index e = 0; e < experts; ++e) {
      const double slope = reference::derivative(
          [&](double step) {
            RowMatrix<double> moved = logits_TE.row(t);
            moved(0, e) += step;
            router.forward_logits(moved, {strided_view(ids), strided_view(weights)}, memory);
            return weights.cwiseProduct(dweights_TK.row(t)).sum();
          },
          1e-5);
      EXPECT_NEAR(got(t, e), slope, 1e-9) << t << ", " << e;
    }
  }
}

TYPED_TEST(BackwardLogits, IsTheClosedForm) {
  using A = TypeParam;
  const RowMatrix<A> got = this->dlogits(this->zeros_TE, {this->dweights_TK, this->dlogits_TE});
  const auto ids = this->buffers.expert_ids_TK();
  const auto weights = this->buffers.weights_TK();
  for (Index t = 0; t < tokens; ++t) {
    Eigen::RowVectorXd want = this->dlogits_TE.row(t).template cast<double>();
    double mean = 0;
    for (Index j = 0; j < top_k; ++j)
      mean += double(weights(t, j)) * double(this->dweights_TK(t, j));
    for (Index j = 0; j < top_k; ++j) {
      want(ids(t, j)) += double(weights(t, j)) * (double(this->dweights_TK(t, j)) - mean);
    }
    const double tolerance = 8 * double(std::numeric_limits<A>::epsilon());
    for (Index e = 0; e < experts; ++e) EXPECT_NEAR(double(got(t, e)), want(e), tolerance);
  }
}

// With it, a GEMM gives what backward gives.
TYPED_TEST(BackwardLogits, MakesTheGradientsOfBackward) {
  using A = TypeParam;
  for (const bool dense : {false, true}) {
    const gatepro::WeightGradients<A> incoming{
        this->dweights_TK,
        dense ? gatepro::MatrixView<const A>(this->dlogits_TE) : gatepro::MatrixView<const A>()};
    const RowMatrix<A> dlogits = this->dlogits(this->zeros_TE, incoming);
    RowMatrix<A> dx = RowMatrix<A>::Zero(tokens, hidden), dw = RowMatrix<A>::Zero(experts, hidden);
    this->router.backward(this->x_TH, this->w_EH, this->buffers, incoming, {dx, dw});
    const double eps = std::numeric_limits<A>::epsilon();
    EXPECT_LT(double((dlogits * this->w_EH - dx).cwiseAbs().maxCoeff()), 40 * eps);
    EXPECT_LT(double((dlogits.transpose() * this->x_TH - dw).cwiseAbs().maxCoeff()), 400 * eps);
  }
}

TYPED_TEST(BackwardLogits, AddsAndDoesNotDependOnTheExecutor) {
  using A = TypeParam;
  const RowMatrix<A> start = random_matrix<A>(tokens, experts, 5);
  const gatepro::WeightGradients<A> incoming{this->dweights_TK, this->dlogits_TE};
  const RowMatrix<A> got = this->dlogits(start, incoming);
  const RowMatrix<A> added = this->dlogits(this->zeros_TE, incoming);
  EXPECT_LT(double((got - start - added).cwiseAbs().maxCoeff()),
            8 * double(std::numeric_limits<A>::epsilon()));
  EXPECT_TRUE(data::same_bits(this->dlogits(start, incoming, ThreadExecutor(3)), got));
  // In ranges of tokens.
  RowMatrix<A> by_range = start;
  std::vector<std::byte> memory(this->router.backward_logits_workspace_bytes(150));
  for (const Index first : {Index{0}, Index{150}}) {
    const Index count = first == 0 ? 150 : tokens - 150;
    const auto routed = this->routed();
    this->router.backward_logits({routed.expert_ids_TK.middle_rows(first, count),
                                  routed.weights_TK.middle_rows(first, count)},
                                 {strided_view(this->dweights_TK).middle_rows(first, count),
                                  view(this->dlogits_TE).middle_rows(first, count)},
                                 view(by_range).middle_rows(first, count), memory);
  }
  EXPECT_TRUE(data::same_bits(by_range, got));
}

// Padding and choices that were dropped have no expert; losers of elimination weigh nothing.
TYPED_TEST(BackwardLogits, MissingChoicesAndZeroWeightsAddNothing) {
  using A = TypeParam;
  RowMatrix<std::int32_t> ids(1, top_k);
  ids << 4, -1, 7;
  RowMatrix<A> weights(1, top_k), dweights(1, top_k);
  weights << A(0.5), A(0.5), A(0);
  dweights << A(3), A(1), std::numeric_limits<A>::quiet_NaN();
  RowMatrix<A> dlogits = RowMatrix<A>::Zero(1, experts);
  std::vector<std::byte> memory(this->router.backward_logits_workspace_bytes(1));
  this->router.backward_logits({strided_view(ids), strided_view(weights)}, {dweights}, dlogits,
                               memory);
  RowMatrix<A> want = RowMatrix<A>::Zero(1, experts);
  want(0, 4) = A(0.5) * (A(3) - A(2));
  EXPECT_TRUE(data::same_bits(dlogits, want));
}

TYPED_TEST(BackwardLogits, RefusesBadInput) {
  using A = TypeParam;
  RowMatrix<A> out = this->dlogits_TE;
  const auto before = out;
  std::vector<std::byte> memory(this->router.backward_logits_workspace_bytes(tokens));
  const auto call = [&](const gatepro::RoutedChoices<A>& routed,
                        const gatepro::WeightGradients<A>& incoming, gatepro::MatrixView<A> to,
                        gatepro::Workspace scratch) {
    return [=, &router = this->router] { router.backward_logits(routed, incoming, to, scratch); };
  };
  const char* where = "Router::backward_logits";
  const auto good = this->routed();
  const gatepro::StridedView<const A> dweights = strided_view(this->dweights_TK);
  const gatepro::Workspace scratch(memory);
  expect_error(call(good, {dweights}, {out.data(), tokens, experts - 1}, scratch),
               {where, "dlogits_TE", "cols=8", "cols needed=9"});
  expect_error(call(good, {dweights}, {out.data(), tokens - 1, experts}, scratch),
               {where, "weights_TK", "rows=200", "rows needed=199"});
  expect_error(call(good, {dweights.middle_rows(0, 5)}, out, scratch),
               {where, "dweights_TK", "rows=5"});
  expect_error(call(good, {dweights, {this->dlogits_TE.data(), 3, experts}}, out, scratch),
               {where, "dlogits_TE", "rows=3"});
  expect_error(call(good, {dweights}, out, {memory.data(), memory.size() - 1}),
               {where, "workspace", "bytes needed"});
  RowMatrix<std::int32_t> ids = RowMatrix<std::int32_t>::Zero(tokens, top_k);
  ids(7, 1) = 9;
  expect_error(call({strided_view(ids), good.weights_TK}, {dweights}, out, scratch),
               {where, "expert_ids_TK", "id=9", "row=7", "column=1"});
  gatepro::Router<A> one(gatepro::RouterConfig{hidden, experts, 1});
  expect_error(
      [&] {
        one.backward_logits({good.expert_ids_TK, good.weights_TK}, {dweights}, out, scratch);
      },
      {where, "allow_zero_gradient", "top_k=1"});
  EXPECT_TRUE(data::same_bits(out, before));
}

// The stage under it, for gradients of any scored routing, with padding.
TYPED_TEST(BackwardLogits, MergeAddsBothParts) {
  using A = TypeParam;
  const RowMatrix<std::int32_t> ids =
      (RowMatrix<std::int32_t>(3, 2) << 1, 8, 77, 77, -1, 0).finished();
  const std::vector<std::uint8_t> padding = {0, 1, 0};
  const RowMatrix<std::uint8_t> kept = RowMatrix<std::uint8_t>::Zero(3, 2);  // drops come later
  RowMatrix<A> selected(3, 2), dense = RowMatrix<A>::Constant(3, experts, A(10));
  selected << 1, 2, 3, 4, 5, 6;
  const gatepro::Choices<const std::int32_t> choices{strided_view(ids), padding,
                                                     strided_view(kept)};
  RowMatrix<A> want = RowMatrix<A>::Constant(3, experts, A(100)), got = want;
  want(0, 1) += 1;
  want(0, 8) += 2;
  want(2, 0) += 6;
  gatepro::merge_logit_gradients(choices, {strided_view(selected)}, view(got));
  EXPECT_EQ(got, want);
  want.row(0).array() += 10;
  want.row(2).array() += 10;
  want(0, 1) += 1;
  want(0, 8) += 2;
  want(2, 0) += 6;
  gatepro::merge_logit_gradients(choices, {strided_view(selected), view(dense)}, view(got));
  EXPECT_EQ(got, want);
  expect_error(
      [&] {
        gatepro::merge_logit_gradients(choices, {strided_view(selected), view(dense)},
                                       view(got).middle_cols(0, 8));
      },
      {"merge_logit_gradients", "dlogits_TE", "cols=9", "cols needed=8"});
  expect_error(
      [&] {
        gatepro::merge_logit_gradients(choices, {strided_view(selected)},
                                       view(got).middle_cols(0, 8));
      },
      {"merge_logit_gradients", "expert_ids_TK", "id=8"});
  EXPECT_EQ(got, want);
}

}  // namespace
