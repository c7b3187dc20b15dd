// SPDX-License-Identifier: MIT
// The loss: how surprised the model is by the next byte, in nats.
#ifndef TRAIN_MOE_CROSS_ENTROPY_HPP
#define TRAIN_MOE_CROSS_ENTROPY_HPP

#include <cmath>
#include <cstdint>
#include <vector>

#include "parallel.hpp"

namespace train_moe {

/// loss_T[t] = -log softmax(logits)[target]. Turns logits_TV into probabilities.
template <class A>
void cross_entropy(RowMatrix<A>& logits_TV, const std::vector<std::uint8_t>& target_T,
                   std::vector<double>& loss_T, const Executor& executor) {
  loss_T.resize(target_T.size());
  parallel_ranges(executor, logits_TV.rows(), token_range, [&](Index first, Index count) {
    for (Index t = first; t < first + count; ++t) {
      auto row_V = logits_TV.row(t).array();
      const std::size_t i = static_cast<std::size_t>(t);
      const A target = row_V(target_T[i]);
      const A largest = row_V.maxCoeff();
      row_V = (row_V - largest).exp();
      const A sum = row_V.sum();
      row_V /= sum;
      loss_T[i] = std::log(static_cast<double>(sum)) - static_cast<double>(target - largest);
    }
  });
}

/// Turns the probabilities into the gradient of a mean over so many tokens with respect to the
/// logits.
template <class A>
void cross_entropy_backward(RowMatrix<A>& probabilities_TV,
                            const std::vector<std::uint8_t>& target_T, Index tokens_in_mean) {
  for (Index t = 0; t < probabilities_TV.rows(); ++t) {
    probabilities_TV(t, target_T[static_cast<std::size_t>(t)]) -= 1;
  }
  probabilities_TV /= static_cast<A>(tokens_in_mean);
}

}  // namespace train_moe

#endif  // TRAIN_MOE_CROSS_ENTROPY_HPP
