// SPDX-License-Identifier: MIT
// study from outside: its files do not depend on how it was run, and bad input is one line.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "runs_file.hpp"
#include "schedule.hpp"
#include "support/program_folder.hpp"

namespace {

namespace fs = std::filesystem;

using data::read;

class Program : public data::ProgramFolder {
 protected:
  void SetUp() override {
    ProgramFolder::SetUp();
    data::write_text(folder / "text");
  }

  /// The exit code; what it prints goes to the files out and err.
  int run(const std::string& arguments, const std::string& before = "") const {
    const std::string command = before + STUDY_PROGRAM + " " + arguments + " > " +
                                (folder / "out").string() + " 2> " + (folder / "err").string();
    const int status = std::system(command.c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
};

TEST_F(Program, RefusesBadInputInOneLine) {
  const std::string data = (folder / "empty").string();
  for (const std::string& bad :
       {std::string(), std::string("walk"), std::string("run --jobs 0"),
        std::string("run --question what"), "run --text " + data, "report --data " + data,
        std::string("run --out /dev/null/x --text ") + (folder / "text").string()}) {
    EXPECT_EQ(run(bad), 2) << bad;
    const std::string err = read(folder / "err");
    EXPECT_EQ(std::count(err.begin(), err.end(), '\n'), 1) << bad << ": " << err;
    EXPECT_EQ(err.compare(0, 7, "study: "), 0) << err;
  }
}

TEST_F(Program, SaysThatTheShortStudyDoesNotAsk) {
  for (const study::Question& question : study::questions()) {
    const bool asked = !study::first_stage({true, {question.id}}).empty();
    EXPECT_EQ(run(std::string("list --short --question ") + question.id), asked ? 0 : 2);
    if (asked) continue;
    EXPECT_NE(read(folder / "err").find("leave out --short"), std::string::npos);
    break;
  }
}

TEST_F(Program, LeavesAFolderToWhoeverWritesToIt) {
  const std::string arguments = "run --question outputs --time-limit 0.05 --text " +
                                (folder / "text").string() + " --out " + (folder / "data").string();
  ASSERT_EQ(run(arguments), 0) << read(folder / "err");
  const int file = open((folder / "data/lock").c_str(), O_RDWR);
  ASSERT_EQ(flock(file, LOCK_EX | LOCK_NB), 0);
  EXPECT_EQ(run(arguments), 2);
  EXPECT_NE(read(folder / "err").find("another study writes to"), std::string::npos);
  close(file);
  EXPECT_EQ(run(arguments), 0);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_F(Program, SaysThatThereAreTooManyThreads) {
  const std::string arguments = "run --jobs 1024 --time-limit 20 --text " +
                                (folder / "text").string() + " --out " + (folder / "data").string();
  EXPECT_EQ(run(arguments, "ulimit -v 500000; "), 2) << read(folder / "err");
  EXPECT_NE(read(folder / "err").find("choose fewer --jobs"), std::string::npos);
}
#endif

// With no time left, but nothing left to do either.
TEST_F(Program, IsCompleteOnceAllRunsAreThere) {
  const std::vector<study::RunKey> keys = study::first_stage({false, {"outputs"}});
  study::Runs runs;
  for (const study::RunKey& key : keys) {
    study::RunSummary& summary = runs[key];
    summary.key = key;
    summary.recipe = study::recipe_of(key);
    summary.text = study::text_hash(read(folder / "text"));
  }
  fs::create_directory(folder / "data");
  study::write_runs(folder / "data/runs.csv", runs);
  ASSERT_EQ(run("run --question outputs --time-limit 1e-9 --text " + (folder / "text").string() +
                " --out " + (folder / "data").string()),
            0)
      << read(folder / "err");
  EXPECT_EQ(read(folder / "out"), "complete: " + std::to_string(keys.size()) + " runs in " +
                                      (folder / "data").string() + "/runs.csv\n");
}

TEST_F(Program, ListsTheGrid) {
  ASSERT_EQ(run("list --short"), 0);
  const std::string out = read(folder / "out");
  EXPECT_NE(out.find("tiny        eliminate                        seed 5\n"), std::string::npos);
  EXPECT_EQ(out.find("seed 6"), std::string::npos);
}

// Whatever stands is kept, whatever was cut off or made otherwise is made again, and rows are in
// order: of a finished run nothing depends on the runs beside it.
TEST_F(Program, TakesUpWhereItEnded) {
  const std::string arguments = "run --question outputs --time-limit 0.05 --text " +
                                (folder / "text").string() + " --out " + (folder / "data").string();
  ASSERT_EQ(run(arguments), 0) << read(folder / "err");
  EXPECT_NE(read(folder / "out").find("stopped early: 0 runs"), std::string::npos);
  const std::string runs = read(folder / "data/runs.csv");
  EXPECT_EQ(std::count(runs.begin(), runs.end(), '\n'), 1) << runs;
  std::ofstream(folder / "data/runs.csv", std::ios::app) << "tiny,off,1";
  std::ofstream(folder / "data/steps.csv", std::ios::app) << "tiny,off,1,10,0,1,";
  const std::string header = read(folder / "data/curves.csv");
  ASSERT_EQ(run(arguments + " --jobs 2"), 0) << read(folder / "err");
  EXPECT_EQ(read(folder / "data/runs.csv"), runs);
  EXPECT_EQ(read(folder / "data/curves.csv"), header);
}

}  // namespace
