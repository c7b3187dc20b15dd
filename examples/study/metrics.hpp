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
  mean_angle,          // over all pairs of router rows, in degrees, at the last step
  spectral_entropy,    // of the router's similarities, in nats, at the last step
  spectral_entropy_weights,  // of the singular values of the router weights, the same way
  margin,                    // the median gap between the k-th logit and the next, at the last step
  lambda_one_percent,        // the penalty that would change the experts of 1 % of the tokens there
  changed,                   // share of tokens whose set of experts the penalty changed, at the end
  changed_early,             // the same, in the first ten steps
  coactivation,        // P(the most similar expert is selected too | an expert is), at the end
  coactivation_free,   // the same, of the logits before the penalty
  lift,                // co-activation with the most similar expert, over chance, at the last step
  excess_lift,         // lift - 1: 0 is chance
  partners_changed,    // experts per step whose partner changed, as a share, at the end
  output_correlation,  // rank correlation of router-row and expert-output similarity, over pairs
  output_cosine,       // mean cosine of the outputs of two experts
  output_partner,      // the same, of an expert and its most similar one by the router
  output_excess,       // output_partner - output_cosine: 0 if partners are like any pair
  output_agreement,    // share of experts whose most similar one is the same by rows and outputs
  agreement_excess,    // output_agreement - 1 / (E - 1): 0 is chance
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
                                                                    "mean_angle",
                                                                    "spectral_entropy",
                                                                    "spectral_entropy_weights",
                                                                    "margin",
                                                                    "lambda_one_percent",
                                                                    "changed",
                                                                    "changed_early",
                                                                    "coactivation",
                                                                    "coactivation_free",
                                                                    "lift",
                                                                    "excess_lift",
                                                                    "partners_changed",
                                                                    "output_correlation",
                                                                    "output_cosine",
                                                                    "output_partner",
                                                                    "output_excess",
                                                                    "output_agreement",
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
  std::string text;    // see text_hash
  std::array<double, metric_count> values{};

  double& operator[](Metric metric) { return values[static_cast<std::size_t>(metric)]; }
  double operator[](Metric metric) const { return values[static_cast<std::size_t>(metric)]; }
};

/// FNV-1a of some bytes, in hexadecimal digits.
template <class Word>
std::string hash_of(const std::string& bytes, Word hash, Word prime) {
  for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * prime;
  std::string digits;
  for (int shift = 8 * static_cast<int>(sizeof hash) - 4; shift >= 0; shift -= 4) {
    digits += "0123456789abcdef"[hash >> shift & 15U];
  }
  return digits;
}

/// Eight digits that stand for the options of a run. A row made with other options has another
/// recipe, and is not mixed with these.
inline std::string recipe_of(const std::string& options) {
  return hash_of<std::uint32_t>(options, 2166136261U, 16777619U);
}

/// Sixteen digits that stand for the text that a run learnt from.
inline std::string text_hash(const std::string& bytes) {
  return hash_of<std::uint64_t>(bytes, 14695981039346656037U, 1099511628211U);
}

}  // namespace study

#endif  // STUDY_METRICS_HPP
