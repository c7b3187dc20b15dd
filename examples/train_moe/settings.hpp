// SPDX-License-Identifier: MIT
// Everything that the command line sets.
#ifndef TRAIN_MOE_SETTINGS_HPP
#define TRAIN_MOE_SETTINGS_HPP

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "arms.hpp"
#include "moe_layer.hpp"
#include "text.hpp"

namespace train_moe {

struct Settings {
  std::string text;  // empty: the Eigen headers
  std::string out = "train_moe.out";
  std::string arm_list = "off,published,eliminate";
  std::vector<Arm> arms;
  std::int64_t seeds = 3;
  std::int64_t first_seed = 1;
  std::int64_t steps = 200;
  Swaps swaps;
  std::int64_t refresh_every = 1;
  Sizes sizes;
  double learning_rate = 3e-3;
  std::int64_t eval_every = 20;
  Index validation_tokens = 4096;
  // At the default sizes a step is some 10 ms in dozens of short loops. Threads gain little there,
  // and lose a lot where other programs want the cores too.
  int threads = 1;
  bool plots = true;
  std::string trace;             // empty: none
  std::int64_t trace_every = 0;  // 0: the last step alone
};

/// The validator of a whole number.
inline CLI::Range count(std::int64_t low, std::int64_t high) { return CLI::Range(low, high); }

inline void add_size_options(CLI::App& app, Sizes& sizes) {
  app.add_option("--tokens", sizes.tokens, "Tokens per step")->check(count(1, 1 << 20));
  app.add_option("--context", sizes.context, "Bytes that predict the next one")
      ->check(count(1, Text::block_bytes / 4));
  app.add_option("--embedding", sizes.embedding, "Width of a byte's embedding")
      ->check(count(1, 4096));
  app.add_option("--hidden", sizes.hidden, "Width of a token")->check(count(1, 8192));
  app.add_option("--layers", sizes.layers, "MoE layers")->check(count(1, 256));
  app.add_option("--experts", sizes.experts, "Experts per layer")->check(count(2, 8192));
  app.add_option("--top-k", sizes.top_k,
                 "Experts per token; a single one weighs its score among all experts")
      ->check(count(1, 8192));
  app.add_option("--expert-hidden", sizes.expert_hidden, "Hidden units per expert")
      ->check(count(1, 8192));
  app.add_option("--router-deviation", sizes.router_deviation,
                 "Standard deviation of the router's initial weights")
      ->check(CLI::Range(0.0, 1e3));
  app.add_option("--weight-scale", sizes.weight_scale,
                 "Initial weights, but the router's, in units of PyTorch's default deviation")
      ->check(CLI::Range(1e-6, 1e3));
}

/// Attention is for those who train on whole windows.
inline void add_attention_options(CLI::App& app, Sizes& sizes) {
  app.add_option("--window", sizes.window,
                 "Consecutive tokens that attention before each MoE layer spans; 1: no attention")
      ->check(count(1, Text::block_bytes / 4));
  app.add_option("--heads", sizes.heads, "Heads of the attention")->check(count(1, 8192));
}

/// What must be whole windows, by the name of its option.
inline void check_windows(const Sizes& sizes, const char* option, Index tokens) {
  if (tokens % sizes.window == 0) return;
  throw UserError(std::string(option) + " is " + std::to_string(tokens) +
                  ", which is no multiple of --window " + std::to_string(sizes.window) +
                  ": choose one");
}

inline void check_sizes(const Sizes& sizes) {
  if (sizes.top_k > sizes.experts) {
    throw UserError("--top-k is " + std::to_string(sizes.top_k) + ", but there are only " +
                    std::to_string(sizes.experts) + " experts: lower it, or raise --experts");
  }
  check_windows(sizes, "--tokens", sizes.tokens);
  if (sizes.window > 1 && sizes.hidden % sizes.heads != 0) {
    throw UserError("--hidden is " + std::to_string(sizes.hidden) + ", which is no multiple of " +
                    std::to_string(sizes.heads) + " --heads: choose one");
  }
}

inline void add_options(CLI::App& app, Settings& s) {
  app.option_defaults()->always_capture_default()->take_last();
  constexpr std::int64_t many = 1000000000;

  app.add_option("--text", s.text, "File or folder to learn from [the Eigen headers]");
  app.add_option("--arms", s.arm_list, arms_help(arm_modifiers()));
  app.add_option("--seeds", s.seeds, "Runs per arm")->check(count(1, 10000));
  app.add_option("--first-seed", s.first_seed, "Seed of the first run")->check(count(0, many));
  app.add_option("--steps", s.steps, "Optimizer steps per run")->check(count(1, many));
  app.add_option("--swap-on-at", s.swaps.on_at, "Step at which competition starts")
      ->check(count(1, many))
      ->default_str("");
  app.add_option("--swap-off-at", s.swaps.off_at, "Step at which competition stops")
      ->check(count(1, many))
      ->default_str("");
  app.add_option("--refresh-every", s.refresh_every, "Steps between two choices of partners")
      ->check(count(1, many));
  add_size_options(app, s.sizes);
  add_attention_options(app, s.sizes);
  app.add_option("--learning-rate", s.learning_rate, "Adam's, falling over the second half")
      ->check(CLI::Range(1e-12, 10.0));
  app.add_option("--eval-every", s.eval_every, "Steps between two validations")
      ->check(count(1, many));
  app.add_option("--val-tokens", s.validation_tokens, "Tokens per validation")
      ->check(count(1, 1 << 20));
  app.add_option("--threads", s.threads, "Threads; results do not depend on them")
      ->check(CLI::Range(1, max_threads()));
  app.add_option("--out", s.out, "Folder for train.csv, what_if.csv and the plots");
  app.add_option("--trace", s.trace,
                 "Folder for what the routers decide, as Megatron-LM's analysis scripts read it");
  app.add_option("--trace-every", s.trace_every, "Steps between two traces [the last step alone]")
      ->check(count(1, many))
      ->default_str("");
  app.add_flag("--plots,!--no-plots", s.plots, "Draw with gnuplot");
}

/// CLI11 takes a NaN.
inline void check_number(const std::string& option, double value) {
  if (std::isnan(value)) throw UserError(option + " is nan: give a number");
}

/// `on` and `off` name what sets them; `where` goes before.
inline void check_swaps(const Swaps& swaps, std::int64_t steps, const std::string& where,
                        const std::string& on, const std::string& off) {
  if (swaps.on_at > steps || swaps.off_at > steps) {
    throw UserError(where + (swaps.on_at > steps ? on : off) +
                    " is beyond the last step: lower it, or raise --steps");
  }
  if (swaps.on_at > 0 && swaps.on_at == swaps.off_at) {
    throw UserError(where + on + " and " + off + " are the same step: choose two");
  }
}

/// Arms whose parts do not fit each other or the sizes; the router itself knows.
inline void check_arms(const Settings& settings) {
  for (const Arm& arm : settings.arms) {
    try {
      const Routing routing = refreshed(arm.routing, settings.refresh_every);
      gatepro::CompleteRouter<float> router(router_config(settings.sizes, routing));
    } catch (const gatepro::Error& error) {
      throw UserError("arm '" + arm.name + "': " + error.what());
    }
    const std::string name = "arm '" + arm.name + "': ";
    check_swaps(arm.routing.swaps, settings.steps, name, "+from", "+until");
    if (arm.routing.choices > settings.sizes.top_k) {
      throw UserError(name + "+choices=" + std::to_string(arm.routing.choices) +
                      " is more than --top-k " + std::to_string(settings.sizes.top_k));
    }
    if (arm.routing.output_partners && arm.routing.config.pairing.partners_per_expert > 1) {
      throw UserError(name + "+outputs finds one rival per expert");
    }
  }
}

/// What one option alone cannot tell.
inline void check_settings(Settings& settings) {
  settings.arms = parse_arms(settings.arm_list);
  check_sizes(settings.sizes);
  check_windows(settings.sizes, "--val-tokens", settings.validation_tokens);
  check_arms(settings);
  check_number("--weight-scale", settings.sizes.weight_scale);
  check_number("--router-deviation", settings.sizes.router_deviation);
  check_number("--learning-rate", settings.learning_rate);
  if (settings.trace_every > settings.steps) {
    throw UserError("--trace-every is beyond the last step: lower it, or raise --steps");
  }
  check_swaps(settings.swaps, settings.steps, "", "--swap-on-at", "--swap-off-at");
}

}  // namespace train_moe

#endif  // TRAIN_MOE_SETTINGS_HPP
