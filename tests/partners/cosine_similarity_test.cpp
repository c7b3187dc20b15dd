// SPDX-License-Identifier: MIT
// Similarity against the double reference, for rows of every size and kind.
#include <gatepro/partners/cosine_similarity.hpp>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include <cmath>
#include <vector>

#include "gatepro/partners/pairing.hpp"
#include "support/bits.hpp"
#include "support/conversions.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/reference/partners.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::SerialExecutor;
using gatepro::SimilarityReport;

template <class W>
struct Similarity {
  RowMatrix<gatepro::accumulator_t<W>> s_EE;
  SimilarityReport report;
};

template <class W, class Executor = SerialExecutor>
Similarity<W> similarity_of(const RowMatrix<W>& w_EH, const Executor& executor = {}) {
  using A = gatepro::accumulator_t<W>;
  Similarity<W> result{RowMatrix<A>::Constant(w_EH.rows(), w_EH.rows(), A(77)), {}};
  auto memory = data::scratch(
      gatepro::cosine_similarity_workspace_bytes<W>(w_EH.rows(), w_EH.cols(), executor.workers()));
  result.report =
      gatepro::cosine_similarity(gatepro::view(w_EH), gatepro::view(result.s_EE), memory, executor);
  return result;
}

template <class A>
std::vector<std::int32_t> partners_of(const RowMatrix<A>& s_EE) {
  std::vector<std::int32_t> partners(static_cast<std::size_t>(s_EE.rows()));
  gatepro::pair_partners(gatepro::view(s_EE), gatepro::Pairing{},
                         gatepro::MatrixView<std::int32_t>(partners.data(), s_EE.rows(), 1));
  return partners;
}

/// |S - exact| <= c sqrt(H) eps: the dot product and both squared norms err by about
/// sqrt(H) eps / 2 each, and a handful of eps follows.
template <class W>
void expect_close(const RowMatrix<W>& w_EH) {
  using A = gatepro::accumulator_t<W>;
  const Similarity<W> got = similarity_of(w_EH);
  const RowMatrix<A> transposed_EE = got.s_EE.transpose();
  EXPECT_TRUE(data::same_bits(got.s_EE, transposed_EE));
  const reference::Matrix exact = reference::cosine_similarity(data::to_reference(w_EH));
  const double bound = (std::sqrt(static_cast<double>(w_EH.cols())) + 4) *
                       static_cast<double>(std::numeric_limits<A>::epsilon());
  for (Index i = 0; i < w_EH.rows(); ++i) {
    for (Index j = 0; j < w_EH.rows(); ++j) {
      const double want = data::at(exact, i, j);
      if (std::isnan(want)) {
        ASSERT_TRUE(std::isnan(got.s_EE(i, j))) << i << ", " << j;
        continue;
      }
      ASSERT_NEAR(static_cast<double>(got.s_EE(i, j)), want, bound) << i << ", " << j;
      ASSERT_LE(std::abs(got.s_EE(i, j)), 1);
      if (i == j && want != 0) {
        ASSERT_EQ(got.s_EE(i, i), 1);
      }
    }
  }
}

template <class W>
class CosineSimilarityTest : public ::testing::Test {};
using AllWeights = ::testing::Types<float, double, gatepro::bfloat16, gatepro::half>;
TYPED_TEST_SUITE(CosineSimilarityTest, AllWeights, TypeNames);

TYPED_TEST(CosineSimilarityTest, MatchesTheReference) {
  for (Index experts : {1, 2, 3, 8, 17, 65}) {
    for (Index hidden : {1, 5, 513, 1025}) {
      expect_close(data::random_matrix<TypeParam>(experts, hidden, 1));
    }
  }
}

// Powers of two are exact in every type; these leave the range of a sum of squares.
TYPED_TEST(CosineSimilarityTest, TinyAndHugeRowsLoseNothing) {
  using W = TypeParam;
  using L = std::numeric_limits<W>;
  const RowMatrix<W> plain_EH = data::random_matrix<W>(9, 40, 2);
  RowMatrix<W> w_EH = plain_EH;
  // The largest element becomes about a quarter of the largest number.
  using Wide = gatepro::accumulator_t<W>;
  const W huge = static_cast<W>(std::ldexp(Wide(1), L::max_exponent - 2));
  w_EH.row(1) *= huge;
  w_EH.row(4) *= L::min();
  w_EH.row(7) *= huge;
  expect_close(w_EH);
}

