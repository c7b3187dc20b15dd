// SPDX-License-Identifier: MIT
// Noise: the generator's published vectors, the right distributions, and the same values however
// the work is cut.
#include <gatepro/gate/noise.hpp>

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
using gatepro::MatrixView;
using gatepro::NoiseKey;
using gatepro::RowMatrix;
using gatepro::view;
using gatepro::detail::philox4x32;
using gatepro::detail::PhiloxBlock;

// tests/kat_vectors of Random123: counter, key, result.
TEST(Philox, GivesThePublishedVectors) {
  const auto expect = [](PhiloxBlock counter, std::uint32_t key0, std::uint32_t key1,
                         PhiloxBlock want) {
    const PhiloxBlock got = philox4x32(counter, (std::uint64_t{key1} << 32) | key0);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(got.word[i], want.word[i]) << i;
  };
  expect({{0, 0, 0, 0}}, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  constexpr std::uint32_t ones = 0xffffffff;
  expect({{ones, ones, ones, ones}}, ones, ones,
         {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  expect({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0,
         {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

/// Noise of a kind on a matrix that starts at 1 (jitter) or 0 (logits).
RowMatrix<double> jitter(Index rows, Index cols, const NoiseKey& noise, double eps = 0.5) {
  RowMatrix<double> m = RowMatrix<double>::Ones(rows, cols);
  gatepro::jitter_tokens(view(m), eps, noise, view(m));
  return m;
}
RowMatrix<double> normals(Index rows, Index cols, const NoiseKey& noise, double sigma = 1) {
  RowMatrix<double> m = RowMatrix<double>::Zero(rows, cols);
  gatepro::add_logit_noise(sigma, noise, view(m));
  return m;
}

/// The largest distance between the distribution of the values and `cdf` (Kolmogorov, Smirnov).
template <class Cdf>
double distance(const RowMatrix<double>& m, const Cdf& cdf) {
  std::vector<double> sorted(m.data(), m.data() + m.size());
  std::sort(sorted.begin(), sorted.end());
  const auto n = static_cast<double>(sorted.size());
  double worst = 0;
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    const double p = cdf(sorted[i]);
    worst = std::max({worst, std::abs(p - double(i) / n), std::abs(p - double(i + 1) / n)});
  }
  return worst;
}

double correlation(const RowMatrix<double>& a, const RowMatrix<double>& b) {
  const RowMatrix<double> x = a.array() - a.mean(), y = b.array() - b.mean();
  return (x.array() * y.array()).sum() / (x.norm() * y.norm());
}

constexpr Index many_rows = 500, many_cols = 402;
/// Chance exceeds this with a probability of 1e-8 or so; the values never change.
const double chance = 3.0 / std::sqrt(double(many_rows * many_cols));

TEST(Noise, JitterIsUniform) {
  const auto m = jitter(many_rows, many_cols, {1, 2});
  EXPECT_LT(distance(m, [](double v) { return v - 0.5; }), chance);
  EXPECT_GE(m.minCoeff(), 0.5);
  EXPECT_LE(m.maxCoeff(), 1.5);
  EXPECT_NEAR(m.mean(), 1, chance);
}

TEST(Noise, LogitNoiseIsNormal) {
  const auto m = normals(many_rows, many_cols, {1, 2});
  const double sqrt_half = std::sqrt(0.5);
  EXPECT_LT(distance(m, [&](double v) { return 0.5 * std::erfc(-v * sqrt_half); }), chance);
  EXPECT_NEAR(m.mean(), 0, 2 * chance);
  EXPECT_NEAR(m.squaredNorm() / double(m.size()), 1, 3 * chance);
  const auto scaled = normals(many_rows, many_cols, {1, 2}, 0.25);
  EXPECT_TRUE(data::same_bits(scaled, RowMatrix<double>(0.25 * m)));
}

// Neighbours in any direction, and streams that differ in any part of the key, are unrelated.
TEST(Noise, StreamsAreUnrelated) {
  for (bool uniform : {true, false}) {
    const auto make = [&](const NoiseKey& noise) {
      return uniform ? jitter(many_rows, many_cols, noise) : normals(many_rows, many_cols, noise);
    };
    const auto base = make({1, 2});
    const std::uint64_t high = std::uint64_t{1} << 32;
    for (NoiseKey other : {NoiseKey{1, 3}, NoiseKey{2, 2}, NoiseKey{2, 1}, NoiseKey{1 + high, 2},
                           NoiseKey{1, 2 + high}, NoiseKey{0, 0}}) {
      EXPECT_LT(std::abs(correlation(base, make(other))), 2 * chance)
          << other.seed << " " << other.step;
    }
    EXPECT_LT(std::abs(correlation(base, make({1, 2, 1}))), 2 * chance);
    EXPECT_LT(std::abs(correlation(base, make({1, 2, Index{1} << 32}))), 2 * chance);
    const RowMatrix<double> left = base.leftCols(many_cols - 1);
    const RowMatrix<double> right = base.rightCols(many_cols - 1);
    EXPECT_LT(std::abs(correlation(left, right)), 2 * chance);
  }
  EXPECT_LT(std::abs(correlation(jitter(many_rows, many_cols, {1, 2}),
                                 normals(many_rows, many_cols, {1, 2}))),
            2 * chance);
}

// A checkpoint stores a step: what it stands for must not change.
TEST(Noise, ValuesFollowFromTheKeyInOneWay) {
  const auto j = jitter(1, 5, {7, 11, 13});
  const auto n = normals(1, 5, {7, 11, 13});
  for (Index c = 0; c < 5; ++c) {
    // Written out: the stream's key, then four words per block of columns.
    for (auto use : {gatepro::detail::NoiseUse::jitter, gatepro::detail::NoiseUse::logits}) {
      const PhiloxBlock key = philox4x32({{11, 0, std::uint32_t(use), 0}}, 7);
      const PhiloxBlock bits = philox4x32({{13, 0, std::uint32_t(c / 4), 0}},
                                          (std::uint64_t{key.word[1]} << 32) | key.word[0]);
      const auto part = [&](Index i) { return double(bits.word[i]) / 4294967296.0; };
      if (use == gatepro::detail::NoiseUse::jitter) {
        const double u = 2 * part(c % 4) + 1 / 4294967296.0 - 1;
        EXPECT_EQ(j(0, c), double(float(1 + 0.5 * u)));
      } else {
        const Index pair = c % 4 / 2 * 2;
        const double radius = std::sqrt(-2 * std::log(part(pair) + 1 / 4294967296.0));
        const double angle = 2 * 3.14159265358979323846 * part(pair + 1);
        EXPECT_NEAR(n(0, c), radius * (c % 2 == 0 ? std::cos(angle) : std::sin(angle)), 1e-14);
      }
    }
  }
}

TEST(Noise, TheEndsOfTheRangesAreFinite) {
  for (std::uint32_t bits : {0U, 1U, 0x7fffffffU, 0x80000000U, 0xffffffffU}) {
    const double u = gatepro::detail::uniform_of(bits);
    EXPECT_GT(u, -1);
    EXPECT_LT(u, 1);
    EXPECT_EQ(gatepro::detail::uniform_of(~bits), -u);
    double two[2];
    gatepro::detail::store_normals(bits, bits, two);
    EXPECT_TRUE(std::isfinite(two[0]) && std::isfinite(two[1]));
    EXPECT_LT(std::hypot(two[0], two[1]), 6.7);
  }
}

template <class X>
class NoiseTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double, gatepro::bfloat16, gatepro::half>;
TYPED_TEST_SUITE(NoiseTest, Scalars, TypeNames);

TYPED_TEST(NoiseTest, BitsDoNotDependOnThreadsRangesOrColumns) {
  using A = gatepro::accumulator_t<TypeParam>;
  constexpr Index tokens = 200, hidden = 11, first_token = 1000;
  const NoiseKey noise{3, 4, first_token};
  const auto x_TH = data::random_matrix<TypeParam>(tokens, hidden, 1);
  const auto logits = data::random_matrix<A>(tokens, hidden, 2);
  RowMatrix<TypeParam> want(tokens, hidden);
  gatepro::jitter_tokens(view(x_TH), 0.1, noise, view(want));
  RowMatrix<A> want_logits = logits;
  gatepro::add_logit_noise(2, noise, view(want_logits));

  for (int workers : {2, 5}) {
    RowMatrix<TypeParam> out(tokens, hidden);
    gatepro::jitter_tokens(view(x_TH), 0.1, noise, view(out), ThreadExecutor(workers));
    EXPECT_TRUE(data::same_bits(out, want));
    RowMatrix<A> noisy = logits;
    gatepro::add_logit_noise(2, noise, view(noisy), ThreadExecutor(workers));
    EXPECT_TRUE(data::same_bits(noisy, want_logits));
  }
  data::GuardedMatrix<TypeParam> out(tokens, hidden, 3);
  data::GuardedMatrix<A> noisy(logits, 3);
  for (auto [from, count] : {std::pair<Index, Index>(0, 77), std::pair<Index, Index>(77, 123)}) {
    gatepro::jitter_tokens(view(x_TH).middle_rows(from, count), 0.1, {3, 4, first_token + from},
                           out.view().middle_rows(from, count));
    gatepro::add_logit_noise(2, {3, 4, first_token + from}, noisy.view().middle_rows(from, count));
  }
  EXPECT_TRUE(data::same_bits(out.values(), want));
  EXPECT_TRUE(data::same_bits(noisy.values(), want_logits));
  EXPECT_TRUE(out.intact() && noisy.intact());

  // Fewer columns see the same noise in theirs.
  RowMatrix<TypeParam> narrow(tokens, 6);
  gatepro::jitter_tokens(view(x_TH).middle_cols(0, 6), 0.1, noise, view(narrow));
  EXPECT_TRUE(data::same_bits(narrow, RowMatrix<TypeParam>(want.leftCols(6))));

  // In place.
  RowMatrix<TypeParam> in_place = x_TH;
  gatepro::jitter_tokens(view(in_place), 0.1, noise, view(in_place));
  EXPECT_TRUE(data::same_bits(in_place, want));
}

TYPED_TEST(NoiseTest, BackwardMultipliesByTheSameFactors) {
  using A = gatepro::accumulator_t<TypeParam>;
  constexpr Index tokens = 30, hidden = 9;
  const NoiseKey noise{5, 6, 8};
  const RowMatrix<TypeParam> ones = RowMatrix<TypeParam>::Constant(tokens, hidden, TypeParam(1.0F));
  RowMatrix<A> wide_ones = RowMatrix<A>::Ones(tokens, hidden), factors = wide_ones;
  gatepro::jitter_tokens(view(wide_ones), 0.3, noise, view(factors));
  RowMatrix<TypeParam> narrow(tokens, hidden);
  gatepro::jitter_tokens(view(ones), 0.3, noise, view(narrow));
  EXPECT_TRUE(data::same_bits(narrow, RowMatrix<TypeParam>(factors.template cast<TypeParam>())));

  const auto dout = data::random_matrix<A>(tokens, hidden, 7);
  const RowMatrix<A> start = RowMatrix<A>::Zero(tokens, hidden);
  RowMatrix<A> dx = start;
  gatepro::jitter_backward(view(dout), 0.3, noise, view(dx), ThreadExecutor(3));
  EXPECT_TRUE(data::same_bits(dx, RowMatrix<A>(dout.array() * factors.array())));
  gatepro::jitter_backward(view(dout), 0.3, noise, view(dx));  // adds
  EXPECT_TRUE(dx.isApprox(2 * dout.cwiseProduct(factors), 4 * std::numeric_limits<A>::epsilon()));
}

TYPED_TEST(NoiseTest, NoNoiseChangesNothing) {
  using A = gatepro::accumulator_t<TypeParam>;
  const auto x_TH = data::random_matrix<TypeParam>(7, 5, 9);
  RowMatrix<TypeParam> out(7, 5);
  gatepro::jitter_tokens(view(x_TH), 0, {1, 2}, view(out));
  EXPECT_TRUE(data::same_bits(out, x_TH));
  const auto logits = data::special_matrix<A>(99, 5, 10);
  RowMatrix<A> noisy = logits;
  gatepro::add_logit_noise(0, {1, 2}, view(noisy));
  EXPECT_TRUE(data::same_bits(noisy, logits));
  MatrixView<TypeParam> empty(nullptr, 0, 5);
  EXPECT_NO_THROW(gatepro::jitter_tokens(empty, 0.1, {}, empty));
}

TYPED_TEST(NoiseTest, BadInputWritesNothing) {
  using A = gatepro::accumulator_t<TypeParam>;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double inf = data::infinity<double>();
  constexpr Index most = std::numeric_limits<Index>::max();
  RowMatrix<TypeParam> x = RowMatrix<TypeParam>::Constant(3, 4, TypeParam(1.0F)), out = x;
  RowMatrix<A> g = RowMatrix<A>::Ones(3, 4), dx = g;
  const auto refused = [&](MatrixView<TypeParam> from, double eps, Index first,
                           MatrixView<TypeParam> to) {
    EXPECT_THROW(gatepro::jitter_tokens(from, eps, {0, 0, first}, to), gatepro::Error);
    EXPECT_TRUE(data::same_bits(x, out));
  };
  for (double eps : {-0.1, 1.0, 2.0, nan, -nan, inf}) {
    refused(view(x), eps, 0, view(out));
    EXPECT_THROW(gatepro::jitter_backward(view(g), eps, {}, view(dx)), gatepro::Error);
  }
  for (double sigma : {-0.1, nan, inf, -inf}) {
    EXPECT_THROW(gatepro::add_logit_noise(sigma, {}, view(dx)), gatepro::Error);
  }
  for (Index first : {Index{-1}, most - 2, most}) {
    refused(view(x), 0.1, first, view(out));
    EXPECT_THROW(gatepro::jitter_backward(view(g), 0.1, {0, 0, first}, view(dx)), gatepro::Error);
    EXPECT_THROW(gatepro::add_logit_noise(1, {0, 0, first}, view(dx)), gatepro::Error);
  }
  refused(view(x), 0.1, 0, {out.data(), 2, 4});
  refused({nullptr, 3, 4}, 0.1, 0, view(out));
  refused({x.data(), 3, 4, 3}, 0.1, 0, view(out));
  EXPECT_THROW(gatepro::jitter_backward(view(g), 0.1, {}, MatrixView<A>(dx.data(), 2, 4)),
               gatepro::Error);
  EXPECT_THROW(gatepro::add_logit_noise(1, {}, MatrixView<A>(nullptr, 3, 4)), gatepro::Error);
  EXPECT_TRUE((dx.array() == 1).all());
}

}  // namespace
