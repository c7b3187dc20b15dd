// SPDX-License-Identifier: MIT
// Matrices of the library as the references know them.
#ifndef GATEPRO_TESTS_SUPPORT_CONVERSIONS_HPP
#define GATEPRO_TESTS_SUPPORT_CONVERSIONS_HPP

#include <gatepro/core/views.hpp>
#include <vector>

#include "support/reference/matrix.hpp"

namespace data {

using gatepro::Index;

/// Any matrix or view as nested vectors.
template <class To, class M>
std::vector<std::vector<To>> nested(const M& m, Index rows, Index cols) {
  std::vector<std::vector<To>> result(static_cast<std::size_t>(rows));
  for (Index r = 0; r < rows; ++r) {
    for (Index c = 0; c < cols; ++c) {
      result[static_cast<std::size_t>(r)].push_back(static_cast<To>(m(r, c)));
    }
  }
  return result;
}

template <class T>
reference::Matrix to_reference(const gatepro::RowMatrix<T>& m) {
  return nested<double>(m, m.rows(), m.cols());
}

template <class Id>
reference::Ids to_ids(const gatepro::RowMatrix<Id>& ids) {
  return nested<int>(ids, ids.rows(), ids.cols());
}
template <class Id>
reference::Ids to_ids(const gatepro::MatrixView<Id>& ids) {
  return nested<int>(ids, ids.rows, ids.cols);
}

/// Rounded to A.
template <class A>
double round_to(double value) {
  return static_cast<double>(static_cast<A>(value));
}

/// Element (r, c) of a reference matrix.
template <class M>
auto at(const M& m, Index r, Index c) {
  return m[static_cast<std::size_t>(r)][static_cast<std::size_t>(c)];
}

}  // namespace data

#endif  // GATEPRO_TESTS_SUPPORT_CONVERSIONS_HPP
