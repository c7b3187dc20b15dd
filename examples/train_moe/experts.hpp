// SPDX-License-Identifier: MIT
// The experts: two-layer ReLU networks, each on the tokens that were routed to it.
#ifndef TRAIN_MOE_EXPERTS_HPP
#define TRAIN_MOE_EXPERTS_HPP

#include <cstdint>
#include <utility>
#include <vector>

#include "parameter.hpp"

namespace train_moe {

/// The T x K choices sorted by expert, so that each expert's tokens are neighbouring rows of one
/// matrix with S = T K rows.
struct Dispatch {
  std::vector<Index> begin_E;  // E + 1: expert e has the rows [begin_E[e], begin_E[e + 1])
  std::vector<Index> token_S;  // the token in each row
  std::vector<Index> row_TK;   // the row of each choice

  void sort(gatepro::MatrixView<const std::int32_t> expert_ids_TK, Index experts) {
    const Index choices = expert_ids_TK.rows * expert_ids_TK.cols;
    token_S.resize(static_cast<std::size_t>(choices));
    row_TK.resize(static_cast<std::size_t>(choices));
    begin_E.assign(static_cast<std::size_t>(experts) + 1, 0);
    const std::int32_t* ids = expert_ids_TK.data;
    for (Index i = 0; i < choices; ++i) ++begin_E[static_cast<std::size_t>(ids[i]) + 1];
    for (std::size_t e = 1; e < begin_E.size(); ++e) begin_E[e] += begin_E[e - 1];
    std::vector<Index> next(begin_E.begin(), begin_E.end() - 1);
    for (Index i = 0; i < choices; ++i) {
      const Index row = next[static_cast<std::size_t>(ids[i])]++;
      row_TK[static_cast<std::size_t>(i)] = row;
      token_S[static_cast<std::size_t>(row)] = i / expert_ids_TK.cols;
    }
  }

  Index choices() const { return static_cast<Index>(token_S.size()); }
  Index token(Index row) const { return token_S[static_cast<std::size_t>(row)]; }
  Index row(Index choice) const { return row_TK[static_cast<std::size_t>(choice)]; }
  Index begin(Index expert) const { return begin_E[static_cast<std::size_t>(expert)]; }
  Index count(Index expert) const { return begin(expert + 1) - begin(expert); }
};

/// E experts f_e(x) = out_e relu(in_e x), with F hidden units each.
template <class A>
class Experts {
 public:
  /// in: (E F) x H, expert e has the F rows from e F. out: (E H) x F, the H rows from e H.
  Experts(Parameter<A> in, Parameter<A> out)
      : hidden_(in.value.cols()),
        units_(out.value.cols()),
        experts_(out.value.rows() / hidden_),
        in_(std::move(in)),
        out_(std::move(out)) {}

  Parameter<A>& in() { return in_; }
  Parameter<A>& out() { return out_; }

  /// x_TH += sum over K of weights_TK f_e(normed_TH).
  void forward(const RowMatrix<A>& normed_TH, gatepro::MatrixView<const std::int32_t> ids_TK,
               gatepro::MatrixView<const A> weights_TK, RowMatrix<A>& x_TH,
               const Executor& executor) {
    dispatch_.sort(ids_TK, experts_);
    gathered_SH_.resize(dispatch_.choices(), hidden_);
    active_SF_.resize(dispatch_.choices(), units_);
    result_SH_.resize(dispatch_.choices(), hidden_);
    parallel_for(executor, experts_, [&](Index e) { run_expert(e, normed_TH); });
    // Token by token and in the order of the choices: the same sum whichever expert was first.
    parallel_ranges(executor, x_TH.rows(), token_range, [&](Index first, Index count) {
      for (Index t = first; t < first + count; ++t) {
        for (Index k = 0; k < ids_TK.cols; ++k) {
          x_TH.row(t) += weights_TK(t, k) * result_SH_.row(dispatch_.row(t * ids_TK.cols + k));
        }
      }
    });
  }

