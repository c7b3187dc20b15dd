// SPDX-License-Identifier: MIT
// The table at the end: mean and standard deviation over the seeds of each arm.
#ifndef TRAIN_MOE_TABLE_HPP
#define TRAIN_MOE_TABLE_HPP

#include <cstdio>
#include <string>
#include <vector>

#include "history.hpp"

namespace train_moe {

/// "mean ± sd" in a cell of `width` characters; "-" without values.
inline std::string cell(const Sample& sample, int decimals, int width, const char* sign = "") {
  char text[64] = "-";
  if (sample.size() != 0) {
    const std::string mean_format = std::string("%") + sign + ".*f";
    std::snprintf(text, sizeof text, mean_format.c_str(), decimals, sample.mean());
  }
  std::string result = text;
  std::size_t shown = result.size();
  if (sample.size() > 1) {
    std::snprintf(text, sizeof text, "%.*f", decimals, sample.deviation());
    result += std::string(" ± ") + text;
    shown = result.size() - 1;  // ± is two bytes but one column
  }
  const std::size_t wanted = static_cast<std::size_t>(width);
  return std::string(shown < wanted ? wanted - shown : 0, ' ') + result;
}

/// One line of the table. The difference pairs runs of the same seed.
inline std::string table_row(const std::string& arm, const std::vector<const Run*>& runs,
                             const std::vector<const Run*>& off_runs) {
  Sample zero, coactivation, cosine, changed, loss, difference;
  for (const Run* run : runs) {
    zero.add(mean_at_end(*run, &LayerMetrics::zero_token_experts));
    coactivation.add(mean_at_end(*run, &LayerMetrics::coactivation));
    cosine.add(mean_at_end(*run, &LayerMetrics::mean_cosine));
    changed.add(100 * mean_at_end(*run, &LayerMetrics::changed));
    loss.add(run->steps.back().validation_loss);
    for (const Run* off : off_runs) {
      if (off->seed != run->seed || off->arm == run->arm) continue;
      difference.add(run->steps.back().validation_loss - off->steps.back().validation_loss);
    }
  }
  char name[64];
  std::snprintf(name, sizeof name, "%-24s %3zu", arm.c_str(), runs.size());
  return name + cell(zero, 1, 15) + cell(coactivation, 3, 16) + cell(cosine, 3, 16) +
         cell(changed, 2, 16) + cell(loss, 3, 16) + cell(difference, 3, 18, "+") + '\n';
}

inline std::string table(const Settings& settings, const History& history) {
  char line[256];
  std::snprintf(line, sizeof line,
                "Mean ± sd over seeds; routing: last quarter of %lld steps, mean of %lld layers; "
                "chance co-activation %.3f\n",
                static_cast<long long>(settings.steps),
                static_cast<long long>(settings.sizes.layers),
                chance_of_coactivation(settings.sizes));
  std::string text = line;
  std::snprintf(line, sizeof line, "%-24s %3s%15s%16s%16s%16s%16s%18s\n", "arm", "n", "zero-token",
                "co-activation", "mean cosine", "changed (%)", "val. loss", "minus off");
  text += line;
  const auto off_runs = history.complete_runs("off", settings.steps);
  for (const Arm& arm : settings.arms) {
    text += table_row(arm.name, history.complete_runs(arm.name, settings.steps), off_runs);
  }
  return text;
}

}  // namespace train_moe

#endif  // TRAIN_MOE_TABLE_HPP
