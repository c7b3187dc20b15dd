// SPDX-License-Identifier: MIT
// Trains small byte-level mixture-of-experts models with and without competition, and compares.
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <string>

#include "csv.hpp"
#include "default_text.hpp"
#include "diagnosis.hpp"
#include "history.hpp"
#include "output.hpp"
#include "plots.hpp"
#include "progress.hpp"
#include "settings.hpp"
#include "stop_signal.hpp"
#include "support/command_line.hpp"
#include "table.hpp"
#include "training.hpp"
#include "what_if.hpp"

namespace train_moe {
namespace {

using report::ExitCode;
using report::failed;
using report::finished;
using report::interrupted;

/// All runs of a comparison, seed by seed, so that a table of the first seeds is complete early.
class Comparison {
 public:
  Comparison(const Settings& settings, const Text& text)
      : settings_(settings),
        text_(text),
        csv_(std::filesystem::path(settings.out) / "train.csv"),
        progress_(settings.seeds * static_cast<std::int64_t>(settings.arms.size()),
                  settings.steps) {
    csv_.write(csv_header());
  }

  ExitCode run() {
    ExitCode code = finished;
    for (std::int64_t i = 0; i < settings_.seeds && code == finished; ++i) {
      for (const Arm& arm : settings_.arms) {
        code = train(arm, settings_.first_seed + i);
        if (code != finished) break;
      }
    }
    progress_.stop();
    if (code == interrupted) report_interruption();
    std::printf("%s%s", table(settings_, history_).c_str(), diagnosis(settings_, history_).c_str());
    if (code == finished) finish();
    return code;
  }

 private:
  ExitCode train(const Arm& arm, std::int64_t seed) {
    Training<float> training(settings_, arm, seed, text_);
    const bool swept = what_if_.empty();  // the first run stands for all
    const Batch batch = text_.validation_batch(settings_.sizes.tokens, settings_.sizes.context,
                                               settings_.sizes.window);
    if (swept) sweep("initial", training, batch, what_if_);
    history_.begin_run(arm, seed);
    while (!training.done()) {
      const StepRecord record = training.step();
      csv_.write(csv_rows(record));
      history_.add(record);
      progress_.update(record);
      if (stop_requested != 0) return interrupted;
      if (!std::isfinite(record.loss)) {
        progress_.stop();
        std::fprintf(
            stderr, "train_moe: the loss is not finite at step %lld of %s: lower --learning-rate\n",
            static_cast<long long>(record.step), arm.name.c_str());
        return failed;
      }
    }
    if (swept) sweep("trained", training, batch, what_if_);
    return finished;
  }

  void report_interruption() const {
    const Run& run = history_.runs().back();
    std::printf(
        "Interrupted at step %zu of %s, seed %lld. The table has the runs that were complete.\n",
        run.steps.size(), run.arm.c_str(), static_cast<long long>(run.seed));
  }

  void finish() const {
    const std::filesystem::path folder = settings_.out;
    OutputFile(folder / "what_if.csv").write(what_if_csv(what_if_));
    std::printf("Numbers: %s and what_if.csv\n", (folder / "train.csv").c_str());
    if (settings_.plots) std::printf("%s\n", draw_plots(settings_, history_, what_if_).c_str());
  }

  const Settings& settings_;
  const Text& text_;
  OutputFile csv_;
  Progress progress_;
  History history_;
  std::vector<WhatIf> what_if_;
};

int run(int argc, char** argv) {
  Settings settings;
  CLI::App app("Trains byte-level mixture-of-experts models with and without competition.");
  add_options(app, settings);
  return report::run_program("train_moe", "not enough memory: choose smaller sizes", app, argc,
                             argv, [&] {
                               check_settings(settings);
                               const Text text = load_text(settings.text);
                               make_folder(settings.out);
                               catch_stop_signals();
                               return Comparison(settings, text).run();
                             });
}

}  // namespace
}  // namespace train_moe

int main(int argc, char** argv) { return train_moe::run(argc, argv); }
