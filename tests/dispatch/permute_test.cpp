// SPDX-License-Identifier: MIT
// Tokens to rows and back, and the gradients of both, against loops in double.
#include <gatepro/dispatch/permute.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

#include "gatepro/dispatch/plan.hpp"
#include "support/bits.hpp"
#include "support/conversions.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/ids.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/reference/matrix.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::Index;
using gatepro::MatrixView;
using gatepro::RowMatrix;
using gatepro::strided_view;
using gatepro::StridedView;
using gatepro::VectorView;
using gatepro::view;

constexpr Index none = -1;

/// A plan of random choices, some of which are dropped, with gaps between experts.
template <class Id>
struct Plan {
  Plan(Index tokens, Index experts, Index top_k, std::uint64_t seed) : row_TK(tokens, top_k) {
    const auto ids_TK = data::random_ids<std::int32_t>(tokens, experts, top_k, seed);
    RowMatrix<std::uint8_t> kept_TK(tokens, top_k);
    for (Index i = 0; i < kept_TK.size(); ++i) {
      kept_TK.data()[i] = data::random_below(5, seed + 1, std::uint64_t(i)) == 0 ? 0 : 1;
    }
    const gatepro::DispatchRule rule{gatepro::DispatchOrder::token_major, 3};
    rows = gatepro::max_dispatch_rows(tokens, experts, top_k, rule);
    choice_of_row.resize(static_cast<std::size_t>(rows));
    token_of_row.resize(static_cast<std::size_t>(rows));
    gatepro::DispatchPlan<Id> plan;
    plan.choice_of_row_N = choice_of_row;
    plan.token_of_row_N = token_of_row;
    plan.row_TK = strided_view(row_TK);
    auto memory = data::scratch(gatepro::plan_dispatch_workspace_bytes(experts));
    gatepro::plan_dispatch(gatepro::Choices{strided_view(ids_TK), {}, strided_view(kept_TK)},
                           experts, rule, plan, memory);
  }
  Index token(Index r) const { return some(token_of_row[static_cast<std::size_t>(r)]); }
  Index choice(Index r) const { return some(choice_of_row[static_cast<std::size_t>(r)]); }
  Index row(Index t, Index j) const { return some(row_TK(t, j)); }
  static Index some(Id id) { return id == static_cast<Id>(-1) ? none : static_cast<Index>(id); }

  Index rows;
  std::vector<Id> choice_of_row, token_of_row;
  RowMatrix<Id> row_TK;
};

/// The scalar of tokens and rows, and the id type of the plan.
template <class Tokens, class Ids>
struct Types {
  using X = Tokens;
  using Id = Ids;
  using A = gatepro::accumulator_t<X>;
};
struct Names {
  template <class T>
  static std::string GetName(int) {
    return TypeNames::GetName<typename T::X>(0) + "_" + TypeNames::GetName<typename T::Id>(0);
  }
};

template <class T>
class PermuteTest : public ::testing::Test {};
using AllTypes =
    ::testing::Types<Types<float, std::int32_t>, Types<double, std::int64_t>,
                     Types<gatepro::bfloat16, std::uint64_t>, Types<gatepro::half, std::int32_t>>;
TYPED_TEST_SUITE(PermuteTest, AllTypes, Names);

constexpr Index widths[] = {0, 1, 3, 16, 37, 255, 256, 300, 513};

TYPED_TEST(PermuteTest, CopiesBitsAndFillsGapsWithZeros) {
  using X = typename TypeParam::X;
  for (Index hidden : widths) {
    const Plan<typename TypeParam::Id> plan(70, 6, 3, 1);
    const auto x_TH = data::random_matrix<X>(70, hidden, 2);
    RowMatrix<X> want(plan.rows, hidden);
    Index gaps = 0;
    for (Index r = 0; r < plan.rows; ++r) {
      gaps += plan.token(r) == none ? 1 : 0;
      for (Index c = 0; c < hidden; ++c) {
        want(r, c) = plan.token(r) == none ? X(0.0F) : x_TH(plan.token(r), c);
      }
    }
    ASSERT_GT(gaps, 0);
    data::GuardedMatrix<X> rows_NH(plan.rows, hidden, 5);
    gatepro::permute(VectorView<const typename TypeParam::Id>(plan.token_of_row), view(x_TH),
                     rows_NH.view(), ThreadExecutor(3));
    EXPECT_TRUE(data::same_bits(rows_NH.values(), want)) << hidden;
    EXPECT_TRUE(rows_NH.intact());
  }
}

