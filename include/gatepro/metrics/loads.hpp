// SPDX-License-Identifier: MIT
// How evenly tokens are spread over the experts.
#ifndef GATEPRO_METRICS_LOADS_HPP
#define GATEPRO_METRICS_LOADS_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "gatepro/core/product.hpp"
#include "gatepro/metrics/tally.hpp"

namespace gatepro {

/// How even some loads are. Nothing routed counts as even, with all experts inactive.
struct LoadMetrics {
  Index zero_token_experts = 0;   ///< Experts without a token: the paper's zero token count.
  double inactive_share = 0;      ///< The same as a share of the experts.
  double max_violation = 0;       ///< MaxVio: largest load / mean load - 1. 0 is even.
  double variation = 0;           ///< Coefficient of variation: deviation / mean. 0 is even.
  double gini = 0;                ///< Mean |n_i - n_j| / (2 mean): 0 is even, 1 - 1/E one expert.
  double normalised_entropy = 1;  ///< -sum p ln p / ln E of the shares p: 1 is even, 0 one expert.
  double chance_inactive_share = 1;  ///< See the function: what inactive_share compares with.
};

namespace detail {
inline namespace GATEPRO_ABI {

/// Sum and sizes of some counts, in double: they are shares of each other in the end.
struct LoadSums {
  explicit LoadSums(const VectorView<const std::int64_t>& counts_E)
      : experts(static_cast<double>(counts_E.size)) {
    for (Index e = 0; e < counts_E.size; ++e) {
      const auto count = static_cast<double>(counts_E[e]);
      total += count;
      largest = (std::max)(largest, count);
    }
  }
  double mean() const { return total / experts; }

  double experts;
  double total = 0;
  double largest = 0;
};

/// What `choices` leave out if each takes any expert.
inline double chance_of_none(double choices, double experts) {
  return std::pow(1 - 1 / experts, choices);
}

inline double load_variation(const VectorView<const std::int64_t>& counts_E, const LoadSums& sums) {
  double squares = 0;
  for (Index e = 0; e < counts_E.size; ++e) {
    const double difference = static_cast<double>(counts_E[e]) - sums.mean();
    squares += product(difference, difference);
  }
  return std::sqrt(squares / sums.experts) / sums.mean();
}

inline double load_entropy(const VectorView<const std::int64_t>& counts_E, const LoadSums& sums) {
  double entropy = 0;
  for (Index e = 0; e < counts_E.size; ++e) {
    const double p = static_cast<double>(counts_E[e]) / sums.total;
    if (p > 0) entropy -= product(p, std::log(p));
  }
  return entropy / std::log(sums.experts);
}

/// Of counts in ascending order: the pair of places i and E - 1 - i weighs by what lies between.
inline double load_gini(const VectorView<const std::int64_t>& sorted_E, const LoadSums& sums) {
  double weighed = 0;
  for (Index i = 0; i < sorted_E.size; ++i) {
    const auto place = static_cast<double>(2 * i + 1 - sorted_E.size);
    weighed += product(place, static_cast<double>(sorted_E[i]));
  }
  return weighed / (sums.experts * sums.total);
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// The share of the experts that `choices` leave without a token if each takes any expert:
/// (1 - 1/E)^choices. Few choices can't reach many experts: 64 of 64 leave 0.37. The distinct ones
/// of a token leave a little less. Throws Error for E < 1 or choices < 0. Cost: none to speak of.
inline double chance_inactive_share(std::int64_t choices, Index num_experts) {
  const detail::Checks checks("chance_inactive_share");
  checks.need(choices >= 0, "choices >= 0", {{"choices", choices}});
  checks.num_experts(num_experts);
  return detail::chance_of_none(static_cast<double>(choices), static_cast<double>(num_experts));
}

/// Experts that got no token in a step: the paper's zero token count. Cost: E.
inline Index zero_token_experts(VectorView<const std::int64_t> tokens_per_expert_E) {
  return std::count(tokens_per_expert_E.data, tokens_per_expert_E.data + tokens_per_expert_E.size,
                    std::int64_t{0});
}

/// MaxVio, max / mean - 1 of the loads: 0 for a perfect balance. 0 if nothing was routed. Cost: E.
inline double max_violation(VectorView<const std::int64_t> tokens_per_expert_E) {
  const detail::LoadSums sums(tokens_per_expert_E);
  return sums.total > 0 ? sums.largest * sums.experts / sums.total - 1 : 0;
}

/// All measures of some loads.
///
/// tokens_per_expert_E: E counts, of a forward, a micro-batch (BalanceAccumulator::latest) or a
/// step (total, LoadCounts). sorted_E: E integers, overwritten with the counts in ascending order.
/// Throws Error for E < 1, sizes, a negative count, or memory of both, before any write. Cost: a
/// sort of E. No allocation. Thread-safe.
inline LoadMetrics load_metrics(VectorView<const std::int64_t> tokens_per_expert_E,
                                VectorView<std::int64_t> sorted_E) {
  const detail::Checks checks("load_metrics");
  const Index experts = tokens_per_expert_E.size;
  checks.num_experts(experts);
  detail::check_counts(checks, "tokens_per_expert_E", tokens_per_expert_E, experts);
  checks.vector("sorted_E", sorted_E, experts);
  checks.overlaps(detail::output("sorted_E", sorted_E),
                  detail::input("tokens_per_expert_E", tokens_per_expert_E));
  const detail::LoadSums sums(tokens_per_expert_E);
  LoadMetrics metrics;
  metrics.zero_token_experts = zero_token_experts(tokens_per_expert_E);
  metrics.inactive_share = detail::share_of(metrics.zero_token_experts, experts);
  std::copy(tokens_per_expert_E.data, tokens_per_expert_E.data + experts, sorted_E.data);
  std::sort(sorted_E.data, sorted_E.data + experts);
  if (!(sums.total > 0)) return metrics;
  metrics.max_violation = max_violation(tokens_per_expert_E);
  metrics.chance_inactive_share = detail::chance_of_none(sums.total, sums.experts);
  metrics.variation = detail::load_variation(tokens_per_expert_E, sums);
  metrics.gini = detail::load_gini(sorted_E, sums);
  if (experts > 1) metrics.normalised_entropy = detail::load_entropy(tokens_per_expert_E, sums);
  return metrics;
}

/// The loads of a step, and how uneven its micro-batches are, each for itself.
///
/// A sum over micro-batches hides that each is uneven in another way, so both MaxVio are worth a
/// curve. Sum the micro-batches of one layer: expert 0 of another layer is another expert.
class LoadCounts : public Tally<LoadCounts> {
 public:
  static constexpr const char* name = "LoadCounts";  ///< In messages.

  /// For E experts, nothing counted. Throws Error for E < 1.
  explicit LoadCounts(Index num_experts)
      : Tally(detail::checked_experts(name, num_experts) + 1),
        scratch_(static_cast<std::size_t>(size())) {}

  /// E.
  Index num_experts() const { return size() - 1; }

  /// Adds a micro-batch. Throws Error for the size, a negative count, or a sum beyond int64, before
  /// any change. Cost: E.
  void add(VectorView<const std::int64_t> tokens_per_expert_E) {
    detail::check_counts(name, "tokens_per_expert_E", tokens_per_expert_E, num_experts());
    std::copy(tokens_per_expert_E.data, tokens_per_expert_E.data + num_experts(), scratch_.begin());
    scratch_.back() = *std::max_element(scratch_.begin(), scratch_.end() - 1);
    merge(scratch_);
  }

  /// Loads of all that was added.
  VectorView<const std::int64_t> tokens_per_expert() const { return {at(0), num_experts()}; }
  /// Their measures. Sorts in memory of its own: must be alone.
  LoadMetrics metrics() {
    return load_metrics(tokens_per_expert(), {scratch_.data(), num_experts()});
  }
  /// Mean over the micro-batches of the MaxVio of each, weighted by its choices: E sum of the
  /// largest loads / sum of all loads - 1. 0 if nothing was routed.
  double micro_batch_max_violation() const {
    const detail::LoadSums sums(tokens_per_expert());
    const auto largest = static_cast<double>(*at(num_experts()));
    return sums.total > 0 ? largest * sums.experts / sums.total - 1 : 0;
  }

 private:
  std::vector<std::int64_t> scratch_;
};

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_METRICS_LOADS_HPP
