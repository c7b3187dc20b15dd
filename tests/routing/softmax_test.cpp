// SPDX-License-Identifier: MIT
// Softmax over the selected logits, and its gradient.
#include <gatepro/routing/softmax.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

#include "support/bits.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::SerialExecutor;
using gatepro::StridedView;

template <class A>
struct Softmax {
  RowMatrix<A> weights_TK;
  Index nonfinite_rows;
};

template <class A, class Executor = SerialExecutor>
Softmax<A> softmax(const RowMatrix<A>& logits_TK, const Executor& executor = {}) {
  Softmax<A> got{RowMatrix<A>::Constant(logits_TK.rows(), logits_TK.cols(), A(77)), 0};
  auto memory = data::scratch(
      gatepro::softmax_selected_workspace_bytes<A>(logits_TK.cols(), executor.workers()));
  got.nonfinite_rows = gatepro::softmax_selected(
      gatepro::strided_view(logits_TK), gatepro::strided_view(got.weights_TK), memory, executor);
  return got;
}

template <class A>
RowMatrix<A> softmax_gradient(const RowMatrix<A>& weights_TK, const RowMatrix<A>& dweights_TK) {
  RowMatrix<A> dlogits_TK = RowMatrix<A>::Constant(weights_TK.rows(), weights_TK.cols(), A(77));
  gatepro::softmax_backward(gatepro::strided_view(weights_TK), gatepro::strided_view(dweights_TK),
                            gatepro::strided_view(dlogits_TK));
  return dlogits_TK;
}

/// The weights of one row of numbers below +inf, at least one of them above -inf.
template <class Row>
std::vector<long double> exact_weights(const Row& logits) {
  std::vector<long double> weights;
  const long double top = static_cast<long double>(logits.maxCoeff());
  long double sum = 0;
  for (Index j = 0; j < logits.size(); ++j) {
    weights.push_back(std::exp(static_cast<long double>(logits(j)) - top));
    sum += weights.back();
  }
  for (long double& w : weights) w /= sum;
  return weights;
}

template <class A>
class SoftmaxTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(SoftmaxTest, Scalars, TypeNames);

TYPED_TEST(SoftmaxTest, WeightsAreAccurateAndSumToOne) {
  using A = TypeParam;
  const double eps = static_cast<double>(std::numeric_limits<A>::epsilon());
  for (Index k : {1, 2, 3, 6, 8, 33}) {
    for (double scale : {1e-3, 1.0, 30.0}) {
      const RowMatrix<A> logits_TK = data::random_matrix<A>(83, k, 1) * static_cast<A>(scale);
      const Softmax<A> got = softmax(logits_TK);
      EXPECT_EQ(got.nonfinite_rows, 0);
      for (Index t = 0; t < 83; ++t) {
        // The differences to the top round to within eps / 2 of their size, at most 2 scale; exp
        // adds 2 eps at most, the sum half an eps per term, the quotient half.
        const double bound = (3 + scale + 0.5 * static_cast<double>(k)) * eps;
        const RowMatrix<A> row = logits_TK.row(t);
        const std::vector<long double> want = exact_weights(row);
        long double sum = 0;
        for (Index j = 0; j < k; ++j) {
          const long double w = want[static_cast<std::size_t>(j)];
          const long double error = static_cast<long double>(got.weights_TK(t, j)) - w;
          ASSERT_LE(static_cast<double>(std::abs(error) / w), bound) << "k " << k;
          sum += static_cast<long double>(got.weights_TK(t, j));
        }
        ASSERT_LE(static_cast<double>(std::abs(sum - 1)), static_cast<double>(k) * eps);
      }
    }
  }
}

TYPED_TEST(SoftmaxTest, EqualLogitsShareEvenly) {
  using A = TypeParam;
  const A largest = std::numeric_limits<A>::max();
  for (Index k : {1, 2, 3, 7, 8}) {
    RowMatrix<A> logits_TK(5, k);
    logits_TK.row(0).setConstant(largest);
    logits_TK.row(1).setConstant(-largest);
    logits_TK.row(2).setConstant(std::numeric_limits<A>::denorm_min());
    logits_TK.row(3).setZero();
    for (Index j = 0; j < k; j += 2) logits_TK(3, j) = A(-0.0);
    logits_TK.row(4).setConstant(A(1.5));
    const RowMatrix<A> even = RowMatrix<A>::Constant(5, k, A(1) / static_cast<A>(k));
    EXPECT_TRUE(data::same_bits(softmax(logits_TK).weights_TK, even)) << k;
  }
}

