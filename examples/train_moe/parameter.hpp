// SPDX-License-Identifier: MIT
// A trained matrix and its gradient.
#ifndef TRAIN_MOE_PARAMETER_HPP
#define TRAIN_MOE_PARAMETER_HPP

#include <string>
#include <utility>

#include "parallel.hpp"
#include "random.hpp"

namespace train_moe {

template <class A>
struct Parameter {
  /// Values from N(0, deviation).
  Parameter(std::string name_, Index rows, Index cols, double deviation, Random random)
      : name(std::move(name_)), value(rows, cols), gradient(RowMatrix<A>::Zero(rows, cols)) {
    for (Index i = 0; i < value.size(); ++i) {
      value.data()[i] = static_cast<A>(deviation * random.normal());
    }
  }

  std::string name;
  RowMatrix<A> value;
  RowMatrix<A> gradient;  // backward adds to it, Adam zeroes it
};

}  // namespace train_moe

#endif  // TRAIN_MOE_PARAMETER_HPP
