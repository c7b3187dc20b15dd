// SPDX-License-Identifier: MIT
// What is kept of a run: one number per metric.
#ifndef STUDY_METRICS_HPP
#define STUDY_METRICS_HPP

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <tuple>

namespace study {

/// The metrics of a run. Routing metrics are means over the layers; "at the end" is the last
/// quarter of the steps.
enum class Metric : std::size_t {
  val_loss,            // at the last step, as trained
  val_loss_off,        // the same, without competition
  mismatch,            // the difference: what it costs to take the penalty away after training
  train_loss,          // at the end
  unused_early,        // share of experts without a token, first half of the steps
  unused,              // at the end
  unused_first_layer,  // the same, of the first layer
  unused_last_layer,   // the same, of the last layer
  unused_depth,        // the difference: last layer less first
  used_step,           // share of the steps after which at most 20 of 128 stay unused
  max_violation,       // largest load over the mean load, less 1, at the end
  gini,                // of the loads, at the last step
  load_entropy,        // the same, over that of even loads
  mean_cosine,         // over all pairs of router rows, at the end
  partner_cosine,      // over each expert and its most similar one, at the end
  spectral_entropy,    // of the router's similarities, in nats, at the last step
  margin,              // the median gap between the k-th logit and the next, at the last step
  lambda_one_percent,  // the penalty that would change the experts of 1 % of the tokens there
  changed,             // share of tokens whose set of experts the penalty changed, at the end
  coactivation,        // P(the most similar expert is selected too | an expert is), at the end
  lift,                // co-activation with the most similar expert, over chance, at the last step
  coactivation_free,   // the same, of the logits before the penalty
  partners_changed,    // experts per step whose partner changed, as a share, at the end
  output_correlation,  // rank correlation of router-row and expert-output similarity, over pairs
  output_cosine,       // mean cosine of the outputs of two experts
  output_partner,      // the same, of an expert and its most similar one by the router
  output_agreement,    // share of experts whose most similar one is the same by rows and outputs
  changed_early,
  spectral_entropy_weights,
  mean_angle,
  excess_lift,
  output_excess,
  agreement_excess,
  count
};

inline constexpr std::size_t metric_count = static_cast<std::size_t>(Metric::count);

/// Their names in files.
inline constexpr std::array<const char*, metric_count> metric_names{"val_loss",
                                                                    "val_loss_off",
                                                                    "mismatch",
                                                                    "train_loss",
                                                                    "unused_early",
                                                                    "unused",
                                                                    "unused_first_layer",
                                                                    "unused_last_layer",
                                                                    "unused_depth",
                                                                    "used_step",
                                                                    "max_violation",
                                                                    "gini",
                                                                    "load_entropy",
                                                                    "mean_cosine",
                                                                    "partner_cosine",
                                                                    "spectral_entropy",
                                                                    "margin",
                                                                    "lambda_one_percent",
                                                                    "changed",
                                                                    "coactivation",
                                                                    "lift",
                                                                    "coactivation_free",
                                                                    "partners_changed",
                                                                    "output_correlation",
                                                                    "output_cosine",
                                                                    "output_partner",
                                                                    "output_agreement",
                                                                    "changed_early",
                                                                    "spectral_entropy_weights",
                                                                    "mean_angle",
                                                                    "excess_lift",
                                                                    "output_excess",
                                                                    "agreement_excess"};

/// Which run: a model of the grid, an arm of train_moe, a seed.
struct RunKey {
  std::string model;
  std::string arm;
  std::int64_t seed = 0;

  friend bool operator==(const RunKey& a, const RunKey& b) {
    return std::tie(a.model, a.arm, a.seed) == std::tie(b.model, b.arm, b.seed);
  }
  friend bool operator<(const RunKey& a, const RunKey& b) {
    return std::tie(a.model, a.arm, a.seed) < std::tie(b.model, b.arm, b.seed);
  }
};

/// A finished run.
struct RunSummary {
  RunKey key;
  std::string recipe;  // see recipe_of
  std::array<double, metric_count> values{};

  double& operator[](Metric metric) { return values[static_cast<std::size_t>(metric)]; }
  double operator[](Metric metric) const { return values[static_cast<std::size_t>(metric)]; }
};

/// Eight hexadecimal digits that stand for a text: FNV-1a. A row made with other options has
/// another recipe, and is not mixed with these.
inline std::string recipe_of(const std::string& text) {
  std::uint32_t hash = 2166136261U;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619U;
  std::string digits;
  for (int shift = 28; shift >= 0; shift -= 4) digits += "0123456789abcdef"[hash >> shift & 15U];
  return digits;
}

}  // namespace study

#endif  // STUDY_METRICS_HPP
