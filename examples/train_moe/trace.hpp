// SPDX-License-Identifier: MIT
// What the routers of a run decided, for programs that look at routers.
#ifndef TRAIN_MOE_TRACE_HPP
#define TRAIN_MOE_TRACE_HPP

#include <filesystem>
#include <optional>
#include <string>

#include "output.hpp"
#include "settings.hpp"
#include "support/routing_trace.hpp"

namespace train_moe {

/// A folder per run, <--trace>/<arm>_seed<seed>: the decisions in router_trace_rank0.jsonl, and the
/// routers that made the last of them in router.<layer>.npy.
class Trace {
 public:
  /// Makes the folder, unless there is to be no trace.
  Trace(const Settings& settings, const std::string& arm, std::int64_t seed) {
    if (settings.trace.empty()) return;
    every_ = settings.trace_every == 0 ? settings.steps : settings.trace_every;
    folder_ = std::filesystem::path(settings.trace) / (arm + "_seed" + std::to_string(seed));
    make_folder(folder_, "--trace");
    decisions_.emplace(folder_ / "router_trace_rank0.jsonl");
  }

  /// Writes the last forward of step `step`, if it is due: before a backward moves the weights.
  template <class Layers>
  void write(std::int64_t step, Layers& layers) {
    if (!decisions_ || step % every_ != 0) return;
    for (std::size_t l = 0; l < layers.size(); ++l) {
      const auto& routed = layers[l].routed();
      decisions_->write(report::trace_line({step, static_cast<Index>(l)}, routed.expert_ids_TK(),
                                           routed.weights_TK()));
      OutputFile(folder_ / ("router." + std::to_string(l) + ".npy"))
          .write(report::npy_bytes(layers[l].gate().value));
    }
  }

 private:
  std::filesystem::path folder_;
  std::int64_t every_ = 1;
  std::optional<OutputFile> decisions_;
};

}  // namespace train_moe

#endif  // TRAIN_MOE_TRACE_HPP
