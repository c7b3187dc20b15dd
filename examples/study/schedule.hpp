// SPDX-License-Identifier: MIT
// Which runs the study makes, in which order.
#ifndef STUDY_SCHEDULE_HPP
#define STUDY_SCHEDULE_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "comparison.hpp"
#include "questions.hpp"

namespace study {

/// Which part of the grid is run.
struct Scope {
  bool short_only = false;
  std::vector<std::string> question_ids{};  // all if empty
};

/// The trials of some questions, all if none is named, each once; marked as any of these marks it.
inline std::vector<Trial> trials_of(const std::vector<std::string>& question_ids) {
  std::vector<Trial> all;
  std::map<std::tuple<std::string, std::string, std::string>, std::size_t> places;
  for (const Question& question : questions()) {
    const bool asked = question_ids.empty() || std::find(question_ids.begin(), question_ids.end(),
                                                         question.id) != question_ids.end();
    if (!asked) continue;
    for (const Trial& trial : question.trials) {
      const auto [place, is_new] =
          places.try_emplace({trial.model, trial.arm, trial.against}, all.size());
      if (is_new) all.push_back(trial);
      Trial& merged = all[place->second];
      merged.in_short |= trial.in_short;
      merged.ten_seeds |= trial.ten_seeds;
    }
  }
  return all;
}

/// Those of `all` with, or without, a mark.
inline std::vector<Trial> marked(const std::vector<Trial>& all, bool Trial::*mark, bool wanted) {
  std::vector<Trial> some;
  for (const Trial& trial : all) {
    if (trial.*mark == wanted) some.push_back(trial);
  }
  return some;
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

/// The first stage of the whole study, or of the short one.
inline std::vector<RunKey> first_stage_of_all(bool short_only) {
  const std::vector<Trial> all = trials_of({});
  RunList list;
  list.add(marked(all, &Trial::in_short, true), 1, first_seeds);
  if (!short_only) {
    list.add(marked(all, &Trial::in_short, false), 1, first_seeds);
    list.add(marked(all, &Trial::ten_seeds, true), 1 + first_seeds, more_seeds - first_seeds);
  }
  return list.keys();
}

/// The first stage: of every trial in scope the seeds that both its arms have in the whole study,
/// so that a question asked alone gets the same answer.
inline std::vector<RunKey> first_stage(const Scope& scope) {
  const std::vector<RunKey> all = first_stage_of_all(scope.short_only);
  const std::set<RunKey> known(all.begin(), all.end());
  std::set<RunKey> wanted;
  for (const Trial& trial : trials_of(scope.question_ids)) {
    for (std::int64_t seed = 1; seed <= more_seeds; ++seed) {
      const RunKey arm{trial.model, trial.arm, seed}, against{trial.model, trial.against, seed};
      const bool alone = trial.against.empty();
      if (known.count(arm) == 0 || (!alone && known.count(against) == 0)) continue;
      wanted.insert(arm);
      if (!alone) wanted.insert(against);
    }
  }
  std::vector<RunKey> keys;
  std::copy_if(all.begin(), all.end(), std::back_inserter(keys),
               [&](const RunKey& key) { return wanted.count(key) != 0; });
  return keys;
}

/// The second one: fresh seeds for whatever looks like a gain in the first.
inline std::vector<RunKey> second_stage(const Scope& scope, const Runs& runs) {
  const std::vector<RunKey> first = first_stage(scope);
  const std::set<RunKey> known(first.begin(), first.end());
  std::vector<Trial> gains;
  for (const Trial& trial : trials_of(scope.question_ids)) {
    const bool in_scope = known.count({trial.model, trial.arm, 1}) != 0 &&
                          known.count({trial.model, trial.against, 1}) != 0;
    if (in_scope && looks_like_a_gain(runs, trial, measures::loss.relevant)) gains.push_back(trial);
  }
  RunList list;
  list.add(gains, first_fresh_seed, fresh_seeds);
  return list.keys();
}

/// The runs that do not stand in `runs` yet, or stand there made with other options.
inline std::vector<RunKey> missing(const std::vector<RunKey>& keys, const Runs& runs) {
  std::vector<RunKey> left;
  for (const RunKey& key : keys) {
    const auto run = runs.find(key);
    if (run == runs.end() || !is_of_grid(run->second)) left.push_back(key);
  }
  return left;
}

}  // namespace study

#endif  // STUDY_SCHEDULE_HPP