TYPED_TEST(CosineSimilarityTest, RowsOfDenormalsHaveADirection) {
  using W = TypeParam;
  RowMatrix<W> w_EH = data::random_matrix<W>(5, 33, 3);
  for (Index h = 0; h < 33; ++h) {
    const Index units = data::random_below(100, 4, static_cast<std::uint64_t>(h)) - 50;
    const double unit = static_cast<double>(std::numeric_limits<W>::denorm_min());
    using Wide = gatepro::accumulator_t<W>;
    w_EH(2, h) = static_cast<W>(static_cast<Wide>(static_cast<double>(units) * unit));
    w_EH(3, h) = w_EH(2, h);
  }
  // The smallest denormal alone.
  w_EH.row(4).setZero();
  w_EH(4, 32) = -std::numeric_limits<W>::denorm_min();
  expect_close(w_EH);
  const auto got = similarity_of(w_EH);
  EXPECT_EQ(got.report.degenerate_rows, 0);
  EXPECT_EQ(got.s_EE(4, 4), 1);
  EXPECT_GT(got.s_EE(2, 3), 0.999);
}

#if defined(__SSE2__)
/// Denormals are zero for this thread, as -Ofast has it for all.
class FlushedDenormals {
 public:
  FlushedDenormals() { _mm_setcsr(before_ | 0x8040); }
  FlushedDenormals(const FlushedDenormals&) = delete;
  FlushedDenormals& operator=(const FlushedDenormals&) = delete;
  ~FlushedDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_ = _mm_getcsr();
};

// Rows of denormals, rows about the smallest normal number, and ordinary ones: the same bits.
TYPED_TEST(CosineSimilarityTest, FlushedDenormalsChangeNothing) {
  using W = TypeParam;
  using Wide = gatepro::accumulator_t<W>;
  const Wide unit = static_cast<Wide>(std::numeric_limits<W>::denorm_min());
  const Wide normal = static_cast<Wide>((std::numeric_limits<W>::min)());
  RowMatrix<W> w_EH = data::random_matrix<W>(9, 33, 3);
  for (Index h = 0; h < 33; ++h) {
    const Wide random = static_cast<Wide>(w_EH(0, h));
    w_EH(1, h) = static_cast<W>(std::round(random * 50) * unit);
    w_EH(2, h) = static_cast<W>(random * normal);
    w_EH(3, h) = static_cast<W>(random * normal * 2);
    w_EH(4, h) = static_cast<W>(random * normal * 1024);
    w_EH(5, h) = static_cast<W>(random * normal / 2);
  }
  w_EH.row(6).setZero();
  w_EH(6, 32) = -std::numeric_limits<W>::denorm_min();
  const auto want = similarity_of(w_EH);
  EXPECT_EQ(want.report.degenerate_rows, 0);
  for (const Index i : {1, 2, 3, 4, 5}) EXPECT_GT(want.s_EE(0, i), 0.99) << i;
  const FlushedDenormals flushed;
  const auto got = similarity_of(w_EH);
  EXPECT_EQ(got.report.degenerate_rows, 0);
  EXPECT_TRUE(data::same_bits(got.s_EE, want.s_EE));
}
#endif

TYPED_TEST(CosineSimilarityTest, ZeroAndNonfiniteRowsAreCountedAndHaveNoPartner) {
  using W = TypeParam;
  using A = gatepro::accumulator_t<W>;
  for (Index hidden : {1, 6, 520}) {
    RowMatrix<W> w_EH = data::random_matrix<W>(11, hidden, 5);
    w_EH.row(0).setZero();
    w_EH.row(3).setConstant(W(-0.0f));
    w_EH(5, hidden - 1) = std::numeric_limits<W>::quiet_NaN();
    w_EH(8, hidden / 2) = -std::numeric_limits<W>::infinity();
    w_EH(10, 0) = std::numeric_limits<W>::infinity();
    expect_close(w_EH);
    const auto got = similarity_of(w_EH);
    EXPECT_EQ(got.report.degenerate_rows, 2);
    EXPECT_EQ(got.report.nonfinite_rows, 3);
    const A quiet_nan = std::numeric_limits<A>::quiet_NaN();
    for (Index j = 0; j < 11; ++j) {
      const bool nonfinite = j == 5 || j == 8 || j == 10;
      for (Index zero : {0, 3}) EXPECT_TRUE(got.s_EE(zero, j) == 0 || nonfinite);
      for (Index bad : {5, 8, 10}) EXPECT_TRUE(data::same_bits(got.s_EE(bad, j), quiet_nan));
    }
    const std::vector<std::int32_t> partners = partners_of(got.s_EE);
    for (std::int32_t i = 0; i < 11; ++i) {
      const std::int32_t partner = partners[static_cast<std::size_t>(i)];
      const auto nonfinite = [](std::int32_t e) { return e == 5 || e == 8 || e == 10; };
      EXPECT_EQ(partner == i, nonfinite(i));
      EXPECT_TRUE(nonfinite(i) || !nonfinite(partner));
    }
  }
}

