// SPDX-License-Identifier: MIT
// Which tokens of a step are whose.
#ifndef EXPERT_PARALLEL_SHARES_HPP
#define EXPERT_PARALLEL_SHARES_HPP

#include <algorithm>
#include <cstddef>
#include <sstream>
#include <string>
#include <vector>

#include "text.hpp"

namespace expert_parallel {

using gatepro::Index;

/// Rank r has the tokens [begin(r), begin(r + 1)) of a step: none, or some in whole units.
///
/// Eigen's products round a row by where it stands among those that are multiplied together, which
/// are at most `unit` tokens. So in units each token has the bits of one process.
class Shares {
 public:
  static constexpr Index unit = train_moe::token_range;

  /// As equal as units allow.
  Shares(Index tokens, int ranks) {
    const Index units = tokens / unit;
    if (tokens % unit != 0) {
      throw train_moe::UserError("--tokens is " + std::to_string(tokens) + ": give a multiple of " +
                                 std::to_string(unit));
    }
    for (Index r = 0; r <= ranks; ++r) begin_.push_back(units * r / ranks * unit);
  }

  /// As a list says, with commas between the ranks' tokens.
  Shares(const std::string& list, Index tokens, int ranks) : begin_{0} {
    std::istringstream numbers(list + ',');
    for (std::string number; std::getline(numbers, number, ',');) {
      const bool digits = !number.empty() && number.size() < 9 &&
                          number.find_first_not_of("0123456789") == std::string::npos;
      const Index share = digits ? std::stol(number) : 1;
      if (share % unit != 0) {
        throw train_moe::UserError("--shares has '" + number + "': give multiples of " +
                                   std::to_string(unit) + ", 0 among them");
      }
      begin_.push_back(begin_.back() + share);
    }
    if (static_cast<int>(begin_.size()) != ranks + 1 || begin_.back() != tokens) {
      throw train_moe::UserError("--shares has " + std::to_string(begin_.size() - 1) +
                                 " numbers with the sum " + std::to_string(begin_.back()) +
                                 ": give one for each of the " + std::to_string(ranks) +
                                 " ranks, with the sum " + std::to_string(tokens));
    }
  }

  Index begin(int rank) const { return begin_[static_cast<std::size_t>(rank)]; }
  Index count(int rank) const { return begin(rank + 1) - begin(rank); }
  Index tokens() const { return begin_.back(); }

  /// This rank's part of a batch.
  train_moe::Batch part(const train_moe::Batch& batch, int rank) const {
    const auto first = batch.target_T.begin() + begin(rank);
    return {batch.context_TC.middleRows(begin(rank), count(rank)), {first, first + count(rank)}};
  }

 private:
  std::vector<Index> begin_;
};

}  // namespace expert_parallel

#endif  // EXPERT_PARALLEL_SHARES_HPP
