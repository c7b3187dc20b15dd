// SPDX-License-Identifier: MIT
// One pass over the logits for an auxiliary loss: sums a value per token, adds a gradient per
// logit.
#ifndef GATEPRO_BALANCE_LOSS_PASS_HPP
#define GATEPRO_BALANCE_LOSS_PASS_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/core/checks.hpp"
#include "gatepro/core/choices.hpp"
#include "gatepro/core/sequences.hpp"
#include "gatepro/routing/routing_group.hpp"

namespace gatepro {

/// The logits that an auxiliary loss acts on, and what its gradient is added to. Several losses may
/// take the same, each at the cost of a pass over the logits and one over dlogits_TE.
template <class A>
struct LossLogits {
  MatrixView<const A> logits_TE{};                ///< T x E: the original ones, before any penalty.
  VectorView<const std::uint8_t> is_padding_T{};  ///< T, or not given; nonzero masks a token.
  MatrixView<A> dlogits_TE{};                     ///< T x E, added to; or not given.
};
/// `LossLogits{logits, mask, gradient}` knows the type of the logits.
template <class L>
LossLogits(MatrixView<L>, VectorView<const std::uint8_t> = {}, MatrixView<detail::value_t<L>> = {})
    -> LossLogits<detail::value_t<L>>;

namespace detail {

/// Scratch for a group of L tokens, one per lane.
template <class A>
struct LossGroup {
  typename Order<A>::Key* keys_EL = nullptr;  ///< The logits' keys.
  A* scores_EL = nullptr;                     ///< Softmax, or shares of the scores.
  A* slopes_EL = nullptr;                     ///< Of the shares.
  A* prices_EL = nullptr;                     ///< Where lanes have prices of their own.
  A* gradient_EL = nullptr;                   ///< What is added to dlogits.
  A* mean_L = nullptr;
  A* log_sum_exp_L = nullptr;
  double* value_L = nullptr;  ///< What each token adds to the loss.
};

inline namespace GATEPRO_ABI {

/// What the cheapest loss takes of a logit for its value, in multiply-adds of the gate. The
/// gradient takes as much again.
inline constexpr Index loss_work = 128;

template <class A>
LossGroup<A> carve_loss_group(Arena& arena, Index experts) {
  const Index lanes = kernels<A>().lanes;
  LossGroup<A> group;
  group.keys_EL = arena.take<typename Order<A>::Key>(experts, lanes);
  group.scores_EL = arena.take<A>(experts, lanes);
  group.slopes_EL = arena.take<A>(experts, lanes);
  group.prices_EL = arena.take<A>(experts, lanes);
  group.gradient_EL = arena.take<A>(experts, lanes);
  group.mean_L = arena.take<A>(lanes);
  group.log_sum_exp_L = arena.take<A>(lanes);
  group.value_L = arena.take<double>(lanes);
  return group;
}

/// The arguments that all losses have in common, and what `others` read.
template <class A, class... Inputs>
void check_loss_logits(const Checks& checks, const LossLogits<A>& logits,
                       const Workspace& workspace, const Inputs&... others) {
  const MatrixView<const A>& logits_TE = logits.logits_TE;
  checks.num_experts(logits_TE.cols);
  checks.matrix("logits_TE", logits_TE, logits_TE.rows, logits_TE.cols);
  checks.optional_vector("is_padding_T", logits.is_padding_T, logits_TE.rows);
  checks.optional_matrix("dlogits_TE", logits.dlogits_TE, logits_TE.rows, logits_TE.cols);
  checks.overlaps(output("dlogits_TE", logits.dlogits_TE), output("workspace", workspace),
                  input("logits_TE", logits_TE), input("is_padding_T", logits.is_padding_T),
                  others...);
}

/// Sums per block of tokens, and the groups of the workers.
template <class A>
class LossLayout {
 public:
  LossLayout(Arena& arena, Index tokens, Index experts, int workers)
      : workers_(workers),
        blocks_(blocks_of(tokens, block_tokens)),
        sums_(arena.take<double>(blocks_)),
        groups_(arena, workers, Carve{experts}) {}

  /// Calls `body(group, first, count)` for groups of tokens, which fills group.value_L and, if
  /// gradients are wanted, group.gradient_EL. Returns the sum of the values of all tokens that are
  /// not padding, in fp64 and per block of 256 tokens, so that bits do not depend on the executor.
  template <class Executor, class Body>
  double run(const LossLogits<A>& logits, const Executor& executor, const Body& body) const {
    std::fill(sums_, sums_ + blocks_, 0.0);
    const Index tokens = logits.logits_TE.rows;
    const Index passes = logits.dlogits_TE.given() ? 2 : 1;
    const int busy =
        useful_workers(executor, workers_, {loss_work, passes, tokens, logits.logits_TE.cols});
    for_each_group<A>(tokens, executor, busy, [&](int worker, const TokenRange& range) {
      const LossGroup<A> group = groups_(worker);
      load(logits, group, range);
      body(group, range.first, range.count);
      store(logits, group, range, sums_[range.first / block_tokens]);
    });
    double sum = 0;
    for (Index block = 0; block < blocks_; ++block) sum += sums_[block];
    return sum;
  }

 private:
  struct Carve {
    Index experts;
    LossGroup<A> operator()(Arena& arena) const { return carve_loss_group<A>(arena, experts); }
  };

  static void load(const LossLogits<A>& logits, const LossGroup<A>& group,
                   const TokenRange& range) {
    const LogitRows<A> rows = logit_rows(logits.logits_TE, range);
    load_keys(rows, range.count, logits.logits_TE.cols, group.keys_EL);
  }

  /// Adds the gradients of the tokens that are not padding, and their values to `sum`, one by one.
  static void store(const LossLogits<A>& logits, const LossGroup<A>& group, const TokenRange& range,
                    double& sum) {
    const Index lanes = kernels<A>().lanes;
    const MatrixView<A>& dlogits_TE = logits.dlogits_TE;
    for (Index lane = 0; lane < range.count; ++lane) {
      if (is_masked(logits.is_padding_T, range.first + lane)) continue;
      sum += group.value_L[lane];
      if (!dlogits_TE.given()) continue;
      A* dlogits = dlogits_TE.row(range.first + lane);
      for (Index e = 0; e < dlogits_TE.cols; ++e) dlogits[e] += group.gradient_EL[e * lanes + lane];
    }
  }

  int workers_;
  Index blocks_;
  double* sums_;
  PerWorker<Carve> groups_;
};

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_BALANCE_LOSS_PASS_HPP