TYPED_TEST(PermuteTest, BackwardAddsEachTokensRows) {
  using A = typename TypeParam::A;
  for (Index hidden : widths) {
    const Plan<typename TypeParam::Id> plan(70, 6, 3, 3);
    const auto drows_NH = data::random_matrix<A>(plan.rows, hidden, 4);
    const auto start = data::random_matrix<A>(70, hidden, 5);
    RowMatrix<A> want = start;
    for (Index t = 0; t < 70; ++t) {
      for (Index j = 0; j < 3; ++j) {
        if (plan.row(t, j) != none) want.row(t) += drows_NH.row(plan.row(t, j));
      }
    }
    data::GuardedMatrix<A> dx_TH(start, 3);
    gatepro::permute_backward(strided_view(plan.row_TK), view(drows_NH), dx_TH.view());
    EXPECT_TRUE(data::same_bits(dx_TH.values(), want)) << hidden;
    EXPECT_TRUE(dx_TH.intact());
  }
}

TYPED_TEST(PermuteTest, CombineAddsWeightedRows) {
  using A = typename TypeParam::A;
  for (Index hidden : widths) {
    const Plan<typename TypeParam::Id> plan(70, 6, 3, 6);
    const auto rows_NH = data::random_matrix<typename TypeParam::X>(plan.rows, hidden, 7);
    const auto weights_TK = data::random_matrix<A>(70, 3, 8);
    const auto start = data::random_matrix<A>(70, hidden, 9);
    data::GuardedMatrix<A> y_TH(start, 3);
    gatepro::combine(strided_view(plan.row_TK), strided_view(weights_TK), view(rows_NH),
                     y_TH.view());
    const RowMatrix<A> got = y_TH.values();
    for (Index t = 0; t < 70; ++t) {
      for (Index c = 0; c < hidden; ++c) {
        double want = double(start(t, c));
        for (Index j = 0; j < 3; ++j) {
          if (plan.row(t, j) == none) continue;
          want += double(weights_TK(t, j)) * double(rows_NH(plan.row(t, j), c));
        }
        ASSERT_NEAR(double(got(t, c)), want, 8 * double(std::numeric_limits<A>::epsilon()));
      }
    }
    EXPECT_TRUE(y_TH.intact());
  }
}

TYPED_TEST(PermuteTest, CombineBackwardGivesBothGradients) {
  using A = typename TypeParam::A;
  for (Index hidden : widths) {
    const Plan<typename TypeParam::Id> plan(70, 6, 3, 10);
    const auto rows_NH = data::random_matrix<typename TypeParam::X>(plan.rows, hidden, 11);
    const auto weights_TK = data::random_matrix<A>(70, 3, 12);
    const auto dy_TH = data::random_matrix<A>(70, hidden, 13);
    const auto start_rows = data::random_matrix<A>(plan.rows, hidden, 14);
    const auto start_weights = data::random_matrix<A>(70, 3, 15);

    data::GuardedMatrix<A> drows(start_rows, 3);
    gatepro::combine_backward_rows(VectorView<const typename TypeParam::Id>(plan.choice_of_row),
                                   strided_view(weights_TK), view(dy_TH), drows.view());
    RowMatrix<A> dweights = start_weights;
    gatepro::combine_backward_weights(strided_view(plan.row_TK), view(rows_NH), view(dy_TH),
                                      strided_view(dweights));
    const double eps = double(std::numeric_limits<A>::epsilon());
    reference::Matrix want = data::to_reference(start_rows);
    for (Index t = 0; t < 70; ++t) {
      for (Index j = 0; j < 3; ++j) {
        double dot = double(start_weights(t, j));
        const Index r = plan.row(t, j);
        for (Index c = 0; c < hidden && r != none; ++c) {
          dot += double(dy_TH(t, c)) * double(rows_NH(r, c));
          want[std::size_t(r)][std::size_t(c)] += double(weights_TK(t, j)) * double(dy_TH(t, c));
        }
        ASSERT_NEAR(double(dweights(t, j)), dot, 2 * eps * double(hidden + 4));
      }
    }
    const RowMatrix<A> got = drows.values();
    for (Index r = 0; r < plan.rows; ++r) {
      for (Index c = 0; c < hidden; ++c) {
        ASSERT_NEAR(double(got(r, c)), data::at(want, r, c), 4 * eps);
      }
    }
    EXPECT_TRUE(drows.intact());
  }
}

