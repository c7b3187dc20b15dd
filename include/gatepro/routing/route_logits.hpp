// SPDX-License-Identifier: MIT
// Stage: from logits to experts and weights, with any score function, bias and group limit.
#ifndef GATEPRO_ROUTING_ROUTE_LOGITS_HPP
#define GATEPRO_ROUTING_ROUTE_LOGITS_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/core/overlap.hpp"
#include "gatepro/routing/competition.hpp"
#include "gatepro/routing/routing_pass.hpp"

namespace gatepro {

/// Where route_scored writes T tokens. Ids and weights are required, the others optional.
template <class A, class Id = std::int32_t>
struct ScoredRoutingView {
  /// T x K: the selected experts, best first; distinct, in [0, E). Any strides.
  StridedView<Id> expert_ids_TK;
  /// T x K: their weights, in the same order. Any strides.
  StridedView<A> weights_TK;
  /// T x K: their scores, before the quotient and the scale; scores_backward needs them.
  StridedView<A> scores_TK{};
  /// T x K: 1 if the expert had lost its competition, else 0; a record for replay_scored.
  StridedView<std::uint8_t> penalised_TK{};
  /// E: tokens routed to each expert, without padding.
  VectorView<std::int64_t> tokens_per_expert_E{};
};

namespace detail {
inline namespace GATEPRO_ABI {

/// other_keys_KL = 1 where the selected expert had lost, else 0.
template <class A>
void mark_penalised(const ScoredGroup<A>& group, const ActiveSelection<A>& selection) {
  const RoutingGroup<A>& routing = group.routing;
  const Index lanes = kernels<A>().lanes;
  const Index size = selection.rule.top_k * lanes;
  std::fill_n(routing.other_keys_KL, size, 0);
  if (!selection.competition.active) return;
  for (Index lane = 0; lane < lanes; ++lane) {
    for (Index i = lane; i < size; i += lanes) {
      const bool lost = has_lost<A>(routing.keys_EL + lane, lanes, Index(routing.top_ids_KL[i]),
                                    selection.competition);
      routing.other_keys_KL[i] = lost ? 1 : 0;
    }
  }
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Bytes of workspace for route_scored, whatever T is. Throws Error for a rule that does not fit.
template <class A>
std::size_t route_scored_workspace_bytes(Index num_experts, const SelectionRule& rule,
                                         int workers = 1) {
  return detail::scored_workspace_bytes<A>("route_scored", num_experts, rule, workers);
}

/// Selects the K best experts of each token and weighs them: competition, scores, bias, group
/// limit, top-k, weights.
///
/// logits_TE: T x E. rivals: read only if rule.competition is active. expert_bias_E: E of float or
/// double, added to the scores for the choice only, or not given. is_padding_T: T bytes or not
/// given; a nonzero one gives the token weights and scores of 0 and keeps it out of all counts.
/// With softmax_after_top_k scores are softmax weights and the choice is by penalised logit plus
/// bias; else scores are those of the penalised logits, and the choice is by score plus bias.
///
/// Experts rank by: in an allowed group, not NaN, survivor before loser, larger choice value, lower
/// id. Groups rank by: fewer losers and NaNs among the best that count, larger sum of the choice
/// values of the others (a NaN, of two infinities, last), lower id. Losers of elimination that fill
/// slots stand in order of their choice value without competition; their scores and weights are
/// exactly 0. A logit of -inf scores 0. If
/// a selected logit is NaN or +inf, or all selected are -inf or losers, or with
/// softmax_before_top_k any logit is +inf, the token's weights and scores are quiet NaNs and it is
/// counted. With defaults the results are those of Router to the bit.
///
/// A token's results depend on its logits only, not on T, its position or the executor. Throws
/// Error for shapes, settings, a bias that is not finite, missing partners, a workspace that is too
/// small, or outputs that overlap other memory, before any write. No allocation. Thread-safe.
/// Scores are accurate to 4 ulp, sums over E to E eps. Source: Megatron-LM's router, DeepSeek-V3
/// (arXiv 2412.19437) for bias and groups.
template <class A, class Id, class B = const float, class Executor = SerialExecutor>
RoutingReport route_scored(detail::non_deduced_t<MatrixView<const A>> logits_TE,
                           const RivalTable& rivals, const SelectionRule& rule,
                           VectorView<B> expert_bias_E, VectorView<const std::uint8_t> is_padding_T,
                           const ScoredRoutingView<A, Id>& out, Workspace workspace,
                           const Executor& executor = {}) {
  detail::check_accumulator<A>();
  detail::check_id_type<Id>();
  detail::check_executor<Executor>();
  const char* where = "route_scored";
  const Index tokens = logits_TE.rows;
  const Index experts = logits_TE.cols;
  detail::check_selection<A>(where, rule, experts);
  detail::check_matrix(where, "logits_TE", logits_TE, tokens, experts);
  detail::check_optional_vector(where, "expert_bias_E", expert_bias_E, experts);
  detail::check_bias_values<A>(where, "expert_bias_E", expert_bias_E);
  detail::check_optional_vector(where, "is_padding_T", is_padding_T, tokens);
  detail::check_strided(where, "expert_ids_TK", out.expert_ids_TK, tokens, rule.top_k);
  detail::check_strided(where, "weights_TK", out.weights_TK, tokens, rule.top_k);
  detail::check_optional_strided(where, "scores_TK", out.scores_TK, tokens, rule.top_k);
  detail::check_optional_strided(where, "penalised_TK", out.penalised_TK, tokens, rule.top_k);
  detail::check_optional_vector(where, "tokens_per_expert_E", out.tokens_per_expert_E, experts);
  detail::check_overlaps(
      where, detail::output("expert_ids_TK", out.expert_ids_TK),
      detail::output("weights_TK", out.weights_TK), detail::output("scores_TK", out.scores_TK),
      detail::output("penalised_TK", out.penalised_TK),
      detail::output("tokens_per_expert_E", out.tokens_per_expert_E),
      detail::output("workspace", workspace), detail::input("logits_TE", logits_TE),
      detail::input("expert_bias_E", expert_bias_E), detail::input("is_padding_T", is_padding_T));
  detail::ActiveSelection<A> selection;
  selection.rule = rule;
  selection.competition = detail::checked_competition<A>(where, rule.competition, rivals, experts);
  const int workers = detail::checked_workers(where, executor);
  detail::Arena arena(where, workspace, route_scored_workspace_bytes<A>(experts, rule, workers));

  const detail::ScoredLayout<A> layout(arena, experts, rule, workers);
  layout.begin(experts);
  if (expert_bias_E.given()) {
    for (Index e = 0; e < experts; ++e) layout.bias_E[e] = static_cast<A>(expert_bias_E[e]);
    selection.bias_E = layout.bias_E;
  }
  detail::for_each_group<A>(tokens, executor, workers, [&](int worker, Index first, Index count) {
    const auto mine = layout.scratch(worker);
    const detail::RoutingGroup<A>& routing = mine.group.routing;
    detail::kernels<A>().load_keys(logits_TE.row(first), logits_TE.row_stride,
                                   detail::row_room(logits_TE, first, count), count, experts,
                                   routing.keys_EL);
    const auto* ranked_EL = detail::rank_group(routing, experts, selection.competition);
    detail::choose_group(mine.group, ranked_EL, count, experts, selection);
    detail::weigh_group(mine.group, rule);
    detail::finish_group(mine, rule, is_padding_T, first, count);
    detail::store_group(routing.top_ids_KL, out.expert_ids_TK.middle_rows(first, count));
    detail::store_scored_weights(mine.group, first, count, out.weights_TK, out.scores_TK);
    if (!out.penalised_TK.given()) return;
    detail::mark_penalised(mine.group, selection);
    detail::store_group(routing.other_keys_KL, out.penalised_TK.middle_rows(first, count));
  });
  return layout.finish(out.tokens_per_expert_E);
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_ROUTE_LOGITS_HPP
