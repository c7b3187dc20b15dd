// SPDX-License-Identifier: MIT
// Turns of rows and roundings of cosines stay below their bounds, against long double, and the
// bounds are of use.
#include <gatepro/partners/cosine_bounds.hpp>
#include <gatepro/partners/cosine_similarity.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::detail::CosineBounds;
using gatepro::detail::no_direction;

using Direction = std::vector<long double>;

template <class W>
Direction direction_of(const RowMatrix<W>& w_EH, Index i) {
  Direction u;
  long double squares = 0;
  for (Index h = 0; h < w_EH.cols(); ++h) {
    u.push_back(static_cast<long double>(static_cast<double>(w_EH(i, h))));
    squares += u.back() * u.back();
  }
  for (long double& element : u) element /= std::sqrt(squares);
  return u;
}

long double distance(const Direction& u, const Direction& v) {
  long double squares = 0;
  for (std::size_t h = 0; h < u.size(); ++h) squares += (u[h] - v[h]) * (u[h] - v[h]);
  return std::sqrt(squares);
}

long double product(const Direction& u, const Direction& v) {
  long double sum = 0;
  for (std::size_t h = 0; h < u.size(); ++h) sum += u[h] * v[h];
  return sum;
}

template <class W>
RowMatrix<gatepro::accumulator_t<W>> similarity_of(const RowMatrix<W>& w_EH) {
  RowMatrix<gatepro::accumulator_t<W>> s_EE(w_EH.rows(), w_EH.rows());
  auto memory =
      data::scratch(gatepro::cosine_similarity_workspace_bytes<W>(w_EH.rows(), w_EH.cols()));
  gatepro::cosine_similarity(gatepro::view(w_EH), gatepro::view(s_EE), memory);
  return s_EE;
}

/// The turns of the rows between two states of W.
template <class W>
std::vector<double> turns(const RowMatrix<W>& then_EH, const RowMatrix<W>& now_EH) {
  using A = gatepro::accumulator_t<W>;
  const Index hidden = then_EH.cols();
  RowMatrix<A> scaled(1, hidden), row(1, hidden);
  std::vector<double> turn_E;
  for (Index i = 0; i < then_EH.rows(); ++i) {
    gatepro::detail::scale_row(then_EH.row(i).data(), hidden, scaled.data());
    turn_E.push_back(gatepro::detail::turn_since(now_EH.row(i).data(), scaled.data(), hidden,
                                                 gatepro::detail::turn_rounding<A>(hidden),
                                                 row.data()));
  }
  return turn_E;
}

template <class W>
class CosineBoundsTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, gatepro::bfloat16, gatepro::half>;
TYPED_TEST_SUITE(CosineBoundsTest, Scalars, TypeNames);

TYPED_TEST(CosineBoundsTest, HoldForAnyTurn) {
  using W = TypeParam;
  using A = gatepro::accumulator_t<W>;
  constexpr Index experts = 24;
  for (const Index hidden : {1, 7, 130, 2000}) {
    const double rounding = gatepro::detail::cosine_rounding<A>(hidden);
    const auto then_EH = data::random_matrix<W>(experts, hidden, 1);
    for (const double size : {0.0, 1e-7, 1e-4, 1e-2, 1.0, 100.0}) {
      RowMatrix<W> now_EH = then_EH;
      const auto step_EH = data::random_matrix<double>(experts, hidden, 2, size);
      for (Index i = 0; i < now_EH.size(); ++i) {
        const double element = static_cast<double>(then_EH.data()[i]) + step_EH.data()[i];
        using Wide = std::conditional_t<std::is_same_v<W, double>, double, float>;
        now_EH.data()[i] = static_cast<W>(static_cast<Wide>(element));
      }
      now_EH.row(3) *= static_cast<W>(3.0F);
      const std::vector<double> turn_E = turns(then_EH, now_EH);
      const CosineBounds bounds{turn_E.data(), 2 * rounding};
      const RowMatrix<A> then_EE = similarity_of(then_EH), now_EE = similarity_of(now_EH);
      for (Index i = 0; i < experts; ++i) {
        const Direction now_i = direction_of(now_EH, i);
        const auto turned = distance(direction_of(then_EH, i), now_i);
        ASSERT_LE(turned, turn_E[static_cast<std::size_t>(i)]) << hidden << ", " << size;
        ASSERT_LE(turn_E[static_cast<std::size_t>(i)], turned * 1.001L + 2e-6L);
        for (Index j = 0; j < i; ++j) {
          const auto exact = product(now_i, direction_of(now_EH, j));
          ASSERT_LE(std::abs(exact - static_cast<long double>(now_EE(i, j))), rounding);
          ASSERT_LE(std::abs(now_EE(i, j) - then_EE(i, j)), bounds.change(i, j));
        }
      }
    }
  }
}

TYPED_TEST(CosineBoundsTest, RowsOfTheSameDirectionHaveNotTurned) {
  using W = TypeParam;
  const auto then_EH = data::random_matrix<W>(6, 50, 3);
  for (const float factor : {0.25F, 1.0F, 16.0F}) {
    const RowMatrix<W> now_EH = then_EH * static_cast<W>(factor);
    for (const double turn : turns(then_EH, now_EH)) EXPECT_EQ(turn, 0);
  }
  RowMatrix<W> now_EH = then_EH;
  now_EH(2, 49) *= static_cast<W>(1.01F);
  const std::vector<double> turn_E = turns(then_EH, now_EH);
  for (std::size_t i = 0; i < 6; ++i) EXPECT_EQ(turn_E[i] > 0, i == 2);
}

TYPED_TEST(CosineBoundsTest, RowsWithoutADirection) {
  using W = TypeParam;
  using L = std::numeric_limits<W>;
  const auto then_EH = data::random_matrix<W>(6, 50, 4);
  RowMatrix<W> now_EH = then_EH;
  now_EH(0, 7) = L::quiet_NaN();
  now_EH(1, 0) = L::infinity();
  now_EH(2, 49) = -L::infinity();
  now_EH.row(3).setZero();
  const std::vector<double> turn_E = turns(then_EH, now_EH);
  EXPECT_EQ(turn_E,
            (std::vector<double>{no_direction, no_direction, no_direction, no_direction, 0, 0}));
}

TEST(CosineBounds, NothingIsKnownOfEndlessChains) {
  EXPECT_GT(gatepro::detail::cosine_rounding<float>(Index{1} << 22), 0.3);
  EXPECT_EQ(gatepro::detail::cosine_rounding<float>(Index{1} << 24), no_direction);
}

}  // namespace
