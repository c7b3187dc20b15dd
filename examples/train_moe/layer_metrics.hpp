// SPDX-License-Identifier: MIT
// What one layer did in one step.
#ifndef TRAIN_MOE_LAYER_METRICS_HPP
#define TRAIN_MOE_LAYER_METRICS_HPP

#include <cstdint>
#include <vector>

#include "moe_layer.hpp"

namespace train_moe {

struct LayerMetrics {
  Index zero_token_experts = 0;
  double max_violation = 0;
  double mean_cosine = 0;     // over all pairs of experts
  double partner_cosine = 0;  // over each expert and its most similar one
  double changed = 0;         // share of tokens whose selected set the penalty changed
  double coactivation = 0;    // P(the most similar expert is selected too | an expert is selected)
  double coactivation_unpenalised = 0;  // the same, had nobody been penalised
  Index partners_changed = 0;           // at the refresh that ended the step
};

/// P(partner selected | expert selected), for any selection and any partners.
inline double coactivation_rate(gatepro::MatrixView<const std::int32_t> expert_ids_TK,
                                gatepro::MatrixView<const std::int32_t> partners_EM) {
  std::vector<char> selected_E(static_cast<std::size_t>(partners_EM.rows));
  std::int64_t partnered = 0;
  std::int64_t both = 0;
  for (Index t = 0; t < expert_ids_TK.rows; ++t) {
    const std::int32_t* ids_K = expert_ids_TK.row(t);
    const auto mark = [&](char value) {
      for (Index k = 0; k < expert_ids_TK.cols; ++k) {
        selected_E[static_cast<std::size_t>(ids_K[k])] = value;
      }
    };
    mark(1);
    for (Index k = 0; k < expert_ids_TK.cols; ++k) {
      const std::int32_t partner = partners_EM(ids_K[k], 0);
      if (partner == ids_K[k]) continue;
      ++partnered;
      both += selected_E[static_cast<std::size_t>(partner)];
    }
    mark(0);
  }
  return partnered == 0 ? 0 : static_cast<double>(both) / static_cast<double>(partnered);
}

/// Looks at a layer through the partners that its present weights would have.
///
/// The layer's own partners may be old, or frozen as in the control. A second router, which never
/// competes and never influences the training, makes all arms comparable.
template <class A>
class LayerObserver {
 public:
  LayerObserver(const Sizes& sizes, const Executor& executor)
      : router_(config(sizes)), unpenalised_(router_, sizes.tokens, executor.workers()) {}

  /// After a forward, before the weights move.
  LayerMetrics observe(MoeLayer<A>& layer, std::int64_t step, const Executor& executor) {
    router_.refresh_now(layer.gate().value, step, executor);
    gatepro::PenaltyStatistics statistics;
    auto out = unpenalised_.view();
    out.statistics = &statistics;
    router_.forward_logits(layer.routed().logits_TE(), out, unpenalised_.workspace(), executor);

    const auto& present = router_.similarity_cache();
    LayerMetrics metrics;
    metrics.zero_token_experts = gatepro::zero_token_experts(layer.routed().tokens_per_expert_E());
    metrics.max_violation = gatepro::max_violation(layer.routed().tokens_per_expert_E());
    metrics.mean_cosine = present.mean_pairwise_similarity();
    metrics.partner_cosine = present.mean_partner_similarity();
    metrics.changed = layer.statistics().changed_rate();
    metrics.coactivation = coactivation_rate(layer.routed().expert_ids_TK(), present.partners());
    metrics.coactivation_unpenalised = statistics.coactivation_rate();
    return metrics;
  }

 private:
  static gatepro::RouterConfig config(const Sizes& sizes) {
    gatepro::RouterConfig config{sizes.hidden, sizes.experts, sizes.top_k};
    config.competition = gatepro::Competition::off();
    return config;
  }

  gatepro::Router<A> router_;
  gatepro::RoutingBuffers<gatepro::Router<A>> unpenalised_;
};

}  // namespace train_moe

#endif  // TRAIN_MOE_LAYER_METRICS_HPP
