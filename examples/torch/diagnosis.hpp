// SPDX-License-Identifier: MIT
// Metrics of a layer, and the diagnosis of a run, from tensors. All is computed on the CPU.
#ifndef GATEPRO_EXAMPLES_TORCH_DIAGNOSIS_HPP
#define GATEPRO_EXAMPLES_TORCH_DIAGNOSIS_HPP

#include <ATen/ATen.h>

#include <cmath>
#include <cstdint>
#include <gatepro/diagnosis.hpp>
#include <gatepro/metrics.hpp>
#include <iterator>
#include <limits>
#include <optional>
#include <string>

#include "cpu.hpp"
#include "ops.hpp"
#include "options.hpp"

namespace gatepro_torch {
namespace diagnosis {

using at::Tensor;
using gatepro::Index;
using gatepro::LayerSnapshot;

/// The columns of a layer's metrics.
constexpr std::optional<double> LayerSnapshot::*columns[] = {
    &LayerSnapshot::inactive_share,     &LayerSnapshot::mean_similarity,
    &LayerSnapshot::partner_similarity, &LayerSnapshot::changed_share,
    &LayerSnapshot::lost_in_rounding,   &LayerSnapshot::short_of_survivors,
    &LayerSnapshot::coactivation,       &LayerSnapshot::unpenalised_coactivation,
    &LayerSnapshot::stale_partners,     &LayerSnapshot::chance_inactive_share,
    &LayerSnapshot::choices_per_token};
constexpr std::int64_t num_columns = std::size(columns);

/// What a routing of logits by some partners shows.
template <class A>
struct Observed {
  Observed(const Tensor& logits_TE, const Tensor& partners_EM, Index top_k,
           const gatepro::Competition& competition)
      : router(config(logits_TE.size(1), partners_EM.size(1), top_k, competition)),
        buffers(router, logits_TE.size(0)) {
    router.set_partners(gatepro::strided_view<const std::int32_t>(partners_EM, "partners"), 0);
    auto out = buffers.view();
    out.statistics = &statistics;
    router.forward_logits(gatepro::view<const A>(logits_TE, "logits"), out, buffers.workspace());
  }

  static gatepro::RouterConfig config(Index experts, Index partners, Index top_k,
                                      const gatepro::Competition& competition) {
    gatepro::RouterConfig config{/*hidden_size=*/1, experts, top_k, competition};
    config.pairing.partners_per_expert = partners;
    return config;
  }

