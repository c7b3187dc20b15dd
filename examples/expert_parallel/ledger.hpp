// SPDX-License-Identifier: MIT
// Where the time of a step goes, and how many bytes leave the rank.
#ifndef EXPERT_PARALLEL_LEDGER_HPP
#define EXPERT_PARALLEL_LEDGER_HPP

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace expert_parallel {

/// The parts of a step that are told apart.
enum class Part {
  route,     ///< Forward and backward of the router, losses and their counts included.
  permute,   ///< Tokens to rows and back, sums over choices.
  wait,      ///< For the slowest rank, before rows are exchanged.
  exchange,  ///< Counts and rows to other ranks and back.
  experts,   ///< Their products.
  reduce,    ///< Gradients of shared parameters.
  partners,  ///< Similarities of router rows, and the broadcast.
  step,      ///< All of a step, the parts above and the rest of the model.
};
inline constexpr std::size_t parts = 8;
inline constexpr std::array<const char*, parts> part_names{
    "route", "permute", "wait", "exchange", "experts", "reduce", "partners", "step"};

class Ledger {
 public:
  /// Calls `work` and adds its time to `part` of this step.
  template <class Work>
  void time(Part part, const Work& work) {
    const auto start = Clock::now();
    work();
    step_[static_cast<std::size_t>(part)] +=
        std::chrono::duration<double>(Clock::now() - start).count();
  }
  void send(std::int64_t bytes) { sent_ += bytes; }
  void end_step() {
    steps_.push_back(step_);
    step_ = {};
  }

  /// The median over steps, because other programs want the cores too. 0 without steps.
  double seconds(Part part) const {
    std::vector<double> all;
    for (const auto& step : steps_) all.push_back(step[static_cast<std::size_t>(part)]);
    if (all.empty()) return 0;
    const auto middle = all.begin() + static_cast<std::ptrdiff_t>(all.size() / 2);
    std::nth_element(all.begin(), middle, all.end());
    return *middle;
  }
  /// Bytes of rows and counts that went to other ranks.
  std::int64_t sent() const { return sent_; }

 private:
  using Clock = std::chrono::steady_clock;
  std::array<double, parts> step_{};
  std::vector<std::array<double, parts>> steps_;
  std::int64_t sent_ = 0;
};

}  // namespace expert_parallel

#endif  // EXPERT_PARALLEL_LEDGER_HPP
