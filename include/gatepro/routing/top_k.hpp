// SPDX-License-Identifier: MIT
// Stage: the k best experts of each token (GatePro eq. 2).
#ifndef GATEPRO_ROUTING_TOP_K_HPP
#define GATEPRO_ROUTING_TOP_K_HPP

#include <atomic>
#include <cstdint>

#include "gatepro/core/overlap.hpp"
#include "gatepro/routing/eliminated_experts.hpp"
#include "gatepro/routing/plain_selection.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// ranked_EL = keys_EL, with the losers of the tokens from `first` lowered.
template <class A>
void rank_marked_losers(const RoutingGroup<A>& group,
                        const MatrixView<const std::uint8_t>& loser_TE, const TokenRange& tokens) {
  using O = Order<A>;
  const Index lanes = kernels<A>().lanes;
  for (Index e = 0; e < loser_TE.cols; ++e) {
    for (Index lane = 0; lane < lanes; ++lane) {
      const Index i = e * lanes + lane;
      const bool loses = lane < tokens.count && loser_TE(tokens.first + lane, e) != 0 &&
                         group.keys_EL[i] != O::nan;
      group.ranked_EL[i] = loses ? O::loser : group.keys_EL[i];
    }
  }
}

/// The logits of the selected, as softmax takes them: a loser's is -inf.
template <class A>
void store_selected_logits(const RoutingGroup<A>& group, const StridedView<A>& selected_TK) {
  const Index lanes = kernels<A>().lanes;
  for (Index t = 0; t < selected_TK.rows; ++t) {
    for (Index j = 0; j < selected_TK.cols; ++j) {
      selected_TK(t, j) = value_of<A>(group.top_keys_KL[j * lanes + t]);
    }
  }
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Bytes of workspace for select_top_k.
template <class A>
std::size_t select_top_k_workspace_bytes(Index num_experts, Index top_k, Workers workers = 1) {
  detail::Checks("select_top_k").query_experts(num_experts);
  return detail::measure([&](detail::Arena& arena) {
    const auto carve = [&](detail::Arena& a) {
      return detail::carve_group<A>(a, num_experts, top_k);
    };
    detail::PerWorker(arena, workers, carve);
  });
}

/// Selects the K best experts of each token, best first (GatePro eq. 2).
///
/// logits_TE: T x E, usually penalised ones. eliminated: what apply_competition returned, or {} for
/// nobody. The order is total: numbers before NaN, survivors before losers, the larger logit, the
/// lower id; -0.0 equals +0.0. expert_ids_TK: T x K distinct ids in
/// [0, E), int32, int64 or uint64, any strides. selected_logits_TK: T x K, the logits of the
/// selected as softmax_selected takes them (a loser's is -inf, -0.0 becomes +0.0).
///
/// Returns the number of tokens with fewer than K survivors. Throws Error for shapes, settings, a
/// workspace that is too small or outputs that overlap other memory, before any write. No
/// allocation. Thread-safe.
template <class Id, class A, class Executor = SerialExecutor>
Index select_top_k(detail::non_deduced_t<MatrixView<const A>> logits_TE,
                   const EliminatedExperts& eliminated, StridedView<Id> expert_ids_TK,
                   StridedView<A> selected_logits_TK, Workspace workspace,
                   const Executor& executor = {}) {
  detail::check_accumulator<A>();
  detail::check_id_type<Id>();
  const detail::Checks checks("select_top_k");
  const Index tokens = logits_TE.rows;
  const Index experts = logits_TE.cols;
  const Index top_k = expert_ids_TK.cols;
  checks.num_experts(experts);
  checks.top_k(top_k, experts);
  checks.matrix("logits_TE", logits_TE, tokens, experts);
  const MatrixView<const std::uint8_t>& loser_TE = eliminated.mask_TE();
  checks.optional_matrix("eliminated", loser_TE, tokens, experts);
  checks.strided("expert_ids_TK", expert_ids_TK, tokens, top_k);
  checks.strided("selected_logits_TK", selected_logits_TK, tokens, top_k);
  checks.overlaps(detail::output("expert_ids_TK", expert_ids_TK),
                  detail::output("selected_logits_TK", selected_logits_TK),
                  detail::output("workspace", workspace), detail::input("logits_TE", logits_TE),
                  detail::input("eliminated", loser_TE));
  const int workers = checks.workers(executor);
  detail::Arena arena(checks.where(), workspace,
                      select_top_k_workspace_bytes<A>(experts, top_k, workers));

  const auto carve = [&](detail::Arena& a) { return detail::carve_group<A>(a, experts, top_k); };
  const detail::PerWorker scratch(arena, workers, carve);
  std::atomic<Index> short_tokens{0};
  const int busy =
      detail::useful_workers(executor, workers, {detail::routing_work, tokens, experts});
  detail::for_each_group<A>(tokens, executor, busy, [&](int worker, const auto& range) {
    const auto group = scratch(worker);
    detail::load_keys(detail::logit_rows(logits_TE, range), range.count, experts, group.keys_EL);
    if (!loser_TE.given()) {
      detail::kernels<A>().top_k(group.keys_EL, experts, top_k, group.top());
    } else {
      detail::rank_marked_losers(group, loser_TE, range);
      detail::select_survivors(group, range.count, experts, top_k);
      short_tokens += detail::count_short(group, range.count, top_k, detail::EveryLane{});
    }
    detail::store_if_given(group.ids_KL, expert_ids_TK, range);
    detail::store_selected_logits(group, selected_logits_TK.middle_rows(range.first, range.count));
  });
  return short_tokens;
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_TOP_K_HPP
