// SPDX-License-Identifier: MIT
// What a forward of the complete router returns.
#ifndef GATEPRO_ROUTER_COMPLETE_ROUTING_HPP
#define GATEPRO_ROUTER_COMPLETE_ROUTING_HPP

#include <cstdint>

#include "gatepro/router/buffers.hpp"
#include "gatepro/router/complete_options.hpp"
#include "gatepro/routing/route_logits_backward.hpp"
#include "gatepro/routing/view.hpp"

namespace gatepro {

/// Values of the losses of a forward: this call's part. The parts of all ranks, and of all forwards
/// that share ForwardInputs::tokens_in_mean, add up to the loss. `batch` and `global` are those of
/// load_balancing_loss_value, the others of the stages, to the bit.
struct LossValues {
  double batch = 0;     ///< LossRule::batch.
  double sequence = 0;  ///< LossRule::sequence.
  double global = 0;    ///< LossRule::global, with the counts so far.
  double z = 0;         ///< LossRule::z.

  /// All of them.
  GATEPRO_ALWAYS_INLINE constexpr double sum() const { return batch + sequence + global + z; }
};

/// What a forward found out, and what its backward must know: a backward goes by the report, never
/// by settings that may have changed since, and refuses one that no forward returned.
struct CompleteReport : RoutingReport {
  Pass pass = Pass::training;     ///< What the forward was for.
  std::int64_t valid_tokens = 0;  ///< Tokens that are not padding.
  Index top_k = 0;                ///< The most choices of a token: ForwardInputs::top_k, or K.
  /// Slots per expert; 0 if dropless or without tokens, on all ranks with CapacityRule::over_ranks.
  Index capacity = 0;
  Index dropped_choices = 0;        ///< (token, choice) pairs without a slot.
  Index tokens_without_expert = 0;  ///< Tokens that lost all choices they made.
  std::int64_t noise_position = 0;  ///< Where the noise of token 0 was drawn.
  LossValues losses{};              ///< Zeros in an evaluation.
  bool jittered = false;            ///< Whether jittered_TH took the place of the tokens.
  Competition competition{};        ///< The rule for losers that was applied.
  std::uint64_t partners = 0;       ///< RivalTable::fingerprint of those who competed.
  /// Of no other forward of a router that exists at the same time. The outputs have it, too. Only a
  /// router in the memory of one that is gone may use ids of the latter again.
  std::uint64_t forward_id = 0;
};

/// Where a forward of T tokens writes and its backward reads. `CompleteRouter::outputs` divides
/// memory of the caller into all that the settings need, and RoutingBuffers::view its own; members
/// may then be replaced by the caller's own memory with
/// other strides. Of the members of RoutingView all but `statistics` are required, `penalised_TK`
/// where gradients or a record need it: ids also of dropped choices, logits with their noise,
/// weights of 0 for dropped choices, too, counts before drops.
template <class X, class A, class Id = std::int32_t>
struct CompleteRoutingView : RoutingView<A, Id> {
  /// 1: CompleteReport::forward_id of the forward that wrote these outputs, 0 while it writes.
  VectorView<std::uint64_t> forward_id;
  /// With losses: E counts and the tokens of this forward, then of all since end_step, then the
  /// sequences of this forward, all of them reduced.
  VectorView<std::int64_t> totals{};
  /// With a batch or global loss: the sum over tokens that count of the share that each expert has
  /// of a token's scores, by its raw logits; NaNs if a token has no shares: with a NaN, +inf, or
  /// nothing above -inf. Not written in an evaluation.
  VectorView<double> share_sums_E{};
  /// With a z-loss: of each token's raw logits, padding's too; a NaN where it has no shares. Not
  /// written in an evaluation.
  VectorView<A> log_sum_exp_T{};
  StridedView<Id> counted_ids_TK{};     ///< With a sequence loss on CountSource::unpenalised.
  StridedView<std::uint8_t> kept_TK{};  ///< With a capacity: 1 where the choice has a slot.
  VectorView<std::int64_t> kept_per_expert_E{};  ///< With a capacity: choices that have a slot.
  VectorView<A> weight_totals_T{};  ///< With CapacityRule::renormalise: see total_weights.
  VectorView<A> kept_sums_T{};      ///< With CapacityRule::renormalise: see renormalise_kept.
  MatrixView<X> jittered_TH{};      ///< With jitter: the tokens as the router saw them.
};

/// A forward, as its backward takes it.
template <class X, class A, class Id = std::int32_t>
struct RoutedForward {
  const ForwardInputs<Id>& in;               ///< What it was given.
  const CompleteRoutingView<X, A, Id>& out;  ///< What it wrote.
  const CompleteReport& report;              ///< What it returned.
};

namespace detail {
inline namespace GATEPRO_ABI {

/// True if a loss compares loads with shares of all tokens.
inline bool weighs_shares(const LossRule& losses) { return losses.batch > 0 || losses.global > 0; }

/// Integers in CompleteRoutingView::totals.
inline Index totals_size(Index experts) { return 2 * (experts + 1) + 1; }

/// The first `count` columns, if it is given.
template <class T>
StridedView<T> first_columns(StridedView<T> view, Index count) {
  if (view.given()) view.cols = count;
  return view;
}

/// Fills the columns from `first` on, if it is given.
template <class T>
void clear_columns(const StridedView<T>& view, Index first, T value) {
  for (Index t = 0; t < view.rows; ++t) {
    for (Index j = first; j < view.cols; ++j) view(t, j) = value;
  }
}

/// True if tokens share a budget of choices.
inline bool shares_choices(const CompleteConfig& config) {
  return config.fewer && config.fewer->budget > 0;
}

/// True if gradients, or the weights of fewer choices, need to know who had lost.
inline bool needs_penalised(const CompleteConfig& config) {
  return config.fewer || gradient_needs_logits(config.selection());
}

/// Divides memory into all outputs that `config` needs, as the other carve_outputs does.
template <class X, class A, class Id>
void carve_outputs(Arena& arena, const CompleteConfig& config, const BufferShape& shape,
                   Index tokens, CompleteRoutingView<X, A, Id>& out) {
  const Index experts = config.num_experts;
  const Index top_k = config.top_k;
  BufferShape kept = shape;
  kept.keep_logits = true;
  kept.keep_penalised = kept.keep_penalised || needs_penalised(config);
  RoutingView<A, Id>& plain = out;
  carve_outputs(arena, static_cast<const RouterConfig&>(config), kept, tokens, plain);
  out.scores_TK = take_rows<A>(arena, shape, tokens, top_k);
  out.forward_id = {arena.take<std::uint64_t>(1), 1};
  if (config.losses.any()) {
    out.totals = {arena.take<std::int64_t>(totals_size(experts)), totals_size(experts)};
    if (weighs_shares(config.losses)) out.share_sums_E = {arena.take<double>(experts), experts};
    if (config.losses.z > 0) out.log_sum_exp_T = {arena.take<A>(shape.tokens), tokens};
    if (config.losses.counts == CountSource::unpenalised && config.losses.sequence > 0) {
      out.counted_ids_TK = take_rows<Id>(arena, shape, tokens, top_k);
    }
  }
  if (config.capacity) {
    out.kept_TK = take_rows<std::uint8_t>(arena, shape, tokens, top_k);
    out.kept_per_expert_E = {arena.take<std::int64_t>(experts), experts};
    if (config.capacity->renormalise) {
      out.weight_totals_T = {arena.take<A>(shape.tokens), tokens};
      out.kept_sums_T = {arena.take<A>(shape.tokens), tokens};
    }
  }
  if (shares_choices(config)) out.choice_values_TK = take_rows<A>(arena, shape, tokens, top_k);
  if (config.noise.jitter > 0) {
    out.jittered_TH = take_rows<X>(arena, shape, tokens, config.hidden_size);
  }
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTER_COMPLETE_ROUTING_HPP
