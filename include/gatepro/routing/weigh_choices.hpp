// SPDX-License-Identifier: MIT
// Stage: the weights of experts that were chosen before.
#ifndef GATEPRO_ROUTING_WEIGH_CHOICES_HPP
#define GATEPRO_ROUTING_WEIGH_CHOICES_HPP

#include <cstdint>

#include "gatepro/routing/recorded_selection.hpp"
#include "gatepro/routing/route_logits.hpp"

namespace gatepro {

/// Choices of T tokens that were made before.
template <class Id = std::int32_t>
struct RecordedChoices {
  /// T x K: distinct in each row; -1 for none. Those of padding are not looked at. Any strides.
  StridedView<const Id> expert_ids_TK;
  /// T x K: nonzero where the chosen expert had lost, as RoutingView::penalised_TK. Optional:
  /// without it competition decides anew. Any strides.
  StridedView<const std::uint8_t> penalised_TK{};
};

inline namespace GATEPRO_ABI {

/// Bytes of workspace for weigh_choices, whatever T is.
template <class A>
std::size_t weigh_choices_workspace_bytes(Index num_experts, const SelectionRule& rule,
                                          Workers workers = 1) {
  detail::check_selection<A>("weigh_choices", rule, num_experts);
  return detail::measure([&](detail::Arena& arena) {
    arena.take<Index>(num_experts);
    detail::PassLayout<detail::RecordedSelection<A, std::int32_t>>(arena, num_experts, rule,
                                                                   workers);
  });
}

/// Weighs experts that were chosen before, e.g. when a forward is computed again or when the
/// choice comes from another system: the same weights as route_logits, had it chosen them.
///
/// in: as in route_logits; a bias plays no part and must not be given, groups and rule.choice play
/// none either: choices stand as they stood.
/// chosen: for experts that it does not name, competition decides anew; penalised_TK is ignored if
/// rule.competition is off. A choice of none weighs and scores 0, a token without any expert has
/// weights of 0. out: weights_TK, and scores_TK and tokens_per_expert_E if given; nothing else may
/// be.
///
/// Throws Error as route_logits does, and for ids that are neither in [0, E) nor -1, or twice in a
/// row, before any write. No allocation. Thread-safe.
template <class A, class Id, class Executor = SerialExecutor>
RoutingReport weigh_choices(const RoutingInputs<A>& in, const RivalTable& rivals,
                            const SelectionRule& rule, const RecordedChoices<Id>& chosen,
                            const RoutingView<A, Id>& out, Workspace workspace,
                            const Executor& executor = {}) {
  detail::check_accumulator<A>();
  detail::check_id_type<Id>();
  const detail::Checks checks("weigh_choices");
  const Index tokens = in.logits_TE.rows;
  const Index experts = in.logits_TE.cols;
  detail::check_selection<A>(checks, rule, experts);
  checks.matrix("logits_TE", in.logits_TE, tokens, experts);
  checks.need(!in.expert_bias_E.given(), "no expert_bias_E: the choice is made");
  checks.optional_vector("is_padding_T", in.is_padding_T, tokens);
  checks.strided("expert_ids_TK", chosen.expert_ids_TK, tokens, rule.top_k);
  checks.optional_strided("penalised_TK", chosen.penalised_TK, tokens, rule.top_k);
  checks.need(!out.expert_ids_TK.given() && !out.penalised_TK.given() &&
                  !out.choice_values_TK.given() && !out.logits_TE.given() &&
                  out.statistics == nullptr,
              "no outputs but weights_TK, scores_TK and tokens_per_expert_E");
  checks.strided("weights_TK", out.weights_TK, tokens, rule.top_k);
  checks.optional_strided("scores_TK", out.scores_TK, tokens, rule.top_k);
  checks.optional_vector("tokens_per_expert_E", out.tokens_per_expert_E, experts);
  checks.overlaps(detail::output("weights_TK", out.weights_TK),
                  detail::output("scores_TK", out.scores_TK),
                  detail::output("tokens_per_expert_E", out.tokens_per_expert_E),
                  detail::output("workspace", workspace), detail::input("logits_TE", in.logits_TE),
                  detail::input("is_padding_T", in.is_padding_T),
                  detail::input("expert_ids_TK", chosen.expert_ids_TK),
                  detail::input("penalised_TK", chosen.penalised_TK));
  const Choices<const Id> choices{chosen.expert_ids_TK, in.is_padding_T};
  const auto ruled = detail::checked_selection<A>(checks, rule, rivals, experts);
  const detail::RecordedSelection<A, const Id> selection{rule, rule.top_k, ruled.competition,
                                                         choices, chosen.penalised_TK};
  const int workers = checks.workers(executor);
  detail::Arena arena(checks.where(), workspace,
                      weigh_choices_workspace_bytes<A>(experts, rule, workers));
  Index* last_token_E = arena.take<Index>(experts);
  detail::check_distinct_choices(checks, "expert_ids_TK", choices, experts, last_token_E);
  return detail::run_pass(arena, rule, selection, in, out, executor, workers);
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_WEIGH_CHOICES_HPP
