// SPDX-License-Identifier: MIT
// Everything that the command line sets, and whether it fits the job.
#ifndef EXPERT_PARALLEL_PARALLEL_SETTINGS_HPP
#define EXPERT_PARALLEL_PARALLEL_SETTINGS_HPP

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "settings.hpp"

namespace expert_parallel {

struct Settings {
  std::string text;  // empty: the Eigen headers
  std::string arm_list = "off,eliminate";
  std::vector<train_moe::Arm> arms;
  std::string shares;  // empty: equal ones
  train_moe::Sizes sizes;
  std::int64_t seed = 1;
  std::int64_t steps = 20;
  std::int64_t refresh_every = 1;
  double learning_rate = 3e-3;
  double bias_rate = 1e-3;
  int threads = 1;
  int fail_on_rank = -1;
};

/// The modifiers of train_moe that this program's layers follow.
inline std::vector<train_moe::ArmPart> shared_modifiers() {
  std::vector<train_moe::ArmPart> shared;
  for (const train_moe::ArmPart& modifier : train_moe::arm_modifiers()) {
    for (const char* name : {"balance", "quantile", "sigmoid"}) {
      if (modifier.name == std::string(name)) shared.push_back(modifier);
    }
  }
  return shared;
}

/// Refuses the others.
inline void check_modifiers(const std::vector<train_moe::Arm>& arms) {
  const std::vector<train_moe::ArmPart> shared = shared_modifiers();
  for (const train_moe::Arm& arm : arms) {
    for (const std::string& name : arm.modifiers) {
      const auto knows = [&](const train_moe::ArmPart& part) { return part.name == name; };
      if (std::none_of(shared.begin(), shared.end(), knows)) {
        throw train_moe::UserError("arm '" + arm.name + "': only train_moe has +" + name +
                                   ": choose from " + train_moe::choices_of(shared));
      }
    }
  }
}

inline void add_options(CLI::App& app, Settings& s) {
  using train_moe::count;
  app.option_defaults()->always_capture_default()->take_last();
  constexpr std::int64_t many = 1000000000;
  app.add_option("--text", s.text, "File or folder that rank 0 reads [the Eigen headers]");
  app.add_option("--arms", s.arm_list, train_moe::arms_help(shared_modifiers()));
  app.add_option("--shares", s.shares, "Tokens of each rank, with commas [equal]");
  train_moe::add_size_options(app, s.sizes);
  app.add_option("--seed", s.seed, "Of parameters and batches")->check(count(0, many));
  app.add_option("--steps", s.steps, "Optimizer steps per arm")->check(count(1, many));
  app.add_option("--refresh-every", s.refresh_every, "Steps between two choices of partners")
      ->check(count(1, many));
  app.add_option("--learning-rate", s.learning_rate, "Adam's, falling over the second half")
      ->check(CLI::Range(1e-12, 10.0));
  app.add_option("--bias-rate", s.bias_rate,
                 "Change of the expert bias per step, 0 for no bias; without +quantile")
      ->check(CLI::Range(0.0, 1e3));
  app.add_option("--threads", s.threads, "Threads per rank; results do not depend on them")
      ->check(CLI::Range(1, train_moe::max_threads()));
  app.add_option("--fail-on-rank", s.fail_on_rank,
                 "Let this rank fail in the first step, to see the job end [none]")
      ->check(count(0, many));
}

/// What one option alone cannot tell.
inline void check_settings(Settings& settings, int ranks) {
  settings.arms = train_moe::parse_arms(settings.arm_list);
  check_modifiers(settings.arms);
  train_moe::check_sizes(settings.sizes);
  train_moe::check_number("--weight-scale", settings.sizes.weight_scale);
  train_moe::check_number("--learning-rate", settings.learning_rate);
  train_moe::check_number("--bias-rate", settings.bias_rate);
  if (settings.sizes.experts % ranks != 0) {
    throw train_moe::UserError(std::to_string(settings.sizes.experts) +
                               " experts do not divide evenly among " + std::to_string(ranks) +
                               " ranks: change --experts, or the number of ranks (mpirun -np)");
  }
  if (settings.fail_on_rank >= ranks) {
    throw train_moe::UserError("--fail-on-rank is " + std::to_string(settings.fail_on_rank) +
                               ", but there are only " + std::to_string(ranks) + " ranks");
  }
}

}  // namespace expert_parallel

#endif  // EXPERT_PARALLEL_PARALLEL_SETTINGS_HPP
