// SPDX-License-Identifier: MIT
#include "report.hpp"

#include <iterator>
#include <set>

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
      " combinations of a model and a way to route, up to " + std::to_string(seeds.size()) +
      " seeds. Each comparison is paired: same initial weights, same batches, same validation."});
  if (seeds.size() < least_seeds) {
    document.add(Paragraph{
        "**Preliminary: so few seeds show nothing.** `scripts/study.sh` makes the runs that this "
        "report is meant for."});
  }
  document.add(Bullets{
      {"A verdict rests on the 99 % interval (Student's t) of the paired difference. **holds**: "
       "the interval is on the claimed side of 0, and the mean reaches the least effect worth "
       "having. **does not hold**: the interval excludes that effect. **not shown**: anything "
       "else, or fewer than 5 seeds.",
       "Trainings are chaotic: a change that no token notices in the first step moves the final "
       "loss as much as another seed. So a loss that looks like a gain in the first seeds is "
       "measured again with fresh ones, and judged by these alone.",
       "The figures of the paper are second-hand, from public reading notes."}});
}

void add_glance(const Runs& runs, Document& document) {
  document.add(Heading{"The claims at a glance", "glance"});
  Grid table{{"|claim", "|1e-4", "|eliminate", "|1e-4, balance loss", "|eliminate, balance loss"},
             {}};
  for (const Question& question : questions()) {
    std::vector<std::string> row{question.title};
    std::size_t asked = 0;
    for (const auto& [arm, against] : paper_arms()) {
      const Tally tally = verdicts_on(runs, question.id, arm);
      if (tally.total() > 0) ++asked;
      row.push_back(text_of(tally));
    }
    if (asked == paper_arms().size()) table.rows.push_back(std::move(row));
  }
  document.add(std::move(table));
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
                                       {Metric::partner_cosine, "partner cosine", 3},
                                       {Metric::spectral_entropy, "spectral entropy", 3},
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
  document.add(std::move(table));
}

void add_power(const Runs& runs, Document& document) {
  document.add(Heading{"How many seeds a gain would need", "power"});
  document.add(Paragraph{
      "Pairs of runs after which a true difference of the loss is seen with probability 0.8, from "
      "the spread of the paired differences here. The published penalty changes next to no "
      "selection, so its spread is that of chance alone."});
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
           "scripts/study.sh           # about two hours"});
}

Document make_report(const Runs& runs, const Table& curves) {
  Document document;
  document.title = "What GatePro does, measured";
  add_introduction(runs, document);
  add_advice(runs, document);
  add_glance(runs, document);
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
    run = run->second.recipe == recipe_of(run->first) ? std::next(run) : runs.erase(run);
  }
  return runs;
}

}  // namespace

std::vector<std::string> write_report(const std::filesystem::path& data,
                                      const std::filesystem::path& docs) {
  const Runs runs = of_this_grid(read_runs(data / "runs.csv"));
  if (runs.empty()) {
    throw report::UserError("no runs in " + (data / "runs.csv").string() +
                            ": run the study first, or name its folder with --data");
  }
  const Document document = make_report(runs, read_table(data / "curves.csv"));
  std::vector<std::string> paths;
  const auto write = [&](const std::filesystem::path& path, const std::string& text) {
    write_file(path, text);
    paths.push_back(path.string());
  };
  report::make_folder(docs / "study");
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
