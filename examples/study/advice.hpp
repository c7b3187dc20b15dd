// SPDX-License-Identifier: MIT
// Should I use it? What the verdicts say, by fixed rules.
#ifndef STUDY_ADVICE_HPP
#define STUDY_ADVICE_HPP

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "comparison.hpp"
#include "document.hpp"
#include "findings.hpp"
#include "questions.hpp"

namespace study {

/// What to do, by what all models together show of an arm.
inline std::string recommendation(const Pooled& loss, const Pooled& unused) {
  const bool wakes = unused.verdict == Verdict::holds;
  if (loss.difference.n < least_seeds) return "Too few seeds for advice.";
  switch (loss.verdict) {
    case Verdict::holds:
    case Verdict::holds_small:
      return "Use it: the loss falls.";
    case Verdict::opposite:
      return wakes ? "Weigh it: it keeps experts in use, and the loss rises."
                   : "Leave it off: the loss rises.";
    default:
      if (wakes) return "Try it where unused experts are the problem; no lower loss was shown.";
      return loss.verdict == Verdict::does_not_hold && unused.verdict == Verdict::does_not_hold
                 ? "Leave it off: it does nothing worth having."
                 : "Leave it off: nothing was shown.";
  }
}

inline Grid advice_table(const Runs& runs) {
  const Question &loss = question_named("loss"), &unused = question_named("unused");
  Grid table{{"|routing", "|what to do", "loss, nats per byte", "unused experts, points"}, {}};
  for (const auto& [arm, against] : paper_arms()) {
    const Pooled by_loss = pooled(runs, loss, arm, against);
    const Pooled by_unused = pooled(runs, unused, arm, against);
    table.rows.push_back({arm_text(arm), recommendation(by_loss, by_unused),
                          difference_text(by_loss.difference, loss.measure),
                          difference_text(by_unused.difference, unused.measure)});
  }
  return table;
}

/// The mean of an arm, as the measure shows it, with its unit.
inline std::string mean_text(const Estimate& e, const Measure& m) {
  return report::number(m.scale * e.mean, 2) + " " + (m.scale == 100 ? "%" : m.unit);
}

/// The differences of a measure between two arms of a model, and the verdict.
inline Finding finding_on(const Runs& runs, const std::string& id, const Trial& trial) {
  return find(runs, question_named(id), trial);
}

/// What a method does to both the loss and the unused experts of the tiny model.
inline std::string effects_of(const Runs& runs, const Trial& trial) {
  const Question &loss = question_named("rivals-loss"), &unused = question_named("rivals");
  const Finding by_loss = find(runs, loss, trial), by_unused = find(runs, unused, trial);
  return "loss " + difference_text(by_loss.numbers.difference, loss.measure) +
         ", experts without a token " + report::fixed(100 * by_unused.numbers.against.mean, 1) +
         " → " + report::fixed(100 * by_unused.numbers.arm.mean, 1) + " %";
}

inline void add_lambda_advice(const Runs& runs, std::vector<std::string>& items) {
  const Measure& measure = measures::changed;
  if (const Finding f = finding_on(runs, "lambda-acts", {"tiny", "published", "off"}); f.asked) {
    const std::array<const char*, 2> texts{
        "It acts as printed.",
        "It does next to nothing: choose lambda near the gap between the k-th logit and the next, "
        "or eliminate."};
    items.push_back("**lambda = 1e-4** changes the experts of " +
                    mean_text(f.numbers.arm, measure) + " of the tokens. " +
                    texts[f.verdict == Verdict::holds ? 0 : 1]);
  }
  const Trial from_zero{"init-zero", "published", "off"};
  if (const Finding early = finding_on(runs, "lambda-acts-early", from_zero); early.asked) {
    const Finding late = finding_on(runs, "lambda-acts", from_zero);
    items.push_back("With a **router that starts near zero** it changes those of " +
                    mean_text(early.numbers.arm, measures::changed_early) +
                    " of the tokens in the first ten steps, and of " +
                    mean_text(late.numbers.arm, measure) + " in the last quarter.");
  }
}

/// Every model on which the competition lowered the loss, of all that were asked.
inline void add_gains(const Runs& runs, std::vector<std::string>& items) {
  const auto is_off = [](const std::string& arm) { return arm.compare(0, 3, "off") == 0; };
  std::set<std::string> asked;
  std::string gains;
  std::size_t count = 0;
  for (const Question& q : questions()) {
    if (q.measure.metric != Metric::val_loss || q.kind != Kind::effect) continue;
    for (const Trial& trial : q.trials) {
      if (is_off(trial.arm) || !is_off(trial.against)) continue;
      const Finding f = find(runs, q, trial);
      if (!f.asked || !asked.insert(trial_name(trial)).second) continue;
      if (f.verdict != Verdict::holds && f.verdict != Verdict::holds_small) continue;
      ++count;
      gains += (gains.empty() ? ": " : "; ") + trial.model + ", " + arm_text(trial.arm) + ", " +
               difference_text(f.numbers.difference, q.measure);
    }
  }
  items.push_back("**A lower loss** with the competition than without it was shown in " +
                  std::to_string(count) + " of " + std::to_string(asked.size()) +
                  " comparisons of a model and an arm" + gains + ".");
}

inline void add_rival_advice(const Runs& runs, std::vector<std::string>& items) {
  for (const auto& [arm, name] : {std::pair("off+balance", "A balance loss alone"),
                                  std::pair("off+quantile", "Quantile balancing alone")}) {
    const Trial trial{"tiny", arm, "off"};
    if (!finding_on(runs, "rivals", trial).asked) continue;
    items.push_back(std::string("**") + name + "** (tiny): " + effects_of(runs, trial) + ".");
  }
  const Trial below{"tiny", "eliminate+quantile", "off+quantile"};
  if (finding_on(runs, "rivals", below).asked) {
    items.push_back(
        "**Elimination on top of quantile balancing** (tiny): " + effects_of(runs, below) + ".");
  }
}

inline void add_settings_advice(const Runs& runs, std::vector<std::string>& items) {
  for (const auto& [modifier, name] :
       {std::pair("+refresh=10", "10"), std::pair("+refresh=100", "100")}) {
    const Finding f =
        finding_on(runs, "refresh", {"tiny", std::string("eliminate") + modifier, "eliminate"});
    if (!f.asked) continue;
    items.push_back(std::string("**New partners every ") + name +
                    " steps** (tiny): experts without a token " +
                    difference_text(f.numbers.difference, measures::unused) +
                    " points against partners of every step: harm is " +
                    (f.verdict == Verdict::holds ? "excluded" : "not excluded") + ".");
  }
  for (const char* arm : {"published", "eliminate"}) {
    const Pooled p = pooled(runs, question_named("mismatch"), arm, "");
    if (p.tally.total() == 0) continue;
    const double scale = std::pow(10.0, measures::mismatch.decimals);
    const bool costs = std::round(scale * std::abs(p.difference.mean)) > 0;
    items.push_back(std::string("**Taken away at inference**, `") + arm + "` costs " +
                    (costs ? difference_text(p.difference, measures::mismatch) + " nats per byte."
                           : "nothing."));
  }
  const Trial half{"tiny", "eliminate+until=150", "off"};
  if (const Finding f = finding_on(runs, "persistence", half); f.asked) {
    items.push_back("**Switched off at half time** (tiny): experts without a token in the end " +
                    difference_text(f.numbers.difference, measures::unused) +
                    " points against never on.");
  }
  const Pooled rows = pooled(runs, question_named("outputs"), "off", "");
  if (rows.tally.total() > 0) {
    const double correlation = rows.difference.mean;
    items.push_back("**Similar router rows** go with similar experts by a rank correlation of " +
                    report::fixed(correlation, 2) + ", which explains " +
                    report::number(100 * correlation * correlation, 2) +
                    " % of the variance of the ranks.");
  }
}

inline void add_advice(const Runs& runs, Document& document) {
  document.add(Heading{"Should I use it?", "advice"});
  document.add(Paragraph{
      "`off` is plain top-k, `published` the penalty that the paper prints, lambda = 1e-4, and "
      "`eliminate` its limit, where losers rank last; `+balance` has a balance loss of 0.01, too. "
      "Differences against the same without the competition, negative is better: mean of " +
      std::to_string(paper_models().size()) + " models, 99 % interval."});
  document.add(advice_table(runs));
  std::vector<std::string> items;
  add_gains(runs, items);
  add_lambda_advice(runs, items);
  add_rival_advice(runs, items);
  add_settings_advice(runs, items);
  if (!items.empty()) document.add(Bullets{items});
  document.add(
      Paragraph{"This holds for models of this size. For yours, train a few hundred steps with and "
                "without it, and look at the same numbers."});
}

}  // namespace study

#endif  // STUDY_ADVICE_HPP
