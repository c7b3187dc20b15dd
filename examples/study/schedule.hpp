// SPDX-License-Identifier: MIT
// Which runs the study makes, in which order.
#ifndef STUDY_SCHEDULE_HPP
#define STUDY_SCHEDULE_HPP

#include <set>
#include <string>
#include <vector>

#include "comparison.hpp"
#include "questions.hpp"

namespace study {

/// Which part of the grid is run.
struct Scope {
  bool short_only = false;
  std::vector<std::string> question_ids{};  // all if empty
};

/// The trials in scope, each once; `quick` are those of the short study.
inline std::vector<Trial> trials_in(const Scope& scope, bool quick) {
  std::vector<Trial> all;
  std::set<std::string> seen;
  for (const Question& question : questions()) {
    const bool asked =
        scope.question_ids.empty() ||
        std::count(scope.question_ids.begin(), scope.question_ids.end(), question.id) != 0;
    if (!asked) continue;
    for (const Trial& trial : question.trials) {
      if (trial.in_short != quick || (scope.short_only && !quick)) continue;
      if (seen.insert(trial.model + ' ' + trial.arm + ' ' + trial.against).second) {
        all.push_back(trial);
      }
    }
  }
  return all;
}

/// Runs in the order in which they are wanted, each once.
class RunList {
 public:
  /// All arms of some trials with seed after seed, so that what is there is paired.
  void add(const std::vector<Trial>& all, std::int64_t first_seed, std::int64_t count) {
    for (std::int64_t seed = first_seed; seed < first_seed + count; ++seed) {
      for (const Trial& trial : all) {
        if (!trial.against.empty()) add({trial.model, trial.against, seed});
        add({trial.model, trial.arm, seed});
      }
    }
  }
  const std::vector<RunKey>& keys() const { return keys_; }

 private:
  void add(const RunKey& key) {
    if (seen_.insert(key).second) keys_.push_back(key);
  }

  std::vector<RunKey> keys_;
  std::set<RunKey> seen_;
};

/// The first stage: every trial.
inline std::vector<RunKey> first_stage(const Scope& scope) {
  RunList list;
  list.add(trials_in(scope, true), 1, first_seeds);
  list.add(trials_in(scope, false), 1, first_seeds);
  if (!scope.short_only)
    list.add(trials_in(scope, true), 1 + first_seeds, more_seeds - first_seeds);
  return list.keys();
}

/// The second one: fresh seeds for whatever looks like a gain in the first.
inline std::vector<RunKey> second_stage(const Scope& scope, const Runs& runs) {
  RunList list;
  std::vector<Trial> gains;
  for (const bool quick : {true, false}) {
    for (const Trial& trial : trials_in(scope, quick)) {
      if (looks_like_a_gain(runs, trial, measures::loss.relevant)) gains.push_back(trial);
    }
  }
  list.add(gains, first_fresh_seed, fresh_seeds);
  return list.keys();
}

/// The runs that do not stand in `runs` yet, or stand there made with other options.
inline std::vector<RunKey> missing(const std::vector<RunKey>& keys, const Runs& runs) {
  std::vector<RunKey> left;
  for (const RunKey& key : keys) {
    const auto run = runs.find(key);
    if (run == runs.end() || run->second.recipe != recipe_of(key)) left.push_back(key);
  }
  return left;
}

}  // namespace study

#endif  // STUDY_SCHEDULE_HPP
