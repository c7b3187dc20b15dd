// SPDX-License-Identifier: MIT
// An arm against another one, over the seeds that both have.
#ifndef STUDY_COMPARISON_HPP
#define STUDY_COMPARISON_HPP

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "grid.hpp"
#include "runs_file.hpp"
#include "statistics.hpp"

namespace study {

/// Seeds below this are the first ones. Whatever looks like a gain gets fresh ones, from here on,
/// and is judged by these alone: the best of many rows is a lucky one, too.
inline constexpr std::int64_t first_fresh_seed = 101;
inline constexpr std::int64_t fresh_seeds = 10;
inline constexpr std::int64_t first_seeds = 5;
/// In the whole study: of the claims of the paper, and of what the short one asks.
inline constexpr std::int64_t more_seeds = 10;

enum class Seeds { first, fresh };

/// Both sides, and the difference paired by seed.
struct Comparison {
  Estimate arm, against, difference;
  std::size_t diverged = 0;  // pairs left out, because a side is not a number
};

inline Comparison compare(const Runs& runs, const Trial& trial, Metric metric, Seeds seeds) {
  Sample arm, against, difference;
  const bool fresh = seeds == Seeds::fresh;
  std::size_t diverged = 0;
  for (auto run = runs.lower_bound({trial.model, trial.arm, fresh ? first_fresh_seed : 0});
       run != runs.end() && run->first.model == trial.model && run->first.arm == trial.arm; ++run) {
    const std::int64_t seed = run->first.seed;
    if (!fresh && seed >= first_fresh_seed) break;
    const auto other = runs.find({trial.model, trial.against, seed});
    if (!trial.against.empty() && other == runs.end()) continue;
    const double base = trial.against.empty() ? 0 : other->second[metric];
    if (!std::isfinite(run->second[metric] - base)) {
      ++diverged;
      continue;
    }
    arm.add(run->second[metric]);
    against.add(base);
    difference.add(run->second[metric] - base);
  }
  return {estimate(arm), estimate(against), estimate(difference), diverged};
}

/// A loss that fell in the first seeds by more than their standard error, and by half of what is
/// worth having. One in six rows without any effect looks like that.
inline bool looks_like_a_gain(const Runs& runs, const Trial& trial, double relevant) {
  if (trial.against.empty()) return false;
  const Estimate loss = compare(runs, trial, Metric::val_loss, Seeds::first).difference;
  return loss.n >= least_seeds && loss.mean <= -relevant / 2 &&
         loss.mean + loss.deviation / std::sqrt(static_cast<double>(loss.n)) < 0;
}

/// True if what is asked for is out of reach: there is less of a share than should be won, or both
/// sides never get to where steps are counted.
inline bool out_of_reach(const Question& q, const Comparison& numbers) {
  const double base = numbers.against.mean;
  if (q.kind != Kind::effect || !q.measure.share) return false;
  if (q.measure.metric == Metric::used_step && base == 1 && numbers.arm.mean == 1) return true;
  return (q.sign < 0 ? base : 1 - base) < q.measure.relevant;
}

/// The verdict on one trial of a question, and the numbers that it rests on.
struct Finding {
  Comparison numbers;
  Seeds seeds = Seeds::first;
  Verdict verdict = Verdict::not_shown;
  bool asked = false;  // there are runs
};

/// Runs that did not diverge say nothing good of an arm of which others did.
inline Verdict judge(const Question& q, const Estimate& difference, std::size_t diverged) {
  const auto judge_all = q.kind == Kind::effect ? effect_verdict : no_harm_verdict;
  const Verdict verdict = judge_all(difference, q.sign, q.measure.relevant);
  const bool good = verdict == Verdict::holds || verdict == Verdict::holds_small;
  return good && diverged > 0 ? Verdict::not_shown : verdict;
}

inline Finding find(const Runs& runs, const Question& question, const Trial& trial) {
  const Metric metric = question.measure.metric;
  Finding finding;
  const bool gain = question.kind == Kind::effect && metric == Metric::val_loss &&
                    looks_like_a_gain(runs, trial, question.measure.relevant);
  finding.seeds = gain ? Seeds::fresh : Seeds::first;
  const Comparison first = compare(runs, trial, metric, Seeds::first);
  finding.asked = first.difference.n + first.diverged > 0;
  finding.numbers = compare(runs, trial, metric, finding.seeds);
  finding.verdict = !trial.against.empty() && out_of_reach(question, finding.numbers)
                        ? Verdict::cannot_show
                        : judge(question, finding.numbers.difference, finding.numbers.diverged);
  return finding;
}

/// How many trials have which verdict.
struct Tally {
  std::array<std::size_t, verdicts.size()> counts{};

  void add(Verdict verdict) { ++counts[static_cast<std::size_t>(verdict)]; }
  std::size_t operator[](Verdict verdict) const {
    return counts[static_cast<std::size_t>(verdict)];
  }
  std::size_t total() const { return std::accumulate(counts.begin(), counts.end(), std::size_t{}); }
};

/// What a question finds of an arm over all models that it is asked of.
struct Pooled {
  std::string arm, against;
  Tally tally;
  Estimate difference;  // the mean of the models that can show anything
  Verdict verdict = Verdict::cannot_show;
};

/// Of one model the finding stands for itself. The mean of several is of first seeds alone: the
/// fresh ones belong to a choice of models.
inline Pooled pooled(const Runs& runs, const Question& question, const std::string& arm,
                     const std::string& against) {
  Pooled all{arm, against, {}, {}};
  std::vector<Estimate> estimates;
  std::size_t diverged = 0;
  for (const Trial& trial : question.trials) {
    if (trial.arm != arm || trial.against != against) continue;
    const Finding finding = find(runs, question, trial);
    if (!finding.asked) continue;
    all.tally.add(finding.verdict);
    if (finding.verdict == Verdict::cannot_show) continue;
    all.difference = finding.numbers.difference;
    all.verdict = finding.verdict;
    const Comparison first = compare(runs, trial, question.measure.metric, Seeds::first);
    diverged += first.diverged;
    if (first.difference.n >= least_seeds) estimates.push_back(first.difference);
  }
  if (all.tally.total() > 1 && !estimates.empty()) {
    all.difference = mean_of(estimates);
    all.verdict = judge(question, all.difference, diverged);
  }
  return all;
}

/// The same of each pair of arms of a question, in the order of its trials.
inline std::vector<Pooled> pooled(const Runs& runs, const Question& question) {
  std::vector<Pooled> all;
  for (const Trial& trial : question.trials) {
    const bool seen = std::any_of(all.begin(), all.end(), [&](const Pooled& each) {
      return each.arm == trial.arm && each.against == trial.against;
    });
    if (seen) continue;
    Pooled of_arm = pooled(runs, question, trial.arm, trial.against);
    if (of_arm.tally.total() > 0) all.push_back(std::move(of_arm));
  }
  return all;
}

}  // namespace study

#endif  // STUDY_COMPARISON_HPP