TYPED_TEST(PermuteTest, BitsDoNotDependOnThreadsOrRanges) {
  using A = typename TypeParam::A;
  using Id = typename TypeParam::Id;
  constexpr Index tokens = 200, hidden = 37, top_k = 4, first = 71;
  const Plan<Id> plan(tokens, 9, top_k, 16);
  const auto rows_NH = data::random_matrix<typename TypeParam::X>(plan.rows, hidden, 17);
  const auto weights_TK = data::random_matrix<A>(tokens, top_k, 18);
  const auto dy_TH = data::random_matrix<A>(tokens, hidden, 19);
  const auto start = data::random_matrix<A>(tokens, hidden, 20);
  const auto row_TK = strided_view(plan.row_TK);
  const auto w = strided_view(weights_TK);
  const auto drows_start = data::random_matrix<A>(plan.rows, hidden, 21);
  const VectorView<const Id> choices(plan.choice_of_row);

  RowMatrix<A> y = start, dx = start, dw = weights_TK, drows = drows_start;
  gatepro::combine(row_TK, w, view(rows_NH), view(y));
  gatepro::permute_backward(row_TK, view(drows_start), view(dx));
  gatepro::combine_backward_weights(row_TK, view(rows_NH), view(dy_TH), strided_view(dw));
  gatepro::combine_backward_rows(choices, w, view(dy_TH), view(drows));
  for (int workers : {2, 5}) {
    const ThreadExecutor executor(workers);
    RowMatrix<A> y2 = start, dx2 = start, dw2 = weights_TK, drows2 = drows_start;
    gatepro::combine(row_TK, w, view(rows_NH), view(y2), executor);
    gatepro::permute_backward(row_TK, view(drows_start), view(dx2), executor);
    gatepro::combine_backward_weights(row_TK, view(rows_NH), view(dy_TH), strided_view(dw2),
                                      executor);
    gatepro::combine_backward_rows(choices, w, view(dy_TH), view(drows2), executor);
    EXPECT_TRUE(data::same_bits(y, y2));
    EXPECT_TRUE(data::same_bits(dx, dx2));
    EXPECT_TRUE(data::same_bits(dw, dw2));
    EXPECT_TRUE(data::same_bits(drows, drows2));
  }
  RowMatrix<A> y3 = start, dw3 = weights_TK;
  for (auto [from, count] : {std::pair(Index{0}, first), std::pair(first, tokens - first)}) {
    gatepro::combine(row_TK.middle_rows(from, count), w.middle_rows(from, count), view(rows_NH),
                     view(y3).middle_rows(from, count));
    gatepro::combine_backward_weights(row_TK.middle_rows(from, count), view(rows_NH),
                                      view(dy_TH).middle_rows(from, count),
                                      strided_view(dw3).middle_rows(from, count));
  }
  EXPECT_TRUE(data::same_bits(y, y3));
  EXPECT_TRUE(data::same_bits(dw, dw3));
}

// 16-bit rows are their widened floats.
TYPED_TEST(PermuteTest, NarrowRowsGiveTheBitsOfWidenedOnes) {
  using A = typename TypeParam::A;
  const Plan<typename TypeParam::Id> plan(60, 5, 2, 22);
  const auto rows_NH = data::random_matrix<typename TypeParam::X>(plan.rows, 41, 23);
  const RowMatrix<A> wide_NH = rows_NH.template cast<A>();
  const auto weights_TK = data::random_matrix<A>(60, 2, 24);
  const auto dy_TH = data::random_matrix<A>(60, 41, 25);
  RowMatrix<A> y = dy_TH, y_wide = dy_TH, dw = weights_TK, dw_wide = weights_TK;
  const auto row_TK = strided_view(plan.row_TK);
  gatepro::combine(row_TK, strided_view(weights_TK), view(rows_NH), view(y));
  gatepro::combine(row_TK, strided_view(weights_TK), view(wide_NH), view(y_wide));
  gatepro::combine_backward_weights(row_TK, view(rows_NH), view(dy_TH), strided_view(dw));
  gatepro::combine_backward_weights(row_TK, view(wide_NH), view(dy_TH), strided_view(dw_wide));
  EXPECT_TRUE(data::same_bits(y, y_wide));
  EXPECT_TRUE(data::same_bits(dw, dw_wide));
}

