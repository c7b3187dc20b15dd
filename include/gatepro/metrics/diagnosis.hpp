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

#include "gatepro/core/order.hpp"
#include "gatepro/metrics/signatures.hpp"

namespace gatepro {

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
  if (run.last_step() < rule.youngest) return;
  for (Index layer = 0; layer < run.layers(); ++layer) {
    const std::optional<double> value = rule.value(run, layer);
    const double excess = rule.excess(value);
    if (excess < 0) continue;
    ++shown;
    if (excess <= most) continue;
    most = excess;
    worst = finding_of(rule, *value, run.first_step(), run.last_step());
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
  if (run.last_step() < suppression_rule.youngest) return;
  const std::optional<double> value = suppression_rule.value(run, -1);
  if (suppression_rule.excess(value) < 0) return;
  findings.push_back(finding_of(suppression_rule, *value, run.first_step(), run.last_step()));
  state_evidence(suppression_rule, findings.back());
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// What is wrong with a run, by its last quarter; instability by all of it. Empty if nothing is, or
/// if nothing was measured that would show it.
///
/// baseline: the same run without competition, or null. With one, over-suppression is looked for,
/// and whether similarities fell, by the steps in which both were measured. What training has yet
/// to bring about, such as experts in use, is not missed before step 100. The thresholds are those
/// of small models, and some signatures are what the method does there, not what was done wrong: a
/// finding is where to look. Throws Error for steps whose numbers do not ascend. Allocates.
/// Thread-safe.
inline std::vector<Finding> diagnose(const RunHistory& run, const RunHistory* baseline = nullptr) {
  std::vector<Finding> findings;
  detail::check_steps("run", run);
  if (run.steps.empty()) return findings;
  if (baseline != nullptr) detail::check_steps("baseline", *baseline);
  const detail::Diagnosed diagnosed(run, baseline);
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
