// SPDX-License-Identifier: MIT
// train_moe from outside: its files, its exit codes, its answers to bad input and to signals.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "support/program_folder.hpp"

namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

using data::read;

Words split(const std::string& text, char separator) {
  Words parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  if (!text.empty() && text.back() == separator && separator != '\n') parts.emplace_back();
  return parts;
}

struct Result {
  int exit_code = -1;
  std::string out, err;
};

class Program : public data::ProgramFolder {
 protected:
  void SetUp() override {
    ProgramFolder::SetUp();
    data::write_text(folder / "text");
  }

  /// Starts train_moe; `wait` gets its result.
  pid_t start(const Words& arguments) const {
    Words words{TRAIN_MOE_PROGRAM};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const pid_t child = fork();
    if (child != 0) return child;
    const auto redirect = [&](const char* name, int descriptor) {
      dup2(open((folder / name).c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0600), descriptor);
    };
    redirect("stdout", STDOUT_FILENO);
    redirect("stderr", STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }

  Result wait(pid_t child) const {
    int status = 0;
    waitpid(child, &status, 0);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), read(folder / "stdout"),
            read(folder / "stderr")};
  }

  Result run(const Words& arguments) const { return wait(start(arguments)); }

  /// A run of a second or less, into folder/out; `more` may override.
  Words tiny(const std::string& out, const Words& more = {}) const {
    Words words{"--text",
                (folder / "text").string(),
                "--arms",
                "off,eliminate",
                "--seeds",
                "1",
                "--steps",
                "12",
                "--tokens",
                "70",
                "--hidden",
                "16",
                "--layers",
                "2",
                "--experts",
                "10",
                "--top-k",
                "3",
                "--expert-hidden",
                "8",
                "--context",
                "4",
                "--eval-every",
                "5",
                "--val-tokens",
                "100",
                "--no-plots",
                "--out",
                (folder / out).string()};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }

  /// The rows of train.csv below the header, each without tokens_per_s, which no run repeats.
  Words rows(const std::string& out) const {
    Words lines = split(read(folder / out / "train.csv"), '\n');
    if (!lines.empty()) lines.erase(lines.begin());
    for (std::string& line : lines) line.resize(line.rfind(','));
    return lines;
  }

  static Words of_arm(const Words& rows, const std::string& arm) {
    Words result;
    for (const std::string& row : rows) {
      if (row.compare(0, arm.size() + 1, arm + ',') == 0) result.push_back(row.substr(arm.size()));
    }
    return result;
  }
};

TEST_F(Program, WritesOneCompleteRowPerStepAndLayer) {
  const Result result = run(tiny("out", {"--arms", "off,lambda=0.1+balance"}));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const Words lines = split(read(folder / "out/train.csv"), '\n');
  ASSERT_EQ(lines.size(), 1U + 2 * 12 * 2);
  const Words names = split(lines[0], ',');
  for (std::size_t i = 1; i < lines.size(); ++i) {
    const Words values = split(lines[i], ',');
    ASSERT_EQ(values.size(), names.size()) << lines[i];
    std::map<std::string, std::string> row;
    for (std::size_t c = 0; c < names.size(); ++c) row[names[c]] = values[c];
    EXPECT_EQ(row["arm"], i <= 24 ? "off" : "lambda=0.1+balance");
    EXPECT_EQ(row["step"], std::to_string((i - 1) % 24 / 2 + 1));
    EXPECT_EQ(row["layer"], std::to_string((i - 1) % 2));
    const int step = std::stoi(row["step"]);
    EXPECT_EQ(row["val_loss"].empty(), step % 5 != 0 && step != 12);
    for (std::size_t c = 1; c < names.size(); ++c) {
      if (names[c] == "val_loss" && values[c].empty()) continue;
      EXPECT_TRUE(std::isfinite(std::stod(values[c]))) << lines[i];
    }
    for (const char* share : {"changed", "coactivation", "coactivation_unpenalised"}) {
      EXPECT_GE(std::stod(row[share]), 0);
      EXPECT_LE(std::stod(row[share]), 1);
    }
    if (row["arm"] != "off") continue;
    EXPECT_EQ(row["changed"], "0");
    EXPECT_EQ(row["coactivation"], row["coactivation_unpenalised"]);
  }
  EXPECT_NE(result.out.find("lambda=0.1+balance"), std::string::npos);
  EXPECT_NE(result.out.find("Diagnosis of each arm"), std::string::npos);
  EXPECT_NE(result.out.find("\noff: nothing found\n"), std::string::npos) << result.out;
  EXPECT_EQ(split(result.err, '\n').size(), 2U) << "one line per run where there is no terminal";
}

