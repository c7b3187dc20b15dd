// SPDX-License-Identifier: MIT
// All steps of all runs, and what the table and the plots need of them.
#ifndef TRAIN_MOE_HISTORY_HPP
#define TRAIN_MOE_HISTORY_HPP

#include <string>
#include <utility>
#include <vector>

#include "sample.hpp"
#include "training.hpp"

namespace train_moe {

/// The steps of one arm and seed.
struct Run {
  std::string arm;
  std::int64_t seed = 0;
  std::vector<StepRecord> steps;
};

/// How often the partner would be selected too if it were any other expert.
inline double chance_of_coactivation(const Sizes& sizes) {
  return static_cast<double>(sizes.top_k - 1) / static_cast<double>(sizes.experts - 1);
}

/// Mean over the layers of one step.
template <class Value>
double mean_over_layers(const StepRecord& record, Value LayerMetrics::*value) {
  double sum = 0;
  for (const LayerMetrics& layer : record.layers) sum += static_cast<double>(layer.*value);
  return sum / static_cast<double>(record.layers.size());
}

/// Mean over the layers and the last quarter of the steps.
template <class Value>
double mean_at_end(const Run& run, Value LayerMetrics::*value) {
  const std::size_t first = run.steps.size() * 3 / 4;
  double sum = 0;
  for (std::size_t i = first; i < run.steps.size(); ++i) {
    sum += mean_over_layers(run.steps[i], value);
  }
  return sum / static_cast<double>(run.steps.size() - first);
}

class History {
 public:
  void begin_run(const Arm& arm, std::int64_t seed) { runs_.push_back({arm.name, seed, {}}); }
  void add(StepRecord record) { runs_.back().steps.push_back(std::move(record)); }

  const std::vector<Run>& runs() const { return runs_; }

  /// The runs of an arm that reached `steps`.
  std::vector<const Run*> complete_runs(const std::string& arm, std::int64_t steps) const {
    std::vector<const Run*> complete;
    for (const Run& run : runs_) {
      if (run.arm == arm && static_cast<std::int64_t>(run.steps.size()) == steps) {
        complete.push_back(&run);
      }
    }
    return complete;
  }

 private:
  std::vector<Run> runs_;
};

}  // namespace train_moe

#endif  // TRAIN_MOE_HISTORY_HPP
