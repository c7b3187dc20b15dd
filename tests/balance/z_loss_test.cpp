// SPDX-License-Identifier: MIT
// The z-loss and its gradient: against the definition, finite differences, and itself cut up.
#include <gatepro/balance/z_loss.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include "support/bits.hpp"
#include "support/conversions.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/losses.hpp"
#include "support/memory.hpp"
#include "support/reference/losses.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::Index;
using gatepro::LossWeight;
using gatepro::MatrixView;
using gatepro::RowMatrix;
using gatepro::VectorView;
using losses::Mask;

template <class A>
class ZLossTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(ZLossTest, Scalars, TypeNames);

TYPED_TEST(ZLossTest, MatchesTheDefinition) {
  using A = TypeParam;
  for (Index experts : {1, 2, 7, 16, 33, 64}) {
    for (Index tokens : {1, 5, 300}) {
      for (double scale : {1e-3, 2.0, 40.0}) {
        SCOPED_TRACE(testing::Message() << experts << " " << tokens << " " << scale);
        const RowMatrix<A> logits_TE =
            data::random_matrix<A>(tokens, experts, 1) * static_cast<A>(scale);
        const auto reference_TE = data::to_reference(logits_TE);
        const auto got = losses::z_loss(logits_TE, {1e-3});
        losses::expect_close(
            got, reference::z_loss(reference_TE, 1e-3, static_cast<double>(tokens)), 40 + scale);
        const Mask mask = data::random_mask(tokens, 2);
        const auto part = losses::z_loss(logits_TE, {1e-3, 1000}, mask);
        losses::expect_close(part, reference::z_loss(reference_TE, 1e-3, 1000, mask), 40 + scale);
      }
    }
  }
}

TEST(ZLoss, GradientAgreesWithFiniteDifferences) {
  for (Index experts : {2, 5, 9}) {
    const RowMatrix<double> logits_TE = data::random_matrix<double>(4, experts, 3) * 2;
    losses::expect_finite_differences(logits_TE, [](const RowMatrix<double>& moved_TE) {
      return losses::z_loss(moved_TE, {0.5});
    });
  }
}

TYPED_TEST(ZLossTest, EqualLogits) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = RowMatrix<A>::Constant(3, 8, A(2));
  const double lse = 2 + std::log(8.0);
  const auto got = losses::z_loss(logits_TE, {1});
  const double eps = static_cast<double>(std::numeric_limits<A>::epsilon());
  EXPECT_NEAR(got.value, lse * lse, 20 * eps);
  EXPECT_NEAR(static_cast<double>(got.dlogits_TE(2, 7)), 2 * lse / 3 / 8, 20 * eps);
}

// A batch with masked tokens is the batch without them, whatever they hold; their gradients stay.
TYPED_TEST(ZLossTest, MaskedTokensDoNothing) {
  using A = TypeParam;
  for (Index tokens : {1, 40, 700}) {
    const Mask mask = data::random_mask(tokens, 4);
    RowMatrix<A> logits_TE = data::random_matrix<A>(tokens, 6, 5);
    const auto want = losses::z_loss(losses::valid_rows(logits_TE, mask), {0.1});
    for (Index t = 0; t < tokens; ++t) {
      if (mask[static_cast<std::size_t>(t)] != 0)
        logits_TE.row(t).setConstant(data::marked_nan<A>());
    }
    const auto got = losses::z_loss(logits_TE, {0.1}, mask);
    losses::expect_same_value(got.value, want.value);
    EXPECT_TRUE(data::same_bits(losses::valid_rows(got.dlogits_TE, mask), want.dlogits_TE));
    for (Index t = 0; t < tokens; ++t) {
      if (mask[static_cast<std::size_t>(t)] == 0) continue;
      const RowMatrix<A> row = got.dlogits_TE.row(t);
      EXPECT_TRUE(data::same_bits(row, RowMatrix<A>(RowMatrix<A>::Zero(1, 6))));
    }
  }
}

TYPED_TEST(ZLossTest, ExecutorsAndMicroBatchesGiveTheSameBits) {
  using A = TypeParam;
  const Index tokens = 256 * 3 + 7;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(tokens, 19, 6);
  const auto want = losses::z_loss(logits_TE, {1e-2, tokens});
  losses::expect_same_bits(losses::z_loss(logits_TE, {1e-2, tokens}, {}, ThreadExecutor(3)), want);
  losses::expect_same_bits(losses::z_loss(logits_TE, {1e-2, tokens}, {}, LastWorkerFirst(4)), want);
  double value = 0;
  for (Index first = 0; first < tokens; first += 61) {
    const Index count = std::min<Index>(61, tokens - first);
    const RowMatrix<A> part_TE = logits_TE.middleRows(first, count);
    const auto part = losses::z_loss(part_TE, {1e-2, tokens});
    value += part.value;
    EXPECT_TRUE(
        data::same_bits(part.dlogits_TE, RowMatrix<A>(want.dlogits_TE.middleRows(first, count))));
  }
  losses::expect_same_value(value, want.value);
}

// Views with gaps, a gradient that is there already, and none at all.
TYPED_TEST(ZLossTest, AddsToAnyView) {
  using A = TypeParam;
  data::GuardedMatrix<A> logits_TE(data::random_matrix<A>(70, 9, 7), 3);
  const RowMatrix<A> start_TE = data::random_matrix<A>(70, 9, 8);
  data::GuardedMatrix<A> dlogits_TE(start_TE, 5);
  auto memory = data::scratch(gatepro::z_loss_workspace_bytes<A>(70, 9));
  const MatrixView<const A> logits = logits_TE.view();
  const double value =
      gatepro::z_loss(gatepro::LossLogits{logits, {}, dlogits_TE.view()}, {2.0}, memory);
  const auto want = losses::z_loss(logits_TE.values(), {2.0});
  EXPECT_EQ(value, want.value);
  EXPECT_TRUE(dlogits_TE.intact());
  EXPECT_TRUE(data::same_bits(dlogits_TE.values(), RowMatrix<A>(start_TE + want.dlogits_TE)));
  EXPECT_EQ(gatepro::z_loss(gatepro::LossLogits{logits}, {2.0}, memory), want.value);
}

