// SPDX-License-Identifier: MIT
// The grid: the models, and the comparisons of arms on them that answer a question each.
#ifndef STUDY_GRID_HPP
#define STUDY_GRID_HPP

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "metrics.hpp"

namespace study {

/// A model and how it is trained, as options of train_moe.
struct ModelSpec {
  const char* name;
  const char* options;
  const char* description;
};

/// What all models share.
inline constexpr const char* common_options =
    "--steps 300 --eval-every 100 --val-tokens 8192 --no-plots";

inline const std::vector<ModelSpec>& models() {
  static const std::vector<ModelSpec> all{
      {"tiny", "", "64 experts, k = 6, two layers, no attention"},
      {"attention", "--window 32 --context 4",
       "the same with a layer of causal attention before each MoE layer"},
      {"e128", "--experts 128", "128 experts, k = 6: the paper's shape"},
      {"e256", "--experts 256", "256 experts, k = 6"},
      {"e16", "--experts 16", "16 experts, k = 6"},
      {"e16-k1", "--experts 16 --top-k 1", "16 experts, k = 1"},
      {"e64-k1", "--top-k 1", "64 experts, k = 1"},
      {"e256-k1", "--experts 256 --top-k 1", "256 experts, k = 1"},
      {"e16-k2", "--experts 16 --top-k 2", "16 experts, k = 2"},
      {"e64-k2", "--top-k 2", "64 experts, k = 2"},
      {"e256-k2", "--experts 256 --top-k 2", "256 experts, k = 2"},
      {"deep", "--layers 6", "six layers"},
      {"long", "--steps 1500 --eval-every 500", "five times as many steps"},
      {"init-large", "--router-deviation 0.125", "router weights drawn with deviation 1/sqrt(H)"},
      {"init-small", "--router-deviation 1e-3", "router weights drawn with deviation 1e-3"},
      {"init-zero", "--router-deviation 1e-6",
       "router weights drawn with deviation 1e-6, so that 1e-4 eliminates at the start"},
  };
  return all;
}

inline const ModelSpec& model_named(const std::string& name) {
  for (const ModelSpec& model : models()) {
    if (model.name == name) return model;
  }
  throw std::invalid_argument("no model is named " + name);
}

/// The options of train_moe that make a model.
inline std::string options_of(const std::string& model) {
  const std::string own = model_named(model).options;
  return std::string(common_options) + (own.empty() ? "" : " ") + own;
}

/// What makes a run what it is, but for its seed.
inline std::string recipe_of(const RunKey& key) {
  return recipe_of(options_of(key.model) + " --arms " + key.arm);
}

/// An arm against another one on the same model and seeds; without the other one, against 0.
struct Trial {
  std::string model;
  std::string arm;
  std::string against;
  bool in_short = false;   // part of the study of ten minutes, too
  bool ten_seeds = false;  // ten seeds in the whole study, not five
};

enum class Kind { effect, no_harm };

/// What is measured, how it is shown, and how much of it is worth having.
struct Measure {
  Metric metric;
  const char* quantity;
  const char* unit;
  int decimals;
  double scale;     // of what is shown
  double relevant;  // the least effect worth having, unscaled
  bool share;       // never below 0 nor above 1
};

/// What is asked of a measure, of all trials alike.
struct Question {
  const char* id;
  const char* title;
  const char* statement;  // what is claimed or asked, and by whom
  Measure measure;
  double sign;  // the direction that is claimed; of harm, for Kind::no_harm
  Kind kind;
  std::vector<Trial> trials;
  const char* caveat;  // what models of this size cannot show
};

using ArmPairs = std::vector<std::pair<std::string, std::string>>;

/// Each pair of arms on each model.
inline std::vector<Trial> trials(const std::vector<std::string>& model_names,
                                 const ArmPairs& arms) {
  std::vector<Trial> all;
  for (const std::string& model : model_names) {
    for (const auto& [arm, against] : arms) all.push_back({model, arm, against});
  }
  return all;
}

/// The same trials, with ten seeds in the whole study.
inline std::vector<Trial> with_ten_seeds(std::vector<Trial> all) {
  for (Trial& trial : all) trial.ten_seeds = true;
  return all;
}

/// The same trials, in the short study, too, and with ten seeds in the whole one.
inline std::vector<Trial> in_short(std::vector<Trial> all) {
  for (Trial& trial : all) trial.in_short = true;
  return with_ten_seeds(std::move(all));
}

inline std::vector<Trial> operator+(std::vector<Trial> all, const std::vector<Trial>& more) {
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

}  // namespace study

#endif  // STUDY_GRID_HPP
