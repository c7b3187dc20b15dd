// SPDX-License-Identifier: MIT
// runs.csv: one row per finished run.
#ifndef STUDY_RUNS_FILE_HPP
#define STUDY_RUNS_FILE_HPP

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "metrics.hpp"
#include "table_file.hpp"

namespace study {

/// The finished runs, by their keys.
using Runs = std::map<RunKey, RunSummary>;

inline Cells runs_header() {
  Cells header{"model", "arm", "seed", "recipe"};
  header.insert(header.end(), metric_names.begin(), metric_names.end());
  return header;
}

inline Cells runs_row(const RunSummary& run) {
  Cells cells{run.key.model, run.key.arm, std::to_string(run.key.seed), run.recipe};
  for (const double value : run.values) cells.push_back(text_of(value));
  return cells;
}

/// The runs of a file; none if there is none. Of rows with the same key the last one counts.
inline Runs read_runs(const std::filesystem::path& path) {
  const Table table = read_table(path);
  Runs runs;
  if (table.rows.empty()) return runs;
  const std::size_t model = table.column("model"), arm = table.column("arm"),
                    seed = table.column("seed"), recipe = table.column("recipe");
  std::vector<std::size_t> columns;
  for (const char* name : metric_names) columns.push_back(table.column(name));
  for (const Cells& row : table.rows) {
    RunSummary run;
    run.key = {row[model], row[arm], static_cast<std::int64_t>(value_of(row[seed]))};
    run.recipe = row[recipe];
    for (std::size_t m = 0; m < metric_count; ++m) run.values[m] = value_of(row[columns[m]]);
    runs[run.key] = std::move(run);
  }
  return runs;
}

inline void write_runs(const std::filesystem::path& path, const Runs& runs) {
  Table table{runs_header(), {}};
  for (const auto& [key, run] : runs) table.rows.push_back(runs_row(run));
  write_table(path, table);
}

}  // namespace study

#endif  // STUDY_RUNS_FILE_HPP
