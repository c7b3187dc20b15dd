// SPDX-License-Identifier: MIT
// The load-balancing loss of the Switch Transformer, as Megatron scales it.
#ifndef TRAIN_MOE_BALANCE_LOSS_HPP
#define TRAIN_MOE_BALANCE_LOSS_HPP

#include <cstdint>
#include <vector>

#include "parallel.hpp"

namespace train_moe {

/// loss = coefficient * E / (K T^2) * sum_e count_e sum_t p_te, where p is the softmax of the raw
/// logits over all experts and count_e the tokens dispatched to e. Uniform routing gives exactly
/// the coefficient. Writes its gradient to dlogits_TE: the counts are constants.
template <class A>
double balance_loss(double coefficient, gatepro::MatrixView<const A> logits_TE,
                    gatepro::VectorView<const std::int64_t> tokens_per_expert_E, Index top_k,
                    RowMatrix<A>& dlogits_TE, const Executor& executor) {
  using RowVector = Eigen::Array<A, 1, Eigen::Dynamic>;
  const Index tokens = logits_TE.rows;
  const Index experts = logits_TE.cols;
  const double scale = coefficient * static_cast<double>(experts) /
                       (static_cast<double>(top_k) * static_cast<double>(tokens * tokens));
  RowVector price_E(experts);  // what a unit of probability costs
  for (Index e = 0; e < experts; ++e) {
    price_E(e) = static_cast<A>(scale * static_cast<double>(tokens_per_expert_E[e]));
  }
  dlogits_TE.resize(tokens, experts);
  std::vector<double> loss_T(static_cast<std::size_t>(tokens));
  parallel_ranges(executor, tokens, token_range, [&](Index first, Index count) {
    for (Index t = first; t < first + count; ++t) {
      const Eigen::Map<const RowVector> logits_E(logits_TE.row(t), experts);
      auto p_E = dlogits_TE.row(t).array();
      p_E = (logits_E - logits_E.maxCoeff()).exp();
      p_E /= p_E.sum();
      const A mean_price = (p_E * price_E).sum();
      p_E *= price_E - mean_price;  // from here on the gradient
      loss_T[static_cast<std::size_t>(t)] = static_cast<double>(mean_price);
    }
  });
  double loss = 0;
  for (const double loss_of_token : loss_T) loss += loss_of_token;
  return loss;
}

}  // namespace train_moe

#endif  // TRAIN_MOE_BALANCE_LOSS_HPP