// A loser in elimination weighs exactly 0: its expert need not have computed anything.
TYPED_TEST(PermuteTest, AWeightOfZeroTouchesNoRow) {
  using A = typename TypeParam::A;
  using Id = typename TypeParam::Id;
  const A nan = std::numeric_limits<A>::quiet_NaN();
  RowMatrix<A> rows_NH = RowMatrix<A>::Ones(2, 5);
  rows_NH.row(1).setConstant(nan);
  RowMatrix<Id> row_TK(1, 2);
  row_TK << Id(0), Id(1);
  for (A zero : {A(0), -A(0)}) {
    RowMatrix<A> weights_TK(1, 2);
    weights_TK << A(0.5), zero;
    RowMatrix<A> y_TH = RowMatrix<A>::Ones(1, 5);
    gatepro::combine(strided_view(row_TK), strided_view(weights_TK), view(rows_NH), view(y_TH));
    EXPECT_TRUE((y_TH.array() == A(1.5)).all());

    const RowMatrix<A> dy_TH = RowMatrix<A>::Constant(1, 5, nan);
    const std::vector<Id> choice_of_row{Id(0), Id(1)};
    RowMatrix<A> drows_NH = RowMatrix<A>::Ones(2, 5);
    gatepro::combine_backward_rows(VectorView<const Id>(choice_of_row), strided_view(weights_TK),
                                   view(dy_TH), view(drows_NH));
    EXPECT_TRUE(drows_NH.row(0).array().isNaN().all());
    EXPECT_TRUE((drows_NH.row(1).array() == 1).all());
  }
}

TYPED_TEST(PermuteTest, AnInfinityIsMultipliedOnlyWhereItStands) {
  using A = typename TypeParam::A;
  using Id = typename TypeParam::Id;
  for (Index hidden : {300, 303}) {
    RowMatrix<A> rows_NH = RowMatrix<A>::Ones(1, hidden);
    rows_NH(0, 45) = rows_NH(0, 47) = data::infinity<A>();
    const RowMatrix<Id> row_TK = RowMatrix<Id>::Zero(1, 1);
    const RowMatrix<A> dy_TH = RowMatrix<A>::Ones(1, hidden);
    RowMatrix<A> dweights_TK = RowMatrix<A>::Zero(1, 1);
    gatepro::combine_backward_weights(strided_view(row_TK), view(rows_NH), view(dy_TH),
                                      strided_view(dweights_TK));
    EXPECT_EQ(dweights_TK(0, 0), data::infinity<A>());
  }
}

// The loss is <g, y> with y = combine(permute(x)): every gradient, by finite differences.
TEST(PermuteGradient, AgainstFiniteDifferences) {
  constexpr Index tokens = 9, hidden = 5, top_k = 2;
  const Plan<std::int64_t> plan(tokens, 4, top_k, 30);
  RowMatrix<double> x = data::random_matrix<double>(tokens, hidden, 31);
  RowMatrix<double> weights = data::random_matrix<double>(tokens, top_k, 32);
  const auto g = data::random_matrix<double>(tokens, hidden, 33);
  const auto row_TK = strided_view(plan.row_TK);
  RowMatrix<double> rows(plan.rows, hidden);
  const auto loss = [&] {
    gatepro::permute(VectorView<const std::int64_t>(plan.token_of_row), view(x), view(rows));
    rows = rows.array().sin();  // the experts
    RowMatrix<double> y = RowMatrix<double>::Zero(tokens, hidden);
    gatepro::combine(row_TK, strided_view(weights), view(rows), view(y));
    return (g.array() * y.array()).sum();
  };
  loss();
  RowMatrix<double> drows = RowMatrix<double>::Zero(plan.rows, hidden);
  gatepro::combine_backward_rows(VectorView<const std::int64_t>(plan.choice_of_row),
                                 strided_view(weights), view(g), view(drows));
  RowMatrix<double> dweights = RowMatrix<double>::Zero(tokens, top_k);
  gatepro::combine_backward_weights(row_TK, view(rows), view(g), strided_view(dweights));
  gatepro::permute(VectorView<const std::int64_t>(plan.token_of_row), view(x), view(rows));
  drows.array() *= rows.array().cos();
  RowMatrix<double> dx = RowMatrix<double>::Zero(tokens, hidden);
  gatepro::permute_backward(row_TK, view(drows), view(dx));

  const auto expect_slope = [&](double& value, double gradient) {
    const double start = value;
    const auto at = [&](double offset) {
      value = start + offset;
      const double result = loss();
      value = start;
      return result;
    };
    const double slope = reference::derivative(at, 1e-3);
    EXPECT_NEAR(gradient, slope, 1e-9 * std::max(1.0, std::abs(slope)));
  };
  for (Index i = 0; i < x.size(); ++i) expect_slope(x.data()[i], dx.data()[i]);
  for (Index i = 0; i < weights.size(); ++i) expect_slope(weights.data()[i], dweights.data()[i]);
}

/// What a product in A is as an X: rounded once more.
template <class X, class A>
X rounded(A product) {
  return static_cast<X>(product);
}

