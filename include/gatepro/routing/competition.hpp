// SPDX-License-Identifier: MIT
// Stage: competition between an expert and its rivals (GatePro eq. 7-8).
#ifndef GATEPRO_ROUTING_COMPETITION_HPP
#define GATEPRO_ROUTING_COMPETITION_HPP

#include <cstdint>

#include "gatepro/core/overlap.hpp"
#include "gatepro/routing/active_competition.hpp"
#include "gatepro/routing/eliminated_experts.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// Writes 1 for each loser of a group, else 0.
template <class A>
void store_losers(const RoutingGroup<A>& group, Index experts,
                  const ActiveCompetition<A>& competition,
                  const MatrixView<std::uint8_t>& loser_TE) {
  const auto* ranked_EL = eliminate(group, experts, competition);
  const Index lanes = kernels<A>().lanes;
  for (Index t = 0; t < loser_TE.rows; ++t) {
    for (Index e = 0; e < experts; ++e) {
      loser_TE(t, e) = ranked_EL[e * lanes + t] == Order<A>::loser ? 1 : 0;
    }
  }
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Bytes of workspace for apply_competition.
template <class A>
std::size_t apply_competition_workspace_bytes(Index num_experts, Workers workers = 1) {
  detail::Checks("apply_competition").query_experts(num_experts);
  return detail::measure([&](detail::Arena& arena) {
    const auto carve = [&](detail::Arena& a) { return detail::carve_group<A>(a, num_experts, 1); };
    detail::PerWorker(arena, workers, carve);
  });
}

/// Applies delta_i = -lambda if l_i < l_j*(i), strictly, on the original logits, else 0 (GatePro
/// eq. 7-8), for trainers that select experts themselves. Competition::ties says who loses a tie.
///
/// logits_TE: T x E. penalised_TE: T x E, overwritten with l + delta; in elimination it is a copy
/// of the logits. It may be logits_TE itself. loser_TE: T x E bytes, 1 where the expert loses, else
/// 0; required in elimination, where it is the only result, and optional otherwise. A NaN on either
/// side penalises nobody. A range of tokens is `middle_rows` of all three.
///
/// Returns the mask for select_top_k: loser_TE in elimination, else nobody, for whom it needs no
/// mask: losers of a penalty have paid it in penalised_TE.
///
/// Throws Error for shapes, settings, a missing partner table, a workspace that is too small, or
/// outputs that overlap other memory, before any write. No allocation. Thread-safe.
template <class A, class Executor = SerialExecutor>
EliminatedExperts apply_competition(detail::non_deduced_t<MatrixView<const A>> logits_TE,
                                    const RivalTable& rivals, const Competition& competition,
                                    MatrixView<A> penalised_TE, MatrixView<std::uint8_t> loser_TE,
                                    Workspace workspace, const Executor& executor = {}) {
  detail::check_accumulator<A>();
  const detail::Checks checks("apply_competition");
  const Index tokens = logits_TE.rows;
  const Index experts = logits_TE.cols;
  checks.num_experts(experts);
  checks.matrix("logits_TE", logits_TE, tokens, experts);
  checks.matrix("penalised_TE", penalised_TE, tokens, experts);
  const auto active = detail::checked_competition<A>(checks, competition, rivals, experts);
  if (active.eliminate) {
    checks.matrix("loser_TE", loser_TE, tokens, experts);
  } else {
    checks.optional_matrix("loser_TE", loser_TE, tokens, experts);
  }
  checks.overlaps(detail::output("penalised_TE", penalised_TE),
                  detail::output("loser_TE", loser_TE), detail::in_place("logits_TE", logits_TE),
                  detail::output("workspace", workspace));
  const int workers = checks.workers(executor);
  detail::Arena arena(checks.where(), workspace,
                      apply_competition_workspace_bytes<A>(experts, workers));

  const auto carve = [&](detail::Arena& a) { return detail::carve_group<A>(a, experts, 1); };
  const detail::PerWorker scratch(arena, workers, carve);
  const int busy =
      detail::useful_workers(executor, workers, {detail::routing_work, tokens, experts});
  detail::for_each_group<A>(tokens, executor, busy, [&](int worker, const auto& range) {
    const auto group = scratch(worker);
    // penalised_TE may be logits_TE.
    const auto rows = detail::logit_rows(logits_TE, range, /*others_write=*/true);
    detail::load_keys(rows, range.count, experts, group.keys_EL);
    if (loser_TE.given()) {
      detail::store_losers(group, experts, active, loser_TE.middle_rows(range.first, range.count));
    }
    const auto* ranked_EL =
        active.eliminate ? group.keys_EL : detail::compete(group, experts, active);
    detail::penalty_kernels<A>().store_penalised(
        group.keys_EL, ranked_EL, experts, range.count, rows.data, rows.row_stride,
        penalised_TE.row(range.first), penalised_TE.row_stride);
  });
  return active.eliminate ? EliminatedExperts(loser_TE) : EliminatedExperts();
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_COMPETITION_HPP