TYPED_TEST(SoftmaxTest, NonfiniteRows) {
  using A = TypeParam;
  const A inf = data::infinity<A>(), nan = data::marked_nan<A>();
  const A bad = std::numeric_limits<A>::quiet_NaN();
  RowMatrix<A> logits_TK(7, 3), want_TK(7, 3);
  logits_TK << 1, 1, -inf,  //
      5, -inf, -inf,        //
      nan, 0, 0,            //
      inf, 0, 0,            //
      inf, inf, inf,        //
      -inf, -inf, -inf,     //
      -inf, nan, -inf;
  want_TK.setConstant(bad);
  want_TK.row(0) << A(0.5), A(0.5), 0;
  want_TK.row(1) << 1, 0, 0;
  const Softmax<A> got = softmax(logits_TK);
  EXPECT_TRUE(data::same_bits(got.weights_TK, want_TK));
  EXPECT_EQ(got.nonfinite_rows, 5);
}

// In a batch each row fares as it does alone, whatever its neighbours hold, and the padding of the
// last group is not counted.
TYPED_TEST(SoftmaxTest, RowsDoNotSeeEachOther) {
  using A = TypeParam;
  const RowMatrix<A> logits_TK = data::special_matrix<A>(67, 3, 2, 6);
  const Softmax<A> all = softmax(logits_TK);
  Index nonfinite = 0;
  for (Index t = 0; t < 67; ++t) {
    const RowMatrix<A> row = logits_TK.row(t);
    const Softmax<A> alone = softmax(row);
    const RowMatrix<A> in_batch = all.weights_TK.row(t);
    EXPECT_TRUE(data::same_bits(in_batch, alone.weights_TK)) << t;
    EXPECT_EQ(alone.nonfinite_rows, std::isnan(alone.weights_TK(0, 0)) ? 1 : 0);
    nonfinite += alone.nonfinite_rows;
  }
  EXPECT_EQ(all.nonfinite_rows, nonfinite);
  EXPECT_GT(nonfinite, 0);
}

TYPED_TEST(SoftmaxTest, ExecutorsLayoutsAndInPlaceGiveTheSameBits) {
  using A = TypeParam;
  const Index tokens = 256 * 3 + 7;
  const RowMatrix<A> logits_TK = data::special_matrix<A>(tokens, 3, 3, 20);
  const Softmax<A> want = softmax(logits_TK);
  const Softmax<A> threaded = softmax(logits_TK, ThreadExecutor(3));
  EXPECT_TRUE(data::same_bits(threaded.weights_TK, want.weights_TK));
  EXPECT_EQ(threaded.nonfinite_rows, want.nonfinite_rows);
  EXPECT_TRUE(data::same_bits(softmax(logits_TK, LastWorkerFirst(4)).weights_TK, want.weights_TK));

  Eigen::Matrix<A, Eigen::Dynamic, Eigen::Dynamic> planes = logits_TK;
  auto memory = data::scratch(gatepro::softmax_selected_workspace_bytes<A>(3));
  gatepro::softmax_selected(gatepro::strided_view(planes), gatepro::strided_view(planes), memory);
  const RowMatrix<A> rows = planes;
  EXPECT_TRUE(data::same_bits(rows, want.weights_TK));
}

TYPED_TEST(SoftmaxTest, NoTokensWriteNothing) {
  using A = TypeParam;
  auto memory = data::scratch(gatepro::softmax_selected_workspace_bytes<A>(2));
  EXPECT_EQ(gatepro::softmax_selected(StridedView<A>(nullptr, 0, 2), StridedView<A>(nullptr, 0, 2),
                                      memory),
            0);
  EXPECT_NO_THROW(gatepro::softmax_backward(
      StridedView<A>(nullptr, 0, 2), StridedView<A>(nullptr, 0, 2), StridedView<A>(nullptr, 0, 2)));
}

