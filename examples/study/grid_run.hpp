// SPDX-License-Identifier: MIT
// Runs the grid into a folder, which a later call takes up where this one ended.
#ifndef STUDY_GRID_RUN_HPP
#define STUDY_GRID_RUN_HPP

#include <filesystem>
#include <fstream>
#include <mutex>
#include <string>
#include <vector>

#include "curves.hpp"
#include "one_run.hpp"
#include "pool.hpp"
#include "runs_file.hpp"
#include "schedule.hpp"
#include "support/output_file.hpp"

namespace study {

/// The files of a study. Rows are appended as runs end, and put in order when the study does.
class Folder {
 public:
  explicit Folder(const std::filesystem::path& path) : path_(path) {
    report::make_folder(path);
    runs_ = read_runs(path / "runs.csv");
    keep_steps_of_runs();
    write_runs(path / "runs.csv", runs_);
    runs_out_.open(path / "runs.csv", std::ios::binary | std::ios::app);
    steps_out_.open(path / "steps.csv", std::ios::binary | std::ios::app);
  }

  const Runs& runs() const { return runs_; }

  /// The steps first: rows of steps without their run are dropped, a run without its steps is not.
  void add(const RunResult& result) {
    const std::lock_guard<std::mutex> lock(mutex_);
    steps_out_ << result.step_rows << std::flush;
    runs_out_ << line_of(runs_row(result.summary)) << std::flush;
    if (!steps_out_ || !runs_out_) {
      throw std::runtime_error("cannot write to " + path_.string() +
                               " any more: is the disk full?");
    }
    runs_[result.summary.key] = result.summary;
  }

  /// Puts the rows in order, whatever order the runs ended in, and sums up the curves.
  void finish() {
    runs_out_.close();
    steps_out_.close();
    write_runs(path_ / "runs.csv", runs_);
    const Table steps = keep_steps_of_runs();
    write_table(path_ / "curves.csv", curves_of(steps));
  }

 private:
  /// Rewrites steps.csv, in order, with the rows of runs that are there.
  Table keep_steps_of_runs() {
    Table steps = read_table(path_ / "steps.csv");
    if (steps.header.empty()) {
      const std::string header = steps_header();
      steps.header = cells_of(header.substr(0, header.find('\n')));
    }
    const std::size_t arm = steps.column("arm"), seed = steps.column("seed"),
                      step = steps.column("step"), layer = steps.column("layer");
    std::map<RunKey, std::map<std::pair<long, long>, Cells>> rows;
    for (Cells& row : steps.rows) {
      const RunKey key{row[0], row[arm], std::stol(row[seed])};
      if (runs_.count(key) != 0) {
        rows[key][{std::stol(row[step]), std::stol(row[layer])}] = std::move(row);
      }
    }
    steps.rows.clear();
    for (auto& [key, of_run] : rows) {
      for (auto& [place, row] : of_run) steps.rows.push_back(std::move(row));
    }
    write_table(path_ / "steps.csv", steps);
    return steps;
  }

  std::filesystem::path path_;
  Runs runs_;
  std::ofstream runs_out_, steps_out_;
  std::mutex mutex_;
};

/// Makes some runs. False if the deadline came first.
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
  const auto stop = [&] { return deadline.reached(); };
  in_parallel(jobs, left.size(), stop, [&](std::size_t i) {
    RunResult result;
    if (!train(left[i], text, stop, result)) return;
    folder.add(result);
    const std::lock_guard<std::mutex> lock(mutex);
    bar.advance(cost_of(left[i]),
                left[i].model + ' ' + left[i].arm + " seed " + std::to_string(left[i].seed));
  });
  return !deadline.reached();
}

}  // namespace study

#endif  // STUDY_GRID_RUN_HPP
