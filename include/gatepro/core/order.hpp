// SPDX-License-Identifier: MIT
// The one total order of logits, as integers.
//
// A logit's key is its bit pattern, mapped so that keys compare as integers the way the values
// compare as numbers: -0.0 and +0.0 share a key, and every NaN has the same key below -inf.
// Integers keep their meaning under -ffast-math and with denormals flushed.
#ifndef GATEPRO_CORE_ORDER_HPP
#define GATEPRO_CORE_ORDER_HPP

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "gatepro/core/config.hpp"

namespace gatepro {
namespace detail {

template <class A>
struct Order {
  using Key = std::conditional_t<sizeof(A) == 4, std::int32_t, std::int64_t>;

  static constexpr int mantissa_bits = sizeof(A) == 4 ? 23 : 52;
  static constexpr int exponent_bias = sizeof(A) == 4 ? 127 : 1023;
  static constexpr Key lowest = (std::numeric_limits<Key>::min)();
  static constexpr Key magnitude = (std::numeric_limits<Key>::max)();
  static constexpr Key infinity = Key(2 * exponent_bias + 1) << mantissa_bits;
  static constexpr Key quiet_nan_bits = infinity | (Key(1) << (mantissa_bits - 1));

  // Keys below that of -inf, from the last rank upwards.
  static constexpr Key empty = lowest;      ///< A slot that no expert has taken.
  static constexpr Key nan = lowest + 1;    ///< Not a number: ranks after every number.
  static constexpr Key loser = lowest + 2;  ///< Eliminated: ranks after every survivor.
};

inline namespace GATEPRO_ABI {

template <class A>
typename Order<A>::Key key_of(A value) {
  using O = Order<A>;
  typename O::Key bits;
  std::memcpy(&bits, &value, sizeof bits);
  const typename O::Key size = bits & O::magnitude;
  if (size > O::infinity) return O::nan;
  return bits < 0 ? -size : size;
}

/// The value of a key; the keys below -inf give a quiet NaN, except that a loser counts as -inf.
template <class A>
A value_of(typename Order<A>::Key key) {
  using O = Order<A>;
  typename O::Key bits = key;
  if (key == O::nan || key == O::empty) {
    bits = O::quiet_nan_bits;
  } else if (key == O::loser) {
    bits = O::infinity | O::lowest;
  } else if (key < 0) {
    bits = -key | O::lowest;
  }
  A value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// Neither NaN nor infinite, also under -ffast-math, which takes every number for finite.
template <class A>
bool is_finite(A value) {
  const auto key = key_of(value);
  return key > -Order<A>::infinity && key < Order<A>::infinity;
}

/// Finite, also as an A.
template <class A>
bool is_finite_as(double value) {
  return is_finite(value) && value <= static_cast<double>((std::numeric_limits<A>::max)()) &&
         value >= static_cast<double>(std::numeric_limits<A>::lowest());
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_CORE_ORDER_HPP
