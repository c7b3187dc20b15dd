// SPDX-License-Identifier: MIT
// The functions from logits to scores that kernels know.
#ifndef GATEPRO_KERNELS_SCORE_FUNCTION_HPP
#define GATEPRO_KERNELS_SCORE_FUNCTION_HPP

#include "gatepro/core/config.hpp"

namespace gatepro {

/// How logits become scores.
enum class ScoreFunction {
  softmax_after_top_k,   ///< Softmax over the K selected logits: the paper's, eq. 3-4.
  softmax_before_top_k,  ///< Softmax over all E logits.
  sigmoid,               ///< 1 / (1 + exp(-l)) of each logit.
  sqrt_softplus,         ///< sqrt(log(1 + exp(l))) of each logit.
};

namespace detail {

/// A list of score functions.
template <ScoreFunction... functions>
struct ScoreFunctions {
  GATEPRO_ALWAYS_INLINE static constexpr bool contain(ScoreFunction function) {
    return ((function == functions) || ...);
  }
};

/// Those that take every logit by itself. kernels/score_functions.inl says how.
using SeparateScoreFunctions = ScoreFunctions<ScoreFunction::sigmoid, ScoreFunction::sqrt_softplus>;

/// True if scores are a softmax, whose shares are their own slopes: `shares` writes none then.
GATEPRO_ALWAYS_INLINE constexpr bool is_softmax(ScoreFunction function) {
  return !SeparateScoreFunctions::contain(function);
}

}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_KERNELS_SCORE_FUNCTION_HPP
