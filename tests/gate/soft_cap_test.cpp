// SPDX-License-Identifier: MIT
// Soft caps of logits: their error, their order, and their slope, the same bits however the work is
// cut.
#include <gatepro/gate/soft_cap.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "support/bits.hpp"
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

template <class A>
std::vector<A> capped(double cap, std::vector<A> values) {
  gatepro::soft_cap_logits(cap, MatrixView<A>(values.data(), 1, static_cast<Index>(values.size())));
  return values;
}
template <class A>
A capped(double cap, A value) {
  return capped(cap, std::vector<A>{value})[0];
}

/// In units of the last place of `want`.
template <class A>
double error_in_ulp(A got, long double want) {
  using L = std::numeric_limits<A>;
  const int exponent = std::max(std::ilogb(static_cast<double>(want)), L::min_exponent - 1);
  return std::abs(static_cast<double>((static_cast<long double>(got) - want) /
                                      std::ldexp(1.0L, exponent - (L::digits - 1))));
}

/// Magnitudes from `least` to 32 caps, closer to each other than a factor of 1.001.
template <class A>
std::vector<A> magnitudes(double least, double cap) {
  std::vector<A> values;
  std::uint64_t i = 0;
  for (double x = least; x < 32 * cap; x *= 1 + 0.001 * std::abs(data::random_uniform(1, ++i))) {
    values.push_back(static_cast<A>(x));
  }
  return values;
}

TEST(SoftCap, OfFloatsIsTheNearest) {
  for (const double cap : {1.0, 30.0, 0.37, 1e-30, 1e30}) {
    const float rounded = static_cast<float>(cap);
    const auto values = magnitudes<float>(std::max(1e-9 * cap, 1e-44), cap);
    const auto got = capped(cap, values);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double want = double(rounded) * std::tanh(double(values[i]) / double(rounded));
      ASSERT_LT(error_in_ulp(got[i], want), 0.51) << values[i] << " with cap " << cap;
    }
  }
}

TEST(SoftCap, OfDoublesErrsByFourUlp) {
  if (std::numeric_limits<long double>::digits <= 53) GTEST_SKIP() << "no wider type";
  for (const double cap : {1.0, 30.0, 0.37, 1e200}) {
    const auto values = magnitudes<double>(1e-20 * cap, cap);
    const auto got = capped(cap, values);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto wide = static_cast<long double>(cap);
      const long double want = wide * std::tanh(static_cast<long double>(values[i]) / wide);
      ASSERT_LT(error_in_ulp(got[i], want), 4) << values[i] << " with cap " << cap;
    }
  }
}

/// `count` neighbours from `first` upwards.
std::vector<float> neighbours(float first, int count) {
  std::vector<float> values;
  for (int i = 0; i < count; ++i) {
    values.push_back(first);
    first = std::nextafter(first, data::infinity<float>());
  }
  return values;
}

TEST(SoftCap, NoTwoFloatsChangeTheirOrder) {
  int equal = 0;
  for (const double cap : {1.0, 30.0, 0.37}) {
    std::vector<float> far = magnitudes<float>(1e-9 * cap, cap);
    std::sort(far.begin(), far.end());
    const auto got = capped(cap, far);
    ASSERT_TRUE(std::is_sorted(got.begin(), got.end()));
    for (std::size_t i = 0; i < far.size(); i += 40) {
      for (const float sign : {1.0F, -1.0F}) {
        const auto near = capped(cap, neighbours(sign * far[i], 61));
        ASSERT_TRUE(std::is_sorted(near.begin(), near.end())) << far[i];
        equal += near.front() == near.back() && far[i] < 8 * float(cap);
      }
    }
  }
  EXPECT_GT(equal, 0) << "ties are said to appear";
}

template <class A>
class SoftCapTest : public ::testing::Test {};
using Accumulators = ::testing::Types<float, double>;
TYPED_TEST_SUITE(SoftCapTest, Accumulators, TypeNames);

