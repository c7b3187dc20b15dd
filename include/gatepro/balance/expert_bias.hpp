// SPDX-License-Identifier: MIT
// A bias per expert that steers the choice towards an even load without a loss.
#ifndef GATEPRO_BALANCE_EXPERT_BIAS_HPP
#define GATEPRO_BALANCE_EXPERT_BIAS_HPP

#include <algorithm>
#include <cstdint>
#include <vector>

#include "gatepro/balance/balance_counts.hpp"
#include "gatepro/core/order.hpp"
#include "gatepro/core/product.hpp"
#include "gatepro/routing/selection_checks.hpp"

namespace gatepro {
namespace detail {

inline namespace GATEPRO_ABI {

/// sign(total / E - count), exactly.
inline int load_error_sign(std::int64_t total, std::int64_t experts, std::int64_t count) {
  const std::int64_t mean = total / experts;
  if (count != mean) return count < mean ? 1 : -1;
  return total % experts != 0 ? 1 : 0;
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// The expert bias of auxiliary-loss-free balancing (Wang et al. 2024, arXiv 2408.15664), and the
/// counts that move it. `B` is float or double.
///
/// The bias is added to the scores for the choice only; weights come from the unbiased scores.
/// Counts are int64 from the routing to the sign of the error, so that no load is ever rounded.
/// Each training forward calls `accumulate`, each optimizer step calls `step`. Evaluation and
/// recomputation call neither, which is what freezes the bias.
///
/// Allocates when made only. Const calls may run concurrently; the others must be alone. One that
/// was moved from holds nothing, and refuses to work.
template <class B = float>
class ExpertBias {
 public:
  /// E zeros, nothing counted. Throws Error for E < 1.
  explicit ExpertBias(Index num_experts) {
    detail::check_bias_type<B>();
    detail::Checks("ExpertBias").num_experts(num_experts);
    values_.resize(static_cast<std::size_t>(num_experts));
    counts_.resize(values_.size());
    reduced_.resize(values_.size());
  }

  /// The bias of each expert, in units of the scores. Valid until the object goes.
  VectorView<const B> values() const { return values_; }
  /// This rank's counts since the last step.
  VectorView<const std::int64_t> counts() const { return counts_; }
  /// E; 0 once moved from.
  Index num_experts() const { return static_cast<Index>(values_.size()); }

  /// Adds the counts of a micro-batch on this rank, padding not among them. Throws Error for the
  /// size, a negative count, or a sum beyond int64, before any change. Cost: E.
  void accumulate(VectorView<const std::int64_t> tokens_per_expert_E) {
    check_not_moved_from("ExpertBias::accumulate");
    detail::check_counts("ExpertBias::accumulate", "tokens_per_expert_E", tokens_per_expert_E,
                         num_experts());
    detail::add_counts("ExpertBias::accumulate", tokens_per_expert_E, counts_);
  }

  /// b_i += update_rate * sign(mean - n_i) with the counts n of all ranks, and zeroes the counts.
  ///
  /// `reduce` is the hook that sums over ranks; see NoReduce. update_rate: finite, also as a B, >=
  /// 0, in units of the scores. `centre` subtracts the mean of the update, so that the mean of the
  /// bias stays as it is (torchtitan's rule). The sign is that of total - E n_i in integers, and
  /// the same on each rank; without tokens nothing changes. Throws Error for the rate, for what the
  /// hook leaves behind or for a bias that would not stay finite, and what the hook throws, before
  /// any change. Cost: E.
  template <class Reduce>
  void step(const Reduce& reduce, double update_rate, bool centre = false) {
    detail::check_reduce<Reduce>();
    const detail::Checks checks("ExpertBias::step");
    check_not_moved_from(checks);
    checks.need(detail::is_finite_as<B>(update_rate) && update_rate >= 0,
                "update_rate finite and >= 0", {{"update_rate", update_rate}});
    reduced_ = counts_;
    detail::reduce_counts(checks, reduce, reduced_);
    const std::int64_t total = detail::checked_sum(checks, reduced_);
    const auto experts = static_cast<std::int64_t>(reduced_.size());
    std::int64_t signs = 0;
    for (const std::int64_t n : reduced_) signs += detail::load_error_sign(total, experts, n);
    const double mean = centre ? static_cast<double>(signs) / static_cast<double>(experts) : 0;
    const auto moved = [&](std::size_t e) {
      const double direction = detail::load_error_sign(total, experts, reduced_[e]) - mean;
      return static_cast<double>(values_[e]) + detail::product(update_rate, direction);
    };
    for (std::size_t e = 0; e < values_.size(); ++e) {
      checks.need(detail::is_finite_as<B>(moved(e)), "a bias that stays finite",
                  {{"value", moved(e)}, {"expert", e}});
    }
    for (std::size_t e = 0; e < values_.size(); ++e) values_[e] = static_cast<B>(moved(e));
    std::fill(counts_.begin(), counts_.end(), std::int64_t{0});
  }

  /// Sets bias and counts to zero.
  void zero() {
    check_not_moved_from("ExpertBias::zero");
    std::fill(values_.begin(), values_.end(), B(0));
    std::fill(counts_.begin(), counts_.end(), std::int64_t{0});
  }

  /// Takes bias and counts from a checkpoint. Throws Error for sizes, a value that is not finite,
  /// or a negative count, before any change.
  void restore(VectorView<const B> values, VectorView<const std::int64_t> counts) {
    const detail::Checks checks("ExpertBias::restore");
    check_not_moved_from(checks);
    checks.vector("bias_E", values, num_experts());
    detail::check_bias_values<B>(checks, "bias_E", values);
    detail::check_counts(checks, "counts", counts, num_experts());
    std::copy(values.data, values.data + values.size, values_.begin());
    std::copy(counts.data, counts.data + counts.size, counts_.begin());
  }

 private:
  void check_not_moved_from(const detail::Checks& checks) const {
    checks.need(!values_.empty(), "a bias that was not moved from");
  }

  std::vector<B> values_;
  std::vector<std::int64_t> counts_;
  std::vector<std::int64_t> reduced_;  // where the hook works, so that a failure changes nothing
};

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_BALANCE_EXPERT_BIAS_HPP
