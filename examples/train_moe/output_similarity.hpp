// SPDX-License-Identifier: MIT
// How alike the experts of a layer answer.
#ifndef TRAIN_MOE_OUTPUT_SIMILARITY_HPP
#define TRAIN_MOE_OUTPUT_SIMILARITY_HPP

#include <cstdint>
#include <vector>

#include "expert_networks.hpp"

namespace train_moe {

/// E x E: the cosine of the outputs of two experts for the same token, averaged over the tokens of
/// x_TH. An output of zeros has cosine 0 to all. Overwrites what the networks kept of their last
/// forward. Cost: every expert on every token, and T E^2 H operations.
template <class A>
RowMatrix<A> output_similarity(ExpertNetworks<A>& experts, const RowMatrix<A>& x_TH,
                               const Executor& executor) {
  const Index count = experts.count(), tokens = x_TH.rows();
  const RowMatrix<A> x_SH = x_TH.replicate(count, 1);
  std::vector<std::int64_t> begin_E1;
  for (Index e = 0; e <= count; ++e) begin_E1.push_back(e * tokens);
  RowMatrix<A> y_SH;
  experts.forward(x_SH, begin_E1, y_SH, executor);

  RowMatrix<A> similarity_EE = RowMatrix<A>::Zero(count, count);
  RowMatrix<A> output_EH(count, x_TH.cols());
  for (Index t = 0; t < tokens; ++t) {
    for (Index e = 0; e < count; ++e)
      output_EH.row(e) = y_SH.row(e * tokens + t).stableNormalized();
    similarity_EE.noalias() += output_EH * output_EH.transpose();
  }
  return similarity_EE / static_cast<A>(tokens);
}

/// E x 1: whose row of similarity_EE is largest at another place; the lowest id on ties.
template <class A>
RowMatrix<std::int32_t> most_similar(const RowMatrix<A>& similarity_EE) {
  RowMatrix<std::int32_t> partner_E1(similarity_EE.rows(), 1);
  for (Index i = 0; i < similarity_EE.rows(); ++i) {
    Index best = i == 0 ? 1 : 0;
    for (Index j = best + 1; j < similarity_EE.cols(); ++j) {
      if (j != i && similarity_EE(i, j) > similarity_EE(i, best)) best = j;
    }
    partner_E1(i, 0) = static_cast<std::int32_t>(best);
  }
  return partner_E1;
}

}  // namespace train_moe

#endif  // TRAIN_MOE_OUTPUT_SIMILARITY_HPP
