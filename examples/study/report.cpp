// SPDX-License-Identifier: MIT
#include "report.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "advice.hpp"
#include "document.hpp"
#include "figures.hpp"
#include "findings.hpp"
#include "support/output_file.hpp"

namespace study {
namespace {

void add_introduction(const Runs& runs, Document& document) {
  std::set<std::int64_t> seeds;
  std::set<std::string> arms;
  for (const auto& [key, run] : runs) {
    seeds.insert(key.seed);
    arms.insert(key.model + ' ' + key.arm);
  }
  document.add(Paragraph{
      "Small language models on bytes of C++ code, trained by `train_moe` in many ways: " +
      std::to_string(runs.size()) + " runs, " + std::to_string(arms.size()) +
      " combinations of a model and a way to route, 5 or 10 first seeds each, and 10 fresh ones "
      "where a loss looked like a gain. Every comparison is paired by seed: same batches, same "
      "validation, same initial weights but where these are what "
      "differs."});
  if (seeds.size() < least_seeds) {
    document.add(Paragraph{
        "**Preliminary: so few seeds show nothing.** `scripts/study.sh` makes the runs that this "
        "report is meant for."});
  }
}

/// What all questions ask of the paper's arms, in one table.
void add_glance(const Runs& runs, Document& document) {
  document.add(Heading{"The claims at a glance", "glance"});
  Grid claims{{"|claim"}, {}};
  Grid others{{"|question", "|found"}, {}};
  for (const auto& [arm, against] : paper_arms()) claims.columns.push_back("|" + arm);
  for (const Question& question : questions()) {
    const std::vector<Pooled> all = pooled(runs, question);
    const std::string link = std::string("#") + question.id + "|" + question.title;
    const char* unit = question.measure.unit;
    const bool of_paper =
        std::equal(all.begin(), all.end(), paper_arms().begin(), paper_arms().end(),
                   [](const Pooled& p, const auto& arms) { return p.arm == arms.first; });
    if (!of_paper) {
      if (!all.empty()) others.rows.push_back({link, verdicts_text(all)});
      continue;
    }
    std::vector<std::string> row{*unit == '\0' ? link : link + ", " + unit};
    for (const Pooled& each : all) {
      row.push_back(std::string(verdict_name(each.verdict)) +
                    (each.verdict == Verdict::cannot_show
                         ? ""
                         : ": " + signed_text(each.difference.mean, question.measure)));
    }
    claims.rows.push_back(std::move(row));
  }
  document.add(std::move(claims));
  document.add(std::move(others));
}

/// How much chance alone moves the loss: a penalty too small to matter, against another seed.
std::string chaos_text(const Runs& runs) {
  const Comparison c =
      compare(runs, {"tiny", "lambda=1e-5", "off"}, Metric::val_loss, Seeds::first);
  if (c.difference.n < 2) return "";
  return " A penalty of 1e-5 moves the final loss of the tiny model by " +
         report::fixed(c.difference.deviation, 3) + " up or down, another seed by " +
         report::fixed(std::sqrt(2.0) * c.against.deviation, 3) + ".";
}

void add_rules(const Runs& runs, Document& document) {
  std::size_t rows = 0;
  for (const Question& question : questions()) {
    for (const Pooled& each : pooled(runs, question)) rows += each.tally.total();
  }
  document.add(Heading{"How to read it", "rules"});
  std::vector<std::string> items;
  items.push_back(
      "A verdict rests on the 99 % interval (Student's t) of the paired difference, of at least "
      "five "
      "seeds. **holds**: the interval is on the claimed side of 0; **small**: its mean is less "
      "than "
      "what is asked for. **the opposite**: it is on the other side. **does not hold**: it "
      "excludes "
      "what is asked for. **cannot show**: less is left to be won than is asked for. **not "
      "shown**: "
      "anything else.");
  items.push_back(
      "Over several models: the mean of their differences, each of equal weight (Welch's "
      "interval), "
      "of the first seeds alone, without the models that cannot show anything.");
  items.push_back("Of the " + std::to_string(rows) + " comparisons below, about " +
                  std::to_string((rows + 50) / 100) +
                  " would leave 0 out by chance alone. Read the rows over all models first.");
  items.push_back("Trainings are chaotic." + chaos_text(runs) +
                  " So a loss that looks like a gain in the first seeds is measured again with ten "
                  "fresh ones, and judged by these alone. Harms, and other metrics, are judged by "
                  "the first seeds.");
  items.push_back(
      "Another processor gives other last digits, and so other runs: expect the same verdicts from "
      "a repetition, not the same numbers.");
  items.push_back(
      "Arms are those of `train_moe`, whose `--help` says what each does; the models stand at the "
      "end. The figures of the paper are second-hand, from public reading notes.");
  document.add(Bullets{std::move(items)});
}

/// A metric as the table of metrics shows it.
struct ShownMetric {
  Metric metric;
  const char* name;
  int decimals;
  double scale = 1;
};

/// Means over the first seeds, side by side.
void add_metrics(const Runs& runs, Document& document) {
  const std::vector<ShownMetric> shown{{Metric::val_loss, "loss", 3},
                                       {Metric::unused, "unused %", 1, 100},
                                       {Metric::max_violation, "MaxVio", 2},
                                       {Metric::gini, "Gini", 2},
                                       {Metric::load_entropy, "load entropy", 3},
                                       {Metric::mean_cosine, "cosine", 3},
                                       {Metric::mean_angle, "angle °", 1},
                                       {Metric::partner_cosine, "partner cosine", 3},
                                       {Metric::spectral_entropy, "entropy of S", 3},
                                       {Metric::spectral_entropy_weights, "entropy of W", 3},
                                       {Metric::changed, "changed %", 2, 100},
                                       {Metric::coactivation, "co-activation", 3},
                                       {Metric::lift, "lift", 2},
                                       {Metric::margin, "margin", 3},
                                       {Metric::lambda_one_percent, "lambda for 1 %", 4}};
  document.add(Heading{"What each way to route looks like", "metrics"});
  document.add(Paragraph{
      "Means over layers and first seeds. Lift is how often an expert and its most similar one are "
      "selected together, over chance; the margin is the median gap between the k-th logit and the "
      "next; the last column is the penalty that would change the experts of 1 % of the tokens."});
  Grid table{{"|model", "|arm", "n"}, {}};
  for (const ShownMetric& each : shown) table.columns.push_back(each.name);
  for (const char* model : {"tiny", "attention", "e128"}) {
    std::set<std::string> arms;
    for (auto run = runs.lower_bound({model, "", 0});
         run != runs.end() && run->first.model == model; ++run) {
      if (!arms.insert(run->first.arm).second) continue;
      const Trial trial{model, run->first.arm, ""};
      std::vector<std::string> row{model, "`" + trial.arm + "`"};
      row.push_back(std::to_string(compare(runs, trial, Metric::val_loss, Seeds::first).arm.n));
      for (const ShownMetric& each : shown) {
        const Estimate e = compare(runs, trial, each.metric, Seeds::first).arm;
        row.push_back(report::fixed(each.scale * e.mean, each.decimals));
      }
      table.rows.push_back(std::move(row));
    }
  }
  document.add(Details{"All " + std::to_string(table.rows.size()) + " rows", std::move(table)});
}

void add_power(const Runs& runs, Document& document) {
  document.add(Heading{"How many seeds a gain would need", "power"});
  document.add(Paragraph{
      "Pairs of runs after which a true difference of the loss is seen with probability 0.8, from "
      "the spread of the paired differences here. `published` changes next to no selection, so its "
      "spread is that of chance alone."});
  const std::vector<double> effects{0.02, 0.01, 0.005, 0.002};
  Grid table{{"|model", "|arm", "n", "spread of the difference"}, {}};
  for (const double effect : effects) table.columns.push_back(report::number(effect, 1));
  for (const Trial& trial : question_named("loss").trials) {
    const Estimate loss = compare(runs, trial, Metric::val_loss, Seeds::first).difference;
    if (loss.n < 2) continue;
    std::vector<std::string> row{trial.model, "`" + trial.arm + "`", std::to_string(loss.n),
                                 report::fixed(loss.deviation, 4)};
    for (const double effect : effects) {
      row.push_back(std::to_string(seeds_needed(loss.deviation, effect)));
    }
    table.rows.push_back(std::move(row));
  }
  document.add(std::move(table));
}

void add_models(Document& document) {
  document.add(Heading{"The models", "models"});
  document.add(Paragraph{std::string("Options of `train_moe`, after `") + common_options +
                         "`. Any row above is also `train_moe OPTIONS --arms ARM,AGAINST`."});
  Grid table{{"|model", "|options", "|what it is"}, {}};
  for (const ModelSpec& model : models()) {
    table.rows.push_back({model.name,
                          *model.options == '\0' ? "" : "`" + std::string(model.options) + "`",
                          model.description});
  }
  document.add(std::move(table));
  document.add(
      Code{"scripts/study.sh --short   # ten minutes on two cores\n"
           "scripts/study.sh           # one to two hours"});
}

Document make_report(const Runs& runs, const Table& curves) {
  Document document;
  document.title = "What GatePro does, measured";
  add_introduction(runs, document);
  add_advice(runs, document);
  add_glance(runs, document);
  add_rules(runs, document);
  document.add(Heading{"Over the steps, and over lambda", "figures"});
  document.add(overview_figures(runs, curves));
  for (const Question& question : questions()) add_findings(runs, question, document);
  add_metrics(runs, document);
  add_power(runs, document);
  add_models(document);
  return document;
}

/// The runs of the grid as it is. Rows made with other options do not count.
Runs of_this_grid(Runs runs) {
  for (auto run = runs.begin(); run != runs.end();) {
    run = is_of_grid(run->second) ? std::next(run) : runs.erase(run);
  }
  return runs;
}

}  // namespace

std::vector<std::string> write_report(const std::filesystem::path& data,
                                      const std::filesystem::path& docs) {
  const Runs runs = of_this_grid(read_runs(data / "runs.csv", "--data"));
  if (runs.empty()) {
    throw report::UserError("no runs in " + (data / "runs.csv").string() +
                            ": run the study first, or name its folder with --data");
  }
  const Document document = make_report(runs, read_table(data / "curves.csv", "--data"));
  std::vector<std::string> paths;
  const auto write = [&](const std::filesystem::path& path, const std::string& text) {
    write_file(path, text, "--docs");
    paths.push_back(path.string());
  };
  report::make_folder(docs / "study", "--docs");
  write(docs / "evidence.md", markdown_of(document));
  write(docs / "study" / "report.html", html_of(document));
  for (const Block& block : document.blocks) {
    const Figures* figures = std::get_if<Figures>(&block);
    if (figures == nullptr) continue;
    for (const Figure& figure : figures->all) {
      if (figure.file.empty()) continue;
      write(docs / "study" / figure.file, figure.drawing.file_text(report::drawing_css()));
    }
  }
  return paths;
}

}  // namespace study
