// SPDX-License-Identifier: MIT
// Runs the grid of comparisons, and writes the report from what it found.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "curves.hpp"
#include "default_text.hpp"
#include "grid_run.hpp"
#include "report.hpp"
#include "schedule.hpp"
#include "support/command_line.hpp"
#include "support/error.hpp"

namespace study {
namespace {

using report::ExitCode;
using report::finished;
using report::interrupted;

struct Options {
  std::string text;
  std::string out = "study.out";
  std::string data = "docs/study";
  std::string docs = "docs";
  Scope scope;
  int jobs = 1;
  double time_limit = 0;
};

void add_scope(CLI::App& app, Options& options) {
  std::vector<std::string> ids;
  for (const Question& question : questions()) ids.push_back(question.id);
  app.add_flag("--short", options.scope.short_only,
               "Only what takes ten minutes on two cores, with five seeds");
  app.add_option("--question", options.scope.question_ids, "Only these questions")
      ->check(CLI::IsMember(ids));
}

/// The runs of the first seeds; there are some.
std::vector<RunKey> first_runs(const Scope& scope) {
  std::vector<RunKey> keys = first_stage(scope);
  if (keys.empty()) {
    throw report::UserError("the short study has no runs for these questions: leave out --short");
  }
  return keys;
}

ExitCode run_grid(const Options& options) {
  const std::vector<RunKey> first = first_runs(options.scope);
  std::string bytes = train_moe::load_bytes(options.text);
  const std::string hash = text_hash(bytes);
  const train_moe::Text text(std::move(bytes));
  train_moe::catch_stop_signals();
  const Deadline deadline(options.time_limit);
  Folder folder(options.out, steps_columns(), hash);
  const bool complete = make_runs("first seeds", first, text, options.jobs, deadline, folder) &&
                        make_runs("fresh seeds", second_stage(options.scope, folder.runs()), text,
                                  options.jobs, deadline, folder);
  write_table(std::filesystem::path(options.out) / "curves.csv", curves_of(folder.finish()));
  std::printf("%s: %zu runs in %s/runs.csv\n", complete ? "complete" : "stopped early",
              folder.runs().size(), options.out.c_str());
  return !complete && train_moe::stop_requested != 0 ? interrupted : finished;
}

ExitCode list_grid(const Options& options) {
  const std::vector<RunKey> keys = first_runs(options.scope);
  double cost = 0;
  for (const RunKey& key : keys) {
    std::printf("%-11s %-32s seed %lld\n", key.model.c_str(), key.arm.c_str(),
                static_cast<long long>(key.seed));
    cost += cost_of(key);
  }
  std::printf("%zu runs, as long as %.0f of the tiny model\n", keys.size(),
              cost / cost_of({"tiny", "off", 1}));
  return finished;
}

ExitCode report(const Options& options) {
  for (const auto& path : write_report(options.data, options.docs)) std::puts(path.c_str());
  return finished;
}

int run(int argc, char** argv) {
  Options options;
  ExitCode (*command)(const Options&) = nullptr;
  CLI::App app("Compares ways to route, over many short trainings, and reports what they show.");
  app.option_defaults()->always_capture_default();
  app.require_subcommand(1);
  const auto subcommand = [&](const char* name, const char* help, auto* function) {
    CLI::App* sub = app.add_subcommand(name, help);
    sub->callback([&command, function] { command = function; });
    return sub;
  };
  CLI::App* run = subcommand("run", "Make the runs that --out does not have yet", run_grid);
  run->add_option("--text", options.text, "File or folder to learn from [the Eigen headers]");
  run->add_option("--out", options.out, "Folder for runs.csv, steps.csv and curves.csv");
  run->add_option("--jobs", options.jobs,
                  "Runs side by side, one thread each; no result depends on it")
      ->check(CLI::Range(1, 1024));
  run->add_option("--time-limit", options.time_limit, "Seconds after which to stop; 0: none")
      ->check(CLI::Range(0.0, 1e9));
  add_scope(*run, options);
  add_scope(*subcommand("list", "Print the runs of the first seeds", list_grid), options);
  CLI::App* report_app =
      subcommand("report", "Write the report from runs.csv and curves.csv", report);
  report_app->add_option("--data", options.data, "Folder of runs.csv and curves.csv");
  report_app->add_option("--docs", options.docs, "Folder for evidence.md and study/report.html");
  return report::run_program("study", "not enough memory: choose fewer --jobs", app, argc, argv,
                             [&] { return command(options); });
}

}  // namespace
}  // namespace study

int main(int argc, char** argv) { return study::run(argc, argv); }
