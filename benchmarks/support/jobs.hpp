// SPDX-License-Identifier: MIT
// The jobs that are measured, as raw pointers: what gatepro and every peer are asked to do. All
// matrices are row-major without gaps.
#ifndef GATEPRO_BENCHMARKS_SUPPORT_JOBS_HPP
#define GATEPRO_BENCHMARKS_SUPPORT_JOBS_HPP

#include <cstdint>
#include <functional>

#include "support/shapes.hpp"

namespace bench {

/// One execution of a prepared job: the part that is timed.
using Run = std::function<void()>;

/// logits_TE = x_TH w_EH^T.
struct GateJob {
  Shape shape;
  const float* x_TH;
  const float* w_EH;
  float* logits_TE;
};

/// The best K of each row of logits, best first, and the softmax over them.
struct SelectJob {
  Shape shape;
  const float* logits_TE;
  std::int32_t* ids_TK;
  float* weights_TK;
};

/// The selection of DeepSeek-V3: scores are sigmoids; of the groups with the largest sums of two,
/// the best K by score plus bias; weights are their scores by the sum of these, times the scale.
struct DeepSeekJob : SelectJob {
  const float* bias_E;
  static constexpr Index groups = 8;
  static constexpr Index groups_per_token = 4;
  static constexpr float scale = 2.5f;
};

/// GateJob, then SelectJob.
struct RouteJob {
  Shape shape;
  const float* x_TH;
  const float* w_EH;
  std::int32_t* ids_TK;
  float* weights_TK;
};

/// penalised_TE = logits_TE, less lambda where an expert is below its partner.
struct CompeteJob {
  Shape shape;
  const float* logits_TE;
  const std::int32_t* partners_E;
  float lambda;
  float* penalised_TE;
};

/// The most similar other expert of each.
struct RefreshJob {
  Shape shape;
  const float* w_EH;
  std::int32_t* partners_E;
};

/// dx_TH += dlogits_TE w_EH, dw_EH += dlogits_TE^T x_TH.
struct GateBackwardJob {
  Shape shape;
  const float* x_TH;
  const float* w_EH;
  const float* dlogits_TE;
  float* dx_TH;
  float* dw_EH;
};

/// Adds to dx_TH and dw_EH what follows from dweights_TK, the gradient of a route's weights. The
/// route itself belongs to the preparation.
struct RouteBackwardJob {
  Shape shape;
  const float* x_TH;
  const float* w_EH;
  const float* dweights_TK;
  float* dx_TH;
  float* dw_EH;
};

}  // namespace bench

#endif  // GATEPRO_BENCHMARKS_SUPPORT_JOBS_HPP
