// SPDX-License-Identifier: MIT
// The operators for C++ trainers. They go through torch's dispatcher, as torch.ops.gatepro does.
#ifndef GATEPRO_EXAMPLES_TORCH_OPS_HPP
#define GATEPRO_EXAMPLES_TORCH_OPS_HPP

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace gatepro_torch {

/// How experts are chosen and weighed. Tensors that are undefined are not given.
struct RouteOptions {
  std::int64_t top_k = 0;  ///< K, 1 <= K <= E.
  /// What a loser pays: the paper's lambda, in units of the logits. 0 for no competition.
  double penalty = 1e-4;
  bool eliminate = false;  ///< Losers rank last and weigh 0, whatever `penalty` is.
  /// softmax_after_top_k (the paper's), softmax_before_top_k, sigmoid or sqrt_softplus.
  std::string score = "softmax_after_top_k";
  bool renormalise = false;     ///< Weights are divided by their sum.
  at::Tensor expert_bias = {};  ///< E, of the logits' dtype: added for the choice only.
  at::Tensor is_padding = {};   ///< T, bool, true = padding: weight 0, and no gradient from it.
};

/// T tokens, routed. K experts each, best first.
struct Routing {
  at::Tensor weights;     ///< T x K, of the logits' dtype.
  at::Tensor expert_ids;  ///< T x K, int64.
  at::Tensor logits;      ///< T x E: float, or double if x is; before any penalty.
};

/// Routes x (T x H) by router weights w (E x H): logits = x w^T, then as route_logits. x and w are
/// of one dtype, or w is float and x of 16 bits. Gradients reach x and w, through weights and
/// logits.
Routing route(const at::Tensor& x, const at::Tensor& w, const at::Tensor& partners,
              const RouteOptions& options);

/// Routes logits (T x E, float or double) that the trainer computed; gradients reach them.
/// partners: E x M, int32, from find_partners; may be undefined where nobody competes.
Routing route_logits(const at::Tensor& logits, const at::Tensor& partners,
                     const RouteOptions& options);

/// The M most similar experts of each, E x M, int32, on the device of w; an expert's own id where
/// there are fewer. Computed on the CPU, so that all devices have the same ones.
at::Tensor find_partners(const at::Tensor& w, std::int64_t partners_per_expert = 1,
                         double min_similarity = -1);

/// What a layer shows in a step, for diagnose: 11 doubles, the members of gatepro::LayerSnapshot in
/// their order. logits (T x E): raw ones of a forward, by w (E x H) and the partners in use, with
/// top_k, penalty and eliminate of the options. Routes them again, on the CPU.
at::Tensor layer_metrics(const at::Tensor& logits, const at::Tensor& w, const at::Tensor& partners,
                         const RouteOptions& options);

/// What S steps of a run with L layers showed.
struct RunTensors {
  at::Tensor metrics;            ///< S x L x 11, double, of layer_metrics; NaN: not measured.
  at::Tensor losses;             ///< S, double.
  at::Tensor validation_losses;  ///< S, double; NaN: not measured.
  at::Tensor steps = {};         ///< S, int64: their numbers, ascending; not given: 1 to S.
};

/// What is wrong with a run that ended with `penalty` and `eliminate` of the options, in words; ""
/// if nothing is. baseline: the same run without competition, or null. See gatepro::diagnose.
std::string diagnose(const RunTensors& run, const RouteOptions& options,
                     const RunTensors* baseline = nullptr);

}  // namespace gatepro_torch

#endif  // GATEPRO_EXAMPLES_TORCH_OPS_HPP
