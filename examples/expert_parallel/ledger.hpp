// SPDX-License-Identifier: MIT
// Where the time of a step goes, and how many bytes leave the rank.
#ifndef EXPERT_PARALLEL_LEDGER_HPP
#define EXPERT_PARALLEL_LEDGER_HPP

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>

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
  /// Calls `work` and adds its time to `part`.
  template <class Work>
  void time(Part part, const Work& work) {
    const auto start = Clock::now();
    work();
    seconds_[static_cast<std::size_t>(part)] +=
        std::chrono::duration<double>(Clock::now() - start).count();
  }
  void send(std::int64_t bytes) { sent_ += bytes; }

  double seconds(Part part) const { return seconds_[static_cast<std::size_t>(part)]; }
  /// Bytes of rows and counts that went to other ranks.
  std::int64_t sent() const { return sent_; }

 private:
  using Clock = std::chrono::steady_clock;
  std::array<double, parts> seconds_{};
  std::int64_t sent_ = 0;
};

}  // namespace expert_parallel

#endif  // EXPERT_PARALLEL_LEDGER_HPP