// Both directions in double: loss = sum of c_j weight_j.
TEST(SoftmaxGradient, AgreesWithFiniteDifferences) {
  for (Index k : {1, 2, 3, 8}) {
    const RowMatrix<double> logits_TK = data::random_matrix<double>(9, k, 4) * 3;
    const RowMatrix<double> dweights_TK = data::random_matrix<double>(9, k, 5);
    const RowMatrix<double> gradient_TK =
        softmax_gradient(softmax(logits_TK).weights_TK, dweights_TK);
    const double step = 1e-5;
    for (Index j = 0; j < k; ++j) {
      RowMatrix<double> up_TK = logits_TK, down_TK = logits_TK;
      up_TK.col(j).array() += step;
      down_TK.col(j).array() -= step;
      const RowMatrix<double> change_TK =
          (softmax(up_TK).weights_TK - softmax(down_TK).weights_TK) / (2 * step);
      for (Index t = 0; t < 9; ++t) {
        EXPECT_NEAR(gradient_TK(t, j), change_TK.row(t).dot(dweights_TK.row(t)), 1e-9);
      }
    }
  }
}

TYPED_TEST(SoftmaxTest, GradientMatchesTheClosedForm) {
  using A = TypeParam;
  const RowMatrix<A> weights_TK = softmax(data::random_matrix<A>(40, 5, 6)).weights_TK;
  const RowMatrix<A> dweights_TK = data::random_matrix<A>(40, 5, 7);
  const RowMatrix<A> got_TK = softmax_gradient(weights_TK, dweights_TK);
  for (Index t = 0; t < 40; ++t) {
    const RowMatrix<double> p = weights_TK.row(t).template cast<double>();
    const RowMatrix<double> g = dweights_TK.row(t).template cast<double>();
    const double mean = p.cwiseProduct(g).sum();
    for (Index j = 0; j < 5; ++j) {
      EXPECT_NEAR(static_cast<double>(got_TK(t, j)), p(0, j) * (g(0, j) - mean),
                  4 * static_cast<double>(std::numeric_limits<A>::epsilon()));
    }
  }
}

// Losers and -inf: no gradient in, none out, whatever the caller's gradient holds there.
TYPED_TEST(SoftmaxTest, ZeroWeightHasZeroGradient) {
  using A = TypeParam;
  const A nan = data::marked_nan<A>();
  RowMatrix<A> weights_TK(2, 4), dweights_TK(2, 4);
  weights_TK << A(0.5), 0, A(0.5), A(-0.0), 1, 0, 0, 0;
  dweights_TK << 1, nan, 3, data::infinity<A>(), 7, nan, nan, nan;
  RowMatrix<A> want_TK(2, 4);
  want_TK << A(-0.5), 0, A(0.5), 0, 0, 0, 0, 0;
  EXPECT_TRUE(data::same_bits(softmax_gradient(weights_TK, dweights_TK), want_TK));
}

TYPED_TEST(SoftmaxTest, NanRowHasNanGradient) {
  using A = TypeParam;
  RowMatrix<A> weights_TK(2, 2), dweights_TK(2, 2);
  weights_TK << std::numeric_limits<A>::quiet_NaN(), std::numeric_limits<A>::quiet_NaN(), A(0.5),
      A(0.5);
  dweights_TK << 1, 2, 1, 2;
  const RowMatrix<A> got_TK = softmax_gradient(weights_TK, dweights_TK);
  EXPECT_TRUE(std::isnan(got_TK(0, 0)) && std::isnan(got_TK(0, 1)));
  EXPECT_EQ(got_TK(1, 0), A(-0.25));
  EXPECT_EQ(got_TK(1, 1), A(0.25));
}

TYPED_TEST(SoftmaxTest, GradientTakesEveryLayout) {
  using A = TypeParam;
  const RowMatrix<A> weights_TK = softmax(data::random_matrix<A>(11, 3, 8)).weights_TK;
  const RowMatrix<A> dweights_TK = data::random_matrix<A>(11, 3, 9);
  const RowMatrix<A> want_TK = softmax_gradient(weights_TK, dweights_TK);
  const Eigen::Matrix<A, Eigen::Dynamic, Eigen::Dynamic> weights = weights_TK;
  Eigen::Matrix<A, Eigen::Dynamic, Eigen::Dynamic> dlogits(11, 3);
  gatepro::softmax_backward(gatepro::strided_view(weights), gatepro::strided_view(dweights_TK),
                            gatepro::strided_view(dlogits));
  const RowMatrix<A> rows = dlogits;
  EXPECT_TRUE(data::same_bits(rows, want_TK));
}

}  // namespace
