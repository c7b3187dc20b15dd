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

/// What was measured in a step: a metric of a layer, or one of the run.
inline std::optional<double> measured(const StepSnapshot& step, Index layer,
                                      std::optional<double> LayerSnapshot::*metric) {
  const auto at = static_cast<std::size_t>(layer);
  return at < step.layers.size() ? step.layers[at].*metric : std::optional<double>();
}
inline std::optional<double> measured(const StepSnapshot& step,
                                      std::optional<double> StepSnapshot::*metric) {
  return step.*metric;
}

/// The last quarter of a run that has steps and, if there is one, the same steps without
/// competition.
class Diagnosed {
 public:
  explicit Diagnosed(const RunHistory& run, const RunHistory* baseline = nullptr)
      : run_(run), baseline_(baseline), first_(run.steps.size() * 3 / 4) {}

  Index layers() const { return static_cast<Index>(run_.steps.back().layers.size()); }
  const Competition& competition() const { return run_.competition; }
  std::int64_t first_step() const { return run_.steps[first_].step; }
  std::int64_t last_step() const { return run_.steps.back().step; }

  /// Mean over the steps; nothing if nothing was measured, or a NaN.
  template <class... Metric>
  std::optional<double> mean(const Metric&... metric) const {
    Mean values;
    for (std::size_t i = first_; i < run_.steps.size(); ++i) {
      values.add(measured(run_.steps[i], metric...));
    }
    return values.value();
  }

  /// Mean difference over the steps in which both runs were measured; nothing if there are none.
  template <class... Metric>
  std::optional<double> above_baseline(const Metric&... metric) const {
    if (baseline_ == nullptr) return {};
    Mean differences;
    auto without = baseline_->steps.begin();
    for (std::size_t i = first_; i < run_.steps.size(); ++i) {
      const StepSnapshot& step = run_.steps[i];
      while (without != baseline_->steps.end() && without->step < step.step) ++without;
      if (without == baseline_->steps.end()) break;
      if (without->step != step.step) continue;
      const auto with = measured(step, metric...), other = measured(*without, metric...);
      if (with && other) differences.add(*with - *other);
    }
    return differences.value();
  }

 private:
  class Mean {
   public:
    void add(const std::optional<double>& value) {
      sum_ += value.value_or(0);
      count_ += value ? 1 : 0;
    }
    std::optional<double> value() const {
      return count_ > 0 ? unless_nan(sum_ / count_) : std::optional<double>();
    }

   private:
    double sum_ = 0;
    double count_ = 0;
  };

  const RunHistory& run_;
  const RunHistory* baseline_;
  std::size_t first_;
};

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_METRICS_RUN_HISTORY_HPP
