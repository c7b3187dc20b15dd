// SPDX-License-Identifier: MIT
// A linear map of tokens, y = x w^T, and its gradients.
#ifndef TRAIN_MOE_LINEAR_HPP
#define TRAIN_MOE_LINEAR_HPP

#include "parallel.hpp"

namespace train_moe {

/// y_TO = x_TI w_OI^T.
template <class A>
void linear(const RowMatrix<A>& x_TI, const RowMatrix<A>& w_OI, RowMatrix<A>& y_TO,
            const Executor& executor) {
  y_TO.resize(x_TI.rows(), w_OI.rows());
  parallel_ranges(executor, x_TI.rows(), token_range, [&](Index t, Index count) {
    y_TO.middleRows(t, count).noalias() = x_TI.middleRows(t, count) * w_OI.transpose();
  });
}

/// dx_TI = dy_TO w_OI and dw_OI += dy_TO^T x_TI.
///
/// dw is a sum over all tokens, so threads share its rows, never the tokens.
template <class A>
void linear_backward(const RowMatrix<A>& x_TI, const RowMatrix<A>& w_OI, const RowMatrix<A>& dy_TO,
                     RowMatrix<A>& dx_TI, RowMatrix<A>& dw_OI, const Executor& executor) {
  constexpr Index row_range = 32;
  dx_TI.resize(x_TI.rows(), x_TI.cols());
  parallel_ranges(executor, x_TI.rows(), token_range, [&](Index t, Index count) {
    dx_TI.middleRows(t, count).noalias() = dy_TO.middleRows(t, count) * w_OI;
  });
  parallel_ranges(executor, w_OI.rows(), row_range, [&](Index o, Index count) {
    dw_OI.middleRows(o, count).noalias() += dy_TO.middleCols(o, count).transpose() * x_TI;
  });
}

}  // namespace train_moe

#endif  // TRAIN_MOE_LINEAR_HPP