  gatepro::Router<A> router;
  gatepro::RoutingBuffers<gatepro::Router<A>> buffers;
  gatepro::PenaltyStatistics statistics;
};

/// The similarities of w.
template <class W>
void observe_similarities(const Tensor& w_EH, const Tensor& present_E1, LayerSnapshot& layer) {
  using A = gatepro::accumulator_t<W>;
  gatepro::SimilarityCache<A> cache(w_EH.size(0), {}, gatepro::RefreshSchedule::every_step());
  cache.refresh_now(gatepro::view<const W>(w_EH, "w"), 0);
  const auto present = gatepro::strided_view<const std::int32_t>(present_E1, "partners");
  layer.mean_similarity = gatepro::pairwise_similarity(cache.similarity()).mean;
  layer.partner_similarity = gatepro::partner_similarity(cache.similarity(), present).mean;
}

template <class A>
void observe_routing(const Tensor& logits_TE, const Tensor& used_EM, const Tensor& present_E1,
                     const gatepro::SelectionRule& rule, LayerSnapshot& layer) {
  const Index experts = logits_TE.size(1);
  const Observed<A> routed(logits_TE, used_EM, rule.top_k, rule.competition);
  const Observed<A> plain(logits_TE, present_E1, rule.top_k, gatepro::Competition::off());
  const auto present = gatepro::strided_view<const std::int32_t>(present_E1, "partners");
  const auto used = gatepro::strided_view<const std::int32_t>(used_EM, "partners");
  const auto shares = gatepro::penalty_shares(routed.statistics, experts);
  gatepro::Coactivation pairs(experts);
  pairs.add(gatepro::Choices{routed.buffers.expert_ids_TK()});
  layer.inactive_share =
      static_cast<double>(gatepro::zero_token_experts(routed.buffers.tokens_per_expert_E())) /
      static_cast<double>(experts);
  layer.chance_inactive_share = gatepro::chance_inactive_share(pairs.choices(), experts);
  if (routed.statistics.tokens > 0) {
    layer.choices_per_token =
        static_cast<double>(pairs.choices()) / static_cast<double>(routed.statistics.tokens);
  }
  layer.changed_share = shares.changed;
  layer.lost_in_rounding = shares.lost_in_rounding;
  layer.short_of_survivors = shares.short_of_survivors;
  layer.coactivation = pairs.partner_rate(present);
  layer.unpenalised_coactivation = plain.statistics.coactivation_rate();
  const gatepro::StridedView<const std::int32_t> first(used.data, used.rows, 1, used.row_stride,
                                                       used.col_stride);
  layer.stale_partners =
      static_cast<double>(gatepro::changed_partners(first, present)) / static_cast<double>(experts);
}

inline Tensor layer_metrics(const Tensor& logits, const Tensor& w, const Options& options) {
  const Tensor logits_TE = cpu::with_rows(logits.detach().cpu());
  const Tensor w_EH = cpu::with_rows(w.detach().cpu());
  const Tensor present_E1 = cpu::find_partners(w_EH, {});
  const Tensor used_EM =
      options.partners.defined() ? options.partners.cpu().contiguous() : present_E1;
  LayerSnapshot layer;
  gatepro::with_scalar(w_EH, "w", [&](auto weight) {
    observe_similarities<decltype(weight)>(w_EH, present_E1, layer);
  });
  gatepro::with_accumulator(logits_TE, "logits", [&](auto zero) {
    observe_routing<decltype(zero)>(logits_TE, used_EM, present_E1, options.rule, layer);
  });
  const Tensor metrics = at::empty({num_columns}, at::kDouble);
  for (std::int64_t c = 0; c < num_columns; ++c) {
    metrics.data_ptr<double>()[c] =
        (layer.*columns[c]).value_or(std::numeric_limits<double>::quiet_NaN());
  }
  return metrics;
}

inline std::optional<double> measured(double value) {
  return std::isnan(value) ? std::optional<double>() : std::optional<double>(value);
}

inline void check_run(const Checks& checks, const RunTensors& run) {
  checks.tensor("metrics", run.metrics, at::kDouble, at::kCPU, {-1, -1, num_columns});
  const std::int64_t steps = run.metrics.size(0);
  checks.tensor("losses", run.losses, at::kDouble, at::kCPU, {steps});
  checks.tensor("validation_losses", run.validation_losses, at::kDouble, at::kCPU, {steps});
  if (run.steps.defined()) checks.tensor("steps", run.steps, at::kLong, at::kCPU, {steps});
}

/// The run as the library wants to have it, but for its competition.
inline gatepro::RunHistory history_of(const Checks& checks, const RunTensors& run) {
  check_run(checks, run);
  const std::int64_t steps = run.metrics.size(0), layers = run.metrics.size(1);
  const Tensor numbers_S = run.steps.defined() ? run.steps.contiguous() : at::arange(1, steps + 1);
  const Tensor metrics_SLC = run.metrics.contiguous(), losses_S = run.losses.contiguous(),
               validation_losses_S = run.validation_losses.contiguous();
  const double* metrics = metrics_SLC.data_ptr<double>();
  gatepro::RunHistory history;
  for (std::int64_t s = 0; s < steps; ++s) {
    gatepro::StepSnapshot step;
    step.step = numbers_S.data_ptr<std::int64_t>()[s];
    step.loss = losses_S.data_ptr<double>()[s];
    step.validation_loss = measured(validation_losses_S.data_ptr<double>()[s]);
    for (std::int64_t l = 0; l < layers; ++l) {
      LayerSnapshot layer;
      for (const auto column : columns) layer.*column = measured(*metrics++);
      step.layers.push_back(layer);
    }
    history.steps.push_back(step);
  }
  return history;
}

}  // namespace diagnosis
}  // namespace gatepro_torch

#endif  // GATEPRO_EXAMPLES_TORCH_DIAGNOSIS_HPP