TEST_F(Program, LearnsToPredict) {
  ASSERT_EQ(run(tiny("out", {"--steps", "60"})).exit_code, 0);
  const Words all = rows("out");
  const auto loss = [](const std::string& row) { return std::stod(split(row, ',')[4]); };
  EXPECT_GT(loss(all.front()), 5.0);  // log 256 = 5.5
  EXPECT_LT(loss(all.back()), 2.0);
}

TEST_F(Program, RepeatsItselfForAnyNumberOfThreads) {
  Words arms{"--arms", "eliminate+balance,lambda=0.01"};
  ASSERT_EQ(run(tiny("one", arms)).exit_code, 0);
  const Words once = rows("one");
  ASSERT_EQ(once.size(), 48U);
  ASSERT_EQ(run(tiny("again", arms)).exit_code, 0);
  EXPECT_EQ(once, rows("again"));
#ifdef TRAIN_MOE_HAS_THREADS
  for (const char* threads : {"2", "3"}) {
    Words more = arms;
    more.insert(more.end(), {"--threads", threads});
    ASSERT_EQ(run(tiny("more", more)).exit_code, 0);
    EXPECT_EQ(once, rows("more")) << threads << " threads";
    EXPECT_EQ(read(folder / "one/what_if.csv"), read(folder / "more/what_if.csv"));
  }
#endif
}

TEST_F(Program, GivesEveryArmTheSameStart) {
  ASSERT_EQ(run(tiny("out", {"--arms", "off,lambda=0,off+balance", "--seeds", "2"})).exit_code, 0);
  const Words all = rows("out");
  EXPECT_EQ(of_arm(all, "off"), of_arm(all, "lambda=0"));
  EXPECT_EQ(of_arm(all, "off")[0], of_arm(all, "off+balance")[0]);
  EXPECT_NE(of_arm(all, "off")[0].substr(3), of_arm(all, "off")[24].substr(3)) << "two seeds";
}

TEST_F(Program, SwapsTheCompetitionAtTheGivenStep) {
  ASSERT_EQ(run(tiny("plain")).exit_code, 0);
  ASSERT_EQ(run(tiny("on", {"--arms", "eliminate", "--swap-on-at", "7"})).exit_code, 0);
  ASSERT_EQ(run(tiny("off", {"--arms", "eliminate", "--swap-off-at", "7"})).exit_code, 0);
  const Words never = of_arm(rows("plain"), "off");
  const Words always = of_arm(rows("plain"), "eliminate");
  const Words on = of_arm(rows("on"), "eliminate");
  const Words off = of_arm(rows("off"), "eliminate");
  ASSERT_EQ(on.size(), 24U);
  ASSERT_EQ(off.size(), 24U);
  EXPECT_TRUE(std::equal(on.begin(), on.begin() + 12, never.begin()));
  EXPECT_NE(on[12], never[12]);
  EXPECT_TRUE(std::equal(off.begin(), off.begin() + 12, always.begin()));
  EXPECT_NE(off[12], always[12]);
  EXPECT_EQ(split(off[12], ',')[10], "0") << "nothing changes once it is off";
}

TEST_F(Program, SweepsLambda) {
  ASSERT_EQ(run(tiny("out")).exit_code, 0);
  const Words lines = split(read(folder / "out/what_if.csv"), '\n');
  ASSERT_EQ(lines.size(), 1U + 2 * 2 * 62);
  EXPECT_EQ(lines[0], "network,layer,lambda,changed");
  EXPECT_EQ(split(lines[62], ',')[2], "inf");
  EXPECT_EQ(split(lines[62], ',')[3], split(lines[61], ',')[3]) << "lambda = 10 eliminates here";
}

TEST_F(Program, LaterOptionsOverrideEarlierOnes) {
  ASSERT_EQ(run(tiny("out", {"--seeds", "2", "--seeds", "1", "--steps", "3"})).exit_code, 0);
  EXPECT_EQ(rows("out").size(), 2U * 3 * 2);
}

TEST_F(Program, RefusesBadInputInOneLineAndWritesNothing) {
  fs::create_directory(folder / "empty");
  std::ofstream(folder / "short") << "too short";
  std::ofstream(folder / "nothing");
  const std::string text = (folder / "text").string();
  const std::vector<Words> cases = {
      {"--text", (folder / "missing").string()},
      {"--text", (folder / "empty").string()},
      {"--text", (folder / "nothing").string()},
      {"--text", (folder / "short").string()},
      {"--text", "/dev/null"},
      {"--unknown", "1"},
      {"--seeds"},
      {"--seeds", "0"},
      {"--seeds", "many"},
      {"--steps", "-3"},
      {"--arms", "off,maybe"},
      {"--arms", "off,off"},
      {"--arms", "lambda=-1"},
      {"--arms", "off+balance=-1"},
      {"--arms", "off+choices=4"},
      {"--arms", "eliminate+from=13"},
      {"--arms", ""},
      {"--top-k", "11"},
      {"--top-k", "0"},
      {"--window", "4"},
      {"--window", "5", "--heads", "3"},
      {"--swap-on-at", "13"},
      {"--swap-on-at", "3", "--swap-off-at", "3"},
      {"--trace-every", "13"},
      {"--threads", "0"},
      {"--learning-rate", "nan"},
      {"stray"},
  };
  for (const Words& bad : cases) {
    const Result result = run(tiny("out", bad));
    const std::string name = testing::PrintToString(bad);
    EXPECT_EQ(result.exit_code, 2) << name;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << name << result.err;
    EXPECT_EQ(result.err.compare(0, 11, "train_moe: "), 0) << name << result.err;
    EXPECT_EQ(result.out, "") << name;
    EXPECT_FALSE(fs::exists(folder / "out")) << name;
  }
}

