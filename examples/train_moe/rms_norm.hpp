// SPDX-License-Identifier: MIT
// Scales each token to a root mean square of 1.
#ifndef TRAIN_MOE_RMS_NORM_HPP
#define TRAIN_MOE_RMS_NORM_HPP

#include <cmath>

#include "parallel.hpp"

namespace train_moe {

template <class A>
struct RmsNorm {
  RowMatrix<A> normed_TH;
  RowMatrix<A> scale_T1;  // 1 / rms of each token

  void forward(const RowMatrix<A>& x_TH, const Executor& executor) {
    constexpr double epsilon = 1e-6;  // keeps a zero token finite
    normed_TH.resize(x_TH.rows(), x_TH.cols());
    scale_T1.resize(x_TH.rows(), 1);
    parallel_ranges(executor, x_TH.rows(), token_range, [&](Index first, Index count) {
      for (Index t = first; t < first + count; ++t) {
        const A mean_square = x_TH.row(t).squaredNorm() / static_cast<A>(x_TH.cols());
        scale_T1(t) = 1 / std::sqrt(mean_square + static_cast<A>(epsilon));
        normed_TH.row(t) = scale_T1(t) * x_TH.row(t);
      }
    });
  }

  /// dx_TH += the gradient that dnormed_TH sends back. Only its part across the token passes: the
  /// length was divided out.
  void backward(const RowMatrix<A>& dnormed_TH, RowMatrix<A>& dx_TH,
                const Executor& executor) const {
    parallel_ranges(executor, dx_TH.rows(), token_range, [&](Index first, Index count) {
      for (Index t = first; t < first + count; ++t) {
        const A along = dnormed_TH.row(t).dot(normed_TH.row(t)) / static_cast<A>(dx_TH.cols());
        dx_TH.row(t) += scale_T1(t) * (dnormed_TH.row(t) - along * normed_TH.row(t));
      }
    });
  }
};

}  // namespace train_moe

#endif  // TRAIN_MOE_RMS_NORM_HPP
