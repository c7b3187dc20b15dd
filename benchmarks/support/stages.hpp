// SPDX-License-Identifier: MIT
// The stages that are measured: one file each, in the folder of its floor, which says who takes
// part and which figures of the summary follow.
#ifndef GATEPRO_BENCHMARKS_SUPPORT_STAGES_HPP
#define GATEPRO_BENCHMARKS_SUPPORT_STAGES_HPP

#include <string>
#include <vector>

#include "support/figures.hpp"

namespace bench {

/// What is measured together.
struct Stage {
  std::string name;
  std::vector<Shape> shapes;
  std::vector<std::string> contestants;  ///< Peers among them may be missing from a contest.
  Contest (*prepare)(const Shape&);
  void (*summarise)(Figures&);
};

Stage gate_stage();
Stage selection_stage();
Stage published_stage();
Stage penalty_stage();
Stage router_stage();
Stage refresh_stage();
Stage lazy_refresh_stage();
Stage orthogonality_stage();
Stage backward_stage();
Stage builds_stage();
Stage compile_time_stage();
Stage complete_stage();
Stage limits_stage();
Stage small_batches_stage();
Stage conversion_stage();
Stage metrics_stage();

inline std::vector<Stage> all_stages() {
  return {gate_stage(),     selection_stage(),     published_stage(),    penalty_stage(),
          router_stage(),   refresh_stage(),       lazy_refresh_stage(), orthogonality_stage(),
          backward_stage(), builds_stage(),        compile_time_stage(), complete_stage(),
          limits_stage(),   small_batches_stage(), conversion_stage(),   metrics_stage()};
}

}  // namespace bench

#endif  // GATEPRO_BENCHMARKS_SUPPORT_STAGES_HPP