TEST_F(Program, RefusesAFolderThatItCannotWrite) {
  for (const std::string& out : {(folder / "text/out").string(), (folder / "text").string(),
                                 std::string("/proc/nowhere/out"), std::string()}) {
    const Result result = run(tiny("unused", {"--out", out}));
    EXPECT_EQ(result.exit_code, 2) << out;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_NE(result.err.find("--out"), std::string::npos) << result.err;
  }
}

TEST_F(Program, TracesEachLayerOfTheStepsThatAreDue) {
  const fs::path traces = folder / "traces";
  EXPECT_EQ(run(tiny("out", {"--trace", traces.string(), "--trace-every", "5"})).exit_code, 0);
  for (const char* arm : {"off_seed1", "eliminate_seed1"}) {
    const Words lines = split(read(traces / arm / "router_trace_rank0.jsonl"), '\n');
    ASSERT_EQ(lines.size(), 4U) << arm;  // steps 5 and 10 of two layers
    EXPECT_EQ(
        lines[3].rfind(R"({"step": 10, "stage": "pre_dispatch", "block": "decoder", "layer": 1,)"
                       R"( "rank": 0, "num_tokens": 70, "topk": 3, "top_indices": [[)",
                       0),
        0U)
        << lines[3];
    EXPECT_NE(lines[3].find("]], \"top_weights\": [["), std::string::npos);
    // A header of 128 bytes, 10 experts of 16 floats.
    EXPECT_EQ(fs::file_size(traces / arm / "router.1.npy"), 128U + 640);
  }
  // The last step alone, and the training goes on as without a trace.
  const Words traced = rows("out");
  EXPECT_EQ(run(tiny("out", {"--trace", (folder / "last").string()})).exit_code, 0);
  EXPECT_EQ(split(read(folder / "last/off_seed1/router_trace_rank0.jsonl"), '\n').size(), 2U);
  EXPECT_EQ(run(tiny("out")).exit_code, 0);
  EXPECT_EQ(rows("out"), traced);
}

TEST_F(Program, LeavesNoFolderBehindThatItCouldNotComplete) {
  const std::string too_long(300, 'x');
  const Result result = run(tiny("new/newer/" + too_long));
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_FALSE(fs::exists(folder / "new"));
}

TEST_F(Program, MakesFoldersWithTheirParents) {
  EXPECT_EQ(run(tiny("new/newer/", {"--steps", "1"})).exit_code, 0);
  EXPECT_EQ(rows("new/newer").size(), 4U);
}

TEST_F(Program, RefusesUnreadableText) {
  if (geteuid() == 0) GTEST_SKIP() << "root reads everything";
  fs::permissions(folder / "text", fs::perms::none);
  EXPECT_EQ(run(tiny("out")).exit_code, 2);
  EXPECT_FALSE(fs::exists(folder / "out"));
}

TEST_F(Program, LeavesCompleteRowsWhenInterrupted) {
  for (const int signal : {SIGINT, SIGTERM, SIGKILL}) {
    fs::remove_all(folder / "out");
    const pid_t child = start(tiny("out", {"--steps", "1000000"}));
    for (int i = 0; i < 1000 && rows("out").size() < 20; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    kill(child, signal);
    const Result result = wait(child);
    if (signal != SIGKILL) {
      EXPECT_EQ(result.exit_code, 130);
      EXPECT_NE(result.out.find("Interrupted"), std::string::npos) << result.out;
      EXPECT_NE(result.out.find("zero-token"), std::string::npos) << result.out;
    }
    const std::string csv = read(folder / "out/train.csv");
    EXPECT_EQ(csv.back(), '\n');
    const Words lines = split(csv, '\n');
    EXPECT_GE(lines.size(), 21U);
    EXPECT_EQ(lines.size() % 2, 1U) << "both layers of the last step";
    for (const std::string& line : lines) {
      EXPECT_EQ(std::count(line.begin(), line.end(), ','), 14) << line;
    }
  }
}

}  // namespace