TYPED_TEST(PermuteTest, ScaledRowsAreRoundedProducts) {
  using X = typename TypeParam::X;
  using A = typename TypeParam::A;
  using Id = typename TypeParam::Id;
  for (Index hidden : widths) {
    const Plan<Id> plan(70, 6, 3, 50);
    const auto x_TH = data::random_matrix<X>(70, hidden, 51);
    RowMatrix<A> weights_TK = data::random_matrix<A>(70, 3, 52);
    weights_TK(plan.choice(3) / 3, plan.choice(3) % 3) = A(0);
    RowMatrix<X> want = RowMatrix<X>::Constant(plan.rows, hidden, X(0.0F));
    for (Index r = 0; r < plan.rows; ++r) {
      const Index choice = plan.choice(r);
      if (choice == none || r == 3) continue;
      const A weight = weights_TK(choice / 3, choice % 3);
      for (Index c = 0; c < hidden; ++c) {
        want(r, c) = rounded<X>(weight * static_cast<A>(x_TH(choice / 3, c)));
      }
    }
    for (int workers : {1, 3}) {
      data::GuardedMatrix<X> rows_NH(plan.rows, hidden, 5);
      gatepro::permute_scaled(VectorView<const Id>(plan.choice_of_row), strided_view(weights_TK),
                              view(x_TH), rows_NH.view(), ThreadExecutor(workers));
      EXPECT_TRUE(data::same_bits(rows_NH.values(), want)) << hidden;
      EXPECT_TRUE(rows_NH.intact());
    }
  }
}

// As combine does with rows: a choice that weighs nothing takes nothing from its token.
TYPED_TEST(PermuteTest, AWeightOfZeroScalesNoNaN) {
  using X = typename TypeParam::X;
  using A = typename TypeParam::A;
  using Id = typename TypeParam::Id;
  const RowMatrix<X> x_TH = RowMatrix<X>::Constant(1, 5, data::infinity<X>());
  const std::vector<Id> choice_of_row{Id(1), Id(0), static_cast<Id>(-1), Id(2)};
  RowMatrix<A> weights_TK(1, 3);
  weights_TK << A(-2), -A(0), std::numeric_limits<A>::quiet_NaN();
  RowMatrix<X> rows_NH = RowMatrix<X>::Constant(4, 5, X(7.0F));
  gatepro::permute_scaled(VectorView<const Id>(choice_of_row), strided_view(weights_TK), view(x_TH),
                          view(rows_NH));
  for (Index c = 0; c < 5; ++c) {
    EXPECT_EQ(double(rows_NH(0, c)), 0);
    EXPECT_EQ(double(rows_NH(1, c)), -data::infinity<double>());
    EXPECT_EQ(double(rows_NH(2, c)), 0);
    EXPECT_TRUE(std::isnan(double(rows_NH(3, c))));
  }
}

TYPED_TEST(PermuteTest, ScaledBackwardIsTheProductWithTheToken) {
  using X = typename TypeParam::X;
  using A = typename TypeParam::A;
  constexpr Index tokens = 200, hidden = 37, first = 71;
  const Plan<typename TypeParam::Id> plan(tokens, 9, 4, 60);
  const auto x_TH = data::random_matrix<X>(tokens, hidden, 61);
  const auto drows_NH = data::random_matrix<A>(plan.rows, hidden, 62);
  const auto start = data::random_matrix<A>(tokens, 4, 63);
  const auto row_TK = strided_view(plan.row_TK);
  RowMatrix<A> got = start, threaded = start, ranges = start;
  gatepro::permute_scaled_backward_weights(row_TK, view(x_TH), view(drows_NH), strided_view(got));
  for (Index t = 0; t < tokens; ++t) {
    for (Index j = 0; j < 4; ++j) {
      double dot = double(start(t, j));
      const Index r = plan.row(t, j);
      for (Index c = 0; c < hidden && r != none; ++c) {
        dot += double(x_TH(t, c)) * double(drows_NH(r, c));
      }
      ASSERT_NEAR(double(got(t, j)), dot,
                  2 * double(std::numeric_limits<A>::epsilon()) * double(hidden + 4));
    }
  }
  gatepro::permute_scaled_backward_weights(row_TK, view(x_TH), view(drows_NH),
                                           strided_view(threaded), ThreadExecutor(3));
  for (auto [from, count] : {std::pair(Index{0}, first), std::pair(first, tokens - first)}) {
    gatepro::permute_scaled_backward_weights(row_TK.middle_rows(from, count),
                                             view(x_TH).middle_rows(from, count), view(drows_NH),
                                             strided_view(ranges).middle_rows(from, count));
  }
  EXPECT_TRUE(data::same_bits(got, threaded));
  EXPECT_TRUE(data::same_bits(got, ranges));
}

/// The derivative of `loss` by `value`.
template <class Loss>
double slope_of(const Loss& loss, double& value) {
  const double start = value;
  const auto at = [&](double offset) {
    value = start + offset;
    const double result = loss();
    value = start;
    return result;
  };
  return reference::derivative(at, 1e-3);
}

