// SPDX-License-Identifier: MIT
// runs.csv: one row per finished run.
#ifndef STUDY_RUNS_FILE_HPP
#define STUDY_RUNS_FILE_HPP

#include <cstddef>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "grid.hpp"
#include "metrics.hpp"
#include "table_file.hpp"

namespace study {

/// The finished runs, by their keys.
using Runs = std::map<RunKey, RunSummary>;

/// Whether the grid, as it is, makes a run in this way.
inline bool is_of_grid(const RunSummary& run) {
  for (const ModelSpec& model : models()) {
    if (model.name == run.key.model) return run.recipe == recipe_of(run.key);
  }
  return false;
}

inline Cells runs_header() {
  Cells header{"model", "arm", "seed", "recipe", "text"};
  header.insert(header.end(), metric_names.begin(), metric_names.end());
  return header;
}

inline Cells runs_row(const RunSummary& run) {
  Cells cells{run.key.model, run.key.arm, std::to_string(run.key.seed), run.recipe, run.text};
  for (const double value : run.values) cells.push_back(text_of(value));
  return cells;
}

/// The runs of a file; none if there is none. Of rows with the same key the last one counts.
/// `option` names the folder in errors.
inline Runs read_runs(const std::filesystem::path& path, const std::string& option = "--out") {
  const Table table = read_table(path, option);
  Runs runs;
  if (table.rows.empty()) return runs;
  const std::size_t model = table.column("model"), arm = table.column("arm"),
                    seed = table.column("seed"), recipe = table.column("recipe"),
                    text = table.column("text");
  std::vector<std::size_t> columns;
  for (const char* name : metric_names) columns.push_back(table.column(name));
  for (std::size_t r = 0; r < table.rows.size(); ++r) {
    const Cells& row = table.rows[r];
    RunSummary run;
    run.key = {row[model], row[arm], table.whole_number(r, seed)};
    run.recipe = row[recipe];
    run.text = row[text];
    for (std::size_t m = 0; m < metric_count; ++m) run.values[m] = table.number(r, columns[m]);
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
