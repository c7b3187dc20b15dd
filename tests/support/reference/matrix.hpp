// SPDX-License-Identifier: MIT
// What all references are written in: the method once more, in double, as plainly as it can be.
// They share no code with the library but the structs of settings.
#ifndef GATEPRO_TESTS_SUPPORT_REFERENCE_MATRIX_HPP
#define GATEPRO_TESTS_SUPPORT_REFERENCE_MATRIX_HPP

#include <cstddef>
#include <cstdint>
#include <vector>

namespace reference {

using Row = std::vector<double>;
using Matrix = std::vector<Row>;  // rows of equal length
using Ids = std::vector<std::vector<int>>;
using Flags = std::vector<bool>;
using Counts = std::vector<std::int64_t>;
using Mask = std::vector<std::uint8_t>;  // 0: valid; empty for none

inline Matrix zeros(std::size_t rows, std::size_t cols) { return Matrix(rows, Row(cols, 0.0)); }

inline bool masked(const Mask& mask, std::size_t t) { return !mask.empty() && mask[t] != 0; }

/// f'(0), with an error of order step^4.
template <class F>
double derivative(const F& f, double step) {
  return (8 * (f(step) - f(-step)) - (f(2 * step) - f(-2 * step))) / (12 * step);
}

}  // namespace reference

#endif  // GATEPRO_TESTS_SUPPORT_REFERENCE_MATRIX_HPP