// The loss is <g, y> with y = combine(1, experts(permute_scaled(weights, x))).
TEST(PermuteScaledGradient, AgainstFiniteDifferences) {
  constexpr Index tokens = 9, hidden = 5, top_k = 2;
  const Plan<std::int64_t> plan(tokens, 4, top_k, 70);
  RowMatrix<double> x = data::random_matrix<double>(tokens, hidden, 71);
  RowMatrix<double> weights = data::random_matrix<double>(tokens, top_k, 72);
  const auto g = data::random_matrix<double>(tokens, hidden, 73);
  const auto row_TK = strided_view(plan.row_TK);
  const VectorView<const std::int64_t> choices(plan.choice_of_row);
  const double one = 1;
  const StridedView<const double> ones(&one, tokens, top_k, 0, 0);
  RowMatrix<double> sent(plan.rows, hidden), rows(plan.rows, hidden);
  const auto loss = [&] {
    gatepro::permute_scaled(choices, strided_view(weights), view(x), view(sent));
    rows = sent.array().sin();  // the experts
    RowMatrix<double> y = RowMatrix<double>::Zero(tokens, hidden);
    gatepro::combine(row_TK, ones, view(rows), view(y));
    return (g.array() * y.array()).sum();
  };
  loss();
  RowMatrix<double> drows = RowMatrix<double>::Zero(plan.rows, hidden);
  gatepro::combine_backward_rows(choices, ones, view(g), view(drows));
  drows.array() *= sent.array().cos();
  RowMatrix<double> dweights = RowMatrix<double>::Zero(tokens, top_k);
  gatepro::permute_scaled_backward_weights(row_TK, view(x), view(drows), strided_view(dweights));
  RowMatrix<double> dx = RowMatrix<double>::Zero(tokens, hidden);
  gatepro::combine(row_TK, strided_view(weights), view(drows), view(dx));
  const auto expect_slope = [&](double& value, double gradient) {
    const double slope = slope_of(loss, value);
    EXPECT_NEAR(gradient, slope, 1e-9 * std::max(1.0, std::abs(slope)));
  };
  for (Index i = 0; i < x.size(); ++i) expect_slope(x.data()[i], dx.data()[i]);
  for (Index i = 0; i < weights.size(); ++i) expect_slope(weights.data()[i], dweights.data()[i]);
}

TYPED_TEST(PermuteTest, BadScaledInputWritesNothing) {
  using A = typename TypeParam::A;
  using Id = typename TypeParam::Id;
  RowMatrix<A> x = RowMatrix<A>::Ones(2, 3), rows = RowMatrix<A>::Ones(4, 3);
  RowMatrix<A> w = RowMatrix<A>::Ones(2, 2);
  std::vector<Id> choices = {0, 1, 2, 3};
  RowMatrix<Id> row_TK = RowMatrix<Id>::Zero(2, 2);
  const auto expect_refused = [&](MatrixView<A> tokens_TH, MatrixView<A> rows_NH,
                                  StridedView<A> weights, std::initializer_list<const char*> forth,
                                  std::initializer_list<const char*> back) {
    expect_error(
        [&] {
          gatepro::permute_scaled(VectorView<const Id>(choices), weights, tokens_TH, rows_NH);
        },
        forth);
    expect_error(
        [&] {
          gatepro::permute_scaled_backward_weights(strided_view(row_TK), tokens_TH, rows_NH,
                                                   weights);
        },
        back);
    EXPECT_TRUE((x.array() == 1).all() && (rows.array() == 1).all() && (w.array() == 1).all());
  };
  const char* forth = "permute_scaled";
  const char* back = "permute_scaled_backward_weights";
  const auto tx = view(x), rn = view(rows);
  const auto sw = strided_view(w);
  expect_refused({nullptr, 2, 3}, rn, sw, {forth, "x_TH"}, {back, "x_TH"});
  expect_refused(tx, {rows.data(), 4, 2, 3}, sw, {forth, "rows_NH"}, {back, "drows_NH"});
  expect_refused(tx, rn, {w.data(), 1, 2}, {forth, "weights_TK"}, {back, "dweights_TK"});
  expect_refused(tx, {w.data(), 4, 3, 0}, sw, {forth, "rows_NH"}, {back, "drows_NH"});
  choices[2] = Id(4);
  row_TK(1, 1) = Id(4);
  expect_refused(tx, rn, sw, {forth, "choice_of_row_N", "element=4", "limit=4"},
                 {back, "row_TK", "element=4", "limit=4"});
  choices[2] = static_cast<Id>(-2);
  row_TK(1, 1) = static_cast<Id>(-2);
  expect_refused(tx, rn, sw, {forth, "choice_of_row_N"}, {back, "row_TK"});
}

