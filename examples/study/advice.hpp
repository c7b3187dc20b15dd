// SPDX-License-Identifier: MIT
// Should I use it? What the verdicts say, by fixed rules.
#ifndef STUDY_ADVICE_HPP
#define STUDY_ADVICE_HPP

#include <algorithm>
#include <string>
#include <vector>

#include "comparison.hpp"
#include "document.hpp"
#include "findings.hpp"
#include "questions.hpp"

namespace study {

inline const Question& question_named(const std::string& id) {
  for (const Question& question : questions()) {
    if (question.id == id) return question;
  }
  throw std::invalid_argument("no question is named " + id);
}

/// The verdicts of a question on all models for one arm.
inline Tally verdicts_on(const Runs& runs, const std::string& id, const std::string& arm) {
  Tally tally;
  const Question& question = question_named(id);
  for (const Trial& trial : question.trials) {
    if (trial.arm != arm) continue;
    const Finding finding = find(runs, question, trial);
    if (finding.asked) tally.add(finding.verdict);
  }
  return tally;
}

/// Models on which the loss rose by what is relevant.
inline Tally harm_on(const Runs& runs, const std::string& arm) {
  Tally tally;
  for (const Trial& trial : question_named("loss").trials) {
    if (trial.arm != arm) continue;
    const Estimate loss = compare(runs, trial, Metric::val_loss, Seeds::first).difference;
    if (loss.n > 0) tally.add(effect_verdict(loss, 1, relevant_loss));
  }
  return tally;
}

/// True if some model has seeds enough for a verdict.
inline bool has_seeds(const Runs& runs, const std::string& arm) {
  const std::vector<Trial>& trials = question_named("loss").trials;
  return std::any_of(trials.begin(), trials.end(), [&](const Trial& trial) {
    return trial.arm == arm &&
           compare(runs, trial, Metric::val_loss, Seeds::first).difference.n >= least_seeds;
  });
}

/// What to do, by what was found for an arm.
inline std::string recommendation(const Runs& runs, const std::string& arm) {
  const Tally gain = verdicts_on(runs, "loss", arm), harm = harm_on(runs, arm);
  const Tally early = verdicts_on(runs, "unused-early", arm),
              late = verdicts_on(runs, "unused", arm);
  const std::size_t gains = gain[Verdict::holds], harms = harm[Verdict::holds];
  const std::size_t used = std::max(early[Verdict::holds], late[Verdict::holds]);
  const auto of = [](std::size_t part, const Tally& whole) {
    return std::to_string(part) + " of " + std::to_string(whole.total()) + " models";
  };
  if (!has_seeds(runs, arm)) return "Too few seeds for advice.";
  if (gains > 0 && harms == 0) return "Try it: the loss fell in " + of(gains, gain) + ".";
  if (harms > 0 && used == 0) {
    return "Leave it off: the loss rose in " + of(harms, harm) + ", and no unused expert was won.";
  }
  if (harms > 0) {
    return "Weigh it: unused experts fell in " + of(used, late) + ", but the loss rose in " +
           of(harms, harm) + ".";
  }
  if (used > 0) {
    return "Try it if unused experts are the problem: they fell in " + of(used, late) +
           ". A better loss was not shown.";
  }
  return "Leave it off: neither a lower loss nor fewer unused experts were shown.";
}

/// `texts`: what to say if the verdict is holds, does not hold, not shown.
inline std::string say(Verdict verdict, const std::array<const char*, 3>& texts) {
  return texts[static_cast<std::size_t>(verdict)];
}

/// The verdict on one trial.
inline Finding finding_on(const Runs& runs, const std::string& id, const Trial& trial) {
  return find(runs, question_named(id), trial);
}

inline std::vector<std::string> settings_advice(const Runs& runs) {
  std::vector<std::string> items;
  const auto percent_of = [](const Estimate& e) { return report::number(100 * e.mean, 2) + " %"; };

  if (const Finding f = finding_on(runs, "lambda-acts", {"tiny", "published", "off"}); f.asked) {
    items.push_back("**lambda = 1e-4** changes the experts of " + percent_of(f.numbers.arm) +
                    " of the tokens. " +
                    say(f.verdict, {"So it acts as printed.",
                                    "So it does next to nothing: choose lambda near the gap "
                                    "between the k-th logit and the next, or eliminate.",
                                    "Whether that is enough to matter is not shown."}));
  }
  if (const Finding f = finding_on(runs, "lambda-acts", {"init-zero", "published", "off"});
      f.asked) {
    items.push_back("With a **router that starts near zero** it is " + percent_of(f.numbers.arm) +
                    " at the end of training.");
  }
  if (const Finding f = finding_on(runs, "rivals", {"tiny", "off+balance", "off"}); f.asked) {
    const Comparison loss =
        compare(runs, {"tiny", "off+balance", "off"}, Metric::val_loss, Seeds::first);
    items.push_back(
        "**A balance loss alone**: unused experts " +
        report::fixed(100 * f.numbers.against.mean, 1) + " → " +
        report::fixed(100 * f.numbers.arm.mean, 1) + " %, loss " +
        report::fixed(loss.difference.mean, 3) + " nats per byte. " +
        say(f.verdict, {"Use one first.", "It does not help here.", "Its help is not shown."}));
  }
  for (const auto& [modifier, name] :
       {std::pair("+refresh=10", "every 10 steps"), std::pair("+refresh=100", "every 100 steps")}) {
    const std::string arm = std::string("eliminate") + modifier;
    const Finding f = finding_on(runs, "refresh", {"tiny", arm, "eliminate"});
    if (!f.asked) continue;
    items.push_back(std::string("**New partners ") + name + "** " +
                    say(f.verdict, {"are enough.", "are too old.",
                                    "were not shown to be worse, nor to be as good."}));
  }
  const Tally mismatch = verdicts_on(runs, "mismatch", "eliminate");
  if (mismatch.total() > 0) {
    items.push_back(
        std::string("**At inference** ") +
        (mismatch[Verdict::does_not_hold] > 0
             ? "keep the competition that the model was trained with: without it the loss rises."
         : mismatch[Verdict::holds] == mismatch.total()
             ? "the competition can be left out."
             : "keep the competition: that it can be left out was not shown."));
  }
  if (const Finding f = finding_on(runs, "persistence", {"tiny", "eliminate+until=150", "off"});
      f.asked) {
    items.push_back(
        "**Switched off at half time**, " +
        say(f.verdict, {"more experts than without it stay in use.", "nothing of it stays.",
                        "it is not shown that anything of it stays."}));
  }
  return items;
}

inline void add_advice(const Runs& runs, Document& document) {
  document.add(Heading{"Should I use it?", "advice"});
  document.add(Paragraph{
      "What follows from the verdicts below by fixed rules. It holds for models of this size; "
      "for yours, train a few hundred steps with and without it and look at the same numbers."});
  std::vector<std::string> cases;
  for (const auto& [arm, against] : paper_arms()) {
    const std::string rule = arm.compare(0, 9, "published") == 0 ? "lambda = 1e-4" : "elimination";
    const std::string balance = against == "off+balance" ? "a balance loss" : "no balance loss";
    cases.push_back("**" + rule + ", " + balance + "**. " + recommendation(runs, arm) +
                    " A lower loss: " + text_of(verdicts_on(runs, "loss", arm)) +
                    "; fewer unused experts: " + text_of(verdicts_on(runs, "unused", arm)) + ".");
  }
  document.add(Bullets{cases});
  const std::vector<std::string> items = settings_advice(runs);
  if (!items.empty()) document.add(Bullets{items});
}

}  // namespace study

#endif  // STUDY_ADVICE_HPP
