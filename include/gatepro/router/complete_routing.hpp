// SPDX-License-Identifier: MIT
// What a forward of the complete router returns: views of the results, and a helper that owns them.
#ifndef GATEPRO_ROUTER_COMPLETE_ROUTING_HPP
#define GATEPRO_ROUTER_COMPLETE_ROUTING_HPP

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "gatepro/core/workspace.hpp"
#include "gatepro/router/complete_options.hpp"

namespace gatepro {

/// Values of the losses of a forward: this call's part. The parts of all ranks, and of all forwards
/// that share ForwardInputs::tokens_in_mean, add up to the loss.
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
struct CompleteReport {
  Pass pass = Pass::training;           ///< What the forward was for.
  Index nonfinite_rows = 0;             ///< Tokens whose weights are NaN; see RoutingReport.
  Index tokens_short_of_survivors = 0;  ///< Elimination: losers filled in.
  std::int64_t valid_tokens = 0;        ///< Tokens that are not padding.
  /// Slots per expert; 0 if dropless or without tokens, on all ranks with CapacityRule::over_ranks.
  Index capacity = 0;
  Index dropped_choices = 0;        ///< (token, choice) pairs without a slot.
  Index tokens_without_expert = 0;  ///< Tokens that lost all choices they made.
  std::int64_t noise_position = 0;  ///< Where the noise of token 0 was drawn.
  LossValues losses{};              ///< Zeros in an evaluation.
  Index tokens = 0;                 ///< T.
  bool jittered = false;            ///< Whether jittered_TH took the place of the tokens.
  Competition competition{};        ///< The rule for losers that was applied.
  std::uint64_t partners = 0;       ///< RivalTable::fingerprint of those who competed.
  /// Of no other forward of a router that exists at the same time. The outputs have it, too. Only a
  /// router in the memory of one that is gone may use ids of the latter again.
  std::uint64_t forward_id = 0;
};

/// Where a forward of T tokens writes and its backward reads. CompleteBuffers::view divides memory
/// into all that its settings need; members may then be replaced by the caller's own memory with
/// other strides.
template <class X, class A, class Id = std::int32_t>
struct CompleteRoutingView {
  MatrixView<A> logits_TE;        ///< T x E: raw logits, noise included.
  StridedView<Id> expert_ids_TK;  ///< T x K: the selected experts, best first, also if dropped.
  StridedView<A> weights_TK;      ///< T x K: their weights; 0 for padding and dropped choices.
  StridedView<A> scores_TK;       ///< T x K: scores before renormalisation and scale.
  StridedView<std::uint8_t> penalised_TK;        ///< T x K: 1 where the chosen expert had lost.
  VectorView<std::int64_t> tokens_per_expert_E;  ///< E: choices of valid tokens before drops.
  /// 1: CompleteReport::forward_id of the forward that wrote these outputs, 0 while it writes.
  VectorView<std::uint64_t> forward_id;
  /// With losses: E counts and the tokens of this forward, then of all since end_step, then the
  /// sequences of this forward, all of them reduced.
  VectorView<std::int64_t> totals{};
  StridedView<Id> counted_ids_TK{};     ///< With a sequence loss on CountSource::unpenalised.
  StridedView<std::uint8_t> kept_TK{};  ///< With a capacity: 1 where the choice has a slot.
  VectorView<std::int64_t> kept_per_expert_E{};  ///< With a capacity: choices that have a slot.
  VectorView<A> weight_totals_T{};  ///< With CapacityRule::renormalise: see total_weights.
  VectorView<A> kept_sums_T{};      ///< With CapacityRule::renormalise: see renormalise_kept.
  MatrixView<X> jittered_TH{};      ///< With jitter: the tokens as the router saw them.
};

namespace detail {
inline namespace GATEPRO_ABI {

/// Integers in CompleteRoutingView::totals.
inline Index totals_size(Index experts) { return 2 * (experts + 1) + 1; }

/// The memory of all outputs that `config` needs, with room for `max_tokens`, viewed as `tokens`
/// rows: where an output starts does not depend on `tokens`.
template <class X, class A, class Id>
CompleteRoutingView<X, A, Id> carve_outputs(Arena& arena, const CompleteConfig& config,
                                            Index max_tokens, Index tokens) {
  const Index experts = config.router.num_experts;
  const Index top_k = config.router.top_k;
  const Index hidden = config.router.hidden_size;
  const auto count = [max_tokens](Index per_token) {
    return checked_product("CompleteRouter", "T within the address space", per_token, max_tokens);
  };
  CompleteRoutingView<X, A, Id> out;
  out.logits_TE = {arena.take<A>(count(experts)), tokens, experts};
  out.expert_ids_TK = {arena.take<Id>(count(top_k)), tokens, top_k};
  out.weights_TK = {arena.take<A>(count(top_k)), tokens, top_k};
  out.scores_TK = {arena.take<A>(count(top_k)), tokens, top_k};
  out.penalised_TK = {arena.take<std::uint8_t>(count(top_k)), tokens, top_k};
  out.tokens_per_expert_E = {arena.take<std::int64_t>(experts), experts};
  out.forward_id = {arena.take<std::uint64_t>(1), 1};
  if (config.losses.any()) {
    out.totals = {arena.take<std::int64_t>(totals_size(experts)), totals_size(experts)};
    if (config.losses.counts == CountSource::unpenalised && config.losses.sequence > 0) {
      out.counted_ids_TK = {arena.take<Id>(count(top_k)), tokens, top_k};
    }
  }
  if (config.capacity) {
    out.kept_TK = {arena.take<std::uint8_t>(count(top_k)), tokens, top_k};
    out.kept_per_expert_E = {arena.take<std::int64_t>(experts), experts};
    if (config.capacity->renormalise) {
      out.weight_totals_T = {arena.take<A>(max_tokens), tokens};
      out.kept_sums_T = {arena.take<A>(max_tokens), tokens};
    }
  }
  if (config.noise.jitter > 0) {
    out.jittered_TH = {arena.take<X>(count(hidden)), tokens, hidden};
  }
  return out;
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Owns the outputs and the scratch of a complete router, for those who want one line.
///
/// `CompleteBuffers buffers(router, max_tokens)` allocates once; forwards and backwards of up to
/// max_tokens tokens (and max_sequences sequences, if a sequence loss is on) through it allocate
/// nothing. One at a time. Moves keep the memory; there are no copies.
template <class R>
class CompleteBuffers {
 public:
  /// The scalar of weights and logits.
  using Accumulator = typename R::Accumulator;
  /// The type of expert ids.
  using ExpertId = typename R::ExpertId;
  /// Views of the results of a forward.
  using Routing = typename R::Routing;

  /// Memory for up to `max_tokens` tokens, `workers` workers of an executor and `max_sequences`
  /// sequences. Throws Error for a negative size. A bool is no number of workers: that does not
  /// compile.
  CompleteBuffers(const R& router, Index max_tokens, int workers = 1, Index max_sequences = 1)
      : config_(router.config()), max_tokens_(max_tokens) {
    const char* where = "CompleteBuffers";
    detail::need(max_tokens >= 0, where, "max_tokens >= 0", {{"max_tokens", max_tokens}});
    outputs_.resize(router.outputs_bytes(max_tokens));
    workspace_.resize(router.workspace_bytes(max_tokens, workers, max_sequences));
    resize(max_tokens);
  }

  template <class Flag, std::enable_if_t<std::is_same_v<Flag, bool>, int> = 0>
  CompleteBuffers(const R& router, Index max_tokens, Flag, Index = 1) = delete;

  // Outputs start at aligned addresses, which are at other offsets in other memory.
  CompleteBuffers(const CompleteBuffers&) = delete;
  CompleteBuffers& operator=(const CompleteBuffers&) = delete;
  /// Takes over the memory: views stay valid.
  CompleteBuffers(CompleteBuffers&&) noexcept = default;
  /// Takes over the memory: views stay valid.
  CompleteBuffers& operator=(CompleteBuffers&&) noexcept = default;

  /// Sets T for the calls that follow; an Error above max_tokens. Allocates nothing.
  void resize(Index tokens) {
    check_tokens(tokens);
    tokens_ = tokens;
  }

  /// Where a forward writes and a backward reads.
  Routing view() { return view(tokens_); }
  /// The same for `tokens` tokens, whatever T is set; an Error above max_tokens. All views start at
  /// the same addresses.
  Routing view(Index tokens) {
    check_tokens(tokens);
    const Workspace memory(outputs_);
    const auto carve = [&](detail::Arena& arena) {
      return detail::carve_outputs<typename R::Token, Accumulator, ExpertId>(arena, config_,
                                                                             max_tokens_, tokens);
    };
    detail::Arena arena("CompleteBuffers", memory, detail::measure(carve));
    return carve(arena);
  }
  /// Scratch for forward and backward.
  Workspace workspace() { return workspace_; }

  /// What the last forward through these buffers returned.
  const CompleteReport& report() const { return report_; }
  /// Set by CompleteRouter::forward, and to be set after forward_logits: T becomes the report's.
  void set_report(const CompleteReport& report) {
    resize(report.tokens);
    report_ = report;
  }

 private:
  void check_tokens(Index tokens) const {
    detail::need(tokens >= 0 && tokens <= max_tokens_, "CompleteBuffers",
                 "0 <= tokens <= max_tokens", {{"tokens", tokens}, {"max_tokens", max_tokens_}});
  }

  CompleteConfig config_;
  Index max_tokens_;
  Index tokens_ = 0;
  CompleteReport report_;
  std::vector<std::byte> outputs_;
  std::vector<std::byte> workspace_;
};

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_ROUTER_COMPLETE_ROUTING_HPP