  /// dx_TH: the gradient of what forward added to. Overwrites dnormed_TH and dweights_TK.
  void backward(const RowMatrix<A>& dx_TH, gatepro::MatrixView<const A> weights_TK,
                RowMatrix<A>& dnormed_TH, RowMatrix<A>& dweights_TK, const Executor& executor) {
    const Index top_k = weights_TK.cols;
    dresult_SH_.resize(dispatch_.choices(), hidden_);
    dactive_SF_.resize(dispatch_.choices(), units_);
    dgathered_SH_.resize(dispatch_.choices(), hidden_);
    dnormed_TH.resize(dx_TH.rows(), hidden_);
    dweights_TK.resize(dx_TH.rows(), top_k);
    parallel_ranges(executor, dx_TH.rows(), token_range, [&](Index first, Index count) {
      for (Index t = first; t < first + count; ++t) {
        for (Index k = 0; k < top_k; ++k) {
          const Index row = dispatch_.row(t * top_k + k);
          dweights_TK(t, k) = dx_TH.row(t).dot(result_SH_.row(row));
          dresult_SH_.row(row) = weights_TK(t, k) * dx_TH.row(t);
        }
      }
    });
    parallel_for(executor, experts_, [&](Index e) { run_expert_backward(e); });
    parallel_ranges(executor, dx_TH.rows(), token_range, [&](Index first, Index count) {
      dnormed_TH.middleRows(first, count).setZero();
      for (Index t = first; t < first + count; ++t) {
        for (Index k = 0; k < top_k; ++k) {
          dnormed_TH.row(t) += dgathered_SH_.row(dispatch_.row(t * top_k + k));
        }
      }
    });
  }

 private:
  void run_expert(Index e, const RowMatrix<A>& normed_TH) {
    const Index first = dispatch_.begin(e);
    const Index count = dispatch_.count(e);
    if (count == 0) return;
    for (Index row = first; row < first + count; ++row) {
      gathered_SH_.row(row) = normed_TH.row(dispatch_.token(row));
    }
    auto active_SF = active_SF_.middleRows(first, count);
    active_SF.noalias() = gathered_SH_.middleRows(first, count) * weights_in(e).transpose();
    active_SF = active_SF.cwiseMax(A(0));
    result_SH_.middleRows(first, count).noalias() = active_SF * weights_out(e).transpose();
  }

  void run_expert_backward(Index e) {
    const Index first = dispatch_.begin(e);
    const Index count = dispatch_.count(e);
    if (count == 0) return;
    const auto gathered_SH = gathered_SH_.middleRows(first, count);
    const auto active_SF = active_SF_.middleRows(first, count);
    const auto dresult_SH = dresult_SH_.middleRows(first, count);
    auto dactive_SF = dactive_SF_.middleRows(first, count);
    dactive_SF.noalias() = dresult_SH * weights_out(e);
    dactive_SF.array() *= (active_SF.array() > A(0)).template cast<A>();
    out_.gradient.middleRows(e * hidden_, hidden_).noalias() += dresult_SH.transpose() * active_SF;
    in_.gradient.middleRows(e * units_, units_).noalias() += dactive_SF.transpose() * gathered_SH;
    dgathered_SH_.middleRows(first, count).noalias() = dactive_SF * weights_in(e);
  }

  auto weights_in(Index e) const { return in_.value.middleRows(e * units_, units_); }
  auto weights_out(Index e) const { return out_.value.middleRows(e * hidden_, hidden_); }

  Index hidden_;
  Index units_;
  Index experts_;
  Parameter<A> in_;
  Parameter<A> out_;
  Dispatch dispatch_;
  RowMatrix<A> gathered_SH_, active_SF_, result_SH_;
  RowMatrix<A> dgathered_SH_, dactive_SF_, dresult_SH_;
};

}  // namespace train_moe

#endif  // TRAIN_MOE_EXPERTS_HPP
