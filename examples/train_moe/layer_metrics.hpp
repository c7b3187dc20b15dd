// SPDX-License-Identifier: MIT
// What one layer did in one step.
#ifndef TRAIN_MOE_LAYER_METRICS_HPP
#define TRAIN_MOE_LAYER_METRICS_HPP

#include <cstdint>
#include <optional>

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
  double lost_in_rounding = 0;          // share of the penalties
  double short_of_survivors = 0;        // share of the tokens
  double chance_inactive = 0;           // share of the experts that so many choices may not reach
  double choices_per_token = 0;         // that were made
  bool partners_of_weights = true;      // those that compete are the ones that this page looks at
  // Share of experts whose partner is not the one of the present weights, if all pairs compete.
  std::optional<double> stale_partners{};
};

/// Looks at a layer through the partners that its present weights would have.
///
/// The layer's own partners may be old, or frozen as in the control. A second router, which never
/// competes and never influences the training, makes all arms comparable.
template <class A>
class LayerObserver {
 public:
  LayerObserver(const Sizes& sizes, const Executor& executor)
      : router_(config(sizes)),
        unpenalised_(router_, sizes.tokens, executor.workers()),
        coactivation_(sizes.experts) {}

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
    metrics.mean_cosine = gatepro::pairwise_similarity(present.similarity()).mean;
    metrics.partner_cosine =
        gatepro::partner_similarity(present.similarity(), present.partners()).mean;
    const gatepro::PenaltyShares shares =
        gatepro::penalty_shares(layer.statistics(), present.partners().rows);
    metrics.changed = shares.changed;
    metrics.lost_in_rounding = shares.lost_in_rounding;
    metrics.short_of_survivors = shares.short_of_survivors;
    metrics.partners_of_weights = !layer.has_output_partners();
    metrics.stale_partners = stale_partners(layer.router().similarity_cache());
    coactivation_.reset();
    coactivation_.add(gatepro::Choices{layer.routed().expert_ids_TK()});
    metrics.coactivation = coactivation_.partner_rate(present.partners());
    metrics.coactivation_unpenalised = statistics.coactivation_rate();
    const std::int64_t choices = coactivation_.choices();
    metrics.chance_inactive = gatepro::chance_inactive_share(choices, coactivation_.num_experts());
    metrics.choices_per_token =
        static_cast<double>(choices) / static_cast<double>(statistics.tokens);
    return metrics;
  }

 private:
  /// Of those in use, the first partners are compared.
  std::optional<double> stale_partners(const gatepro::SimilarityCache<A>& used) const {
    const auto in_use = used.partners();
    if (!in_use.given() || used.pairing().min_similarity > -1) return {};
    const auto present = router_.similarity_cache().partners();
    const gatepro::StridedView<const std::int32_t> first(in_use.data, in_use.rows, 1,
                                                         in_use.row_stride, 1);
    return static_cast<double>(gatepro::changed_partners(first, present)) /
           static_cast<double>(present.rows);
  }

  static gatepro::RouterConfig config(const Sizes& sizes) {
    gatepro::RouterConfig config{sizes.hidden, sizes.experts, sizes.top_k};
    config.competition = gatepro::Competition::off();
    return config;
  }

  gatepro::Router<A> router_;
  gatepro::RoutingBuffers<gatepro::Router<A>> unpenalised_;
  gatepro::Coactivation coactivation_;
};

}  // namespace train_moe

#endif  // TRAIN_MOE_LAYER_METRICS_HPP
