// SPDX-License-Identifier: MIT
// The section of a question: what was asked, found, and cannot be shown.
#ifndef STUDY_FINDINGS_HPP
#define STUDY_FINDINGS_HPP

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "comparison.hpp"
#include "document.hpp"
#include "forest.hpp"
#include "questions.hpp"

namespace study {

/// One verdict if all agree, else how many have which.
inline std::string text_of(const Tally& tally) {
  std::string text;
  for (const Verdict verdict : verdicts) {
    const std::size_t count = tally[verdict];
    if (count == 0) continue;
    const std::string name = verdict_name(verdict);
    if (count == tally.total())
      return name + (count == 1 ? "" : " in all " + std::to_string(count));
    text += (text.empty() ? "" : ", ") + name + " in " + std::to_string(count);
  }
  return text.empty() ? "not asked" : text + " of " + std::to_string(tally.total());
}

/// A difference, with its sign: +0.0082.
inline std::string signed_text(double value, const Measure& m) {
  if (!std::isfinite(value)) return "–";
  const std::string text = report::fixed(m.scale * value, m.decimals);
  const bool zero = text.find_first_of("123456789") == std::string::npos;
  return (value > 0 && !zero ? "+" : "") + text;
}

inline std::string interval_text(const Estimate& e, const Measure& m) {
  if (!std::isfinite(e.low)) return "–";
  return signed_text(e.low, m) + " to " + signed_text(e.high, m);
}

/// "+0.0082 [+0.0021 to +0.0143]"
inline std::string difference_text(const Estimate& e, const Measure& m) {
  return signed_text(e.mean, m) + " [" + interval_text(e, m) + "]";
}

inline std::string level_text(const Estimate& e, const Measure& m) {
  if (e.n == 0) return "–";
  const std::string mean = report::fixed(m.scale * e.mean, m.decimals);
  return e.n > 1 ? mean + " ± " + report::fixed(m.scale * e.deviation, m.decimals) : mean;
}

/// An arm as code; "–" for none.
inline std::string arm_text(const std::string& arm) { return arm.empty() ? "–" : "`" + arm + "`"; }

/// An amount with its unit.
inline std::string amount_text(const Measure& m) {
  const std::string unit = *m.unit == '\0' ? "" : std::string(" ") + m.unit;
  return report::fixed(m.scale * m.relevant, m.decimals) + unit;
}

inline std::string asked_text(const Question& q) {
  const std::string asked = std::string(q.measure.quantity) +
                            (q.sign > 0 ? ": higher by " : ": lower by ") + amount_text(q.measure) +
                            " or more";
  if (q.kind == Kind::no_harm) return "Holds if this harm is excluded: " + asked + ".";
  return "Asked for: " + asked + ".";
}

/// "holds: `a`, `b`; not shown: `c`"
inline std::string verdicts_text(const std::vector<Pooled>& all) {
  std::string text;
  for (const Verdict verdict : verdicts) {
    std::string arms;
    for (const Pooled& each : all) {
      if (each.verdict != verdict) continue;
      const bool twice = std::count_if(all.begin(), all.end(), [&](const Pooled& other) {
                           return other.arm == each.arm;
                         }) > 1;
      arms += (arms.empty() ? "" : ", ") + arm_text(each.arm) +
              (twice ? " against " + arm_text(each.against) : "");
    }
    if (!arms.empty())
      text += (text.empty() ? "" : "; ") + std::string(verdict_name(verdict)) + ": " + arms;
  }
  return text;
}

/// What the question finds of each pair of arms, over its models.
inline Grid summary_of(const std::vector<Pooled>& all, const Question& q) {
  Grid table{{"|arm", "|against", "|verdict", "difference", "99 % interval", "|by model"}, {}};
  for (const Pooled& each : all) {
    const bool shown = each.verdict != Verdict::cannot_show;
    table.rows.push_back({arm_text(each.arm), arm_text(each.against), verdict_name(each.verdict),
                          shown ? signed_text(each.difference.mean, q.measure) : "–",
                          shown ? interval_text(each.difference, q.measure) : "–",
                          each.tally.total() > 1 ? text_of(each.tally) : "one model"});
  }
  return table;
}

inline std::string seeds_text(const Finding& finding) {
  const Comparison& numbers = finding.numbers;
  return std::to_string(numbers.difference.n) + (finding.seeds == Seeds::fresh ? " fresh" : "") +
         (numbers.diverged > 0 ? ", " + std::to_string(numbers.diverged) + " diverged" : "");
}

/// The seeds after which what is asked for would be seen, where it was not.
inline std::string needed_text(const Question& q, const Finding& finding) {
  const std::size_t needed = seeds_needed(finding.numbers.difference.deviation, q.measure.relevant);
  return finding.verdict == Verdict::not_shown && needed > 0 ? std::to_string(needed) : "";
}

inline std::vector<std::string> finding_row(const Question& q, const Trial& trial,
                                            const Finding& finding) {
  const auto& [arm, against, difference, diverged] = finding.numbers;
  return {trial.model,
          arm_text(trial.arm),
          arm_text(trial.against),
          verdict_name(finding.verdict),
          signed_text(difference.mean, q.measure),
          interval_text(difference, q.measure),
          seeds_text(finding),
          level_text(arm, q.measure),
          trial.against.empty() ? "–" : level_text(against, q.measure),
          needed_text(q, finding)};
}

/// Every trial on every model.
inline Grid rows_of(const Runs& runs, const Question& q, std::vector<ForestLine>& lines) {
  Grid table{{"|model", "|arm", "|against", "|verdict", "difference", "99 % interval", "seeds",
              "arm ± sd", "against ± sd", "seeds to see it"},
             {}};
  for (const Trial& trial : q.trials) {
    const Finding finding = find(runs, q, trial);
    if (!finding.asked) continue;
    table.rows.push_back(finding_row(q, trial, finding));
    Estimate shown = finding.numbers.difference;
    for (double* value : {&shown.mean, &shown.low, &shown.high}) *value *= q.measure.scale;
    lines.push_back({trial_name(trial), shown, finding.verdict});
  }
  return table;
}

inline void add_findings(const Runs& runs, const Question& q, Document& document) {
  const std::vector<Pooled> all = pooled(runs, q);
  document.add(Heading{q.title, q.id});
  document.add(Paragraph{(*q.statement != '\0' ? std::string(q.statement) + " " : "") +
                         asked_text(q) + " Again: `scripts/study.sh --question " + q.id + "`."});
  if (all.empty()) return document.add(Paragraph{"Not run."});
  document.add(summary_of(all, q));
  if (*q.caveat != '\0') document.add(Paragraph{std::string("Mind: ") + q.caveat});
  std::vector<ForestLine> lines;
  Grid rows = rows_of(runs, q, lines);
  const std::string unit = *q.measure.unit == '\0' ? q.measure.quantity : q.measure.unit;
  const char* dashed = q.kind == Kind::effect ? "what is asked for" : "the harm that is looked for";
  document.add(Figures{
      {{"By model", forest(q.title, lines, q.measure.scale * q.sign * q.measure.relevant, unit),
        std::string("Mean difference and 99 % interval. Dashed: ") + dashed + ".", ""}}});
  document.add(Details{"All " + std::to_string(rows.rows.size()) + " rows", std::move(rows)});
}

}  // namespace study

#endif  // STUDY_FINDINGS_HPP
