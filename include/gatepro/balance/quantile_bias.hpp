// SPDX-License-Identifier: MIT
// A bias per expert that is set, not stepped, to what gives each expert its share of the tokens.
#ifndef GATEPRO_BALANCE_QUANTILE_BIAS_HPP
#define GATEPRO_BALANCE_QUANTILE_BIAS_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "gatepro/balance/expert_bias.hpp"
#include "gatepro/core/emptied.hpp"
#include "gatepro/core/overlap.hpp"
#include "gatepro/core/product.hpp"
#include "gatepro/routing/needed_bias.hpp"

namespace gatepro {

/// Quantile balancing (Su 2026, kexue.fm/archives/11619; Kimi K3's technical report, section 2.3.3
/// and appendix D; in Megatron-LM, TransformerEngine and torchtitan). Plain data.
///
/// With scores s, biases b and alpha_t = the (k+1)-th largest of s_t + b, token t would choose
/// expert e with any bias above r_te = alpha_t - s_te. The next bias of e is the k/E quantile of
/// r_te over the tokens of an optimizer step: with it, e would have had its even share. Biases are
/// then centred: their mean is 0. Choices go by s + b, weights by s, as with BiasRule.
///
/// r_te is counted in bins, and the quantile interpolated inside one: integers, which sum over
/// micro-batches and ranks in any order. Its error is below the width of a bin, (2 reach + the
/// spread of the biases) / bins, but where a bin next to it is empty.
struct QuantileRule {
  bool enabled = false;  ///< Whether there is such a bias. Not together with BiasRule.
  Index bins = 1000;     ///< Per expert, of equal width; from 2 to 2^20.
  /// Bins reach from so far below the lowest bias to so far above the highest, in units of the
  /// scores: finite, > 0, and so is bins / (2 reach), as float for scores in float. 1 holds every
  /// r_te for scores in [0, 1], as softmaxes and sigmoids are. For others, such as logits, what
  /// lies beyond counts in the outermost bins: a bias that should move further takes several steps.
  double reach = 1;
  double memory = 0;  ///< b' = memory b + (1 - memory) quantile, then centred; in [0, 1).
};

namespace detail {
inline namespace GATEPRO_ABI {

/// For scores in A.
template <class A>
void check_quantile_rule(const Checks& checks, const QuantileRule& rule) {
  checks.need(rule.bins >= 2 && rule.bins <= Index{1} << 20, "2 <= bins <= 2^20",
              {{"bins", rule.bins}});
  checks.need(is_finite_as<float>(rule.reach) && rule.reach > 0, "reach finite and > 0",
              {{"reach", rule.reach}});
  checks.need(is_finite_as<A>(static_cast<double>(rule.bins) / (2 * rule.reach)),
              "reach large enough for bins / (2 reach) to be finite in the scores' precision",
              {{"reach", rule.reach}, {"bins", rule.bins}});
  checks.need(rule.memory >= 0 && rule.memory < 1, "0 <= memory < 1", {{"memory", rule.memory}});
}

/// Nothing is left to choose where each token takes all experts.
inline void check_quantile_top_k(const Checks& checks, Index top_k, Index experts) {
  checks.need(top_k >= 1 && top_k < experts, "1 <= top_k < num_experts for quantiles",
              {{"top_k", top_k}, {"num_experts", experts}});
}

/// Counts of one worker fit 32 bits.
inline void check_quantile_tokens(const Checks& checks, Index tokens) {
  checks.need(tokens <= (std::numeric_limits<std::int32_t>::max)(), "T within int32 for quantiles",
              {{"tokens", tokens}});
}

/// Rows of counts >= 0, of tokens that made so many choices together, at least one each.
inline void check_needed_counts(const Checks& checks,
                                const MatrixView<const std::int64_t>& counts_EB,
                                std::int64_t choices) {
  checks.need(choices >= 0, "choices >= 0", {{"choices", choices}});
  for (Index e = 0; e < counts_EB.rows; ++e) {
    const VectorView<const std::int64_t> counts_B(counts_EB.row(e), counts_EB.cols);
    check_counts(checks, "counts_EB", counts_B, counts_B.size);
    const std::int64_t sum = checked_sum(checks, counts_B);
    checks.need(sum <= choices, "counts_EB of no more tokens than choices",
                {{"counts", sum}, {"expert", e}, {"choices", choices}});
  }
}

/// Biases whose range has a number as an A.
template <class A, class B>
BiasRange checked_bias_range(const Checks& checks, const VectorView<const B>& bias_E,
                             double reach) {
  const BiasRange range = bias_range(bias_E, reach);
  checks.need(is_finite_as<A>(range.span), "biases that stay finite",
              {{"lowest", range.lowest}, {"from the lowest to the highest", range.span}});
  return range;
}

/// The bias at which `target` tokens choose an expert, by its counts. `kept` where no token's
/// choice depends on it. Where the tokens that depend on it are all too many, or all too few, the
/// bias that gives none, or all, of them. Biases are those above the lowest.
inline double bias_at(const std::int64_t* counts_B, Index bins, double target,
                      const BiasRange& range, double kept) {
  double below = static_cast<double>(counts_B[0]);
  double edge = -1;  // the upper one of the last bin that holds tokens
  for (Index i = 0; i < bins; ++i) {
    const auto count = static_cast<double>(counts_B[1 + i]);
    if (!(count > 0)) continue;
    edge = static_cast<double>(i);
    if (below + count >= target) {
      edge += (std::max)(0.0, target - below) / count;
      return above_lowest(range, edge, bins);
    }
    below += count;
    edge += 1;
  }
  return edge < 0 ? kept : above_lowest(range, edge, bins);
}

/// The scratch of count_needed_bias.
template <class A>
struct NeededBiasScratch {
  using Key = typename Order<A>::Key;
  struct Carve {
    Index experts;
    Index top_k;
    RoutingGroup<A> operator()(Arena& arena) const { return carve_group<A>(arena, experts, top_k); }
  };

  NeededBiasScratch(Arena& arena, Index experts, Index top_k, Index bins, int workers)
      : needed(arena, experts, bins, workers), groups(arena, workers, Carve{experts, top_k}) {}

  NeededBias<A> needed;
  PerWorker<Carve> groups;
};

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Bytes of workspace for count_needed_bias, whatever T is.
template <class A>
std::size_t count_needed_bias_workspace_bytes(Index num_experts, Index top_k,
                                              const QuantileRule& rule, Workers workers = 1) {
  const detail::Checks checks("count_needed_bias");
  checks.query_experts(num_experts);
  detail::check_quantile_rule<A>(checks, rule);
  return detail::measure([&](detail::Arena& arena) {
    detail::NeededBiasScratch<A>(arena, num_experts, top_k, rule.bins, workers);
  });
}

/// counts_EB (E x (1 + rule.bins), overwritten) = for each expert the tokens that choose it
/// whatever its bias, then those that need a bias from each bin to choose it; see QuantileRule.
/// Returns the choices that quantile_bias shares out: top_k for each token that can choose any
/// expert, one of a score above -inf. Rows of NaNs or -inf, like padding, make none.
///
/// scores_TE: T x E, any numbers; a NaN is never chosen, and an expert at -inf, or below the
/// (k+1)-th in a token without k + 1 others, is not counted. bias_E: E, finite, those of the start
/// of the optimizer step: they decide where bins are. is_padding_T: T bytes, nonzero for padding,
/// or not given.
///
/// Throws Error for shapes, the rule, top_k, biases that are or may become infinite, T beyond
/// int32, or a workspace below count_needed_bias_workspace_bytes(E, K, rule, executor.workers()),
/// before any write. Cost: a selection, and T E increments. No allocation. Thread-safe. Counts do
/// not depend on the executor or on how a batch is cut.
template <class L, class Executor = SerialExecutor>
std::int64_t count_needed_bias(MatrixView<L> scores_TE, VectorView<const detail::value_t<L>> bias_E,
                               VectorView<const std::uint8_t> is_padding_T, Index top_k,
                               const QuantileRule& rule, MatrixView<std::int64_t> counts_EB,
                               Workspace workspace, const Executor& executor = {}) {
  using A = detail::value_t<L>;
  detail::check_accumulator<A>();
  const detail::Checks checks("count_needed_bias");
  const Index tokens = scores_TE.rows;
  const Index experts = scores_TE.cols;
  detail::check_quantile_rule<A>(checks, rule);
  detail::check_quantile_top_k(checks, top_k, experts);
  detail::check_quantile_tokens(checks, tokens);
  checks.matrix("scores_TE", scores_TE, tokens, experts);
  checks.vector("bias_E", bias_E, experts);
  detail::check_bias_values<A>(checks, "bias_E", bias_E);
  detail::checked_bias_range<A>(checks, bias_E, rule.reach);
  checks.optional_vector("is_padding_T", is_padding_T, tokens);
  checks.matrix("counts_EB", counts_EB, experts, 1 + rule.bins);
  checks.overlaps(detail::output("counts_EB", counts_EB), detail::output("workspace", workspace),
                  detail::input("scores_TE", scores_TE), detail::input("bias_E", bias_E),
                  detail::input("is_padding_T", is_padding_T));
  const int workers = checks.workers(executor);
  detail::Arena arena(checks.where(), workspace,
                      count_needed_bias_workspace_bytes<A>(experts, top_k, rule, workers));

  detail::NeededBiasScratch<A> scratch(arena, experts, top_k, rule.bins, workers);
  scratch.needed.start(bias_E, rule.reach, is_padding_T);
  const MatrixView<const A> rows_TE = scores_TE;
  detail::for_each_group<A>(
      tokens, executor, workers, [&](int worker, const detail::TokenRange& group) {
        const auto mine = scratch.groups(worker);
        detail::load_keys(detail::logit_rows(rows_TE, group), group.count, experts, mine.keys_EL);
        detail::score_kernels<A>().choice_keys(mine.keys_EL, experts, nullptr, A(0), bias_E.data,
                                               mine.ranked_EL);
        detail::kernels<A>().top_k(mine.ranked_EL, experts, top_k, mine.top());
        scratch.needed.add(worker, group, mine.ranked_EL, top_k, mine.top_keys_KL);
      });
  return scratch.needed.finish(counts_EB) * top_k;
}

/// next_E (E, overwritten) = the biases that follow from the counts of an optimizer step, summed
/// over its micro-batches and ranks; see QuantileRule.
///
/// counts_EB: E x (1 + rule.bins), as count_needed_bias leaves them. choices: what it
/// returns, summed likewise; with 0 nothing changes. bias_E: E, those of the step; next_E may
/// be the same memory. The quantile of an expert that too few tokens can choose, or that too many
/// choose whatever its bias, is the bias at which all that depend on it choose it, or none; without
/// any, its bias stays.
///
/// Throws Error for shapes, the rule, biases that are or may become infinite, or counts that are
/// negative or of more tokens than choices, before any write. Cost: E bins. No allocation.
/// Thread-safe. The bits follow from the arguments alone.
template <class B>
void quantile_bias(MatrixView<const std::int64_t> counts_EB, std::int64_t choices,
                   const QuantileRule& rule, VectorView<const B> bias_E, VectorView<B> next_E) {
  const detail::Checks checks("quantile_bias");
  detail::check_bias_type<B>();
  const Index experts = bias_E.size;
  checks.num_experts(experts);
  detail::check_quantile_rule<B>(checks, rule);
  checks.matrix("counts_EB", counts_EB, experts, 1 + rule.bins);
  checks.vector("bias_E", bias_E, experts);
  checks.vector("next_E", next_E, experts);
  detail::check_bias_values<B>(checks, "bias_E", bias_E);
  const detail::BiasRange range = detail::checked_bias_range<B>(checks, bias_E, rule.reach);
  detail::check_needed_counts(checks, counts_EB, choices);
  if (choices == 0) {
    std::copy(bias_E.data, bias_E.data + experts, next_E.data);
    return;
  }
  const double target = static_cast<double>(choices) / static_cast<double>(experts);
  double sum = 0;
  for (Index e = 0; e < experts; ++e) {
    const double kept = static_cast<double>(bias_E[e]) - range.lowest;
    const double found = detail::bias_at(counts_EB.row(e), rule.bins, target, range, kept);
    next_E[e] = static_cast<B>(found + detail::product(rule.memory, kept - found));
    sum += static_cast<double>(next_E[e]);
  }
  const double mean = sum / static_cast<double>(experts);
  for (Index e = 0; e < experts; ++e) {
    next_E[e] = static_cast<B>(static_cast<double>(next_E[e]) - mean);
  }
}

/// Sums the counts of quantile balancing over the micro-batches of an optimizer step, and moves a
/// bias by those of all ranks.
///
/// A micro-batch is counted into `next`, which `commit` then adds; so work that may fail can stand
/// between the two. Allocates when made only: 2 E (1 + bins) integers of 8 bytes. Const calls
/// may run concurrently; the others must be alone. `B` is the type of the bias.
template <class B = float>
class QuantileCounts {
 public:
  /// Of no expert, like what was moved from: for routers without quantile balancing.
  QuantileCounts() = default;
  /// Nothing counted. Throws Error for the rule or E < 1.
  QuantileCounts(Index num_experts, const QuantileRule& rule) : rule_(rule), experts_(num_experts) {
    const detail::Checks checks("QuantileCounts");
    detail::check_quantile_rule<B>(checks, rule);
    checks.num_experts(num_experts);
    counts_.resize(static_cast<std::size_t>(detail::checked_product(
                       checks.where(), "counts within the address space", experts_, columns())) +
                   1);
    next_.resize(counts_.size());
    bias_E_.resize(static_cast<std::size_t>(experts_));
  }

  /// E x (1 + bins), this rank's since the last step.
  MatrixView<const std::int64_t> counts() const { return {counts_.data(), experts_, columns()}; }
  /// The choices of the tokens that were counted on this rank since the last step.
  std::int64_t choices() const { return counts_.empty() ? 0 : counts_.back(); }

  /// E x (1 + bins), of any content: where a micro-batch is counted.
  MatrixView<std::int64_t> next() {
    check_experts("QuantileCounts");
    return {next_.data(), experts_, columns()};
  }
  /// Adds what stands in `next`, of so many choices as count_needed_bias returned.
  void commit(std::int64_t choices) noexcept {
    if (next_.empty()) return;
    next_.back() = choices;
    for (std::size_t i = 0; i < counts_.size(); ++i) counts_[i] += next_[i];
  }

  /// Sets `bias`, by which the tokens chose, by the counts of all ranks, and zeroes the counts.
  ///
  /// `reduce` is the hook that sums over ranks; see NoReduce. The bias is the same on each rank.
  /// Throws Error for what the hook leaves behind or a bias that would not stay finite, and what
  /// the hook throws, before any change. Cost: E bins.
  template <class Reduce>
  void step(const Reduce& reduce, ExpertBias<B>& bias) {
    detail::check_reduce<Reduce>();
    const detail::Checks checks("QuantileCounts::step");
    check_experts(checks);
    next_ = counts_;
    detail::reduce_counts(checks, reduce, next_);
    quantile_bias<B>({next_.data(), experts_, columns()}, next_.back(), rule_, bias.values(),
                     bias_E_);
    bias.restore(bias_E_, bias.counts());
    std::fill(counts_.begin(), counts_.end(), std::int64_t{0});
  }

  /// Takes counts from a checkpoint. Throws Error for their shape, a negative one, or a row of
  /// more tokens than choices, before any change.
  void restore(MatrixView<const std::int64_t> counts_EB, std::int64_t choices) {
    const detail::Checks checks("QuantileCounts::restore");
    check_experts(checks);
    checks.matrix("counts_EB", counts_EB, experts_, columns());
    detail::check_needed_counts(checks, counts_EB, choices);
    for (Index e = 0; e < experts_; ++e) {
      std::copy_n(counts_EB.row(e), columns(), counts_.begin() + e * columns());
    }
    counts_.back() = choices;
  }

 private:
  Index columns() const { return 1 + rule_.bins; }
  void check_experts(const detail::Checks& checks) const {
    checks.need(experts_ > 0, "counts of experts, not moved from");
  }

  QuantileRule rule_{};
  detail::EmptiedSize experts_;
  std::vector<std::int64_t> counts_;  // E x (1 + bins), then the choices
  std::vector<std::int64_t> next_;    // likewise; also where the hook works
  std::vector<B> bias_E_;             // the next one
};

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_BALANCE_QUANTILE_BIAS_HPP
