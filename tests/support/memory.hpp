// SPDX-License-Identifier: MIT
// Memory that calls read, write and work in.
#ifndef GATEPRO_TESTS_SUPPORT_MEMORY_HPP
#define GATEPRO_TESTS_SUPPORT_MEMORY_HPP

#include <cstddef>
#include <gatepro/core/views.hpp>
#include <type_traits>
#include <vector>

namespace data {

using gatepro::Index;
using gatepro::RowMatrix;

/// What tests leave empty is not given.
template <class T>
gatepro::VectorView<const T> optional(const std::vector<T>& values) {
  return values.empty() ? gatepro::VectorView<const T>() : gatepro::VectorView<const T>(values);
}

/// Scratch memory of exactly `bytes`, full of ones: a stage that reads what it did not write reads
/// NaNs.
inline std::vector<std::byte> scratch(std::size_t bytes) {
  return std::vector<std::byte>(bytes, std::byte{0xff});
}

/// A matrix with a gap after each row. The gaps must keep their guard value.
template <class T>
class GuardedMatrix {
 public:
  GuardedMatrix(Index rows, Index cols, Index gap)
      : cols_(cols), memory_(RowMatrix<T>::Constant(rows, cols + gap, T(guard))) {}
  GuardedMatrix(const RowMatrix<T>& values, Index gap)
      : GuardedMatrix(values.rows(), values.cols(), gap) {
    memory_.leftCols(cols_) = values;
  }

  gatepro::MatrixView<T> view() { return {memory_.data(), memory_.rows(), cols_, memory_.cols()}; }
  RowMatrix<T> values() const { return memory_.leftCols(cols_); }
  bool intact() const {
    for (Index r = 0; r < memory_.rows(); ++r) {
      for (Index c = cols_; c < memory_.cols(); ++c) {
        if (!(memory_(r, c) == T(guard))) return false;
      }
    }
    return true;
  }

 private:
  static constexpr int guard = 99;
  Index cols_;
  RowMatrix<T> memory_;
};

/// What a view shows, owned.
template <class T, class View>
RowMatrix<T> copy(const View& view) {
  RowMatrix<T> m(view.rows, view.cols);
  for (Index r = 0; r < view.rows; ++r) {
    for (Index c = 0; c < view.cols; ++c) m(r, c) = view(r, c);
  }
  return m;
}
template <class T>
std::vector<std::remove_const_t<T>> copy(const gatepro::VectorView<T>& view) {
  return {view.data, view.data + view.size};
}

}  // namespace data

#endif  // GATEPRO_TESTS_SUPPORT_MEMORY_HPP
