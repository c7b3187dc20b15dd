// SPDX-License-Identifier: MIT
// The experts: two-layer ReLU networks, each on its own rows of one matrix.
#ifndef TRAIN_MOE_EXPERT_NETWORKS_HPP
#define TRAIN_MOE_EXPERT_NETWORKS_HPP

#include <cstdint>
#include <utility>

#include "parameter.hpp"

namespace train_moe {

/// E experts f_e(x) = out_e relu(in_e x), with F hidden units each.
///
/// Rows are sorted by expert: expert e has the rows [begin_E1[e], begin_E1[e + 1]) of S.
template <class A>
class ExpertNetworks {
 public:
  using Begin = gatepro::VectorView<const std::int64_t>;

  /// in: (E F) x H, expert e has the F rows from e F. out: (E H) x F, the H rows from e H.
  ExpertNetworks(Parameter<A> in, Parameter<A> out)
      : hidden_(in.value.cols()),
        units_(out.value.cols()),
        experts_(out.value.rows() / hidden_),
        in_(std::move(in)),
        out_(std::move(out)) {}

  Parameter<A>& in() { return in_; }
  Parameter<A>& out() { return out_; }
  Index count() const { return experts_; }

  /// y_SH[row] = f_e(x_SH[row]).
  void forward(const RowMatrix<A>& x_SH, Begin begin_E1, RowMatrix<A>& y_SH,
               const Executor& executor) {
    active_SF_.resize(x_SH.rows(), units_);
    y_SH.resize(x_SH.rows(), hidden_);
    for_each_expert(begin_E1, executor, [&](Index e, Index first, Index count) {
      auto active_SF = active_SF_.middleRows(first, count);
      active_SF.noalias() = x_SH.middleRows(first, count) * weights_in(e).transpose();
      active_SF = active_SF.cwiseMax(A(0));
      y_SH.middleRows(first, count).noalias() = active_SF * weights_out(e).transpose();
    });
  }

  /// Gradients of the last forward, which had these x_SH and begin_E1: overwrites dx_SH, adds to
  /// the parameters'.
  void backward(const RowMatrix<A>& x_SH, Begin begin_E1, const RowMatrix<A>& dy_SH,
                RowMatrix<A>& dx_SH, const Executor& executor) {
    dactive_SF_.resize(x_SH.rows(), units_);
    dx_SH.resize(x_SH.rows(), hidden_);
    for_each_expert(begin_E1, executor, [&](Index e, Index first, Index count) {
      const auto active_SF = active_SF_.middleRows(first, count);
      const auto dy = dy_SH.middleRows(first, count);
      auto dactive_SF = dactive_SF_.middleRows(first, count);
      dactive_SF.noalias() = dy * weights_out(e);
      dactive_SF.array() *= (active_SF.array() > A(0)).template cast<A>();
      out_.gradient.middleRows(e * hidden_, hidden_).noalias() += dy.transpose() * active_SF;
      in_.gradient.middleRows(e * units_, units_).noalias() +=
          dactive_SF.transpose() * x_SH.middleRows(first, count);
      dx_SH.middleRows(first, count).noalias() = dactive_SF * weights_in(e);
    });
  }

 private:
  /// Calls body(e, first, count) for the experts that have rows.
  template <class Body>
  void for_each_expert(Begin begin_E1, const Executor& executor, const Body& body) {
    parallel_for(executor, experts_, [&](Index e) {
      const Index first = begin_E1[e], count = begin_E1[e + 1] - first;
      if (count > 0) body(e, first, count);
    });
  }

  auto weights_in(Index e) const { return in_.value.middleRows(e * units_, units_); }
  auto weights_out(Index e) const { return out_.value.middleRows(e * hidden_, hidden_); }

  Index hidden_;
  Index units_;
  Index experts_;
  Parameter<A> in_;
  Parameter<A> out_;
  RowMatrix<A> active_SF_, dactive_SF_;
};

}  // namespace train_moe

#endif  // TRAIN_MOE_EXPERT_NETWORKS_HPP
