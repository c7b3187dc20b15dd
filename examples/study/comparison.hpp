// SPDX-License-Identifier: MIT
// An arm against another one, over the seeds that both have.
#ifndef STUDY_COMPARISON_HPP
#define STUDY_COMPARISON_HPP

#include <cstdint>

#include "grid.hpp"
#include "runs_file.hpp"
#include "statistics.hpp"

namespace study {

/// Seeds below this are the first ones. Whatever looks like a gain gets fresh ones, from here on,
/// and is judged by these alone: the best of many rows is a lucky one, too.
inline constexpr std::int64_t first_fresh_seed = 101;
inline constexpr std::int64_t first_seeds = 5;
inline constexpr std::int64_t more_seeds = 10;  // of the trials that are in the short study
inline constexpr std::int64_t fresh_seeds = 10;

enum class Seeds { first, fresh };

/// Both sides, and the difference paired by seed.
struct Comparison {
  Estimate arm, against, difference;
};

inline Comparison compare(const Runs& runs, const Trial& trial, Metric metric, Seeds seeds) {
  Sample arm, against, difference;
  const bool fresh = seeds == Seeds::fresh;
  for (auto run = runs.lower_bound({trial.model, trial.arm, fresh ? first_fresh_seed : 0});
       run != runs.end() && run->first.model == trial.model && run->first.arm == trial.arm; ++run) {
    const std::int64_t seed = run->first.seed;
    if (!fresh && seed >= first_fresh_seed) break;
    const auto other = runs.find({trial.model, trial.against, seed});
    if (!trial.against.empty() && other == runs.end()) continue;
    const double base = trial.against.empty() ? 0 : other->second[metric];
    arm.add(run->second[metric]);
    against.add(base);
    difference.add(run->second[metric] - base);
  }
  return {estimate(arm), estimate(against), estimate(difference)};
}

/// A loss that fell in the first seeds by more than their standard error, and by half of what is
/// worth having. One in six rows without any effect looks like that.
inline bool looks_like_a_gain(const Runs& runs, const Trial& trial, double relevant) {
  if (trial.against.empty()) return false;
  const Estimate loss = compare(runs, trial, Metric::val_loss, Seeds::first).difference;
  return loss.n >= least_seeds && loss.mean <= -relevant / 2 &&
         loss.mean + loss.deviation / std::sqrt(static_cast<double>(loss.n)) < 0;
}

/// The verdict on one trial of a question, and the numbers that it rests on.
struct Finding {
  Comparison numbers;
  Seeds seeds = Seeds::first;
  Verdict verdict = Verdict::not_shown;
  bool asked = false;  // there are runs
};

inline Finding find(const Runs& runs, const Question& question, const Trial& trial) {
  Finding finding;
  const bool gain = question.kind == Kind::effect && question.metric == Metric::val_loss &&
                    looks_like_a_gain(runs, trial, question.relevant);
  finding.seeds = gain ? Seeds::fresh : Seeds::first;
  finding.asked = compare(runs, trial, question.metric, Seeds::first).difference.n > 0;
  finding.numbers = compare(runs, trial, question.metric, finding.seeds);
  const auto judge = question.kind == Kind::effect ? effect_verdict : no_harm_verdict;
  finding.verdict = judge(finding.numbers.difference, question.sign, question.relevant);
  return finding;
}

}  // namespace study

#endif  // STUDY_COMPARISON_HPP