TYPED_TEST(ZLossTest, TheGradientIsScaledAndTheValueIsNot) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(20, 5, 9);
  const auto plain = losses::z_loss(logits_TE, {1e-3});
  const auto scaled = losses::z_loss(logits_TE, {1e-3, 0, 1024});
  EXPECT_EQ(scaled.value, plain.value);
  EXPECT_TRUE(data::same_bits(scaled.dlogits_TE, RowMatrix<A>(plain.dlogits_TE * A(1024))));
  const auto unscaled = losses::z_loss(logits_TE, {1e-3, 0, 0});
  EXPECT_EQ(unscaled.value, plain.value);
  EXPECT_TRUE(unscaled.dlogits_TE.isZero(0));
}

TYPED_TEST(ZLossTest, NonfiniteTokensSpoilTheirOwnGradientOnly) {
  using A = TypeParam;
  const A inf = data::infinity<A>();
  RowMatrix<A> logits_TE = data::random_matrix<A>(40, 4, 10);
  const auto want = losses::z_loss(logits_TE, {1, 40});
  logits_TE(3, 1) = data::marked_nan<A>();
  logits_TE(17, 2) = inf;
  logits_TE.row(18).setConstant(-inf);
  logits_TE(30, 0) = -inf;
  const auto got = losses::z_loss(logits_TE, {1, 40});
  EXPECT_TRUE(std::isnan(got.value));
  for (Index t = 0; t < 40; ++t) {
    if (t == 30) {
      EXPECT_EQ(got.dlogits_TE(t, 0), 0);
      EXPECT_TRUE(got.dlogits_TE.row(t).allFinite());
    } else if (t == 3 || t == 17 || t == 18) {
      EXPECT_TRUE(got.dlogits_TE.row(t).array().isNaN().all()) << t;
    } else {
      EXPECT_TRUE(data::same_bits(RowMatrix<A>(got.dlogits_TE.row(t)),
                                  RowMatrix<A>(want.dlogits_TE.row(t))));
    }
  }
}

TYPED_TEST(ZLossTest, NothingToDo) {
  using A = TypeParam;
  EXPECT_EQ(losses::z_loss(RowMatrix<A>(0, 4), {1}).value, 0);
  const RowMatrix<A> bad_TE = RowMatrix<A>::Constant(3, 4, data::marked_nan<A>());
  for (const auto& got : {losses::z_loss(bad_TE, {1}, {1, 1, 1}), losses::z_loss(bad_TE, {0}),
                          losses::z_loss(bad_TE, {-0.0})}) {
    EXPECT_EQ(got.value, 0);
    EXPECT_TRUE(got.dlogits_TE.isZero(0));
  }
}

TYPED_TEST(ZLossTest, BadInput) {
  using A = TypeParam;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double inf = std::numeric_limits<double>::infinity();
  const RowMatrix<A> logits_TE = RowMatrix<A>::Zero(3, 4);
  RowMatrix<A> dlogits_TE = RowMatrix<A>::Zero(3, 4), wide_TE = RowMatrix<A>::Zero(3, 5);
  RowMatrix<A> own_TE = logits_TE;
  const Mask short_mask(2, 0), mask(3, 0);
  auto memory = data::scratch(gatepro::z_loss_workspace_bytes<A>(3, 4));
  const auto call = [&](const LossWeight& weight, const Mask& padding, RowMatrix<A>& gradient,
                        std::size_t bytes) {
    return gatepro::z_loss(gatepro::LossLogits{gatepro::view(logits_TE), padding, gradient}, weight,
                           {memory.data(), bytes});
  };
  const std::size_t bytes = memory.size();
  for (double bad : {-1.0, nan, inf}) {
    expect_error([&] { call({bad}, mask, dlogits_TE, bytes); },
                 {"z_loss", "coefficient finite and >= 0", "coefficient="});
  }
  for (double bad : {nan, inf, -inf}) {
    expect_error([&] { call({1, 3, bad}, mask, dlogits_TE, bytes); }, {"gradient_scale finite"});
  }
  expect_error([&] { call({1, -1}, mask, dlogits_TE, bytes); }, {"mean_over >= 0", "mean_over=-1"});
  expect_error([&] { call({1}, short_mask, dlogits_TE, bytes); }, {"is_padding_T", "size=2"});
  expect_error([&] { call({1}, mask, wide_TE, bytes); }, {"dlogits_TE", "cols=5", "cols needed=4"});
  expect_error([&] { call({1}, mask, dlogits_TE, bytes - 65); }, {"z_loss", "workspace"});
  expect_error(
      [&] {
        gatepro::z_loss(gatepro::LossLogits{gatepro::view(own_TE), {}, gatepro::view(own_TE)},
                        {1.0}, memory);
      },
      {"dlogits_TE and logits_TE overlap"});
  const MatrixView<const A> none(nullptr, 3, 0);
  expect_error([&] { gatepro::z_loss(gatepro::LossLogits{none}, {1.0}, memory); },
               {"num_experts=0"});
  EXPECT_TRUE(dlogits_TE.isZero(0));
}

}  // namespace
