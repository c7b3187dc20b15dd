// SPDX-License-Identifier: MIT
// What tells that something is wrong with a run: numbers, thresholds, remedies.
#ifndef GATEPRO_METRICS_SIGNATURES_HPP
#define GATEPRO_METRICS_SIGNATURES_HPP

#include <cstddef>
#include <cstdint>
#include <optional>

#include "gatepro/metrics/run_history.hpp"
#include "gatepro/routing/rules.hpp"

namespace gatepro {

/// What may be wrong with a run. The first four are the paper's.
enum class Signature {
  expert_collapse,        ///< Many experts get no token.
  instability,            ///< The loss jumps, or is not finite.
  no_diversity_gain,      ///< The penalty changes choices, and similar experts stay together.
  over_suppression,       ///< The loss is worse than without competition.
  lambda_without_effect,  ///< The penalty changes hardly any choice.
  stale_partners,         ///< Experts compete with those that they were similar to once.
  short_of_survivors,     ///< Many tokens have to select losers.
  redundant_experts,      ///< Experts and their partners are near copies.
};

namespace detail {
inline namespace GATEPRO_ABI {

/// What a signature is told by: a number, where it starts to count, and what healthy runs have.
struct SignatureRule {
  Signature signature;
  const char* measure;
  double threshold;
  double healthy_least;
  double healthy_most;
  std::int64_t youngest;  ///< What training has yet to bring about is not looked for before.
  const char* remedy;
  /// In a layer, or in the run if `layer` is -1; nothing where it does not apply.
  std::optional<double> (*value)(const Diagnosed& run, Index layer) = nullptr;

  /// True if healthy numbers are the large ones.
  bool wants_more() const { return healthy_least > threshold; }
  /// How far a number is on the wrong side; negative on the right one, or for nothing.
  double excess(const std::optional<double>& number) const {
    if (!number) return -1;
    return wants_more() ? threshold - *number : *number - threshold;
  }
};

inline std::optional<double> value_of_collapse(const Diagnosed& run, Index layer) {
  const auto inactive = run.mean(layer, &LayerSnapshot::inactive_share);
  if (!inactive) return {};
  return *inactive - run.mean(layer, &LayerSnapshot::chance_inactive_share).value_or(0);
}

/// With one partner per expert a set changes where a selected expert loses to its partner, which is
/// selected, too: so it takes one co-activation away, or more, however many there are and however
/// few sets change. With more, co-activations are still those with the first one, which may lower
/// the number.
inline std::optional<double> value_of_coactivation(const Diagnosed& run, Index layer) {
  const auto with = run.mean(layer, &LayerSnapshot::coactivation);
  const auto without = run.mean(layer, &LayerSnapshot::unpenalised_coactivation);
  const auto choices = run.mean(layer, &LayerSnapshot::choices_per_token);
  const double changed = run.mean(layer, &LayerSnapshot::changed_share).value_or(0);
  if (!with || without.value_or(0) <= 0 || !choices || changed < 0.01) return {};
  return unless_nan(*choices * (*without - *with) / changed);
}

/// Similarity is no gain if it is there in the experts that are used instead.
inline std::optional<double> value_of_similarity(const Diagnosed& run, Index layer) {
  const auto idle = run.above_baseline(layer, &LayerSnapshot::inactive_share);
  const auto changed = run.mean(layer, &LayerSnapshot::changed_share);
  if (changed.value_or(0) < 0.1 || idle.value_or(0) < -0.02) return {};
  return run.above_baseline(layer, &LayerSnapshot::mean_similarity);
}

inline std::optional<double> value_of_suppression(const Diagnosed& run, Index) {
  if (!run.competition().active()) return {};
  return run.above_baseline(&StepSnapshot::validation_loss);
}

inline std::optional<double> value_of_effect(const Diagnosed& run, Index layer) {
  const Competition& competition = run.competition();
  if (!competition.active() || competition.mode != CompetitionMode::penalty) return {};
  return run.mean(layer, &LayerSnapshot::changed_share);
}

inline std::optional<double> value_of_staleness(const Diagnosed& run, Index layer) {
  if (!run.competition().active()) return {};
  return run.mean(layer, &LayerSnapshot::stale_partners);
}

inline std::optional<double> value_of_survivors(const Diagnosed& run, Index layer) {
  return run.mean(layer, &LayerSnapshot::short_of_survivors);
}

inline std::optional<double> value_of_redundancy(const Diagnosed& run, Index layer) {
  return run.mean(layer, &LayerSnapshot::partner_similarity);
}

/// When a router has found out which experts to use: before, many may idle.
inline constexpr std::int64_t settled = 100;

/// Thresholds stand between what healthy and what broken runs had: byte-level models of 2 to 3
/// layers with 32 to 64 experts, in 300 to 2000 steps (examples/train_moe). Others may have other
/// ranges.
inline constexpr SignatureRule layer_rules[] = {
    {Signature::expert_collapse, "share of experts without a token, above that of chance", 0.2, 0,
     0.1, settled,
     "add a balance loss (LossRule::batch = 1e-2) or a bias (BiasRule); if a penalty changes few "
     "choices, let it change more (AdaptiveLambda, Competition::eliminate)",
     value_of_collapse},
    {Signature::no_diversity_gain, "co-activations of partners that a changed choice takes away",
     0.5, 1, 6, 0,
     "give the router the partners of the weights that it routes by: refresh every 10 steps or "
     "more often",
     value_of_coactivation},
    {Signature::no_diversity_gain, "mean cosine above that of the run without competition", -0.005,
     -0.05, -0.02, settled,
     "with a balance loss no gain is to be expected: leave competition off, or let it change more "
     "choices while training is young",
     value_of_similarity},
    {Signature::lambda_without_effect, "share of tokens whose choice the penalty changes", 0.01,
     0.1, 0.65, 0,
     "ask for a share of the choices (AdaptiveLambda, 0.1) or eliminate losers: one lambda means "
     "something else at each scale of the logits; where neither changes more, losers are not "
     "chosen "
     "anyway",
     value_of_effect},
    {Signature::stale_partners,
     "share of experts whose partners are not those of the present weights", 0.3, 0, 0.06, 0,
     "refresh partners every 10 steps or more often", value_of_staleness},
    {Signature::short_of_survivors, "share of tokens that select a loser", 0.25, 0, 0.004, 0,
     "take fewer partners per expert, or fewer experts per token: about E / (m + 1) survive",
     value_of_survivors},
    {Signature::redundant_experts, "mean cosine of experts and their partners", 0.6, 0.25, 0.46, 0,
     "eliminate losers while training is young, or add an orthogonality loss; exact copies compete "
     "only if ties lose (TieRule::higher_id_loses)",
     value_of_redundancy}};

inline constexpr SignatureRule suppression_rule{
    Signature::over_suppression,
    "validation loss above that of the run without competition, in nats",
    0.02,
    -0.01,
    0.012,
    settled,
    "let fewer choices change (AdaptiveLambda, fewer partners, a least similarity), or switch "
    "competition off once the experts are in use",
    value_of_suppression};

inline constexpr SignatureRule instability_rule{
    Signature::instability,
    "jump of the loss, in nats",
    0.5,
    0,
    0.2,
    0,
    "lower the learning rate or lambda, clip gradients, or add a z-loss (LossRule::z = 1e-3)"};

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// A signature in words.
inline const char* signature_name(Signature signature) {
  constexpr const char* names[] = {
      "expert collapse",       "instability",    "no diversity gain",  "over-suppression",
      "lambda without effect", "stale partners", "short of survivors", "redundant experts"};
  return names[static_cast<std::size_t>(signature)];
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_METRICS_SIGNATURES_HPP
