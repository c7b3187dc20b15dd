// SPDX-License-Identifier: MIT
// How many tokens each expert got: over ranks, through a reduce hook, and over micro-batches.
#ifndef GATEPRO_BALANCE_BALANCE_COUNTS_HPP
#define GATEPRO_BALANCE_BALANCE_COUNTS_HPP

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "gatepro/core/checks.hpp"

namespace gatepro {

/// Which routing the counts of a load-balancing loss come from.
enum class CountSource {
  dispatched,   ///< The experts that the tokens are sent to: after competition, bias and groups.
  unpenalised,  ///< Plain top-k of the raw logits, as Megatron-LM counts; see count_unpenalised.
};

/// The load of the experts over some tokens: what a load-balancing loss compares with.
struct BalanceCounts {
  /// Tokens that chose each expert: between 0 and `tokens`.
  VectorView<const std::int64_t> tokens_per_expert_E{};
  /// The tokens that made these choices, padding not among them.
  std::int64_t tokens = 0;
  /// The sequences that hold such a token, where a loss per sequence takes the mean over them.
  std::int64_t sequences = 0;
  /// The ranks that the counts are summed over.
  std::int64_t ranks = 1;
};

/// The reduce hook of a run on one rank: leaves the counts as they are.
///
/// It also shows the contract. A hook is any callable `void(std::int64_t* counts, Index size)` that
/// replaces counts[0] to counts[size - 1] by their sums over all ranks: MPI_Allreduce with MPI_SUM
/// and MPI_INT64_T, ncclAllReduce, or threads. All ranks call it equally often and in the same
/// order. It may throw; nothing has changed then.
struct NoReduce {
  /// Does nothing.
  GATEPRO_ALWAYS_INLINE void operator()(std::int64_t* /*counts*/, Index /*size*/) const noexcept {}
};

namespace detail {

template <class Reduce>
constexpr void check_reduce() {
  static_assert(std::is_invocable_v<const Reduce&, std::int64_t*, Index>,
                "gatepro: a reduce hook is callable as `void(std::int64_t* counts, Index size) "
                "const`; see gatepro::NoReduce");
}

inline namespace GATEPRO_ABI {

/// Counts of the right number, none of them negative.
inline void check_counts(const Checks& checks, const char* name,
                         const VectorView<const std::int64_t>& counts, Index size) {
  checks.vector(name, counts, size);
  for (Index i = 0; i < size; ++i) {
    if (counts[i] < 0) {
      checks.refuse(name, "counts >= 0", {{"count", counts[i]}, {"position", i}});
    }
  }
}

inline void check_balance_counts(const Checks& checks, const BalanceCounts& counts, Index experts) {
  checks.num_experts(experts);
  check_counts(checks, "tokens_per_expert_E", counts.tokens_per_expert_E, experts);
  checks.need(counts.tokens >= 0, "tokens >= 0", {{"tokens", counts.tokens}});
  checks.need(counts.sequences >= 0 && counts.sequences <= counts.tokens,
              "0 <= sequences <= tokens",
              {{"sequences", counts.sequences}, {"tokens", counts.tokens}});
  for (Index e = 0; e < experts; ++e) {
    checks.need(
        counts.tokens_per_expert_E[e] <= counts.tokens,
        "counts of the same tokens: none above their number",
        {{"count", counts.tokens_per_expert_E[e]}, {"expert", e}, {"tokens", counts.tokens}});
  }
}

/// The sum of counts >= 0, or an Error if int64 does not hold it.
inline std::int64_t checked_sum(const Checks& checks,
                                const VectorView<const std::int64_t>& counts) {
  std::int64_t sum = 0;
  for (Index i = 0; i < counts.size; ++i) {
    checks.need(counts[i] <= (std::numeric_limits<std::int64_t>::max)() - sum,
                "counts whose sum fits int64", {{"sum", sum}, {"count", counts[i]}});
    sum += counts[i];
  }
  return sum;
}

/// Counts that their tokens can have made with up to top_k choices each. All are >= 0.
inline void check_choices_per_token(const Checks& checks, const BalanceCounts& counts,
                                    Index top_k) {
  const std::int64_t choices = checked_sum(checks, counts.tokens_per_expert_E);
  checks.need(choices / top_k + (choices % top_k != 0 ? 1 : 0) <= counts.tokens,
              "counts and tokens of the same batches: at most top_k choices per token",
              {{"choices", choices}, {"tokens", counts.tokens}, {"top_k", top_k}});
}

/// sums += counts, or an Error and no change.
inline void add_counts(const Checks& checks, const VectorView<const std::int64_t>& counts,
                       std::vector<std::int64_t>& sums) {
  const auto size = static_cast<std::size_t>(counts.size);
  for (std::size_t i = 0; i < size; ++i) {
    checks.need(sums[i] <= (std::numeric_limits<std::int64_t>::max)() - counts.data[i],
                "counts whose sum fits int64", {{"sum", sums[i]}, {"count", counts.data[i]}});
  }
  for (std::size_t i = 0; i < size; ++i) sums[i] += counts.data[i];
}

/// What the hook makes of the counts, which must still be counts.
template <class Reduce>
void reduce_counts(const Checks& checks, const Reduce& reduce, std::vector<std::int64_t>& counts) {
  const auto size = static_cast<Index>(counts.size());
  reduce(counts.data(), size);
  check_counts(checks, "counts from the reduce hook", counts, size);
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Sums the loads of micro-batches over ranks and over an optimizer step.
///
/// `add` sends one array through the hook, E counts and the numbers of tokens, sequences and ranks;
/// `latest` is then the load of this micro-batch on all ranks, for the losses of the batch and per
/// sequence, and `total` that of all since `reset`, for the global loss: counts and tokens grow
/// together, so unequal micro-batches weigh by their tokens. Call `reset` at each optimizer step. A
/// router that is evaluated, or that recomputes a forward, does not call `add`.
///
/// Allocates when made only. Const calls may run concurrently; the others must be alone.
class BalanceAccumulator {
 public:
  /// For E experts, nothing counted. Throws Error for E < 1.
  explicit BalanceAccumulator(Index num_experts) {
    detail::Checks("BalanceAccumulator").num_experts(num_experts);
    total_.resize(static_cast<std::size_t>(num_experts) + 1);
    latest_.resize(total_.size() + 2);
    next_total_ = total_;
    next_latest_ = latest_;
  }

  /// Adds a micro-batch: this rank's counts, tokens and sequences, reduced over all ranks. Throws
  /// Error for the size, a count that is negative or above the number of tokens, or a sum beyond
  /// int64, and what the hook throws, before any change. Cost: E.
  template <class Reduce = NoReduce>
  void add(const BalanceCounts& batch, const Reduce& reduce = {}) {
    prepare(batch, reduce);
    commit();
  }

  /// The first half of `add`, for callers with work to do before they know that the micro-batch
  /// counts: reduces, and sets what `commit` would make of `latest` and `total`. Throws as `add`.
  template <class Reduce = NoReduce>
  void prepare(const BalanceCounts& batch, const Reduce& reduce = {}) {
    detail::check_reduce<Reduce>();
    const detail::Checks checks("BalanceAccumulator");
    detail::check_balance_counts(checks, batch, num_experts());
    const auto* counts = batch.tokens_per_expert_E.data;
    std::copy(counts, counts + num_experts(), next_latest_.begin());
    next_latest_[total_.size() - 1] = batch.tokens;
    next_latest_[total_.size()] = batch.sequences;
    next_latest_.back() = batch.ranks;
    detail::reduce_counts(checks, reduce, next_latest_);
    detail::check_balance_counts(checks, next_latest(), num_experts());
    next_total_ = total_;
    detail::add_counts(checks, {next_latest_.data(), static_cast<Index>(total_.size())},
                       next_total_);
  }
  /// The second half, once after each `prepare` that is to count.
  void commit() noexcept {
    latest_.swap(next_latest_);
    total_.swap(next_total_);
  }

  /// The micro-batch that was added last, over all ranks. Valid until the next `prepare` or `add`.
  BalanceCounts latest() const { return of_a_batch(latest_); }
  /// All micro-batches since `reset`, over all ranks; their sequences are not counted. Valid as
  /// `latest`.
  BalanceCounts total() const { return of_a_step(total_); }
  /// What `commit` will make of `latest`.
  BalanceCounts next_latest() const { return of_a_batch(next_latest_); }
  /// What `commit` will make of `total`.
  BalanceCounts next_total() const { return of_a_step(next_total_); }

  /// Forgets everything.
  void reset() {
    std::fill(total_.begin(), total_.end(), std::int64_t{0});
    std::fill(latest_.begin(), latest_.end(), std::int64_t{0});
  }

  /// Takes totals from a checkpoint. Throws Error as `add` does.
  void restore(const BalanceCounts& total) {
    detail::check_balance_counts("BalanceAccumulator", total, num_experts());
    const auto* counts = total.tokens_per_expert_E.data;
    std::copy(counts, counts + num_experts(), total_.begin());
    total_.back() = total.tokens;
    std::fill(latest_.begin(), latest_.end(), std::int64_t{0});
  }

  /// E; 0 once moved from.
  Index num_experts() const { return total_.empty() ? 0 : static_cast<Index>(total_.size()) - 1; }

 private:
  BalanceCounts of_a_step(const std::vector<std::int64_t>& counts) const {
    if (counts.empty()) return {};
    return {{counts.data(), num_experts()}, counts[total_.size() - 1]};
  }
  BalanceCounts of_a_batch(const std::vector<std::int64_t>& counts) const {
    BalanceCounts load = of_a_step(counts);
    if (counts.empty()) return load;
    load.sequences = counts[total_.size()];
    load.ranks = counts.back();
    return load;
  }

  std::vector<std::int64_t> total_;   // E counts, then the tokens
  std::vector<std::int64_t> latest_;  // likewise, then the sequences and ranks
  std::vector<std::int64_t> next_total_;
  std::vector<std::int64_t>
      next_latest_;  // where the hook works, so that a failure changes nothing
};

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_BALANCE_BALANCE_COUNTS_HPP