TYPED_TEST(SoftCapTest, IsOddAndEndsAtTheCap) {
  using A = TypeParam;
  constexpr double cap = 30;
  for (const A x : magnitudes<A>(1e-20, cap)) {
    const A up = capped(cap, x), down = capped(cap, -x);
    ASSERT_TRUE(data::same_bits<A>(-up, down)) << x;
    ASSERT_LE(up, A(cap));
    if (x >= 20 * A(cap)) {
      ASSERT_EQ(up, A(cap));
    }
  }
  using L = std::numeric_limits<A>;
  for (const A x : {L::max(), L::infinity()}) {
    EXPECT_EQ(capped(cap, x), A(cap));
    EXPECT_EQ(capped(cap, -x), -A(cap));
  }
  EXPECT_TRUE(data::same_bits<A>(capped(cap, A(0)), A(0)));
  EXPECT_TRUE(data::same_bits<A>(capped(cap, A(-0.0)), A(-0.0)));
  EXPECT_EQ(capped(1.0, L::min()), L::min());
}

TYPED_TEST(SoftCapTest, KeepsNaNs) {
  using A = TypeParam;
  for (const A nan : {std::numeric_limits<A>::quiet_NaN(), data::marked_nan<A>()}) {
    std::vector<A> values = {1, nan, -2, 3};
    const auto got = capped(2.0, values);
    EXPECT_TRUE(data::same_bits<A>(got[1], nan));
    for (const std::size_t i : {0u, 2u, 3u}) EXPECT_EQ(got[i], capped(2.0, values[i]));
  }
}

TYPED_TEST(SoftCapTest, BitsDoNotDependOnHowTheWorkIsCut) {
  using A = TypeParam;
  for (Index cols : {1, 3, 8, 31, 64, 70}) {
    const auto logits_TE = data::random_matrix<A>(150, cols, 1, 9);
    RowMatrix<A> want_TE(150, cols);
    for (Index i = 0; i < logits_TE.size(); ++i) {
      want_TE.data()[i] = capped(2.5, logits_TE.data()[i]);
    }
    RowMatrix<A> whole_TE = logits_TE, threaded_TE = logits_TE;
    gatepro::soft_cap_logits(2.5, gatepro::view(whole_TE));
    gatepro::soft_cap_logits(2.5, gatepro::view(threaded_TE), ThreadExecutor(3));
    data::GuardedMatrix<A> guarded(logits_TE, 3);
    for (auto [first, count] : {std::pair<Index, Index>{0, 1}, {1, 100}, {101, 49}}) {
      gatepro::soft_cap_logits(2.5, guarded.view().middle_rows(first, count), LastWorkerFirst(4));
    }
    EXPECT_TRUE(data::same_bits(whole_TE, want_TE)) << cols;
    EXPECT_TRUE(data::same_bits(threaded_TE, want_TE));
    EXPECT_TRUE(data::same_bits(guarded.values(), want_TE));
    EXPECT_TRUE(guarded.intact());
  }
}

TEST(SoftCapGradient, AgainstFiniteDifferences) {
  const auto logits_TE = data::random_matrix<double>(4, 19, 1, 5);
  RowMatrix<double> capped_TE = logits_TE, slope_TE = RowMatrix<double>::Ones(4, 19);
  gatepro::soft_cap_logits(2, gatepro::view(capped_TE));
  gatepro::soft_cap_backward(2, gatepro::view(capped_TE), gatepro::view(slope_TE));
  for (Index i = 0; i < logits_TE.size(); ++i) {
    const double want = reference::derivative(
        [&](double offset) { return capped(2.0, logits_TE.data()[i] + offset); }, 1e-3);
    EXPECT_NEAR(slope_TE.data()[i], want, 1e-10);
  }
}

