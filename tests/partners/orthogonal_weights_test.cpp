// SPDX-License-Identifier: MIT
// Weights to start from: their rows are orthogonal, as long as asked for, random, and reproducible.
#include <gatepro/setup.hpp>

#include <cmath>
#include <cstdlib>
#include <limits>

#include "support/bits.hpp"
#include "support/errors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::Index;
using gatepro::RowMatrix;

template <class W>
RowMatrix<W> weights(Index experts, Index hidden, std::uint64_t seed, double gain = 1) {
  RowMatrix<W> w_EH(experts, hidden);
  auto memory = data::scratch(gatepro::orthogonal_weights_workspace_bytes(experts, hidden));
  gatepro::orthogonal_weights(seed, gain, gatepro::view(w_EH), memory);
  return w_EH;
}

template <class W>
class OrthogonalWeightsTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, gatepro::bfloat16, gatepro::half>;
TYPED_TEST_SUITE(OrthogonalWeightsTest, Scalars, TypeNames);

TYPED_TEST(OrthogonalWeightsTest, RowsOfABlockAreOrthogonalAndAsLongAsTheGain) {
  using W = TypeParam;
  const double eps = static_cast<double>(std::numeric_limits<W>::epsilon());
  for (Index hidden : {1, 3, 16, 61}) {
    for (Index experts : {1, 2, 16, 40, 61, 70, 150}) {
      const RowMatrix<double> w_EH = weights<W>(experts, hidden, 1, 0.5).template cast<double>();
      const RowMatrix<double> gram_EE = w_EH * w_EH.transpose();
      for (Index i = 0; i < experts; ++i) {
        for (Index j = i / hidden * hidden; j <= i; ++j) {
          ASSERT_NEAR(gram_EE(i, j), i == j ? 0.25 : 0, 4 * eps) << experts << " " << hidden;
        }
      }
    }
  }
}

// A square matrix of many rows is where one pass of orthogonalisation is not enough.
TEST(OrthogonalWeights, AreOrthogonalToTheLastDigits) {
  const RowMatrix<double> w_EH = weights<double>(200, 200, 2);
  const RowMatrix<double> error_EE =
      w_EH * w_EH.transpose() - RowMatrix<double>::Identity(200, 200);
  EXPECT_LT(error_EE.cwiseAbs().maxCoeff(), 1e-14);
}

// Each element has mean 0 and variance 1 / H, and the sign of no element is fixed.
TEST(OrthogonalWeights, DirectionsAreUniform) {
  constexpr int draws = 400;
  constexpr Index size = 12;
  RowMatrix<double> sum = RowMatrix<double>::Zero(size, size), squares = sum;
  for (int seed = 0; seed < draws; ++seed) {
    const RowMatrix<double> w_EH = weights<double>(size, size, static_cast<std::uint64_t>(seed));
    sum += w_EH;
    squares += w_EH.cwiseAbs2();
  }
  const double sigma = 1 / std::sqrt(static_cast<double>(draws) * size);
  EXPECT_LT((sum / draws).cwiseAbs().maxCoeff(), 5 * sigma);
  EXPECT_LT(((squares / draws).array() * size - 1).abs().maxCoeff(), 0.5);
}

TYPED_TEST(OrthogonalWeightsTest, AreAFunctionOfTheSeed) {
  using W = TypeParam;
  const RowMatrix<W> w_EH = weights<W>(20, 30, 3);
  EXPECT_TRUE(data::same_bits(weights<W>(20, 30, 3), w_EH));
  EXPECT_TRUE(data::same_bits(RowMatrix<W>(weights<W>(25, 30, 3).topRows(20)), w_EH));
  EXPECT_FALSE(data::same_bits(weights<W>(20, 30, 4), w_EH));
}

// Rounded to float, where the last digits of a logarithm do not show.
TEST(OrthogonalWeights, HaveTheSameDigitsOnAllInstructionSets) {
  const RowMatrix<float> w_EH = weights<float>(3, 4, 7);
  const float want[] = {-0x1.51b6c4p-1F, 0x1.693cfap-1F,  -0x1.2d935cp-6F, 0x1.08a96p-2F,
                        -0x1.9033eap-3F, -0x1.f4b2c4p-2F, 0x1.af85eap-4F,  0x1.afe9f4p-1F,
                        -0x1.76d4dep-4F, -0x1.7ca132p-8F, 0x1.f836fap-1F,  -0x1.2e300cp-3F};
  for (Index i = 0; i < 12; ++i) EXPECT_EQ(w_EH.data()[i], want[i]) << i;
}

TEST(OrthogonalWeights, ToAnyView) {
  data::GuardedMatrix<float> w_EH(5, 9, 3);
  auto memory = data::scratch(gatepro::orthogonal_weights_workspace_bytes(5, 9));
  gatepro::orthogonal_weights(5, 2, w_EH.view(), memory);
  EXPECT_TRUE(w_EH.intact());
  EXPECT_TRUE(data::same_bits(w_EH.values(), weights<float>(5, 9, 5, 2)));
  EXPECT_EQ(weights<float>(4, 0, 1).size(), 0);
}

TEST(OrthogonalWeights, BadInputIsRefused) {
  const double infinity = std::numeric_limits<double>::infinity();
  expect_error([&] { weights<float>(3, 4, 1, infinity); }, {"orthogonal_weights", "gain", "inf"});
  expect_error([&] { weights<float>(3, 4, 1, 1e39); }, {"gain", "precision"});
  expect_error([&] { weights<gatepro::half>(3, 4, 1, -1e5); }, {"gain", "precision"});
  expect_error([&] { weights<gatepro::bfloat16>(3, 4, 1, 3.4e38); }, {"gain", "precision"});
  EXPECT_EQ(std::abs(static_cast<float>(weights<gatepro::half>(1, 1, 1, 65504)(0, 0))), 65504.0F);
  expect_error([] { weights<float>(0, 4, 1); }, {"num_experts"});
  RowMatrix<float> w_EH(3, 4);
  auto memory = data::scratch(8);
  expect_error([&] { gatepro::orthogonal_weights(1, 1, gatepro::view(w_EH), memory); },
               {"workspace"});
  expect_error(
      [&] {
        gatepro::orthogonal_weights(1, 1, gatepro::view(w_EH), {w_EH.data(), 4096});
      },
      {"w_EH", "workspace"});
}

}  // namespace
