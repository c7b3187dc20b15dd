// SPDX-License-Identifier: MIT
// Rounding to the 16-bit types by their definition, in double.
#ifndef GATEPRO_TESTS_SUPPORT_REFERENCE_ROUNDING_HPP
#define GATEPRO_TESTS_SUPPORT_REFERENCE_ROUNDING_HPP

#include <algorithm>
#include <cmath>
#include <limits>

namespace reference {

/// Significant bits and the exponents of the least and the largest normal number.
struct Format {
  int digits, least, most;
};
inline constexpr Format bfloat16_format{8, -126, 127}, half_format{11, -14, 15};

/// `value`, which is no NaN, to the nearest number of the format; to the even one of two, and to
/// infinity from half a place above the largest.
inline double rounded(double value, const Format& format) {
  if (value == 0 || std::isinf(value)) return value;
  const int exponent = std::max(std::ilogb(value), format.least);
  const double place = std::ldexp(1.0, exponent - format.digits + 1);
  const double whole = std::floor(std::abs(value) / place);
  const double rest = std::abs(value) / place - whole;
  const bool up = rest > 0.5 || (rest == 0.5 && std::fmod(whole, 2) == 1);
  const double magnitude = (whole + (up ? 1 : 0)) * place;
  const bool fits = magnitude < std::ldexp(1.0, format.most + 1);
  return std::copysign(fits ? magnitude : std::numeric_limits<double>::infinity(), value);
}

}  // namespace reference

#endif  // GATEPRO_TESTS_SUPPORT_REFERENCE_ROUNDING_HPP
