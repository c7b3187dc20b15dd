// SPDX-License-Identifier: MIT
// Stage: the weights of experts that were chosen before.
#ifndef GATEPRO_ROUTING_WEIGH_CHOICES_HPP
#define GATEPRO_ROUTING_WEIGH_CHOICES_HPP

#include <cstdint>

#include "gatepro/core/overlap.hpp"
#include "gatepro/routing/competition.hpp"
#include "gatepro/routing/recorded_selection.hpp"
#include "gatepro/routing/routing_pass.hpp"

namespace gatepro {
inline namespace GATEPRO_ABI {

/// Bytes of workspace for replay_scored, whatever T is.
template <class A>
std::size_t replay_scored_workspace_bytes(Index num_experts, const SelectionRule& rule,
                                          int workers = 1) {
  return detail::scored_workspace_bytes<A>("replay_scored", num_experts, rule, workers);
}

/// Weighs experts that were chosen before, e.g. when a forward is computed again or when the
/// choice comes from another system: the same weights as route_scored, had it chosen them.
///
/// expert_ids_TK: T x K, distinct in each row; -1 for none, which weighs and scores 0; those of
/// padding are not looked at. A token without any expert has weights of 0. penalised_TK: T x K or
/// not given; what route_scored recorded. It says which of the chosen had lost; without it, and for
/// all other experts, competition decides anew. Ignored if rule.competition is off. weights_TK: T x
/// K, overwritten; scores_TK: likewise, or not given. Bias and groups play no part. Everything else
/// is as in route_scored; nothing is counted but the report.
///
/// Throws Error as route_scored does, and for ids that are neither in [0, E) nor -1, or twice in a
/// row, before any write. No allocation. Thread-safe.
template <class A, class Id, class Executor = SerialExecutor>
RoutingReport replay_scored(detail::non_deduced_t<MatrixView<const A>> logits_TE,
                            const RivalTable& rivals, const SelectionRule& rule,
                            VectorView<const std::uint8_t> is_padding_T,
                            StridedView<Id> expert_ids_TK,
                            StridedView<const std::uint8_t> penalised_TK, StridedView<A> weights_TK,
                            detail::non_deduced_t<StridedView<A>> scores_TK, Workspace workspace,
                            const Executor& executor = {}) {
  detail::check_accumulator<A>();
  detail::check_id_type<detail::value_t<Id>>();
  detail::check_executor<Executor>();
  const char* where = "replay_scored";
  const Index tokens = logits_TE.rows;
  const Index experts = logits_TE.cols;
  detail::check_selection<A>(where, rule, experts);
  detail::check_matrix(where, "logits_TE", logits_TE, tokens, experts);
  detail::check_optional_vector(where, "is_padding_T", is_padding_T, tokens);
  detail::check_strided(where, "expert_ids_TK", expert_ids_TK, tokens, rule.top_k);
  detail::check_optional_strided(where, "penalised_TK", penalised_TK, tokens, rule.top_k);
  detail::check_strided(where, "weights_TK", weights_TK, tokens, rule.top_k);
  detail::check_optional_strided(where, "scores_TK", scores_TK, tokens, rule.top_k);
  detail::check_overlaps(
      where, detail::output("weights_TK", weights_TK), detail::output("scores_TK", scores_TK),
      detail::output("workspace", workspace), detail::input("logits_TE", logits_TE),
      detail::input("is_padding_T", is_padding_T), detail::input("expert_ids_TK", expert_ids_TK),
      detail::input("penalised_TK", penalised_TK));
  const auto competition = detail::checked_competition<A>(where, rule.competition, rivals, experts);
  const int workers = detail::checked_workers(where, executor);
  detail::Arena arena(where, workspace, replay_scored_workspace_bytes<A>(experts, rule, workers));
  const detail::ScoredLayout<A> layout(arena, experts, rule, workers);
  const Choices<Id> choices{expert_ids_TK, is_padding_T};
  detail::check_distinct_choices(where, "expert_ids_TK", choices, experts, layout.last_token_E);

  layout.begin(experts);
  detail::for_each_group<A>(tokens, executor, workers, [&](int worker, Index first, Index count) {
    const auto mine = layout.scratch(worker);
    const detail::ScoredGroup<A>& group = mine.group;
    detail::load_recorded_ids(group, choices, first, count);
    detail::kernels<A>().load_keys(logits_TE.row(first), logits_TE.row_stride,
                                   detail::row_room(logits_TE, first, count), count, experts,
                                   group.routing.keys_EL);
    const auto* ranked_EL =
        detail::rank_by_record(group, experts, competition, choices, penalised_TK, first, count);
    if (!detail::scores_after_top_k(rule)) {
      detail::score_kernels<A>().scores(ranked_EL, experts, rule.scores.function, group.scores_EL,
                                        group.sum_L, nullptr);
    }
    detail::gather_ranked(group, ranked_EL, rule);
    detail::lower_missing(group, choices, first, count);
    detail::weigh_group(group, rule);
    detail::clear_idle(group, choices, first, count);
    detail::finish_group(mine, rule, is_padding_T, first, count);
    detail::store_scored_weights(group, first, count, weights_TK, scores_TK);
  });
  return layout.finish({});
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_WEIGH_CHOICES_HPP