TYPED_TEST(PermuteTest, WeightsInTheOrderOfRowsAndTheirGradient) {
  using A = typename TypeParam::A;
  using Id = typename TypeParam::Id;
  constexpr Index tokens = 21, top_k = 3;
  const Plan<Id> plan(tokens, 5, top_k, 40);
  const auto weights = data::random_matrix<A>(tokens, top_k, 41);
  std::vector<A> row_weights(static_cast<std::size_t>(plan.rows), A(77));
  gatepro::permute_weights(VectorView<const Id>(plan.choice_of_row), strided_view(weights),
                           VectorView<A>(row_weights));
  std::vector<A> want(row_weights.size(), A(0));
  for (Index t = 0; t < tokens; ++t) {
    for (Index j = 0; j < top_k; ++j) {
      if (plan.row(t, j) != none) want[static_cast<std::size_t>(plan.row(t, j))] = weights(t, j);
    }
  }
  EXPECT_EQ(row_weights, want);

  const auto start = data::random_matrix<A>(tokens, top_k, 42);
  RowMatrix<A> dweights = start;
  gatepro::permute_weights_backward(strided_view(plan.row_TK), VectorView<const A>(row_weights),
                                    strided_view(dweights));
  for (Index t = 0; t < tokens; ++t) {
    for (Index j = 0; j < top_k; ++j) {
      const A added = plan.row(t, j) != none ? weights(t, j) : A(0);
      EXPECT_EQ(dweights(t, j), start(t, j) + added);
    }
  }
}

TYPED_TEST(PermuteTest, BadWeightsOfRowsWriteNothing) {
  using A = typename TypeParam::A;
  using Id = typename TypeParam::Id;
  std::vector<Id> choices = {0, 1, 2, 3};
  RowMatrix<Id> row_TK = RowMatrix<Id>::Zero(2, 2);
  RowMatrix<A> weights = RowMatrix<A>::Ones(2, 2);
  std::vector<A> row_weights(4, A(1));
  const auto expect_refused = [&](VectorView<const Id> list, StridedView<const Id> table,
                                  Index rows, std::initializer_list<const char*> forth,
                                  std::initializer_list<const char*> back) {
    const VectorView<A> of_rows(row_weights.data(), rows);
    expect_error([&] { gatepro::permute_weights(list, strided_view(weights), of_rows); }, forth);
    expect_error([&] { gatepro::permute_weights_backward(table, of_rows, strided_view(weights)); },
                 back);
    EXPECT_EQ(weights, (RowMatrix<A>::Ones(2, 2)));
    EXPECT_EQ(row_weights, std::vector<A>(4, A(1)));
  };
  const VectorView<const Id> list(choices);
  const auto table = strided_view(row_TK);
  row_TK(1, 0) = 3;
  expect_refused(list, table, 3, {"permute_weights", "choice_of_row_N", "size=4", "size needed=3"},
                 {"permute_weights_backward", "row_TK", "element=3", "row=1", "limit=3"});
  choices[2] = 4;
  row_TK(1, 0) = 4;
  expect_refused(list, table, 4, {"permute_weights", "choice_of_row_N", "element=4", "limit=4"},
                 {"permute_weights_backward", "row_TK", "element=4", "limit=4"});
  choices[2] = 0;
  expect_error(
      [&] {
        gatepro::permute_weights(list, strided_view(weights), VectorView<A>(weights.data(), 4));
      },
      {"permute_weights", "row_weights_N", "weights_TK", "overlap"});
}

