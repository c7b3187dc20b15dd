// SPDX-License-Identifier: MIT
// The study's statistics, verdicts, files and grid.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "advice.hpp"
#include "comparison.hpp"
#include "curves.hpp"
#include "document.hpp"
#include "findings.hpp"
#include "schedule.hpp"
#include "statistics.hpp"

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

TEST(Verdict, FollowsFromTheInterval) {
  const auto verdict = [](double low, double mean, double high, double sign, std::size_t n = 5) {
    return effect_verdict({n, mean, 1, low, high}, sign, 2);
  };
  EXPECT_EQ(verdict(1, 3, 5, 1), Verdict::holds);
  EXPECT_EQ(verdict(-5, -3, -1, -1), Verdict::holds);
  EXPECT_EQ(verdict(1, 3, 5, 1, 4), Verdict::not_shown);       // too few seeds
  EXPECT_EQ(verdict(-1, 3, 7, 1), Verdict::not_shown);         // may be nothing
  EXPECT_EQ(verdict(0.5, 1, 2.5, 1), Verdict::not_shown);      // may be too small
  EXPECT_EQ(verdict(0.5, 1, 1.5, 1), Verdict::does_not_hold);  // is too small
  EXPECT_EQ(verdict(1, 3, 5, -1), Verdict::does_not_hold);     // the other way
  EXPECT_EQ(verdict(std::nan(""), std::nan(""), std::nan(""), 1), Verdict::not_shown);

  EXPECT_EQ(no_harm_verdict({5, 3, 1, 1, 5}, 1, 2), Verdict::does_not_hold);
  EXPECT_EQ(no_harm_verdict({5, 0, 1, -1, 1}, 1, 2), Verdict::holds);
  EXPECT_EQ(no_harm_verdict({5, 0, 1, -3, 3}, 1, 2), Verdict::not_shown);
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
  EXPECT_TRUE(looks_like_a_gain(runs, trial, question.relevant));
  Finding finding = find(runs, question, trial);
  EXPECT_EQ(finding.seeds, Seeds::fresh);
  EXPECT_EQ(finding.verdict, Verdict::not_shown);
  EXPECT_EQ(second_stage({}, runs).size(), 2U * fresh_seeds);
  EXPECT_EQ(second_stage({}, runs).front().seed, first_fresh_seed);

  runs.merge(losses_of({2, 2, 2, 2, 2, 2}, {2, 2.001, 2, 1.999, 2, 2.001}, first_fresh_seed));
  finding = find(runs, question, trial);
  EXPECT_EQ(finding.verdict, Verdict::does_not_hold);
  EXPECT_EQ(finding.numbers.difference.n, 6U);

  EXPECT_FALSE(looks_like_a_gain(losses_of({2, 2, 2, 2, 2}, {2.1, 1.9, 2.1, 1.9, 1.98}), trial,
                                 question.relevant));
}

TEST(Advice, FollowsFromTheVerdicts) {
  EXPECT_EQ(recommendation({}, "eliminate"), "Too few seeds for advice.");
  EXPECT_EQ(recommendation(losses_of({2, 2, 2, 2, 2}, {2.1, 2.11, 2.1, 2.11, 2.1}), "eliminate"),
            "Leave it off: the loss rose in 1 of 1 models, and no unused expert was won.");
  EXPECT_EQ(recommendation(losses_of({2, 2, 2, 2, 2}, {2, 2.001, 2, 2.001, 2}), "eliminate"),
            "Leave it off: neither a lower loss nor fewer unused experts were shown.");
  Runs runs = losses_of({2, 2, 2, 2, 2}, {2, 2.001, 2, 2.001, 2});
  for (auto& [key, run] : runs) {
    run[Metric::unused] = (key.arm == "off" ? 0.5 : 0.2) + 0.01 * static_cast<double>(key.seed % 2);
  }
  EXPECT_EQ(recommendation(runs, "eliminate"),
            "Try it if unused experts are the problem: they fell in 1 of 1 models. A better loss "
            "was not shown.");
}

TEST(Grid, NamesAreUniqueAndKnown) {
  std::set<std::string> ids, names;
  for (const ModelSpec& model : models()) EXPECT_TRUE(names.insert(model.name).second);
  for (const Question& question : questions()) {
    EXPECT_TRUE(ids.insert(question.id).second) << question.id;
    EXPECT_FALSE(question.trials.empty()) << question.id;
    EXPECT_GT(question.relevant, 0);
    EXPECT_EQ(std::abs(question.sign), 1);
    for (const Trial& each : question.trials) {
      EXPECT_EQ(names.count(each.model), 1U) << each.model;
      EXPECT_NE(each.arm, each.against);
    }
  }
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

TEST(Files, RunsComeBackAsTheyWere) {
  const auto path = std::filesystem::temp_directory_path() /
                    ("study_test." + std::to_string(::getpid()) + ".csv");
  Runs runs = losses_of({2, std::nan("")}, {1.25});
  write_runs(path, runs);
  Runs back = read_runs(path);
  ASSERT_EQ(back.size(), 3U);
  EXPECT_TRUE(std::isnan((back[{"tiny", "off", 2}][Metric::val_loss])));
  EXPECT_EQ((back[{"tiny", "eliminate", 1}][Metric::val_loss]), 1.25);
  EXPECT_EQ((back[{"tiny", "eliminate", 1}].recipe), recipe_of(RunKey{"tiny", "eliminate", 1}));

  std::ofstream(path, std::ios::app) << "tiny,off,3,cut";  // a row that was being written
  EXPECT_EQ(read_runs(path).size(), 3U);
  std::ofstream(path) << "model,arm\ntiny,off\n";
  EXPECT_THROW(read_runs(path), report::UserError);
  std::filesystem::remove(path);
  EXPECT_TRUE(read_runs(path).empty());
  EXPECT_THROW(write_runs("/nowhere/runs.csv", runs), report::UserError);
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
  document.add(Heading{"One", "one"});
  document.add(Paragraph{"**bold** & `x**2`"});
  document.add(Bullets{{"an item"}});
  document.add(Grid{{"|word", "n"}, {{"`w`", "1"}}});
  document.add(Code{"a && b"});
  const std::string html = html_of(document), text = markdown_of(document);
  EXPECT_NE(html.find("<strong>bold</strong> &amp; <code>x**2</code>"), std::string::npos) << html;
  EXPECT_NE(html.find("a &lt; b"), std::string::npos);
  EXPECT_NE(html.find(">w</td>"), std::string::npos);
  EXPECT_NE(html.find("a &amp;&amp; b"), std::string::npos);
  EXPECT_EQ(text,
            "# a < b\n\n## One\n\n**bold** & `x**2`\n\n* an item\n\n| word | n |\n|---|---:|\n"
            "| `w` | 1 |\n\n```sh\na && b\n```\n");
}

TEST(Findings, SayHowManyHold) {
  Tally tally;
  EXPECT_EQ(text_of(tally), "not asked");
  tally.add(Verdict::holds);
  EXPECT_EQ(text_of(tally), "holds");
  tally.add(Verdict::holds);
  EXPECT_EQ(text_of(tally), "holds (all 2)");
  tally.add(Verdict::not_shown);
  EXPECT_EQ(text_of(tally), "holds in 2, not shown in 1 of 3");
}

}  // namespace
}  // namespace study
