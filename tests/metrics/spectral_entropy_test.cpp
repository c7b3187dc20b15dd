// SPDX-License-Identifier: MIT
// Spectral entropy: closed forms of both definitions, and what they leave out.
#include <gatepro/gatepro.hpp>
#include <gatepro/spectral_entropy.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>

#include "support/errors.hpp"
#include "support/inputs.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::Spectrum;

template <class A>
class SpectralEntropyTest : public ::testing::Test {};
using Types = ::testing::Types<float, double>;
TYPED_TEST_SUITE(SpectralEntropyTest, Types, TypeNames);

double entropy(const std::vector<double>& values) {
  double total = 0, sum = 0;
  for (const double v : values) total += v;
  for (const double v : values) sum -= v > 0 ? v / total * std::log(v / total) : 0;
  return sum;
}

/// All pairs have the cosine c: one eigenvalue is 1 + (E - 1) c, the others 1 - c.
template <class A>
RowMatrix<A> even_similarity(Index experts, double c) {
  RowMatrix<A> s = RowMatrix<A>::Constant(experts, experts, static_cast<A>(c));
  for (Index i = 0; i < experts; ++i) s(i, i) = 1;
  return s;
}

TYPED_TEST(SpectralEntropyTest, OfEvenSimilarities) {
  for (const Index experts : {1, 2, 8, 64}) {
    for (const double c : {0.0, 0.15, 0.25, 0.9, 1.0}) {
      const RowMatrix<TypeParam> s = even_similarity<TypeParam>(experts, c);
      std::vector<double> values(static_cast<std::size_t>(experts), 1 - c);
      values[0] = 1 + static_cast<double>(experts - 1) * c;
      const double tolerance = sizeof(TypeParam) == 4 ? 1e-4 : 1e-10;
      EXPECT_NEAR(gatepro::spectral_entropy(gatepro::view(s)), entropy(values), tolerance)
          << "E=" << experts << " c=" << c;
    }
  }
}

// An eigenvalue that rounding takes below 0 counts as 0.
TEST(SpectralEntropy, HasNoNegativeShares) {
  const RowMatrix<float> s = even_similarity<float>(2, -1.0001);
  EXPECT_EQ(gatepro::spectral_entropy(gatepro::view(s)), 0);
}

// The reason for the default: the published rise, and what the other definition makes of it.
TEST(SpectralEntropy, RisesByThePublishedAmountWhenTheMeanCosineFalls) {
  const RowMatrix<double> before = even_similarity<double>(64, 0.25),
                          after = even_similarity<double>(64, 0.15);
  EXPECT_NEAR(gatepro::spectral_entropy(gatepro::view(before)), 3.62, 0.06);
  EXPECT_NEAR(gatepro::spectral_entropy(gatepro::view(after)), 3.90, 0.06);
  // Rows whose similarities are these: the Cholesky factor.
  const RowMatrix<double> w_before = before.llt().matrixL(), w_after = after.llt().matrixL();
  EXPECT_LT(gatepro::spectral_entropy(gatepro::view(w_after), Spectrum::singular_values) -
                gatepro::spectral_entropy(gatepro::view(w_before), Spectrum::singular_values),
            0.06);
  EXPECT_NEAR(gatepro::spectral_entropy(gatepro::view(w_before), Spectrum::squares),
              gatepro::spectral_entropy(gatepro::view(before)), 1e-10);
}

// Singular values 3, 4 and 0, whatever the basis.
TYPED_TEST(SpectralEntropyTest, OfWeightsWithKnownSingularValues) {
  const double of_3_and_4 = entropy({3, 4}), of_squares = entropy({9, 16});
  RowMatrix<TypeParam> w(3, 4);
  w << 0, 3, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0;
  EXPECT_NEAR(gatepro::spectral_entropy(gatepro::view(w), Spectrum::singular_values), of_3_and_4,
              1e-7);
  EXPECT_NEAR(gatepro::spectral_entropy(gatepro::view(w), Spectrum::squares), of_squares, 1e-12);
  w *= std::ldexp(TypeParam(1), std::numeric_limits<TypeParam>::max_exponent - 4);  // no squares
  EXPECT_NEAR(gatepro::spectral_entropy(gatepro::view(w), Spectrum::squares), of_squares, 1e-12);
}

TEST(SpectralEntropy, MatchesASingularValueDecomposition) {
  const RowMatrix<double> w = data::random_matrix<double>(20, 13, 3);
  const Eigen::MatrixXd gram = w.transpose() * w;  // the other Gram matrix
  Eigen::VectorXd values = Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(gram).eigenvalues();
  std::vector<double> squares(values.data(), values.data() + values.size()), singular;
  for (const double v : squares) singular.push_back(std::sqrt(v));
  EXPECT_NEAR(gatepro::spectral_entropy(gatepro::view(w), Spectrum::squares), entropy(squares),
              1e-10);
  EXPECT_NEAR(gatepro::spectral_entropy(gatepro::view(w), Spectrum::singular_values),
              entropy(singular), 1e-6);
}

TYPED_TEST(SpectralEntropyTest, LeavesRowsOutThatAreNotFinite) {
  using A = TypeParam;
  RowMatrix<A> w = data::random_matrix<A>(6, 5, 4);
  w(2, 1) = data::marked_nan<A>();
  w(4, 0) = data::infinity<A>();
  RowMatrix<A> rest(4, 5);
  rest << w.row(0), w.row(1), w.row(3), w.row(5);
  const auto entropy_of_similarity = [](const RowMatrix<A>& rows) {
    gatepro::SimilarityCache<A> cache(rows.rows(), {}, gatepro::RefreshSchedule::every_step());
    cache.refresh_now(gatepro::view(rows), 0);
    return gatepro::spectral_entropy(cache.similarity());
  };
  EXPECT_NEAR(entropy_of_similarity(w), entropy_of_similarity(rest), 1e-12);
  for (const Spectrum spectrum : {Spectrum::singular_values, Spectrum::squares}) {
    EXPECT_EQ(gatepro::spectral_entropy(gatepro::view(w), spectrum),
              gatepro::spectral_entropy(gatepro::view(rest), spectrum));
  }
  const RowMatrix<A> zeros = RowMatrix<A>::Zero(3, 2), nan = RowMatrix<A>::Constant(3, 3, w(2, 1));
  EXPECT_EQ(gatepro::spectral_entropy(gatepro::view(zeros), Spectrum::squares), 0);
  EXPECT_EQ(gatepro::spectral_entropy(gatepro::view(nan), Spectrum::squares), 0);
  EXPECT_EQ(gatepro::spectral_entropy(gatepro::view(nan)), 0);
}

TEST(SpectralEntropy, BadInput) {
  const RowMatrix<float> wide(2, 3), none(0, 0);
  expect_error([&] { gatepro::spectral_entropy(gatepro::view(wide)); },
               {"spectral_entropy", "similarity_EE", "cols=3"});
  expect_error([&] { gatepro::spectral_entropy(gatepro::view(none)); }, {"num_experts=0"});
  expect_error([&] { gatepro::spectral_entropy(gatepro::view(none), Spectrum::squares); },
               {"num_experts=0"});
}

}  // namespace