TYPED_TEST(PermuteTest, BadInputWritesNothing) {
  using A = typename TypeParam::A;
  using Id = typename TypeParam::Id;
  constexpr Index tokens = 4, hidden = 3, top_k = 2, rows = 6;
  RowMatrix<A> x = RowMatrix<A>::Ones(tokens, hidden), r = RowMatrix<A>::Ones(rows, hidden);
  RowMatrix<A> w = RowMatrix<A>::Ones(tokens, top_k), y = x, out = r, dw = w;
  RowMatrix<Id> row_TK = RowMatrix<Id>::Zero(tokens, top_k);
  std::vector<Id> list(rows, Id(0));
  const auto refuse_all = [&](MatrixView<A> tokens_TH, MatrixView<A> rows_NH,
                              StridedView<A> weights, VectorView<Id> l, StridedView<Id> table) {
    const VectorView<const Id> row_list(l);
    const StridedView<const Id> row_table(table);
    EXPECT_THROW(gatepro::combine(row_table, weights, rows_NH, tokens_TH), gatepro::Error);
    EXPECT_THROW(gatepro::combine_backward_weights(row_table, rows_NH, tokens_TH, weights),
                 gatepro::Error);
    EXPECT_THROW(gatepro::combine_backward_rows(row_list, weights, tokens_TH, rows_NH),
                 gatepro::Error);
    EXPECT_TRUE((x.array() == 1).all() && (r.array() == 1).all() && (w.array() == 1).all());
  };
  const auto refuse_permute = [&](MatrixView<A> tokens_TH, MatrixView<A> rows_NH, VectorView<Id> l,
                                  StridedView<Id> table) {
    EXPECT_THROW(gatepro::permute(VectorView<const Id>(l), tokens_TH, rows_NH), gatepro::Error);
    EXPECT_THROW(gatepro::permute_backward(StridedView<const Id>(table), rows_NH, tokens_TH),
                 gatepro::Error);
    EXPECT_TRUE((x.array() == 1).all() && (r.array() == 1).all());
  };
  const auto tx = view(x), rn = view(r);
  const auto sw = strided_view(w);
  const VectorView<Id> l(list);
  const auto table = strided_view(row_TK);
  refuse_permute({x.data(), tokens, hidden - 1, hidden}, rn, l, table);
  refuse_permute({nullptr, tokens, hidden}, rn, l, table);
  refuse_permute({x.data(), tokens, hidden, 1}, rn, l, table);
  refuse_all({x.data(), tokens, hidden - 1, hidden}, rn, sw, l, table);
  refuse_all({nullptr, tokens, hidden}, rn, sw, l, table);
  refuse_all(tx, {r.data(), rows, hidden, 1}, sw, l, table);
  refuse_all(tx, rn, {w.data(), tokens - 1, top_k}, l, table);

  // Ids out of range: one past the rows, the choices, the tokens; and below none.
  list[5] = Id(tokens);
  row_TK(3, 1) = Id(rows);
  refuse_permute(tx, rn, l, table);
  list[5] = Id(tokens * top_k);
  refuse_all(tx, rn, sw, l, table);
  list[5] = static_cast<Id>(-2);
  row_TK(3, 1) = static_cast<Id>(-2);
  refuse_permute(tx, rn, l, table);
  refuse_all(tx, rn, sw, l, table);
  list[5] = row_TK(3, 1) = static_cast<Id>(-1);
  EXPECT_NO_THROW(gatepro::combine(StridedView<const Id>(table), sw, rn, view(y)));
  EXPECT_NO_THROW(gatepro::permute(VectorView<const Id>(l), tx, view(out)));

  list.resize(rows - 1);
  EXPECT_THROW(gatepro::permute(VectorView<const Id>(list), tx, rn), gatepro::Error);
  EXPECT_THROW(gatepro::combine_backward_rows(VectorView<const Id>(list), sw, tx, rn),
               gatepro::Error);
  EXPECT_TRUE((r.array() == 1).all());
}

TYPED_TEST(PermuteTest, NoTokens) {
  using A = typename TypeParam::A;
  using Id = typename TypeParam::Id;
  MatrixView<A> empty(nullptr, 0, 4);
  EXPECT_NO_THROW(gatepro::permute(VectorView<const Id>(), empty, empty));
  EXPECT_NO_THROW(gatepro::permute_backward(StridedView<const Id>(nullptr, 0, 2), empty, empty));
  EXPECT_NO_THROW(gatepro::combine(StridedView<const Id>(nullptr, 0, 2),
                                   StridedView<const A>(nullptr, 0, 2), empty, empty));
}

TYPED_TEST(PermuteTest, NoColumns) {
  using A = typename TypeParam::A;
  using Id = typename TypeParam::Id;
  MatrixView<A> empty(nullptr, 2, 0);
  const std::vector<Id> rows = {1, 0};
  const std::vector<A> weights = {1, 2};
  std::vector<A> dweights = {3, 4};
  const StridedView<const Id> row_TK(rows.data(), 2, 1);
  const StridedView<const A> weights_TK(weights.data(), 2, 1);
  gatepro::permute(VectorView<const Id>(rows), empty, empty);
  gatepro::permute_backward(row_TK, empty, empty);
  gatepro::combine(row_TK, weights_TK, empty, empty);
  gatepro::combine_backward_rows(VectorView<const Id>(rows), weights_TK, empty, empty);
  gatepro::combine_backward_weights(row_TK, empty, empty, StridedView<A>(dweights.data(), 2, 1));
  EXPECT_EQ(dweights, (std::vector<A>{3, 4}));
}

}  // namespace
