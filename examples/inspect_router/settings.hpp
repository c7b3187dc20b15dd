// SPDX-License-Identifier: MIT
// Everything that the command line sets.
#ifndef INSPECT_ROUTER_SETTINGS_HPP
#define INSPECT_ROUTER_SETTINGS_HPP

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "error.hpp"

namespace inspect_router {

struct Settings {
  std::vector<std::string> weights;
  std::string name;  // empty: the known ones
  bool transpose = false;
  std::string x;
  std::int64_t top_k = 0;  // 0: not given
  std::string trace;
  std::int64_t trace_offset = 0;
  std::int64_t experts = 0;  // 0: from the weights, or the largest id
  double group_at = 0.5;
  std::string out = "inspect_router.out";
  bool png = true;
};

inline void add_options(CLI::App& app, Settings& s) {
  app.option_defaults()->always_capture_default();
  app.add_option("weights", s.weights,
                 ".npy ([E, H], or [layers, E, H]), .safetensors, .safetensors.index.json, or a "
                 "folder with these");
  app.add_option("--name", s.name,
                 "Tensors to read, '*' for any characters, such as "
                 "'model.layers.*.mlp.gate.weight' [known names]");
  app.add_flag("--transpose", s.transpose, "The weights are stored [H, E]");
  app.add_option("--x", s.x,
                 "Tokens that the routers are to route: .npy [T, H]; '*' for the layer's number");
  app.add_option("--top-k", s.top_k, "Experts per token of --x")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{2048}))
      ->default_str("");
  app.add_option("--trace", s.trace,
                 "Routing decisions: a .jsonl, or a folder with router_trace_rank*.jsonl");
  app.add_option("--trace-offset", s.trace_offset, "A layer's number in the trace less its own")
      ->check(CLI::Range(std::int64_t{-1000000}, std::int64_t{1000000}));
  app.add_option("--experts", s.experts, "Experts per layer of a trace without weights")
      ->check(CLI::Range(std::int64_t{2}, std::int64_t{2048}))
      ->default_str("");
  app.add_option("--group-at", s.group_at, "Mean cosine from which experts count as redundant")
      ->check(CLI::Range(-1.0, 1.0));
  app.add_option("--out", s.out, "Folder for index.html, inspect.json and a picture per layer");
  app.add_flag("--png,!--no-png", s.png, "Make .png pictures with rsvg-convert");
}

/// What one option alone cannot tell.
inline void check_settings(const Settings& s) {
  if (s.weights.empty() && s.trace.empty()) {
    throw UserError("nothing to look at: name files with weights, or give --trace");
  }
  if (!s.x.empty() && !s.trace.empty()) {
    throw UserError("--x and --trace are two sources of decisions: choose one");
  }
  if (!s.x.empty() && s.weights.empty()) throw UserError("--x needs weights to route by");
  if (!s.x.empty() && s.top_k == 0) throw UserError("--x needs --top-k");
  if (s.x.empty() && s.top_k != 0) throw UserError("--top-k is for --x; a trace has its own");
}

}  // namespace inspect_router

#endif  // INSPECT_ROUTER_SETTINGS_HPP
