// SPDX-License-Identifier: MIT
// What was measured in a run, and its means over some steps.
#ifndef GATEPRO_METRICS_RUN_HISTORY_HPP
#define GATEPRO_METRICS_RUN_HISTORY_HPP

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "gatepro/core/checks.hpp"
#include "gatepro/core/order.hpp"
#include "gatepro/routing/rules.hpp"

namespace gatepro {

/// What a layer's metrics were in a step; nothing for what was not measured, and what needs it is
/// not looked for. Shares are between 0 and 1.
struct LayerSnapshot {
  std::optional<double> inactive_share{};      ///< LoadMetrics::inactive_share of the step.
  std::optional<double> mean_similarity{};     ///< Mean of pairwise_similarity.
  std::optional<double> partner_similarity{};  ///< Mean of partner_similarity.
  std::optional<double> changed_share{};       ///< PenaltyShares::changed.
  std::optional<double> lost_in_rounding{};    ///< PenaltyShares::lost_in_rounding.
  std::optional<double> short_of_survivors{};  ///< PenaltyShares::short_of_survivors.
  std::optional<double> coactivation{};  ///< Coactivation::partner_rate of the present partners.
  std::optional<double> unpenalised_coactivation{};  ///< The same, had nobody been penalised.
  /// changed_partners between those in use and those of the present weights, over E.
  std::optional<double> stale_partners{};
  /// LoadMetrics::chance_inactive_share of the step: few tokens can't reach many experts.
  std::optional<double> chance_inactive_share{};
  std::optional<double> choices_per_token{};  ///< K, or the mean where tokens make fewer choices.
};

/// A step of a run.
struct StepSnapshot {
  /// Its number, counted from 1: it tells how old a run is, and which steps of two runs compare.
  std::int64_t step = 0;
  std::optional<double> loss{};             ///< Of the training; a NaN is a loss that is one.
  std::optional<double> validation_loss{};  ///< Where it was measured.
  std::vector<LayerSnapshot> layers{};      ///< The layers, in the same order in each step.
};

/// A run, as far as diagnose has to know it.
struct RunHistory {
  Competition competition = Competition::off();  ///< The rule at the end of the run.
  std::vector<StepSnapshot> steps{};             ///< All or every so many, by ascending numbers.
};

namespace detail {
inline namespace GATEPRO_ABI {

inline void check_steps(const char* argument, const RunHistory& run) {
  for (std::size_t i = 1; i < run.steps.size(); ++i) {
    const std::int64_t step = run.steps[i].step, before = run.steps[i - 1].step;
    if (step > before) continue;
    Checks("diagnose")
        .refuse(argument, "steps in ascending order", {{"step", step}, {"the one before", before}});
  }
}

/// Nothing for a NaN, also under -ffast-math, where comparisons don't know one.
inline std::optional<double> unless_nan(double value) {
  return key_of(value) == Order<double>::nan ? std::optional<double>() : value;
}

/// The steps of a run from one number to another, as means of what was measured there.
class StepRange {
 public:
  StepRange(const RunHistory& run, std::int64_t first_step, std::int64_t last_step)
      : run_(run), first_step_(first_step), last_step_(last_step) {}
  /// The last quarter of a run that has steps.
  explicit StepRange(const RunHistory& run)
      : StepRange(run, run.steps[run.steps.size() * 3 / 4].step, run.steps.back().step) {}

  const RunHistory& run() const { return run_; }
  std::int64_t first_step() const { return first_step_; }
  std::int64_t last_step() const { return last_step_; }

  /// Nothing if nothing was measured, or a NaN.
  std::optional<double> mean(Index layer, std::optional<double> LayerSnapshot::*member) const {
    const auto at = static_cast<std::size_t>(layer);
    return mean_of([&](const StepSnapshot& step) {
      return at < step.layers.size() ? step.layers[at].*member : std::optional<double>();
    });
  }
  std::optional<double> mean(std::optional<double> StepSnapshot::*member) const {
    return mean_of([&](const StepSnapshot& step) { return step.*member; });
  }

 private:
  template <class Value>
  std::optional<double> mean_of(const Value& value) const {
    double sum = 0, count = 0;
    for (const StepSnapshot& step : run_.steps) {
      if (step.step < first_step_ || step.step > last_step_) continue;
      const std::optional<double> measured = value(step);
      sum += measured.value_or(0);
      count += measured ? 1 : 0;
    }
    return count > 0 ? unless_nan(sum / count) : std::optional<double>();
  }

  const RunHistory& run_;
  std::int64_t first_step_;
  std::int64_t last_step_;
};

/// The end of a run and, if there is one, the same steps without competition.
struct Diagnosed {
  StepRange end;
  std::optional<StepRange> baseline{};

  Index layers() const { return static_cast<Index>(end.run().steps.back().layers.size()); }
  std::optional<double> mean(Index layer, std::optional<double> LayerSnapshot::*member) const {
    return end.mean(layer, member);
  }
  /// Nothing unless both were measured; by which metric of a layer, or of the run.
  template <class... Metric>
  std::optional<double> above_baseline(const Metric&... metric) const {
    if (!baseline) return {};
    const auto with = end.mean(metric...), without = baseline->mean(metric...);
    return with && without ? unless_nan(*with - *without) : std::optional<double>();
  }
  const Competition& competition() const { return end.run().competition; }
};

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_METRICS_RUN_HISTORY_HPP
