// SPDX-License-Identifier: MIT
// What a run prints: loads, bytes, times.
#ifndef EXPERT_PARALLEL_REPORT_HPP
#define EXPERT_PARALLEL_REPORT_HPP

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <string>
#include <vector>

#include "communicator.hpp"
#include "ledger.hpp"

namespace expert_parallel {

/// Of one arm, as rank 0 prints it.
struct Summary {
  std::string arm;
  double first_loss = 0, last_loss = 0;
  double max_over_mean = 0;  ///< Rows of the busiest rank, by the mean over ranks.
  std::vector<std::int64_t> rows_R;
  double bytes = 0;                     ///< That a rank sends to others in a step, mean.
  std::array<double, parts> seconds{};  ///< Of a step (median), on the rank where they are most.
};

/// What all ranks found in `steps` steps. `rows`: that came to this rank's experts, all layers.
inline void summarise(const Communicator& comm, const Ledger& ledger, std::int64_t rows,
                      std::int64_t steps, Summary& summary) {
  const double per_step = 1 / static_cast<double>(steps);
  for (std::size_t part = 0; part < parts; ++part) {
    summary.seconds[part] = comm.largest(ledger.seconds(static_cast<Part>(part)));
  }
  std::int64_t sent = ledger.sent();
  comm.sum()(&sent, 1);
  summary.bytes = per_step * static_cast<double>(sent) / comm.size();
  summary.rows_R = comm.gather({rows});
  const auto sum = static_cast<double>(
      std::accumulate(summary.rows_R.begin(), summary.rows_R.end(), std::int64_t{0}));
  const auto most = *std::max_element(summary.rows_R.begin(), summary.rows_R.end());
  summary.max_over_mean = static_cast<double>(most) * comm.size() / std::max(sum, 1.0);
}

inline void print_table(const std::vector<Summary>& arms) {
  std::printf("\n%-20s %9s %9s %9s %11s", "arm", "loss", "at end", "max/mean", "kB sent");
  for (const char* name : part_names) std::printf(" %9s", name);
  std::printf("\n");
  for (const Summary& arm : arms) {
    std::printf("%-20s %9.4f %9.4f %9.3f %11.1f", arm.arm.c_str(), arm.first_loss, arm.last_loss,
                arm.max_over_mean, arm.bytes / 1e3);
    for (const double seconds : arm.seconds) std::printf(" %9.3f", seconds * 1e3);
    std::printf("\n");
  }
  std::printf(
      "max/mean: rows of the busiest rank. kB sent: to other ranks, per rank and step, but for "
      "reductions.\nThe rest: ms of a step (median), on the rank where that part takes longest.\n");
}

}  // namespace expert_parallel

#endif  // EXPERT_PARALLEL_REPORT_HPP
