// SPDX-License-Identifier: MIT
// Stage: from logits to experts and weights, with any score function, bias and group limit.
#ifndef GATEPRO_ROUTING_ROUTE_LOGITS_HPP
#define GATEPRO_ROUTING_ROUTE_LOGITS_HPP

#include <cstdint>

#include "gatepro/core/overlap.hpp"
#include "gatepro/routing/routing_pass.hpp"
#include "gatepro/routing/ruled_selection.hpp"

namespace gatepro {

/// What a routing reads of T tokens and E experts.
template <class A>
struct RoutingInputs {
  MatrixView<const A> logits_TE;        ///< T x E: before any penalty.
  VectorView<const A> expert_bias_E{};  ///< E: added to the scores, for the choice only. Optional.
  /// T: nonzero marks padding. Optional.
  VectorView<const std::uint8_t> is_padding_T{};
};

namespace detail {
inline namespace GATEPRO_ABI {

/// The checked rule and rivals of a call.
template <class A>
RuledSelection<A> checked_selection(const Checks& checks, const SelectionRule& rule,
                                    const RivalTable& rivals, Index experts) {
  check_selection<A>(checks, rule, experts);
  RuledSelection<A> selection;
  selection.rule = rule;
  selection.top_k = rule.top_k;
  selection.competition = checked_competition<A>(checks, rule.competition, rivals, experts);
  return selection;
}

template <class Selection>
std::size_t pass_bytes(Index experts, const SelectionRule& rule, int workers) {
  return measure([&](Arena& arena) { PassLayout<Selection>(arena, experts, rule, workers); });
}

/// Routes all rows of logits_TE into `out` with scratch from `arena`.
template <class A, class Id, class Selection, class Executor>
RoutingReport run_pass(Arena& arena, const SelectionRule& rule, const Selection& selection,
                       const RoutingInputs<A>& in, const RoutingView<A, Id>& out,
                       const Executor& executor, int workers) {
  const PassLayout<Selection> layout(arena, in.logits_TE.cols, rule, workers);
  const RoutingPass<A, Id, Selection> pass(layout, selection, out, {}, in.is_padding_T);
  pass.route_all(in.logits_TE, executor, Untouched{});
  return pass.finish();
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Bytes of workspace for route_logits, whatever T is. Throws Error for a rule that does not fit.
template <class A>
std::size_t route_logits_workspace_bytes(Index num_experts, const SelectionRule& rule,
                                         Workers workers = 1) {
  detail::check_selection<A>("route_logits", rule, num_experts);
  return detail::pass_bytes<detail::RuledSelection<A>>(num_experts, rule, workers);
}

/// Selects the K best experts of each token and weighs them: competition, scores, bias, group
/// limit, top-k, weights.
///
/// rivals: read only if rule.competition is active. out: T rows; its logits_TE and statistics must
/// not be given, since the logits are the input and only routers know partners. Padding gets
/// weights and scores of 0 and stays out of all counts. With softmax_after_top_k scores are softmax
/// weights and the choice is by penalised logit plus bias; else scores are those of the penalised
/// logits, and the choice is by score plus bias.
///
/// Experts rank by: in an allowed group, not NaN, survivor before loser, larger choice value, lower
/// id. Groups rank by: fewer losers and NaNs among the best that count, larger sum of the choice
/// values of the others (a NaN, of two infinities, last), lower id. Losers of elimination that fill
/// slots stand in order of their choice value without competition; their scores and weights are
/// exactly 0. Choices stand in order of rank, or of their ids if rule.choice says so. A logit of
/// -inf scores 0. If a selected logit is NaN or +inf, or all selected are -inf or losers, or with
/// softmax_before_top_k any logit is +inf, the token's weights and scores are quiet NaNs and it is
/// counted. With defaults the results are those of Router to the bit.
///
/// A token's results depend on its logits only, not on T, its position or the executor. Throws
/// Error for shapes, settings, a bias that is not finite, missing partners, a workspace that is too
/// small, or outputs that overlap other memory, before any write. No allocation. Thread-safe.
/// Scores are accurate to 4 ulp, sums over E to E eps. Source: Megatron-LM's router, DeepSeek-V3
/// (arXiv 2412.19437) for bias and groups.
template <class A, class Id, class Executor = SerialExecutor>
RoutingReport route_logits(const RoutingInputs<A>& in, const RivalTable& rivals,
                           const SelectionRule& rule, const RoutingView<A, Id>& out,
                           Workspace workspace, const Executor& executor = {}) {
  detail::check_accumulator<A>();
  detail::check_id_type<Id>();
  const detail::Checks checks("route_logits");
  const Index tokens = in.logits_TE.rows;
  const Index experts = in.logits_TE.cols;
  detail::check_selection<A>(checks, rule, experts);
  checks.matrix("logits_TE", in.logits_TE, tokens, experts);
  checks.optional_vector("expert_bias_E", in.expert_bias_E, experts);
  detail::check_bias_values(checks, "expert_bias_E", in.expert_bias_E);
  checks.optional_vector("is_padding_T", in.is_padding_T, tokens);
  checks.need(!out.choice_values_TK.given() || rule.choice.order == ChoiceOrder::best_first,
              "choices best first, not by id, for choice_values_TK");
  checks.need(!out.logits_TE.given() && out.statistics == nullptr,
              "neither logits_TE nor statistics among the outputs");
  detail::check_routing_view(checks, out, tokens, experts, rule.top_k);
  checks.overlaps(detail::output("expert_ids_TK", out.expert_ids_TK),
                  detail::output("weights_TK", out.weights_TK),
                  detail::output("scores_TK", out.scores_TK),
                  detail::output("penalised_TK", out.penalised_TK),
                  detail::output("choice_values_TK", out.choice_values_TK),
                  detail::output("tokens_per_expert_E", out.tokens_per_expert_E),
                  detail::output("workspace", workspace), detail::input("logits_TE", in.logits_TE),
                  detail::input("expert_bias_E", in.expert_bias_E),
                  detail::input("is_padding_T", in.is_padding_T));
  auto selection = detail::checked_selection<A>(checks, rule, rivals, experts);
  selection.bias_E = in.expert_bias_E.data;
  const int workers = checks.workers(executor);
  detail::Arena arena(checks.where(), workspace,
                      route_logits_workspace_bytes<A>(experts, rule, workers));
  return detail::run_pass(arena, rule, selection, in, out, executor, workers);
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_ROUTE_LOGITS_HPP
