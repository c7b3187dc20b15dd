// SPDX-License-Identifier: MIT
// One run of the grid: trained by train_moe, and summed up.
#ifndef STUDY_ONE_RUN_HPP
#define STUDY_ONE_RUN_HPP

#include <functional>
#include <string>

#include "grid.hpp"
#include "metrics.hpp"
#include "table_file.hpp"
#include "text.hpp"

namespace study {

struct RunResult {
  RunSummary summary;
  std::string step_rows;  // of steps.csv: each tenth step, and the last one
};

/// The columns of steps.csv.
Cells steps_columns();

/// What a run costs, in steps of a small layer: for the remaining time only. Throws UserError for a
/// model or an arm that train_moe does not take.
double cost_of(const RunKey& key);

/// Trains on one thread. `stop()` is asked after each step; a run that it ends has no result and
/// returns false.
bool train(const RunKey& key, const train_moe::Text& text, const std::function<bool()>& stop,
           RunResult& result);

}  // namespace study

#endif  // STUDY_ONE_RUN_HPP
