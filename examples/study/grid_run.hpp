// SPDX-License-Identifier: MIT
// Makes runs of the grid, side by side, into a folder.
#ifndef STUDY_GRID_RUN_HPP
#define STUDY_GRID_RUN_HPP

#include <cstddef>
#include <cstdio>
#include <mutex>
#include <string>
#include <vector>

#include "folder.hpp"
#include "one_run.hpp"
#include "pool.hpp"
#include "schedule.hpp"

namespace study {

/// Makes the runs that are not there yet. False if the deadline came before the last of them.
inline bool make_runs(const std::string& stage, const std::vector<RunKey>& keys,
                      const train_moe::Text& text, int jobs, const Deadline& deadline,
                      Folder& folder) {
  const std::vector<RunKey> left = missing(keys, folder.runs());
  double total = 0;
  for (const RunKey& key : left) total += cost_of(key);
  std::fprintf(stderr, "%s: %zu runs, %zu of them to do\n", stage.c_str(), keys.size(),
               left.size());
  ProgressBar bar(stage, total, deadline);
  std::mutex mutex;
  std::size_t made = 0;
  const auto late = [&] { return deadline.reached(); };
  in_parallel(jobs, left.size(), late, [&](std::size_t i, const auto& stop) {
    RunResult result;
    if (!train(left[i], text, stop, result)) return;
    folder.add(result.summary, result.step_rows);
    const std::lock_guard<std::mutex> lock(mutex);
    ++made;
    bar.advance(cost_of(left[i]),
                left[i].model + ' ' + left[i].arm + " seed " + std::to_string(left[i].seed));
  });
  return made == left.size();
}

}  // namespace study

#endif  // STUDY_GRID_RUN_HPP
