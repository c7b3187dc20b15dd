// SPDX-License-Identifier: MIT
// The penalty that changes a wanted share of the choices, from what was routed lately.
#ifndef GATEPRO_METRICS_LAMBDA_ESTIMATE_HPP
#define GATEPRO_METRICS_LAMBDA_ESTIMATE_HPP

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "gatepro/metrics/margins.hpp"

namespace gatepro {

/// A lambda relative to the gap between the experts that a token selects and those that it does
/// not.
///
/// One lambda is nothing at one scale of the logits and elimination at another: the paper's 1e-4
/// changes 0.05 % of the sets of a small model at its start, and ever fewer as logits grow. A share
/// of the sets means the same at every scale, depth and precision.
struct AdaptiveLambda {
  /// The share of the tokens whose set the penalty is to change, in [0, 1]; 0: lambda stays as set.
  /// Where elimination would change fewer, lambda becomes the largest that changes any set.
  double share = 0;
  /// n >= 1: a step's tokens weigh 1 - 1/n in the next step that has any, and so on. More for small
  /// batches and small shares, of which a step shows few tokens; less where logits grow fast:
  /// lambda lags by what they grow in n steps.
  double memory = 16;
};

namespace detail {
inline namespace GATEPRO_ABI {

inline void check_adaptive_lambda(const Checks& checks, const AdaptiveLambda& rule) {
  checks.need(rule.share >= 0 && rule.share <= 1, "0 <= share <= 1", {{"share", rule.share}});
  checks.need(is_finite(rule.memory) && rule.memory >= 1, "memory finite and >= 1",
              {{"memory", rule.memory}});
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Estimates the lambda of an AdaptiveLambda: a histogram of the least lambdas that change a
/// token's set (see MarginCounts), which fades from step to step, and its quantile. Lambda does not
/// feed back into it, for margins are those of the raw logits, so nothing can oscillate.
/// CompleteRouter has one if CompleteConfig::adaptive_lambda asks for it; with a Router of your
/// own:
/// ```cpp
/// // each micro-batch
/// estimate.observe(logits_TE, router.similarity_cache().rivals(), {top_k}, {}, memory);
/// // each optimizer step
/// estimate.step(reduce);
/// const double lambda = estimate.lambda();
/// if (lambda > 0) router.set_competition(Competition::penalty(lambda));
/// ```
/// With logits of 16 bits many margins are exactly 0: where these ties are more than the share,
/// lambda breaks all of them, and not much else.
///
/// Counts of a step are integers, and ranks that share a reduce hook have the same lambda, bit for
/// bit. Allocates when made only. Const calls may run concurrently; the others must be alone. One
/// that was moved from holds nothing, and refuses to work.
class LambdaEstimate {
 public:
  /// Nothing observed. Throws Error for a share outside [0, 1] or a memory below 1.
  explicit LambdaEstimate(const AdaptiveLambda& rule)
      : rule_(rule), counts_(sizes), reduced_(sizes), estimate_(sizes), next_estimate_(sizes) {
    detail::check_adaptive_lambda("LambdaEstimate", rule);
  }

  /// The settings.
  const AdaptiveLambda& rule() const { return rule_; }
  /// The lambda of the steps so far, in units of the logits; 0 if there is no estimate yet.
  double lambda() const { return lambda_; }

  /// Adds a micro-batch. Takes, throws and costs what count_margins does. With RivalTable() nothing
  /// is added: while there are no partners, tokens do not tell what a penalty would change.
  template <class L, class Executor = SerialExecutor>
  void observe(MatrixView<L> logits_TE, const RivalTable& rivals, const MarginRule& rule,
               VectorView<const std::uint8_t> is_padding_T, Workspace workspace,
               const Executor& executor = {}) {
    prepare(logits_TE, rivals, rule, is_padding_T, workspace, executor);
    commit();
  }
  /// The first half of `observe`, for callers with work to do before they know that the micro-batch
  /// counts. Changes no result.
  template <class L, class Executor = SerialExecutor>
  void prepare(MatrixView<L> logits_TE, const RivalTable& rivals, const MarginRule& rule,
               VectorView<const std::uint8_t> is_padding_T, Workspace workspace,
               const Executor& executor = {}) {
    check_not_moved_from();
    batch_.reset();
    count_margins(logits_TE, rivals, rule, is_padding_T, batch_, workspace, executor);
    if (rivals.num_experts() == 0) batch_.reset();
    detail::need(batch_.tokens() <= (std::numeric_limits<std::int64_t>::max)() - counts_[0],
                 "LambdaEstimate", "counts whose sum fits int64",
                 {{"sum", counts_[0]}, {"count", batch_.tokens()}});
  }
  /// The second half, once after each `prepare` that is to count.
  void commit() {
    check_not_moved_from();
    counts_[0] += batch_.tokens();
    const auto lambdas = batch_.lambda_histogram();
    for (Index b = 0; b < lambdas.size; ++b) counts_[static_cast<std::size_t>(b) + 1] += lambdas[b];
  }

  /// Ends an optimizer step: sums its counts over ranks, lets the older ones fade, and sets lambda.
  /// A step without tokens on any rank changes nothing. `reduce` is the hook, see NoReduce, and is
  /// called once. Throws Error for what it leaves behind, and what it throws, before any change.
  /// Cost: some 650 multiplications.
  template <class Reduce = NoReduce>
  void step(const Reduce& reduce = {}) {
    prepare_step(reduce);
    commit_step();
  }
  /// The first half of `step`, which may throw and changes no result.
  template <class Reduce>
  void prepare_step(const Reduce& reduce) {
    detail::check_reduce<Reduce>();
    check_not_moved_from();
    reduced_ = counts_;
    detail::reduce_counts("LambdaEstimate", reduce, reduced_);
    const double weight = reduced_[0] > 0 ? 1 - 1 / rule_.memory : 1;
    for (std::size_t i = 0; i < sizes; ++i) {
      next_estimate_[i] = detail::product(estimate_[i], weight) + static_cast<double>(reduced_[i]);
    }
  }
  /// The second half.
  void commit_step() noexcept {
    estimate_.swap(next_estimate_);
    std::fill(counts_.begin(), counts_.end(), std::int64_t{0});
    set_lambda();
  }

  /// How many numbers each of the two below has.
  static constexpr Index size() { return static_cast<Index>(sizes); }
  /// What a checkpoint needs: the faded numbers of tokens and of lambdas in each bin. Valid until
  /// the next step.
  VectorView<const double> estimate() const { return estimate_; }
  /// The same of the micro-batches since the last step, on this rank.
  VectorView<const std::int64_t> counts() const { return counts_; }
  /// Takes both from a checkpoint. Throws Error for sizes, a number that is negative or not finite,
  /// or counts of more lambdas than tokens, before any change.
  void restore(VectorView<const double> estimate, VectorView<const std::int64_t> counts) {
    const detail::Checks checks("LambdaEstimate");
    check_not_moved_from();
    checks.vector("estimate", estimate, size());
    detail::check_counts(checks, "counts", counts, size());
    const std::int64_t lambdas = detail::checked_sum(checks, {counts.data + 1, size() - 1});
    checks.need(lambdas <= counts[0], "counts of a lambda per token, or none",
                {{"lambdas", lambdas}, {"tokens", counts[0]}});
    for (Index i = 0; i < size(); ++i) {
      if (detail::is_finite(estimate[i]) && estimate[i] >= 0) continue;
      checks.refuse("estimate", "finite numbers >= 0", {{"value", estimate[i]}, {"position", i}});
    }
    std::copy(estimate.data, estimate.data + size(), estimate_.begin());
    std::copy(counts.data, counts.data + size(), counts_.begin());
    set_lambda();
  }

 private:
  static constexpr std::size_t sizes = static_cast<std::size_t>(detail::LogBins::count) + 1;

  void check_not_moved_from() const {
    detail::need(!counts_.empty(), "LambdaEstimate", "an estimate that was not moved from");
  }

  void set_lambda() noexcept {
    lambda_ =
        detail::lambda_of_rank(estimate_.data() + 1, detail::product(rule_.share, estimate_[0]));
  }

  AdaptiveLambda rule_;
  MarginCounts batch_;
  std::vector<std::int64_t> counts_;  // the tokens, then the lambdas in each bin
  std::vector<std::int64_t> reduced_;
  std::vector<double> estimate_;  // likewise
  std::vector<double> next_estimate_;
  double lambda_ = 0;
};

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_METRICS_LAMBDA_ESTIMATE_HPP
