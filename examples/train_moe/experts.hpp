// SPDX-License-Identifier: MIT
// Tokens to experts and back, in one process.
#ifndef TRAIN_MOE_EXPERTS_HPP
#define TRAIN_MOE_EXPERTS_HPP

#include <cstdint>
#include <utility>
#include <vector>

#include "expert_networks.hpp"

namespace train_moe {

/// The choices sorted by expert, so that each expert's tokens are neighbouring rows of one matrix
/// with S rows: T K, or fewer where ids are -1, for none.
struct Dispatch {
  std::vector<std::int64_t> begin_E1;  // expert e has the rows [begin_E1[e], begin_E1[e + 1])
  std::vector<Index> token_S;          // the token in each row
  std::vector<Index> row_TK;           // the row of each choice; -1 for none

  void sort(gatepro::MatrixView<const std::int32_t> expert_ids_TK, Index experts) {
    const Index choices = expert_ids_TK.rows * expert_ids_TK.cols;
    row_TK.assign(static_cast<std::size_t>(choices), -1);
    begin_E1.assign(static_cast<std::size_t>(experts) + 1, 0);
    const std::int32_t* ids = expert_ids_TK.data;
    for (Index i = 0; i < choices; ++i) {
      if (ids[i] >= 0) ++begin_E1[static_cast<std::size_t>(ids[i]) + 1];
    }
    for (std::size_t e = 1; e < begin_E1.size(); ++e) begin_E1[e] += begin_E1[e - 1];
    token_S.resize(static_cast<std::size_t>(begin_E1.back()));
    std::vector<Index> next(begin_E1.begin(), begin_E1.end() - 1);
    for (Index i = 0; i < choices; ++i) {
      if (ids[i] < 0) continue;
      const Index row = next[static_cast<std::size_t>(ids[i])]++;
      row_TK[static_cast<std::size_t>(i)] = row;
      token_S[static_cast<std::size_t>(row)] = i / expert_ids_TK.cols;
    }
  }

  Index choices() const { return static_cast<Index>(token_S.size()); }
  Index token(Index row) const { return token_S[static_cast<std::size_t>(row)]; }
  Index row(Index choice) const { return row_TK[static_cast<std::size_t>(choice)]; }
};

/// The networks, and the rows that go through them.
template <class A>
class Experts {
 public:
  explicit Experts(ExpertNetworks<A> networks) : networks_(std::move(networks)) {}

  ExpertNetworks<A>& networks() { return networks_; }
  Parameter<A>& in() { return networks_.in(); }
  Parameter<A>& out() { return networks_.out(); }

  /// x_TH += sum over K of weights_TK f_e(normed_TH).
  void forward(const RowMatrix<A>& normed_TH, gatepro::MatrixView<const std::int32_t> ids_TK,
               gatepro::MatrixView<const A> weights_TK, RowMatrix<A>& x_TH,
               const Executor& executor) {
    dispatch_.sort(ids_TK, networks_.count());
    gathered_SH_.resize(dispatch_.choices(), normed_TH.cols());
    parallel_ranges(executor, dispatch_.choices(), token_range, [&](Index first, Index count) {
      for (Index row = first; row < first + count; ++row) {
        gathered_SH_.row(row) = normed_TH.row(dispatch_.token(row));
      }
    });
    networks_.forward(gathered_SH_, dispatch_.begin_E1, result_SH_, executor);
    // Token by token and in the order of the choices: the same sum whichever expert was first.
    parallel_ranges(executor, x_TH.rows(), token_range, [&](Index first, Index count) {
      for (Index t = first; t < first + count; ++t) {
        for (Index k = 0; k < ids_TK.cols; ++k) {
          const Index row = dispatch_.row(t * ids_TK.cols + k);
          if (row >= 0) x_TH.row(t) += weights_TK(t, k) * result_SH_.row(row);
        }
      }
    });
  }

  /// dx_TH: the gradient of what forward added to. Overwrites dnormed_TH and dweights_TK.
  void backward(const RowMatrix<A>& dx_TH, gatepro::MatrixView<const A> weights_TK,
                RowMatrix<A>& dnormed_TH, RowMatrix<A>& dweights_TK, const Executor& executor) {
    const Index top_k = weights_TK.cols;
    dresult_SH_.resize(dispatch_.choices(), dx_TH.cols());
    dnormed_TH.resize(dx_TH.rows(), dx_TH.cols());
    dweights_TK.resize(dx_TH.rows(), top_k);
    parallel_ranges(executor, dx_TH.rows(), token_range, [&](Index first, Index count) {
      for (Index t = first; t < first + count; ++t) {
        for (Index k = 0; k < top_k; ++k) {
          const Index row = dispatch_.row(t * top_k + k);
          dweights_TK(t, k) = 0;
          if (row < 0) continue;
          dweights_TK(t, k) = dx_TH.row(t).dot(result_SH_.row(row));
          dresult_SH_.row(row) = weights_TK(t, k) * dx_TH.row(t);
        }
      }
    });
    networks_.backward(gathered_SH_, dispatch_.begin_E1, dresult_SH_, dgathered_SH_, executor);
    parallel_ranges(executor, dx_TH.rows(), token_range, [&](Index first, Index count) {
      dnormed_TH.middleRows(first, count).setZero();
      for (Index t = first; t < first + count; ++t) {
        for (Index k = 0; k < top_k; ++k) {
          const Index row = dispatch_.row(t * top_k + k);
          if (row >= 0) dnormed_TH.row(t) += dgathered_SH_.row(row);
        }
      }
    });
  }

 private:
  ExpertNetworks<A> networks_;
  Dispatch dispatch_;
  RowMatrix<A> gathered_SH_, result_SH_, dgathered_SH_, dresult_SH_;
};

}  // namespace train_moe

#endif  // TRAIN_MOE_EXPERTS_HPP
