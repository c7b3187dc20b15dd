// SPDX-License-Identifier: MIT
// The folder of a study, which a later call takes up where this one ended.
#ifndef STUDY_FOLDER_HPP
#define STUDY_FOLDER_HPP

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "runs_file.hpp"
#include "support/error.hpp"
#include "support/output_file.hpp"
#include "table_file.hpp"

namespace study {

/// Keeps other processes from writing to a folder. The system lets go of it however this one ends.
class FolderLock {
 public:
  explicit FolderLock(const std::filesystem::path& folder)
      : file_(open((folder / "lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
    if (file_ >= 0 && flock(file_, LOCK_EX | LOCK_NB) == 0) return;
    const int why = errno;
    if (file_ >= 0) close(file_);
    if (why == EWOULDBLOCK) {
      throw report::UserError("another study writes to " + folder.string() +
                              ": wait for it, or choose another --out");
    }
    throw report::UserError("cannot lock " + (folder / "lock").string() + " (" +
                            std::strerror(why) + "): choose another folder with --out");
  }
  ~FolderLock() { close(file_); }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int file_;
};

/// The files of a study. Rows are appended as runs end, and put in order when the study does.
class Folder {
 public:
  /// `steps_header`: of steps.csv. `text`: the hash of what all runs learn from.
  Folder(const std::filesystem::path& path, Cells steps_header, std::string text)
      : path_(made(path)),
        lock_(path),
        steps_header_(std::move(steps_header)),
        text_(std::move(text)),
        runs_(read_runs(path / "runs.csv")) {
    for (const auto& [key, run] : runs_) {
      if (run.text == text_) continue;
      throw report::UserError("the runs in " + path.string() +
                              " learnt from another text: give that one with --text, or choose "
                              "another --out");
    }
    keep_steps_of_runs();
    write_runs(path / "runs.csv", runs_);
    open_to_append(runs_out_, "runs.csv");
    open_to_append(steps_out_, "steps.csv");
  }

  const Runs& runs() const { return runs_; }

  /// The steps first: rows of steps without their run are dropped, a run without its steps is not.
  /// Thread-safe.
  void add(RunSummary run, const std::string& step_rows) {
    const std::lock_guard<std::mutex> lock(mutex_);
    run.text = text_;
    steps_out_ << step_rows << std::flush;
    runs_out_ << line_of(runs_row(run)) << std::flush;
    if (!steps_out_ || !runs_out_) {
      throw std::runtime_error("cannot write to " + path_.string() +
                               " any more: is the disk full?");
    }
    runs_[run.key] = std::move(run);
  }

  /// Puts the rows in order, whatever order the runs ended in. Returns those of the steps.
  Table finish() {
    runs_out_.close();
    steps_out_.close();
    write_runs(path_ / "runs.csv", runs_);
    return keep_steps_of_runs();
  }

 private:
  static const std::filesystem::path& made(const std::filesystem::path& path) {
    report::make_folder(path);
    return path;
  }

  void open_to_append(std::ofstream& file, const char* name) const {
    file.open(path_ / name, std::ios::binary | std::ios::app);
    if (!file) {
      throw report::UserError("cannot write " + (path_ / name).string() +
                              ": choose another folder with --out");
    }
  }

  /// Rewrites steps.csv, in order, with the rows of runs that are there and not to be made again.
  Table keep_steps_of_runs() {
    Table steps = read_table(path_ / "steps.csv");
    if (steps.rows.empty()) steps.header = steps_header_;
    if (steps.header != steps_header_) steps.other_version("the columns are others");
    const std::size_t model = steps.column("model"), arm = steps.column("arm"),
                      seed = steps.column("seed"), step = steps.column("step"),
                      layer = steps.column("layer");
    std::map<RunKey, std::map<std::pair<std::int64_t, std::int64_t>, Cells>> rows;
    for (std::size_t r = 0; r < steps.rows.size(); ++r) {
      Cells& row = steps.rows[r];
      const RunKey key{row[model], row[arm], steps.whole_number(r, seed)};
      const auto run = runs_.find(key);
      if (run == runs_.end() || !is_of_grid(run->second)) continue;
      const auto place = std::pair(steps.whole_number(r, step), steps.whole_number(r, layer));
      rows[key][place] = std::move(row);
    }
    steps.rows.clear();
    steps.lines.clear();
    std::size_t line = 1;
    for (auto& [key, of_run] : rows) {
      for (auto& [place, row] : of_run) {
        steps.rows.push_back(std::move(row));
        steps.lines.push_back(++line);
      }
    }
    write_table(path_ / "steps.csv", steps);
    return steps;
  }

  std::filesystem::path path_;
  FolderLock lock_;
  Cells steps_header_;
  std::string text_;
  Runs runs_;
  std::ofstream runs_out_, steps_out_;
  std::mutex mutex_;
};

}  // namespace study

#endif  // STUDY_FOLDER_HPP