TYPED_TEST(SoftCapTest, GradientsAreMultipliedByTheSlope) {
  using A = TypeParam;
  constexpr Index tokens = 150, experts = 37, top_k = 4;
  constexpr double cap = 3;
  RowMatrix<A> capped_TE = data::random_matrix<A>(tokens, experts, 1, 12);
  gatepro::soft_cap_logits(cap, gatepro::view(capped_TE));
  const auto dlogits_TE = data::random_matrix<A>(tokens, experts, 2);
  const auto dselected_TK = data::random_matrix<A>(tokens, top_k, 3);
  auto ids_TK = data::random_ids<std::int32_t>(tokens, experts, top_k, 4);
  ids_TK(9, 2) = -1;
  const auto padding = data::random_mask(tokens, 5);
  const gatepro::Choices chosen{gatepro::strided_view(ids_TK), padding};
  const auto slope = [&](Index t, Index e) {
    const double share = double(capped_TE(t, e)) / cap;
    return (1 - share) * (1 + share);
  };
  const double eps = double(std::numeric_limits<A>::epsilon());
  for (int workers : {1, 3}) {
    const ThreadExecutor executor(workers);
    data::GuardedMatrix<A> dense(dlogits_TE, 5), selected(dselected_TK, 3);
    gatepro::soft_cap_backward(cap, gatepro::view(capped_TE), dense.view(), executor);
    gatepro::soft_cap_backward(cap, gatepro::view(capped_TE), chosen,
                               gatepro::StridedView<A>(selected.view()), executor);
    const auto dense_TE = dense.values(), selected_TK = selected.values();
    for (Index t = 0; t < tokens; ++t) {
      for (Index e = 0; e < experts; ++e) {
        ASSERT_NEAR(double(dense_TE(t, e)), double(dlogits_TE(t, e)) * slope(t, e), 2 * eps);
      }
      for (Index j = 0; j < top_k; ++j) {
        const bool left = padding[static_cast<std::size_t>(t)] != 0 || ids_TK(t, j) < 0;
        const double factor = left ? 1 : slope(t, ids_TK(t, j));
        ASSERT_NEAR(double(selected_TK(t, j)), double(dselected_TK(t, j)) * factor, 2 * eps);
      }
    }
    EXPECT_TRUE(dense.intact() && selected.intact());
  }
}

TYPED_TEST(SoftCapTest, BadInputWritesNothing) {
  using A = TypeParam;
  RowMatrix<A> logits = RowMatrix<A>::Constant(3, 4, 5), gradients = logits, selected(3, 2);
  selected.setConstant(5);
  RowMatrix<std::int32_t> ids = RowMatrix<std::int32_t>::Zero(3, 2);
  const gatepro::Choices chosen{gatepro::strided_view(ids)};
  const auto refuse = [&](double cap, MatrixView<A> l, MatrixView<A> g, gatepro::StridedView<A> s,
                          std::initializer_list<const char*> names) {
    expect_error([&] { gatepro::soft_cap_backward(cap, l, g); }, names);
    expect_error([&] { gatepro::soft_cap_backward(cap, l, chosen, s); }, {"soft_cap_backward"});
    EXPECT_TRUE((logits.array() == 5).all() && (gradients.array() == 5).all() &&
                (selected.array() == 5).all());
  };
  const auto l = gatepro::view(logits), g = gatepro::view(gradients);
  const auto s = gatepro::strided_view(selected);
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = data::infinity<double>();
  for (const double cap : {0.0, -0.0, -1.0, nan, inf, -inf}) {
    refuse(cap, l, g, s, {"soft_cap_backward", "a soft cap", "cap="});
    expect_error([&] { gatepro::soft_cap_logits(cap, l); }, {"soft_cap_logits", "a soft cap"});
  }
  if (sizeof(A) == 4) {
    refuse(1e-60, l, g, s, {"soft_cap_backward", "cap=1e-60"});
    refuse(1e60, l, g, s, {"soft_cap_backward", "cap=1e+60"});
  }
  refuse(1, {nullptr, 3, 4}, g, s, {"soft_cap_backward", "capped_TE"});
  refuse(1, l, {gradients.data(), 3, 3, 4}, {selected.data(), 2, 2}, {"dlogits_TE", "cols=3"});
  refuse(1, l, l, {logits.data(), 3, 2}, {"dlogits_TE and capped_TE overlap"});
  expect_error([&] { gatepro::soft_cap_logits(1, MatrixView<A>(logits.data(), 3, 4, 2)); },
               {"soft_cap_logits", "logits_TE", "row_stride=2"});
  for (std::int32_t id : {-2, 4}) {
    ids(1, 1) = id;
    expect_error([&] { gatepro::soft_cap_backward(1, l, chosen, s); },
                 {"soft_cap_backward", "expert_ids_TK", "row=1"});
  }
}

}  // namespace
