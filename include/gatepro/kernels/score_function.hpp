// SPDX-License-Identifier: MIT
// The functions from logits to scores that kernels know.
#ifndef GATEPRO_KERNELS_SCORE_FUNCTION_HPP
#define GATEPRO_KERNELS_SCORE_FUNCTION_HPP

namespace gatepro {

/// How logits become scores.
enum class ScoreFunction {
  softmax_after_top_k,   ///< Softmax over the K selected logits: the paper's, eq. 3-4.
  softmax_before_top_k,  ///< Softmax over all E logits.
  sigmoid,               ///< 1 / (1 + exp(-l)) of each logit.
  sqrt_softplus,         ///< sqrt(log(1 + exp(l))) of each logit.
};

}  // namespace gatepro

#endif  // GATEPRO_KERNELS_SCORE_FUNCTION_HPP
