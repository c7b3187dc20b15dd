// SPDX-License-Identifier: MIT
// The bits of numbers: numbers made from them, results compared by them.
#ifndef GATEPRO_TESTS_SUPPORT_BITS_HPP
#define GATEPRO_TESTS_SUPPORT_BITS_HPP

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <gatepro/core/views.hpp>
#include <limits>
#include <sstream>
#include <type_traits>

namespace data {

template <class A>
using BitsOf = std::conditional_t<sizeof(A) == 4, std::uint32_t, std::uint64_t>;

template <class A>
BitsOf<A> bits_of(const A& value) {
  BitsOf<A> bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
template <class A>
A from_bits(BitsOf<A> bits) {
  A value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// True for NaN, to compilers that know of none, too.
template <class A>
bool is_nan(const A& value) {
  return (bits_of(value) & ~BitsOf<A>(0) >> 1) > bits_of(std::numeric_limits<A>::infinity());
}

/// |got - want| in units of the last place of `want`.
template <class A>
double ulps(A got, long double want) {
  const int exponent = std::max(std::ilogb(want), std::numeric_limits<A>::min_exponent - 1);
  const long double ulp = std::ldexp(1.0L, exponent - std::numeric_limits<A>::digits + 1);
  return static_cast<double>(std::abs(static_cast<long double>(got) - want) / ulp);
}

/// True if both have the same shape and the same bits, NaN payloads and signs of zeros included.
template <class T>
::testing::AssertionResult same_bits(const gatepro::RowMatrix<T>& a,
                                     const gatepro::RowMatrix<T>& b) {
  if (a.rows() != b.rows() || a.cols() != b.cols()) {
    return ::testing::AssertionFailure() << "shapes differ";
  }
  for (gatepro::Index r = 0; r < a.rows(); ++r) {
    for (gatepro::Index c = 0; c < a.cols(); ++c) {
      if (std::memcmp(&a(r, c), &b(r, c), sizeof(T)) == 0) continue;
      std::ostringstream text;
      text.precision(17);
      text << "(" << r << ", " << c << "): " << a(r, c) << " and " << b(r, c);
      return ::testing::AssertionFailure() << text.str();
    }
  }
  return ::testing::AssertionSuccess();
}

template <class T>
::testing::AssertionResult same_bits(T a, T b) {
  if (std::memcmp(&a, &b, sizeof(T)) == 0) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << a << " and " << b;
}

}  // namespace data

#endif  // GATEPRO_TESTS_SUPPORT_BITS_HPP
