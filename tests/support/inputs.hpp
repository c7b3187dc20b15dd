// SPDX-License-Identifier: MIT
// What the tests feed to the library: the same numbers on every machine and in every order of
// tests, and values that are hard to handle.
#ifndef GATEPRO_TESTS_SUPPORT_INPUTS_HPP
#define GATEPRO_TESTS_SUPPORT_INPUTS_HPP

#include <cstddef>
#include <cstdint>
#include <gatepro/core/scalar.hpp>
#include <gatepro/routing/rules.hpp>
#include <limits>
#include <type_traits>
#include <vector>

#include "support/bits.hpp"

namespace data {

using gatepro::Index;
using gatepro::RowMatrix;

inline constexpr gatepro::ScoreFunction score_functions[] = {
    gatepro::ScoreFunction::softmax_after_top_k, gatepro::ScoreFunction::softmax_before_top_k,
    gatepro::ScoreFunction::sigmoid, gatepro::ScoreFunction::sqrt_softplus};

/// 64 random bits: number `counter` of stream `seed`.
inline std::uint64_t random_bits(std::uint64_t seed, std::uint64_t counter) {
  std::uint64_t z = (seed * 0x100000001b3u + counter + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/// Uniform in [0, n).
inline Index random_below(Index n, std::uint64_t seed, std::uint64_t counter) {
  return static_cast<Index>(random_bits(seed, counter) % static_cast<std::uint64_t>(n));
}

/// Uniform in [-1, 1), with all bits of a double in use.
inline double random_uniform(std::uint64_t seed, std::uint64_t counter) {
  const auto integer = static_cast<std::int64_t>(random_bits(seed, counter) >> 11);
  return static_cast<double>(integer - (std::int64_t{1} << 52)) / 4503599627370496.0;
}

/// Uniform in [-scale, scale).
template <class T>
RowMatrix<T> random_matrix(Index rows, Index cols, std::uint64_t seed, double scale = 1) {
  RowMatrix<T> m(rows, cols);
  for (Index i = 0; i < rows * cols; ++i) {
    // 16-bit types take floats only.
    using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;
    const double value = scale * random_uniform(seed, static_cast<std::uint64_t>(i));
    m.data()[i] = static_cast<T>(static_cast<Wide>(value));
  }
  return m;
}

/// Few distinct values, zeros of both signs among them, so that almost everything ties.
template <class T>
RowMatrix<T> tied_matrix(Index rows, Index cols, std::uint64_t seed) {
  const T levels[] = {T(0), T(-0.0), T(1), T(-1), T(0.5), T(1)};
  RowMatrix<T> m(rows, cols);
  for (Index i = 0; i < rows * cols; ++i) {
    m.data()[i] = levels[random_below(6, seed, static_cast<std::uint64_t>(i))];
  }
  return m;
}

template <class A>
A infinity() {
  return std::numeric_limits<A>::infinity();
}

/// A NaN whose sign and payload show whether it was copied or made anew.
template <class A>
A marked_nan() {
  constexpr int mantissa = std::numeric_limits<A>::digits - 1;
  const BitsOf<A> quiet = bits_of(infinity<A>()) | (BitsOf<A>(1) << (mantissa - 1));
  return from_bits<A>(static_cast<BitsOf<A>>(~(~BitsOf<A>(0) >> 1) | quiet | BitsOf<A>(0x2a)));
}

/// Zeros, denormals, the borders of the range, infinities and NaNs, each with both signs.
template <class A>
std::vector<A> special_values() {
  using L = std::numeric_limits<A>;
  const BitsOf<A> infinite = bits_of(L::infinity());
  std::vector<A> values{A(0),
                        L::denorm_min(),
                        from_bits<A>(2),
                        from_bits<A>(bits_of(L::min()) - 1),
                        L::min(),
                        from_bits<A>(bits_of(L::min()) + 1),
                        A(0.5),
                        A(1),
                        from_bits<A>(bits_of(A(1)) - 1),
                        from_bits<A>(bits_of(A(1)) + 1),
                        L::max() / 2,
                        L::max(),
                        L::infinity(),
                        from_bits<A>(infinite + 1),  // signalling, smallest payload
                        L::quiet_NaN(),
                        from_bits<A>(bits_of(L::quiet_NaN()) + 1234),
                        from_bits<A>(~BitsOf<A>(0) >> 1)};
  const BitsOf<A> sign = ~(~BitsOf<A>(0) >> 1);
  const std::size_t count = values.size();
  for (std::size_t i = 0; i < count; ++i) values.push_back(from_bits<A>(bits_of(values[i]) | sign));
  return values;
}

/// Random numbers with every `every`-th element, roughly, taken from special_values.
template <class A>
RowMatrix<A> special_matrix(Index rows, Index cols, std::uint64_t seed, Index every = 3) {
  const std::vector<A> specials = special_values<A>();
  RowMatrix<A> m = random_matrix<A>(rows, cols, seed);
  for (Index i = 0; i < rows * cols; ++i) {
    const auto counter = static_cast<std::uint64_t>(i);
    if (random_below(every, seed + 1, counter) != 0) continue;
    const Index pick = random_below(static_cast<Index>(specials.size()), seed + 2, counter);
    m.data()[i] = specials[static_cast<std::size_t>(pick)];
  }
  return m;
}

/// About one token of three masked, by various bytes.
inline std::vector<std::uint8_t> random_mask(Index tokens, std::uint64_t seed) {
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(tokens));
  for (std::size_t t = 0; t < mask.size(); ++t) {
    mask[t] = random_below(3, seed, t) == 0 ? static_cast<std::uint8_t>(t % 255 + 1) : 0;
  }
  return mask;
}

}  // namespace data

#endif  // GATEPRO_TESTS_SUPPORT_INPUTS_HPP
