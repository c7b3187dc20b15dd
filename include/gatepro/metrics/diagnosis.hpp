// SPDX-License-Identifier: MIT
// What a run's metrics say is wrong with it: signatures of failure, with evidence and remedy.
#ifndef GATEPRO_METRICS_DIAGNOSIS_HPP
#define GATEPRO_METRICS_DIAGNOSIS_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "gatepro/core/checks.hpp"
#include "gatepro/core/order.hpp"
#include "gatepro/routing/rules.hpp"

namespace gatepro {

/// What a layer's metrics were in a step; nothing for what was not measured, and what needs it is
/// not looked for. Shares are between 0 and 1.
struct LayerSnapshot {
  std::optional<double> inactive_share{};      ///< LoadMetrics::inactive_share of the step.
  std::optional<double> mean_similarity{};     ///< Mean of pairwise_similarity.
  std::optional<double> partner_similarity{};  ///< Mean of partner_similarity.
  std::optional<double> changed_share{};       ///< PenaltyShares::changed.
  std::optional<double> lost_in_rounding{};    ///< PenaltyShares::lost_in_rounding.
  std::optional<double> short_of_survivors{};  ///< PenaltyShares::short_of_survivors.
  std::optional<double> coactivation{};  ///< Coactivation::partner_rate of the present partners.
  std::optional<double> unpenalised_coactivation{};  ///< The same, had nobody been penalised.
  /// changed_partners between those in use and those of the present weights, over E.
  std::optional<double> stale_partners{};
  /// LoadMetrics::chance_inactive_share of the step: few tokens can't reach many experts.
  std::optional<double> chance_inactive_share{};
  std::optional<double> choices_per_token{};  ///< K, or the mean where tokens make fewer choices.
};

/// A step of a run.
struct StepSnapshot {
  /// Its number, counted from 1: it tells how old a run is, and which steps of two runs compare.
  std::int64_t step = 0;
  std::optional<double> loss{};             ///< Of the training; a NaN is a loss that is one.
  std::optional<double> validation_loss{};  ///< Where it was measured.
  std::vector<LayerSnapshot> layers{};      ///< The layers, in the same order in each step.
};

/// A run, as far as diagnose has to know it.
struct RunHistory {
  Competition competition = Competition::off();  ///< The rule at the end of the run.
  std::vector<StepSnapshot> steps{};             ///< All or every so many, by ascending numbers.
};

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

/// One thing that is wrong.
struct Finding {
  Signature signature = Signature::expert_collapse;  ///< What.
  std::string evidence;         ///< What was measured, where, and what healthy runs have.
  const char* remedy = "";      ///< What to do.
  Index layer = -1;             ///< The layer that shows it most; -1 for the run as a whole.
  Index layers = 0;             ///< The layers that show it.
  double value = 0;             ///< The number measured in `layer`.
  double threshold = 0;         ///< Where it starts to count.
  double healthy_least = 0;     ///< The range of healthy runs starts here.
  double healthy_most = 0;      ///< It ends here.
  std::int64_t first_step = 0;  ///< The steps that were looked at start here.
  std::int64_t last_step = 0;   ///< They end here.
};

namespace detail {
inline namespace GATEPRO_ABI {

/// Nothing for a NaN, also under -ffast-math, where comparisons don't know one.
inline std::optional<double> unless_nan(double value) {
  return key_of(value) == Order<double>::nan ? std::optional<double>() : value;
}

/// The steps of a run from one number to another, as means of what was measured there.
class StepRange {
 public:
  StepRange(const RunHistory& run, std::int64_t first_step, std::int64_t last_step)
      : run_(run), first_step_(first_step), last_step_(last_step) {}
  /// The last quarter of a run that has steps.
  explicit StepRange(const RunHistory& run)
      : StepRange(run, run.steps[run.steps.size() * 3 / 4].step, run.steps.back().step) {}

  const RunHistory& run() const { return run_; }
  std::int64_t first_step() const { return first_step_; }
  std::int64_t last_step() const { return last_step_; }

  /// Nothing if nothing was measured, or a NaN.
  std::optional<double> mean(Index layer, std::optional<double> LayerSnapshot::*member) const {
    const auto at = static_cast<std::size_t>(layer);
    return mean_of([&](const StepSnapshot& step) {
      return at < step.layers.size() ? step.layers[at].*member : std::optional<double>();
    });
  }
  std::optional<double> mean(std::optional<double> StepSnapshot::*member) const {
    return mean_of([&](const StepSnapshot& step) { return step.*member; });
  }

 private:
  template <class Value>
  std::optional<double> mean_of(const Value& value) const {
    double sum = 0, count = 0;
    for (const StepSnapshot& step : run_.steps) {
      if (step.step < first_step_ || step.step > last_step_) continue;
      const std::optional<double> measured = value(step);
      sum += measured.value_or(0);
      count += measured ? 1 : 0;
    }
    return count > 0 ? unless_nan(sum / count) : std::optional<double>();
  }

  const RunHistory& run_;
  std::int64_t first_step_;
  std::int64_t last_step_;
};

/// The end of a run and, if there is one, the same steps without competition.
struct Diagnosed {
  StepRange end;
  std::optional<StepRange> baseline{};

  Index layers() const { return static_cast<Index>(end.run().steps.back().layers.size()); }
  std::optional<double> mean(Index layer, std::optional<double> LayerSnapshot::*member) const {
    return end.mean(layer, member);
  }
  /// Nothing unless both were measured; by which metric of a layer, or of the run.
  template <class... Metric>
  std::optional<double> above_baseline(const Metric&... metric) const {
    if (!baseline) return {};
    const auto with = end.mean(metric...), without = baseline->mean(metric...);
    return with && without ? unless_nan(*with - *without) : std::optional<double>();
  }
  const Competition& competition() const { return end.run().competition; }
};

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

/// A set changes where a selected expert loses to its partner, which is selected, too: so it takes
/// one co-activation away, or more, however many there are and however few sets change.
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

/// "0.25", as short as 3 digits can be.
inline std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

inline Finding finding_of(const SignatureRule& rule, double value, std::int64_t first_step,
                          std::int64_t last_step) {
  Finding finding;
  finding.signature = rule.signature;
  finding.remedy = rule.remedy;
  finding.value = value;
  finding.threshold = rule.threshold;
  finding.healthy_least = rule.healthy_least;
  finding.healthy_most = rule.healthy_most;
  finding.first_step = first_step;
  finding.last_step = last_step;
  return finding;
}

/// Sets the evidence, when all else is known.
inline void state_evidence(const SignatureRule& rule, Finding& finding) {
  std::string& text = finding.evidence;
  text = std::string(rule.measure) + ": " + short_number(finding.value);
  if (finding.layer >= 0) {
    text += " in layer " + std::to_string(finding.layer);
    if (finding.layers > 1) text += ", the worst of " + std::to_string(finding.layers);
  }
  text += ", steps " + std::to_string(finding.first_step) + " to " +
          std::to_string(finding.last_step) + "; counts from " + short_number(rule.threshold) +
          (rule.wants_more() ? " down" : "") + ", healthy runs have " +
          short_number(rule.healthy_least) + " to " + short_number(rule.healthy_most);
}

/// Adds a finding if a layer shows the signature: of the layer that shows it most.
inline void find_in_layers(const SignatureRule& rule, const Diagnosed& run,
                           std::vector<Finding>& findings) {
  Finding worst;
  double most = -1;
  Index shown = 0;
  if (run.end.last_step() < rule.youngest) return;
  for (Index layer = 0; layer < run.layers(); ++layer) {
    const std::optional<double> value = rule.value(run, layer);
    const double excess = rule.excess(value);
    if (excess < 0) continue;
    ++shown;
    if (excess <= most) continue;
    most = excess;
    worst = finding_of(rule, *value, run.end.first_step(), run.end.last_step());
    worst.layer = layer;
  }
  if (shown == 0) return;
  worst.layers = shown;
  state_evidence(rule, worst);
  const double lost = run.mean(worst.layer, &LayerSnapshot::lost_in_rounding).value_or(0);
  if (rule.signature == Signature::lambda_without_effect && lost > 0) {
    worst.evidence += "; of the penalties, " + short_number(lost) + " vanish in rounding";
  }
  findings.push_back(worst);
}

inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// By how much a loss exceeds the median of up to 16 before it, if that is more than 6 times the
/// usual step from one to the next. Infinity if it is not finite, 0 if there are too few to tell.
inline double jump_of_loss(const std::vector<StepSnapshot>& steps, std::size_t at) {
  constexpr std::size_t window = 16, fewest = 4;
  if (!steps[at].loss) return 0;
  if (!is_finite(*steps[at].loss)) return std::numeric_limits<double>::infinity();
  std::vector<double> before, moves;
  for (std::size_t i = at - (std::min)(at, window); i < at; ++i) {
    if (!steps[i].loss || !is_finite(*steps[i].loss)) continue;
    if (!before.empty()) moves.push_back((std::abs)(*steps[i].loss - before.back()));
    before.push_back(*steps[i].loss);
  }
  if (before.size() < fewest) return 0;
  const double jump = *steps[at].loss - median(before);
  return jump > 6 * median(moves) ? jump : 0;
}

/// Adds a finding for the largest jump of the loss in all of the run, if it is large.
inline void find_instability(const RunHistory& run, std::vector<Finding>& findings) {
  double largest = 0;
  std::size_t where = 0;
  for (std::size_t at = 0; at < run.steps.size(); ++at) {
    const double jump = jump_of_loss(run.steps, at);
    if (jump > largest) {
      largest = jump;
      where = at;
    }
  }
  if (instability_rule.excess(largest) < 0) return;
  const std::int64_t step = run.steps[where].step;
  findings.push_back(finding_of(instability_rule, largest, step, step));
  state_evidence(instability_rule, findings.back());
}

inline void find_suppression(const Diagnosed& run, std::vector<Finding>& findings) {
  if (run.end.last_step() < suppression_rule.youngest) return;
  const std::optional<double> value = suppression_rule.value(run, -1);
  if (suppression_rule.excess(value) < 0) return;
  findings.push_back(
      finding_of(suppression_rule, *value, run.end.first_step(), run.end.last_step()));
  state_evidence(suppression_rule, findings.back());
}

inline void check_steps(const char* argument, const RunHistory& run) {
  for (std::size_t i = 1; i < run.steps.size(); ++i) {
    const std::int64_t step = run.steps[i].step, before = run.steps[i - 1].step;
    if (step > before) continue;
    Checks("diagnose")
        .refuse(argument, "steps in ascending order", {{"step", step}, {"the one before", before}});
  }
}

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

/// What is wrong with a run, by its last quarter; instability by all of it. Empty if nothing is, or
/// if nothing was measured that would show it.
///
/// baseline: the same run without competition, or null. With one, over-suppression is looked for,
/// and whether similarities fell, by what both have of the same steps. What training has yet to
/// bring about, such as experts in use, is not missed before step 100. The thresholds are those of
/// small models, and some signatures are what the method does there, not what was done wrong: a
/// finding is where to look. Throws Error for steps whose numbers do not ascend. Allocates.
/// Thread-safe.
inline std::vector<Finding> diagnose(const RunHistory& run, const RunHistory* baseline = nullptr) {
  std::vector<Finding> findings;
  detail::check_steps("run", run);
  if (run.steps.empty()) return findings;
  detail::Diagnosed diagnosed{detail::StepRange(run)};
  if (baseline != nullptr) {
    detail::check_steps("baseline", *baseline);
    diagnosed.baseline.emplace(*baseline, diagnosed.end.first_step(), diagnosed.end.last_step());
  }
  for (const detail::SignatureRule& rule : detail::layer_rules) {
    detail::find_in_layers(rule, diagnosed, findings);
  }
  detail::find_instability(run, findings);
  detail::find_suppression(diagnosed, findings);
  return findings;
}

/// The findings as text, two lines each; "" for none.
inline std::string describe(const std::vector<Finding>& findings) {
  std::string text;
  for (const Finding& finding : findings) {
    text += std::string(signature_name(finding.signature)) + ": " + finding.evidence + '\n';
    text += std::string("  remedy: ") + finding.remedy + '\n';
  }
  return text;
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_METRICS_DIAGNOSIS_HPP
