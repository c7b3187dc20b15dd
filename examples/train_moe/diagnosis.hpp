// SPDX-License-Identifier: MIT
// What the library's diagnosis says of each arm.
#ifndef TRAIN_MOE_DIAGNOSIS_HPP
#define TRAIN_MOE_DIAGNOSIS_HPP

#include <cmath>
#include <gatepro/diagnosis.hpp>
#include <string>
#include <vector>

#include "history.hpp"

namespace train_moe {

inline gatepro::LayerSnapshot snapshot(const LayerMetrics& metrics, const Sizes& sizes) {
  gatepro::LayerSnapshot layer;
  layer.inactive_share =
      static_cast<double>(metrics.zero_token_experts) / static_cast<double>(sizes.experts);
  layer.mean_similarity = metrics.mean_cosine;
  layer.partner_similarity = metrics.partner_cosine;
  layer.changed_share = metrics.changed;
  layer.lost_in_rounding = metrics.lost_in_rounding;
  layer.short_of_survivors = metrics.short_of_survivors;
  layer.chance_inactive_share = metrics.chance_inactive;
  layer.choices_per_token = metrics.choices_per_token;
  if (!metrics.partners_of_weights) return layer;
  layer.coactivation = metrics.coactivation;
  layer.unpenalised_coactivation = metrics.coactivation_unpenalised;
  layer.stale_partners = metrics.stale_partners;
  return layer;
}

/// A run as the library wants to have it.
inline gatepro::RunHistory history_of(const Run& run, const Sizes& sizes) {
  gatepro::RunHistory history;
  history.competition = run.steps.back().competition;
  for (const StepRecord& record : run.steps) {
    gatepro::StepSnapshot step;
    step.step = record.step;
    step.loss = record.loss;
    if (!std::isnan(record.validation_loss)) step.validation_loss = record.validation_loss;
    for (const LayerMetrics& layer : record.layers) step.layers.push_back(snapshot(layer, sizes));
    history.steps.push_back(step);
  }
  return history;
}

/// The arm without competition: "off" with the same modifiers.
inline std::string baseline_of(const std::string& arm) {
  const std::size_t plus = arm.find('+');
  return plus == std::string::npos ? "off" : "off" + arm.substr(plus);
}

/// The findings in the first complete run of each arm, against the run of the same seed without
/// competition if there is one.
inline std::string diagnosis(const Settings& settings, const History& history) {
  std::string text = "Diagnosis of each arm's first seed (thresholds are those of small models):\n";
  for (const Arm& arm : settings.arms) {
    const auto runs = history.complete_runs(arm.name, settings.steps);
    if (runs.empty()) continue;
    gatepro::RunHistory baseline;
    for (const Run* off : history.complete_runs(baseline_of(arm.name), settings.steps)) {
      const bool pairs = off->seed == runs[0]->seed && off->arm != arm.name;
      if (pairs) baseline = history_of(*off, settings.sizes);
    }
    const auto findings = gatepro::diagnose(history_of(*runs[0], settings.sizes), &baseline);
    text += arm.name + ":" + (findings.empty() ? " nothing found\n" : "\n");
    text += gatepro::describe(findings);
  }
  return text;
}

}  // namespace train_moe

#endif  // TRAIN_MOE_DIAGNOSIS_HPP
