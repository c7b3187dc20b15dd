// SPDX-License-Identifier: MIT
// Several ways to do one job on the same inputs.
#ifndef GATEPRO_BENCHMARKS_SUPPORT_CONTEST_HPP
#define GATEPRO_BENCHMARKS_SUPPORT_CONTEST_HPP

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "support/inputs.hpp"
#include "support/jobs.hpp"

namespace bench {

/// The contestants by name, with the memory they work on. A peer is only added after its results
/// were compared with gatepro's.
class Contest {
 public:
  /// Moves `value` to where it lives as long as the contest does.
  template <class T>
  T& keep(T value) {
    const auto kept = std::make_shared<T>(std::move(value));
    kept_.push_back(kept);
    return *kept;
  }

  void add(const std::string& name, Run run) { runs_[name] = std::move(run); }

  /// Null for a peer that is missing.
  const Run* find(const std::string& name) const {
    const auto found = runs_.find(name);
    return found == runs_.end() ? nullptr : &found->second;
  }

 private:
  std::vector<std::shared_ptr<void>> kept_;
  std::map<std::string, Run> runs_;
};

/// Throws unless all |a - b| <= tolerance; `what` is named in the message.
void expect_close(const std::string& what, const Floats& a, const Floats& b, float tolerance);

/// Throws unless |a - b| <= tolerance * |b|, in the Euclidean norm.
void expect_near(const std::string& what, const Floats& a, const Floats& b, double tolerance);

/// Throws unless both choices of K ids per row have the same scores, within `tolerance`. Scores,
/// not ids: which of two equal experts is chosen is each library's own affair.
void expect_same_choice(const std::string& what, const Floats& scores_TE, Index experts,
                        Index top_k, const Ids& a_TK, const Ids& b_TK, float tolerance);

}  // namespace bench

#endif  // GATEPRO_BENCHMARKS_SUPPORT_CONTEST_HPP
