// SPDX-License-Identifier: MIT
// A histogram of positive numbers of any size, in integers.
#ifndef GATEPRO_METRICS_LOG_BINS_HPP
#define GATEPRO_METRICS_LOG_BINS_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "gatepro/core/order.hpp"
#include "gatepro/core/product.hpp"
#include "gatepro/core/views.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// Bins whose borders are the numbers of `bins_per_octave` equal steps from one power of two to the
/// next: 6 to 12 % wide. They follow from a number's bits, so all machines agree. The first bin
/// starts at 0, the last has no end.
struct LogBins {
  static constexpr int step_bits = 3;
  static constexpr int first_exponent = -60;
  static constexpr int end_exponent = 20;
  static constexpr Index inner = Index{end_exponent - first_exponent} << step_bits;
  static constexpr Index count = inner + 2;

  /// The bin of a number >= 0 that is not a NaN.
  static Index bin_of(double value) {
    using O = Order<double>;
    constexpr auto first = std::int64_t{O::exponent_bias + first_exponent} << step_bits;
    const std::int64_t step = key_of(value) >> (O::mantissa_bits - step_bits);
    return static_cast<Index>(
        (std::max)(std::int64_t{0}, (std::min)(step - first + 1, std::int64_t{inner} + 1)));
  }

  /// Where a bin starts; where the one before ends.
  static double begin_of(Index bin) {
    if (bin == 0) return 0;
    const Index step = bin - 1;
    const Index steps = Index{1} << step_bits;
    const auto mantissa = 1 + static_cast<double>(step % steps) / static_cast<double>(steps);
    return std::ldexp(mantissa, first_exponent + static_cast<int>(step / steps));
  }
  /// Where a bin ends; the last one ends where it starts, for lack of an end.
  static double end_of(Index bin) { return begin_of((std::min)(bin + 1, count - 1)); }
};

/// The number below which `rank` >= 0 of what the bins hold lies, evenly spread within each bin;
/// the end of the last bin that holds something, if it holds less. `counts_B` are numbers >= 0 of
/// any type.
template <class Count>
double quantile(const Count* counts_B, double rank) {
  double below = 0;
  double end = 0;
  for (Index b = 0; b < LogBins::count; ++b) {
    const auto count = static_cast<double>(counts_B[b]);
    if (!(count > 0)) continue;
    const double begin = LogBins::begin_of(b);
    end = LogBins::end_of(b);
    if (below + count >= rank) {
      return begin + product(end - begin, (rank - below) / count);
    }
    below += count;
  }
  return end;
}

/// How much of what the bins hold lies below `value`: the inverse of quantile.
template <class Count>
double rank_of(const Count* counts_B, double value) {
  const Index bin = LogBins::bin_of(value);
  double below = 0;
  for (Index b = 0; b < bin; ++b) below += static_cast<double>(counts_B[b]);
  const double begin = LogBins::begin_of(bin);
  const double width = LogBins::end_of(bin) - begin;
  const double part = width > 0 ? (value - begin) / width : 1;
  return below + product(part, static_cast<double>(counts_B[bin]));
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_METRICS_LOG_BINS_HPP