TYPED_TEST(CosineSimilarityTest, IdenticalAndScaledRowsAreOneWithTheLowestPartner) {
  using W = TypeParam;
  using A = gatepro::accumulator_t<W>;
  RowMatrix<W> w_EH = data::random_matrix<W>(12, 100, 6);
  w_EH.row(9) = w_EH.row(4);
  w_EH.row(6) = w_EH.row(4) * W(4.0f);  // exact
  w_EH.row(11) = w_EH.row(4) * W(-0.5f);
  const auto got = similarity_of(w_EH);
  const A eps = std::numeric_limits<A>::epsilon();
  EXPECT_NEAR(got.s_EE(4, 9), 1, 4 * eps);
  EXPECT_NEAR(got.s_EE(4, 11), -1, 4 * eps);
  // The same direction, to the bit, so that ids decide.
  const RowMatrix<A> row4 = got.s_EE.row(4), row6 = got.s_EE.row(6), row9 = got.s_EE.row(9);
  for (Index j = 0; j < 12; ++j) {
    if (j == 4 || j == 6 || j == 9) continue;
    EXPECT_TRUE(data::same_bits(row4(0, j), row6(0, j)));
    EXPECT_TRUE(data::same_bits(row4(0, j), row9(0, j)));
  }
  EXPECT_TRUE(data::same_bits(got.s_EE(4, 6), got.s_EE(4, 9)));
  const std::vector<std::int32_t> partners = partners_of(got.s_EE);
  EXPECT_EQ(partners[4], 6);
  EXPECT_EQ(partners[6], 4);
  EXPECT_EQ(partners[9], 4);
}

TYPED_TEST(CosineSimilarityTest, ScalingByAnyFactorStaysOneWithinRounding) {
  using W = TypeParam;
  using A = gatepro::accumulator_t<W>;
  RowMatrix<W> w_EH = data::random_matrix<W>(2, 300, 7);
  w_EH.row(1) = w_EH.row(0) * W(3.1f);
  // The rounding of the scaled row itself counts.
  const double bound = 20 * std::max(static_cast<double>(std::numeric_limits<W>::epsilon()),
                                     static_cast<double>(std::numeric_limits<A>::epsilon()));
  EXPECT_NEAR(static_cast<double>(similarity_of(w_EH).s_EE(0, 1)), 1, bound);
}

TYPED_TEST(CosineSimilarityTest, ExecutorsAndStridesGiveTheSameBits) {
  using W = TypeParam;
  using A = gatepro::accumulator_t<W>;
  RowMatrix<W> w_EH = data::random_matrix<W>(150, 37, 8);
  w_EH(70, 3) = std::numeric_limits<W>::quiet_NaN();
  const auto expected = similarity_of(w_EH);
  for (int workers : {3, 7}) {
    EXPECT_TRUE(data::same_bits(similarity_of(w_EH, ThreadExecutor(workers)).s_EE, expected.s_EE));
    EXPECT_TRUE(data::same_bits(similarity_of(w_EH, LastWorkerFirst(workers)).s_EE, expected.s_EE));
  }
  data::GuardedMatrix<W> w(w_EH, 5);
  data::GuardedMatrix<A> s(150, 150, 3);
  auto memory = data::scratch(gatepro::cosine_similarity_workspace_bytes<W>(150, 37));
  gatepro::cosine_similarity(w.view(), s.view(), memory);
  EXPECT_TRUE(data::same_bits(s.values(), expected.s_EE));
  EXPECT_TRUE(s.intact());
}

TEST(CosineSimilarity, SixteenBitInputGivesTheBitsOfItsFloat) {
  const RowMatrix<gatepro::bfloat16> w_EH = data::random_matrix<gatepro::bfloat16>(20, 530, 9);
  const RowMatrix<float> wide_EH = w_EH.cast<float>();
  EXPECT_TRUE(data::same_bits(similarity_of(w_EH).s_EE, similarity_of(wide_EH).s_EE));
}

TEST(CosineSimilarity, FloatsAtBothEndsOfTheRange) {
  RowMatrix<float> w_EH(4, 3);
  w_EH << 1e-40f, -3e-40f, 2e-40f,  // denormal
      1e38f, -3e38f, 2e38f,         // the squares overflow
      1e-40f, 1e38f, 0,             // both
      1, -3, 2;
  const auto got = similarity_of(w_EH);
  EXPECT_NEAR(got.s_EE(0, 1), 1, 1e-4);  // denormals are coarse
  EXPECT_NEAR(got.s_EE(1, 3), 1, 1e-6);
  EXPECT_NEAR(got.s_EE(2, 3), -3 / std::sqrt(14.0), 1e-6);
}

// Without columns every row is zero.
TEST(CosineSimilarity, NoColumnsGiveZeros) {
  for (Index experts : {1, 2, 9}) {
    const auto got = similarity_of(RowMatrix<float>(experts, 0));
    EXPECT_TRUE((got.s_EE.array() == 0).all());
    EXPECT_EQ(got.report.degenerate_rows, experts);
  }
}

}  // namespace
