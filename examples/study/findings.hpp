// SPDX-License-Identifier: MIT
// The section of a question: what was asked, found, and cannot be shown.
#ifndef STUDY_FINDINGS_HPP
#define STUDY_FINDINGS_HPP

#include <array>
#include <string>
#include <vector>

#include "comparison.hpp"
#include "document.hpp"
#include "forest.hpp"
#include "questions.hpp"

namespace study {

/// How many trials have which verdict.
struct Tally {
  std::array<std::size_t, 3> counts{};

  void add(Verdict verdict) { ++counts[static_cast<std::size_t>(verdict)]; }
  std::size_t operator[](Verdict verdict) const {
    return counts[static_cast<std::size_t>(verdict)];
  }
  std::size_t total() const { return counts[0] + counts[1] + counts[2]; }
};

/// One verdict if all agree, else how many have which.
inline std::string text_of(const Tally& tally) {
  constexpr std::array<Verdict, 3> all{Verdict::holds, Verdict::does_not_hold, Verdict::not_shown};
  std::string text;
  for (const Verdict verdict : all) {
    const std::size_t count = tally[verdict];
    if (count == 0) continue;
    if (count == tally.total()) {
      return verdict_name(verdict) +
             std::string(count == 1 ? "" : " (all " + std::to_string(count) + ")");
    }
    text += (text.empty() ? "" : ", ") + std::string(verdict_name(verdict)) + " in " +
            std::to_string(count);
  }
  return text.empty() ? "not asked" : text + " of " + std::to_string(tally.total());
}

inline std::string mean_and_deviation(const Estimate& e, const Question& q) {
  std::string text = report::fixed(q.scale * e.mean, q.decimals);
  if (e.n > 1) text += " ± " + report::fixed(q.scale * e.deviation, q.decimals);
  return text;
}

inline std::vector<std::string> finding_row(const Runs& runs, const Question& q, const Trial& trial,
                                            const Finding& finding) {
  const auto& [arm, against, difference] = finding.numbers;
  const std::size_t needed = seeds_needed(difference.deviation, q.relevant);
  std::string verdict = verdict_name(finding.verdict);
  if (finding.seeds == Seeds::fresh) {
    const Estimate first = compare(runs, trial, q.metric, Seeds::first).difference;
    verdict += "; fresh seeds, as the first looked like a gain: " + mean_and_deviation(first, q);
  }
  const bool paired = !trial.against.empty();
  return {trial.model,
          "`" + trial.arm + "`",
          paired ? "`" + trial.against + "`" : "0",
          paired ? mean_and_deviation(against, q) : "",
          mean_and_deviation(arm, q),
          paired ? mean_and_deviation(difference, q) : "",
          std::to_string(difference.n),
          difference.n < 2 ? "–"
                           : report::fixed(q.scale * difference.low, q.decimals) + " to " +
                                 report::fixed(q.scale * difference.high, q.decimals),
          verdict,
          needed == 0 ? "–" : std::to_string(needed)};
}

inline std::string asked_text(const Question& q) {
  const std::string amount = report::fixed(q.scale * q.relevant, q.decimals) + " " + q.unit;
  if (q.kind == Kind::no_harm) {
    return "Holds where the interval excludes a harm of " + amount + " or more.";
  }
  return std::string("Asked for: ") + (q.sign > 0 ? "a rise" : "a fall") + " of " + amount +
         " or more.";
}

/// Adds the section, and returns the verdicts.
inline Tally add_findings(const Runs& runs, const Question& q, Document& document) {
  Tally tally;
  Grid table{{"|model", "|arm", "|against", "there", "here", "difference", "n", "99 % interval",
              "|verdict", "seeds to see it"},
             {}};
  std::vector<ForestLine> lines;
  for (const Trial& trial : q.trials) {
    const Finding finding = find(runs, q, trial);
    if (!finding.asked) continue;
    tally.add(finding.verdict);
    table.rows.push_back(finding_row(runs, q, trial, finding));
    Estimate shown = finding.numbers.difference;
    for (double* value : {&shown.mean, &shown.low, &shown.high}) *value *= q.scale;
    lines.push_back({trial_name(trial), shown, finding.verdict});
  }
  document.add(Heading{q.title, q.id});
  document.add(Paragraph{(*q.statement != '\0' ? std::string(q.statement) + " " : "") +
                         asked_text(q) + " Verdict: **" + text_of(tally) + "**."});
  if (table.rows.empty()) return tally;
  document.add(std::move(table));
  document.add(Figures{{{q.title, forest(q.title, lines, q.scale * q.sign * q.relevant, q.unit),
                         "Mean difference and 99 % interval; dashed: " + asked_text(q) +
                             " Green holds, orange does not, grey is not shown.",
                         ""}}});
  if (*q.caveat != '\0')
    document.add(Paragraph{std::string("What cannot be shown here: ") + q.caveat});
  document.add(Code{std::string("scripts/study.sh --question ") + q.id});
  return tally;
}

}  // namespace study

#endif  // STUDY_FINDINGS_HPP
