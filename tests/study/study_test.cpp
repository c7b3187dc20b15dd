// SPDX-License-Identifier: MIT
// The study's statistics, verdicts, files and grid.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "advice.hpp"
#include "comparison.hpp"
#include "curves.hpp"
#include "document.hpp"
#include "findings.hpp"
#include "folder.hpp"
#include "pool.hpp"
#include "report.hpp"
#include "schedule.hpp"
#include "statistics.hpp"
#include "support/program_folder.hpp"

namespace study {
namespace {

Sample sample(const std::vector<double>& values) {
  Sample s;
  for (const double value : values) s.add(value);
  return s;
}

// Published tables of Student's t.
TEST(Student, HasThePublishedQuantiles) {
  EXPECT_NEAR(student_quantile(0.975, 1), 12.7062, 1e-4);
  EXPECT_NEAR(student_quantile(0.975, 2), 4.30265, 1e-5);
  EXPECT_NEAR(student_quantile(0.995, 4), 4.60409, 1e-5);
  EXPECT_NEAR(student_quantile(0.975, 9), 2.26216, 1e-5);
  EXPECT_NEAR(student_quantile(0.95, 30), 1.69726, 1e-5);
  EXPECT_NEAR(student_quantile(0.8, 7), 0.89603, 1e-5);
  EXPECT_NEAR(student_probability(-2.26216, 9), 0.025, 1e-6);
}

TEST(Estimate, IsMeanAndInterval) {
  const Estimate e = estimate(sample({1, 2, 3, 4, 5}));
  EXPECT_EQ(e.n, 5U);
  EXPECT_DOUBLE_EQ(e.mean, 3);
  EXPECT_DOUBLE_EQ(e.deviation, std::sqrt(2.5));
  EXPECT_NEAR(e.high - e.mean, 4.60409 * std::sqrt(2.5 / 5), 1e-4);
  EXPECT_DOUBLE_EQ(e.mean - e.low, e.high - e.mean);
  EXPECT_TRUE(std::isnan(estimate(sample({7})).low));
  EXPECT_EQ(estimate(sample({})).n, 0U);
}

// Welch's own kind of sample: variances 9 and 0.9, 10 and 20 values; 9.9 degrees of freedom
// (published), of which the whole ones count.
TEST(Estimate, OfSeveralMeansWeighsThemEqually) {
  const Estimate a{10, 20.6, 3, 0, 0}, b{20, 22.1, std::sqrt(0.9), 0, 0};
  const Estimate mean = mean_of({a, b});
  EXPECT_EQ(mean.n, 30U);
  EXPECT_DOUBLE_EQ(mean.mean, 21.35);
  EXPECT_NEAR(mean.high - mean.mean, 3.24984 * std::sqrt(0.945) / 2, 1e-4);
  EXPECT_DOUBLE_EQ(mean.mean - mean.low, mean.high - mean.mean);
  EXPECT_TRUE(std::isnan(mean.deviation));

  const Estimate one = estimate(sample({1, 2, 3, 4, 5})), same = mean_of({one});
  EXPECT_DOUBLE_EQ(same.low, one.low);
  const Estimate still = mean_of({estimate(sample({2, 2, 2})), estimate(sample({4, 4}))});
  EXPECT_EQ(still.low, 3);
  EXPECT_EQ(still.high, 3);
  EXPECT_EQ(mean_of({}).n, 0U);
}

TEST(Verdict, FollowsFromTheInterval) {
  const auto verdict = [](double low, double mean, double high, double sign, std::size_t n = 5) {
    return effect_verdict({n, mean, 1, low, high}, sign, 2);
  };
  EXPECT_EQ(verdict(1, 3, 5, 1), Verdict::holds);
  EXPECT_EQ(verdict(-5, -3, -1, -1), Verdict::holds);
  EXPECT_EQ(verdict(0.5, 1, 2.5, 1), Verdict::holds_small);
  EXPECT_EQ(verdict(0.5, 1, 1.5, 1), Verdict::holds_small);
  EXPECT_EQ(verdict(1, 3, 5, 1, 4), Verdict::not_shown);        // too few seeds
  EXPECT_EQ(verdict(-1, 3, 7, 1), Verdict::not_shown);          // may be nothing, or enough
  EXPECT_EQ(verdict(-1, 0.5, 1.5, 1), Verdict::does_not_hold);  // is too small
  EXPECT_EQ(verdict(1, 3, 5, -1), Verdict::opposite);
  EXPECT_EQ(verdict(-5, -3, -1, 1), Verdict::opposite);
  EXPECT_EQ(verdict(std::nan(""), std::nan(""), std::nan(""), 1), Verdict::not_shown);

  EXPECT_EQ(no_harm_verdict({5, 3, 1, 1, 5}, 1, 2), Verdict::does_not_hold);
  EXPECT_EQ(no_harm_verdict({5, 0, 1, -1, 1}, 1, 2), Verdict::holds);
  EXPECT_EQ(no_harm_verdict({5, 1, 1, 0.5, 1.5}, 1, 2), Verdict::holds);      // a harm, but small
  EXPECT_EQ(no_harm_verdict({5, 1, 1, 0.5, 2.5}, 1, 2), Verdict::not_shown);  // may be large
  EXPECT_EQ(no_harm_verdict({5, 0, 1, -3, 3}, 1, 2), Verdict::not_shown);
  EXPECT_EQ(no_harm_verdict({4, 0, 1, -1, 1}, 1, 2), Verdict::not_shown);
}

// n = ((t_0.995 + t_0.8) sd / effect)^2, with t of n - 1 degrees.
TEST(Power, CountsTheSeedsThatAnEffectNeeds) {
  const std::size_t n = seeds_needed(1, 1);
  const auto reach = [](std::size_t seeds) {
    return (student_quantile(0.995, seeds - 1) + student_quantile(0.8, seeds - 1)) /
           std::sqrt(static_cast<double>(seeds));
  };
  EXPECT_LE(reach(n), 1);
  EXPECT_GT(reach(n - 1), 1);
  EXPECT_GT(seeds_needed(1, 0.1), 1100U);  // (2.576 + 0.842)^2 / 0.01 = 1168
  EXPECT_LT(seeds_needed(1, 0.1), 1250U);
  EXPECT_EQ(seeds_needed(std::nan(""), 1), 0U);
}

TEST(RankCorrelation, IsOfRanksAndSharesThem) {
  EXPECT_DOUBLE_EQ(rank_correlation({1, 2, 3, 4}, {1, 10, 100, 1000}), 1);
  EXPECT_DOUBLE_EQ(rank_correlation({1, 2, 3, 4}, {4, 3, 2, 1}), -1);
  EXPECT_EQ(rank_correlation({1, 2, 3}, {5, 5, 5}), 0);
  EXPECT_EQ(ranks({7, 5, 7, 1}), (std::vector<double>{2.5, 1, 2.5, 0}));
}

RunSummary run_of(const RunKey& key, double loss) {
  RunSummary run;
  run.key = key;
  run.recipe = recipe_of(key);
  run[Metric::val_loss] = loss;
  return run;
}

Runs losses_of(const std::vector<double>& off, const std::vector<double>& arm,
               std::int64_t first_seed = 1) {
  Runs runs;
  const auto add = [&](const char* name, const std::vector<double>& losses) {
    for (std::size_t i = 0; i < losses.size(); ++i) {
      const RunKey key{"tiny", name, first_seed + static_cast<std::int64_t>(i)};
      runs[key] = run_of(key, losses[i]);
    }
  };
  add("off", off);
  add("eliminate", arm);
  return runs;
}

const Trial trial{"tiny", "eliminate", "off"};

TEST(Comparison, PairsTheSeedsThatBothHave) {
  const Runs runs = losses_of({1, 2, 3, 4}, {1.5, 2.5, 3.5});
  const Comparison c = compare(runs, trial, Metric::val_loss, Seeds::first);
  EXPECT_EQ(c.difference.n, 3U);
  EXPECT_DOUBLE_EQ(c.difference.mean, 0.5);
  EXPECT_DOUBLE_EQ(c.against.mean, 2);
  EXPECT_EQ(compare(runs, trial, Metric::val_loss, Seeds::fresh).difference.n, 0U);
}

TEST(Gains, AreJudgedByFreshSeedsAlone) {
  const Question& question = question_named("loss");
  Runs runs = losses_of({2, 2, 2, 2, 2}, {1.97, 1.98, 1.97, 1.98, 1.97});
  EXPECT_TRUE(looks_like_a_gain(runs, trial, question.measure.relevant));
  Finding finding = find(runs, question, trial);
  EXPECT_EQ(finding.seeds, Seeds::fresh);
  EXPECT_EQ(finding.verdict, Verdict::not_shown);
  EXPECT_EQ(second_stage({}, runs).size(), 2U * fresh_seeds);
  EXPECT_EQ(second_stage({}, runs).front().seed, first_fresh_seed);

  runs.merge(losses_of({2, 2, 2, 2, 2, 2}, {2, 2.001, 2, 1.999, 2, 2.001}, first_fresh_seed));
  finding = find(runs, question, trial);
  EXPECT_EQ(finding.verdict, Verdict::does_not_hold);
  EXPECT_EQ(finding.numbers.difference.n, 6U);
  EXPECT_EQ(pooled(runs, question, "eliminate", "off").verdict, Verdict::does_not_hold);

  EXPECT_FALSE(looks_like_a_gain(losses_of({2, 2, 2, 2, 2}, {2.1, 1.9, 2.1, 1.9, 1.98}), trial,
                                 question.measure.relevant));
}

/// All runs of an arm and of "off" on several models, with one metric.
Runs runs_with(Metric metric, const std::vector<std::string>& model_names, double off, double arm) {
  Runs runs;
  for (const std::string& model : model_names) {
    for (std::int64_t seed = 1; seed <= 5; ++seed) {
      const double chance = 1e-3 * static_cast<double>(seed);
      for (const auto& [name, value] :
           {std::pair<std::string, double>("off", off), {"eliminate", arm + chance}}) {
        const RunKey key{model, name, seed};
        runs[key] = run_of(key, 2);
        runs[key][metric] = value;
      }
    }
  }
  return runs;
}

TEST(Findings, SayWhereNothingIsToBeWon) {
  const auto verdict = [](const char* id, Metric metric, double off, double arm) {
    return find(runs_with(metric, {"tiny"}, off, arm), question_named(id), trial).verdict;
  };
  EXPECT_EQ(verdict("unused", Metric::unused, 0.01, 0.001), Verdict::cannot_show);
  EXPECT_EQ(verdict("unused", Metric::unused, 0.5, 0.4), Verdict::holds);
  EXPECT_EQ(verdict("load", Metric::load_entropy, 0.995, 0.999), Verdict::cannot_show);
  EXPECT_EQ(verdict("used-step", Metric::used_step, 1, 0.5), Verdict::holds);
  const auto never = runs_with(Metric::used_step, {"tiny"}, 1, 0.997);  // mean 1
  EXPECT_EQ(find(never, question_named("used-step"), trial).verdict, Verdict::cannot_show);
}

TEST(Findings, LeaveOutRunsThatDiverged) {
  Runs runs = losses_of({2, 2, 2, 2, 2, 2}, {2.1, 2.1, 2.1, 2.1, 2.1, std::nan("")});
  const Finding finding = find(runs, question_named("loss"), trial);
  EXPECT_EQ(finding.verdict, Verdict::opposite);
  EXPECT_EQ(seeds_text(finding), "5, 1 diverged");
}

TEST(Findings, AreJoinedOverModels) {
  Runs runs = runs_with(Metric::unused, {"tiny", "e128"}, 0.5, 0.4);
  runs.merge(runs_with(Metric::unused, {"attention"}, 0.01, 0));
  const Question& unused = question_named("unused");
  const Pooled all = pooled(runs, unused, "eliminate", "off");
  EXPECT_EQ(all.tally[Verdict::holds], 2U);
  EXPECT_EQ(all.tally[Verdict::cannot_show], 1U);
  EXPECT_EQ(all.verdict, Verdict::holds);
  EXPECT_NEAR(all.difference.mean, -0.097, 1e-12);  // of the models that can show anything
  ASSERT_EQ(pooled(runs, unused).size(), 1U);       // of the arms that were run
  EXPECT_EQ(text_of(all.tally), "holds in 2, cannot show in 1 of 3");
  EXPECT_EQ(verdicts_text(pooled(runs, unused)), "holds: `eliminate`");
}

TEST(Findings, OfFewSeedsShowNothingOnAnyNumberOfModels) {
  Runs runs = runs_with(Metric::unused, {"tiny", "e128", "attention"}, 0.5, 0.4);
  for (auto run = runs.begin(); run != runs.end();) {
    run = run->first.seed > 2 ? runs.erase(run) : std::next(run);
  }
  const Pooled unused = pooled(runs, question_named("unused"), "eliminate", "off");
  EXPECT_EQ(unused.tally[Verdict::not_shown], 3U);
  EXPECT_EQ(unused.verdict, Verdict::not_shown);
  const Pooled loss = pooled(runs, question_named("loss"), "eliminate", "off");
  EXPECT_EQ(recommendation(loss, unused), "Too few seeds for advice.");
}

TEST(Findings, OfArmsThatDivergeAreNoGain) {
  const double nan = std::nan("");
  const Runs runs = losses_of({2, 2, 2, 2, 2, 2, 2}, {2, 2.001, 2, 2.001, 2, nan, nan});
  const Question harmless{"q", "", "", measures::loss, 1, Kind::no_harm, {trial}, ""};
  EXPECT_EQ(find(runs, harmless, trial).verdict, Verdict::not_shown);

  const Question& unused = question_named("unused");
  Runs joined = runs_with(Metric::unused, {"tiny", "e128"}, 0.5, 0.4);
  EXPECT_EQ(pooled(joined, unused, "eliminate", "off").verdict, Verdict::holds);
  joined[{"tiny", "eliminate", 5}][Metric::unused] = nan;
  EXPECT_EQ(pooled(joined, unused, "eliminate", "off").verdict, Verdict::not_shown);

  const Runs none = losses_of({2, 2, 2, 2, 2}, {nan, nan, nan, nan, nan});
  const Finding all = find(none, question_named("loss"), trial);
  EXPECT_TRUE(all.asked);
  EXPECT_EQ(seeds_text(all), "0, 5 diverged");
}

TEST(Advice, FollowsFromAllModels) {
  const auto advice = [](const Runs& runs) {
    return recommendation(pooled(runs, question_named("loss"), "eliminate", "off"),
                          pooled(runs, question_named("unused"), "eliminate", "off"));
  };
  EXPECT_EQ(advice({}), "Too few seeds for advice.");
  EXPECT_EQ(advice(losses_of({2, 2, 2, 2, 2}, {2.1, 2.11, 2.1, 2.11, 2.1})),
            "Leave it off: the loss rises.");
  Runs idle = losses_of({2, 2, 2, 2, 2}, {2, 2.001, 2, 1.999, 2});
  for (auto& [key, run] : idle) run[Metric::unused] = 0.5;
  EXPECT_EQ(advice(idle), "Leave it off: it does nothing worth having.");
  Runs runs = losses_of({2, 2, 2, 2, 2}, {2, 2.001, 2, 1.999, 2});
  for (auto& [key, run] : runs) {
    run[Metric::unused] = (key.arm == "off" ? 0.5 : 0.2) + 0.01 * static_cast<double>(key.seed % 2);
  }
  EXPECT_EQ(advice(runs), "Try it where unused experts are the problem; no lower loss was shown.");
  for (auto& [key, run] : runs) run[Metric::val_loss] += key.arm == "off" ? 0 : 0.1;
  EXPECT_EQ(advice(runs), "Weigh it: it keeps experts in use, and the loss rises.");
}

TEST(Grid, NamesAreUniqueAndKnown) {
  std::set<std::string> ids, names;
  for (const ModelSpec& model : models()) EXPECT_TRUE(names.insert(model.name).second);
  for (const Question& question : questions()) {
    EXPECT_TRUE(ids.insert(question.id).second) << question.id;
    EXPECT_FALSE(question.trials.empty()) << question.id;
    EXPECT_GT(question.measure.relevant, 0);
    EXPECT_EQ(std::abs(question.sign), 1);
    std::set<std::string> trials;
    for (const Trial& each : question.trials) {
      EXPECT_TRUE(trials.insert(each.model + each.arm + ' ' + each.against).second) << each.arm;
      EXPECT_EQ(names.count(each.model), 1U) << each.model;
      EXPECT_NE(each.arm, each.against);
    }
  }
}

// So that the same question has the same answer, whether it is asked alone or with all others.
TEST(Schedule, AQuestionHasTheSeedsOfTheWholeStudy) {
  for (const bool short_only : {false, true}) {
    const std::vector<RunKey> all = first_stage({short_only, {}});
    const std::set<RunKey> known(all.begin(), all.end());
    for (const Question& question : questions()) {
      const std::vector<RunKey> keys = first_stage({short_only, {question.id}});
      const std::set<RunKey> some(keys.begin(), keys.end());
      EXPECT_EQ(some.size(), keys.size());
      for (const RunKey& key : keys) EXPECT_EQ(known.count(key), 1U) << question.id;
      for (const Trial& each : question.trials) {
        for (std::int64_t seed = 1; seed <= more_seeds + 1; ++seed) {
          const auto paired = [&](const std::set<RunKey>& runs) {
            return runs.count({each.model, each.arm, seed}) != 0 &&
                   (each.against.empty() || runs.count({each.model, each.against, seed}) != 0);
          };
          EXPECT_EQ(paired(some), paired(known)) << question.id << ' ' << each.arm << ' ' << seed;
        }
      }
    }
  }
}

TEST(Schedule, HasTenSeedsOfThePaperAndOfTheShortStudy) {
  const std::vector<RunKey> all = first_stage({});
  const auto has = [&](const char* model, const char* arm, std::int64_t seed) {
    return std::count(all.begin(), all.end(), RunKey{model, arm, seed}) != 0;
  };
  EXPECT_TRUE(has("long", "eliminate+balance", more_seeds));
  EXPECT_TRUE(has("long", "off+balance", more_seeds));
  EXPECT_TRUE(has("tiny", "lambda=10", more_seeds));
  EXPECT_FALSE(has("long", "eliminate", more_seeds + 1));
  EXPECT_FALSE(has("e16-k2", "eliminate", first_seeds + 1));
}

TEST(Schedule, StartsWithTheShortStudyAndPairs) {
  const std::vector<RunKey> all = first_stage({}), quick = first_stage({true, {}});
  ASSERT_LT(quick.size(), all.size());
  for (std::size_t i = 0; i < quick.size(); ++i) EXPECT_TRUE(all[i] == quick[i]) << i;
  std::set<RunKey> seen(all.begin(), all.end());
  EXPECT_EQ(seen.size(), all.size());
  for (const Question& question : questions()) {
    for (const Trial& each : question.trials) {
      EXPECT_EQ(seen.count({each.model, each.arm, first_seeds}), 1U);
      if (each.against.empty()) continue;
      EXPECT_EQ(seen.count({each.model, each.against, 1}), 1U);
    }
  }
  EXPECT_EQ(first_stage({false, {"depth"}}).front().model, "deep");

  Runs runs;
  runs[all[0]] = run_of(all[0], 1);
  runs[all[1]] = run_of(all[1], 1);
  runs[all[1]].recipe = "another";
  const std::vector<RunKey> left = missing(all, runs);
  EXPECT_EQ(left.size(), all.size() - 1);
  EXPECT_TRUE(left[0] == all[1]);
}

/// What an action complains about to the user; empty if it does not.
template <class Action>
std::string complaint(const Action& action) {
  try {
    action();
  } catch (const report::UserError& error) {
    return error.what();
  }
  return "";
}

/// A folder with files of a study.
class Files : public data::ProgramFolder {
 protected:
  void write(const char* name, const std::string& text) const {
    std::ofstream(folder / name, std::ios::binary) << text;
  }
  std::string path(const char* name) const { return (folder / name).string(); }
};

TEST_F(Files, RunsComeBackAsTheyWere) {
  const std::string file = path("runs.csv");
  EXPECT_TRUE(read_runs(file).empty());
  Runs runs = losses_of({2, std::nan("")}, {1.25});
  runs.begin()->second.text = "0123";
  write_runs(file, runs);
  Runs back = read_runs(file);
  ASSERT_EQ(back.size(), 3U);
  EXPECT_TRUE(std::isnan((back[{"tiny", "off", 2}][Metric::val_loss])));
  EXPECT_EQ((back[{"tiny", "eliminate", 1}][Metric::val_loss]), 1.25);
  EXPECT_EQ((back[{"tiny", "eliminate", 1}].recipe), recipe_of(RunKey{"tiny", "eliminate", 1}));
  EXPECT_EQ((back[{"tiny", "eliminate", 1}].text), "0123");

  std::ofstream(file, std::ios::app) << "tiny,off,3,cut";  // a row that was being written
  EXPECT_EQ(read_runs(file).size(), 3U);
  EXPECT_THROW(write_runs("/nowhere/runs.csv", runs), report::UserError);
}

TEST_F(Files, SayWhereTheyAreDamaged) {
  const std::string file = path("runs.csv");
  write("runs.csv", "model,arm\ntiny,off\n");
  EXPECT_EQ(complaint([&] { read_runs(file); }),
            file +
                ", line 1: there is no column seed, so another version of the study wrote it: "
                "remove it, or choose another folder with --out");
  EXPECT_NE(complaint([&] { read_runs(file, "--data"); }).find("--data"), std::string::npos);

  Runs runs = losses_of({2, 3}, {});
  write_runs(file, runs);
  const std::string text = data::read(file);
  std::string damaged = text;
  damaged.replace(damaged.rfind(",3,"), 3, ",one,");
  write("runs.csv", damaged);
  EXPECT_EQ(complaint([&] { read_runs(file); }),
            file +
                ", line 3: 'one' is not a number: remove the line, or choose another folder with "
                "--out");
  for (const char* seed : {"1e0", "", "9999999999999999999"}) {
    damaged = text;
    damaged.replace(damaged.rfind("off,2,"), 6, std::string("off,") + seed + ",");
    write("runs.csv", damaged);
    EXPECT_NE(complaint([&] { read_runs(file); }).find(file + ", line 3: '" + seed + "' is not"),
              std::string::npos);
  }

  std::filesystem::create_directory(path("folder"));
  EXPECT_NE(complaint([&] { read_table(path("folder")); }).find("cannot read"), std::string::npos);
}

TEST_F(Files, ReportNamesItsOptions) {
  write_runs(path("runs.csv"), losses_of({2}, {1}));
  EXPECT_NE(complaint([&] { write_report(folder, "/dev/null/x"); }).find("with --docs"),
            std::string::npos);
  std::filesystem::create_directories(path("docs/study"));
  std::filesystem::create_directories(path("docs/evidence.md/x"));
  EXPECT_NE(complaint([&] { write_report(folder, path("docs")); }).find("with --docs"),
            std::string::npos);
}

// Runs of a model that the grid no longer has are nobody's business.
TEST_F(Files, RunsOfAnotherGridDoNotCount) {
  Runs runs = losses_of({2}, {1});
  RunSummary other = runs.begin()->second;
  other.key.model = "gone";
  EXPECT_FALSE(is_of_grid(other));
  runs[other.key] = other;
  write_runs(path("runs.csv"), runs);
  EXPECT_EQ(complaint([&] { write_report(folder, path("docs")); }), "");
}

const Cells step_columns = cells_of("model,arm,seed,step,layer,loss");

TEST_F(Files, OfOneStudyAtATime) {
  {
    const Folder first(folder, step_columns, "text");
    EXPECT_EQ(complaint([&] { Folder(folder, step_columns, "text"); }),
              "another study writes to " + folder.string() +
                  ": wait for it, or choose another "
                  "--out");
  }
  EXPECT_EQ(complaint([&] { Folder(folder, step_columns, "text"); }), "");
}

TEST_F(Files, OfOneText) {
  const RunKey key{"tiny", "off", 1};
  Folder(folder, step_columns, "one").add(run_of(key, 2), "tiny,off,1,10,0,5\n");
  const std::string before = data::read(path("runs.csv"));
  EXPECT_EQ(Folder(folder, step_columns, "one").runs().at(key).text, "one");
  EXPECT_EQ(complaint([&] { Folder(folder, step_columns, "other"); }),
            "the runs in " + folder.string() +
                " learnt from another text: give that one with --text, or choose another --out");
  EXPECT_EQ(data::read(path("runs.csv")), before);
}

TEST_F(Files, KeepTheStepsOfRunsThatStand) {
  Runs runs = losses_of({2}, {1});
  for (auto& [key, run] : runs) run.text = "text";
  const RunKey stale{"tiny", "off", 1};
  runs[stale].recipe = "another";
  write_runs(path("runs.csv"), runs);
  const std::string header = "model,arm,seed,step,layer,loss\n";
  write("steps.csv", header +
                         "tiny,off,1,10,0,5\ntiny,eliminate,1,20,0,6\ntiny,eliminate,1,10,0,7\n"
                         "tiny,other,1,10,0,8\n");
  Folder study(folder, step_columns, "text");
  const std::string kept = "tiny,eliminate,1,10,0,7\ntiny,eliminate,1,20,0,6\n";
  EXPECT_EQ(data::read(path("steps.csv")), header + kept);
  EXPECT_EQ(missing({stale, {"tiny", "eliminate", 1}}, study.runs()).size(), 1U);
  study.add(run_of(stale, 2), "tiny,off,1,30,0,9\n");
  EXPECT_EQ(study.finish().rows.size(), 3U);
  EXPECT_EQ(data::read(path("steps.csv")), header + kept + "tiny,off,1,30,0,9\n");
}

TEST_F(Files, OfStepsSayWhereTheyAreDamaged) {
  Runs runs = losses_of({2}, {});
  runs.begin()->second.text = "text";
  write_runs(path("runs.csv"), runs);
  write("steps.csv", "model,arm,seed,step,layer,loss\ntiny,off,1,10,0,5\ntiny,off,1,x,0,5\n");
  EXPECT_EQ(complaint([&] { Folder(folder, step_columns, "text"); }),
            path("steps.csv") +
                ", line 3: 'x' is not a whole number: remove the line, or choose "
                "another folder with --out");
  write("steps.csv", "model,arm,seed,step,loss\ntiny,off,1,10,5\n");
  EXPECT_NE(complaint([&] { Folder(folder, step_columns, "text"); }).find("steps.csv, line 1: "),
            std::string::npos);
}

TEST(Metrics, HaveTheirNames) {
  const std::set<std::string> names(metric_names.begin(), metric_names.end());
  EXPECT_EQ(names.size(), metric_count);
  const auto name = [](Metric metric) {
    return std::string(metric_names[static_cast<std::size_t>(metric)]);
  };
  EXPECT_EQ(name(Metric::val_loss), "val_loss");
  EXPECT_EQ(name(Metric::mean_angle), "mean_angle");
  EXPECT_EQ(name(Metric::spectral_entropy_weights), "spectral_entropy_weights");
  EXPECT_EQ(name(Metric::changed_early), "changed_early");
  EXPECT_EQ(name(Metric::coactivation_free), "coactivation_free");
  EXPECT_EQ(name(Metric::excess_lift), "excess_lift");
  EXPECT_EQ(name(Metric::output_excess), "output_excess");
  EXPECT_EQ(name(Metric::agreement_excess), "agreement_excess");
}

// The test vectors that FNV's authors publish.
TEST(Hashes, AreFnv1a) {
  EXPECT_EQ(recipe_of(std::string()), "811c9dc5");
  EXPECT_EQ(recipe_of(std::string("foobar")), "bf9cf968");
  EXPECT_EQ(text_hash(""), "cbf29ce484222325");
  EXPECT_EQ(text_hash("foobar"), "85944171f73967e8");
}

TEST(Pool, DoesEachOnceAndNoMoreAfterAFailure) {
  std::array<std::atomic<int>, 20> seen{};
  const auto never = [] { return false; };
  in_parallel(3, seen.size(), never, [&](std::size_t i, const auto&) { ++seen[i]; });
  for (const auto& count : seen) EXPECT_EQ(count, 1);

  std::atomic<int> after{0};
  EXPECT_THROW(in_parallel(2, 1000, never,
                           [&](std::size_t i, const auto& stop) {
                             if (i == 1) throw std::runtime_error("");
                             while (!stop()) std::this_thread::yield();  // until the other fails
                             ++after;
                           }),
               std::runtime_error);
  EXPECT_LE(after, 1);
}

/// What is written to stderr while it is a terminal of so many columns.
template <class Action>
std::string on_terminal(unsigned short columns, const Action& action) {
  const int master = posix_openpt(O_RDWR | O_NOCTTY);
  grantpt(master);
  unlockpt(master);
  const int terminal = open(ptsname(master), O_RDWR | O_NOCTTY);
  const winsize size{24, columns, 0, 0};
  ioctl(terminal, TIOCSWINSZ, &size);
  const int kept = dup(STDERR_FILENO);
  dup2(terminal, STDERR_FILENO);
  action();
  dup2(kept, STDERR_FILENO);
  close(kept);
  close(terminal);
  std::string shown;  // to the end, which is there once nobody has the terminal open
  std::array<char, 256> bytes{};
  for (ssize_t count; (count = read(master, bytes.data(), bytes.size())) > 0;) {
    shown.append(bytes.data(), static_cast<std::size_t>(count));
  }
  close(master);
  return shown;
}

TEST(ProgressBar, FitsTheTerminal) {
  for (const auto columns : std::array<unsigned short, 2>{40, 80}) {
    const std::string shown = on_terminal(columns, [] {
      const Deadline clock(0);
      ProgressBar bar("first seeds", 2, clock);
      bar.advance(1, std::string(100, 'x'));
    });
    const std::string clear = "\r\033[K";
    ASSERT_EQ(shown.compare(0, clear.size(), clear), 0) << shown;
    EXPECT_EQ(shown.find(clear, 1), clear.size() + columns - 1) << shown;
  }
}

TEST(Curves, AverageLayersThenSeeds) {
  Table steps{cells_of("model,arm,seed,step,layer,zero_token_experts,coactivation"), {}};
  for (const char* row :
       {"tiny,off,1,10,0,2,0.1", "tiny,off,1,10,1,4,0.3", "tiny,off,2,10,0,6,0.5",
        "tiny,off,2,10,1,8,0.7", "tiny,off,101,10,0,99,9", "tiny,other,1,10,0,99,9"}) {
    steps.rows.push_back(cells_of(row));
  }
  const Table curves = curves_of(steps);
  ASSERT_EQ(curves.rows.size(), 1U);
  EXPECT_EQ(line_of(curves.rows[0]), "tiny,off,10,2,5,2.828427,0.4,0.2828427\n");
}

TEST(Documents, ArePagesAndMarkdown) {
  Document document;
  document.title = "a < b";
  document.add(Heading{"One, or two", "one"});
  document.add(Paragraph{"**bold** & `x**2`"});
  document.add(Bullets{{"an item"}});
  document.add(Grid{{"|word", "n"}, {{"#one|there", "1"}}});
  document.add(Details{"More", Grid{{"|word"}, {{"`w`"}}}});
  document.add(Code{"a && b"});
  const std::string html = html_of(document), text = markdown_of(document);
  EXPECT_NE(html.find("<strong>bold</strong> &amp; <code>x**2</code>"), std::string::npos) << html;
  EXPECT_NE(html.find("a &lt; b"), std::string::npos);
  EXPECT_NE(html.find("<a href=\"#one\">there</a>"), std::string::npos);
  EXPECT_NE(html.find("<summary>More</summary>"), std::string::npos);
  EXPECT_NE(html.find(">w</td>"), std::string::npos);
  EXPECT_NE(html.find("a &amp;&amp; b"), std::string::npos);
  EXPECT_EQ(
      text,
      "# a < b\n\n## One, or two\n\n**bold** & `x**2`\n\n* an item\n\n| word | n |\n|---|---:|\n"
      "| [there](#one-or-two) | 1 |\n\n<details><summary>More</summary>\n\n| word |\n|---|\n"
      "| `w` |\n\n</details>\n\n```sh\na && b\n```\n");
}

TEST(Numbers, HaveTheirSign) {
  const Measure m{Metric::val_loss, "", "", 2, 100, 1, false};
  EXPECT_EQ(signed_text(0.011, m), "+1.10");
  EXPECT_EQ(signed_text(-0.011, m), "−1.10");
  EXPECT_EQ(signed_text(1e-9, m), "0.00");
  EXPECT_EQ(signed_text(std::nan(""), m), "–");
}

}  // namespace
}  // namespace study
