// SPDX-License-Identifier: MIT
// The paper's selection: the K largest penalised logits, and a softmax over them (eq. 1-8).
#ifndef GATEPRO_ROUTING_PLAIN_SELECTION_HPP
#define GATEPRO_ROUTING_PLAIN_SELECTION_HPP

#include <algorithm>

#include "gatepro/routing/active_competition.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// True if one of the first `tokens` tokens selected a loser.
template <class A>
bool holds_losers(const RoutingGroup<A>& group, Index tokens, Index top_k) {
  // Losers rank after survivors: a token without one in its last slot has none.
  const auto* last_keys_L = group.top_keys_KL + (top_k - 1) * kernels<A>().lanes;
  return std::any_of(last_keys_L, last_keys_L + tokens,
                     [](auto key) { return key <= Order<A>::loser; });
}

/// Gives the slots that survivors could not fill to the losers, in order of order_EL, then id. The
/// selection left them to the losers in order of id, because all losers share one key. Overwrites
/// ranked_EL.
template <class A>
void refill_from_losers(const RoutingGroup<A>& group, const typename Order<A>::Key* order_EL,
                        typename Order<A>::Key* ranked_EL, Index tokens, Index experts,
                        Index top_k) {
  using O = Order<A>;
  const Index lanes = kernels<A>().lanes;
  for (Index i = 0; i < experts * lanes; ++i) {
    ranked_EL[i] = ranked_EL[i] == O::loser ? order_EL[i] : O::empty;
  }
  kernels<A>().top_k(ranked_EL, experts, top_k, group.other_keys_KL, group.other_ids_KL);
  for (Index lane = 0; lane < tokens; ++lane) {
    Index next_loser = lane;
    for (Index i = lane; i < top_k * lanes; i += lanes) {
      if (group.top_keys_KL[i] != O::loser) continue;
      group.ids_KL[i] = group.other_ids_KL[next_loser];
      next_loser += lanes;
    }
  }
}

/// Selects the best K of the ranked keys, which stand in group.ranked_EL if some may be
/// `eliminated`. True if losers were selected.
template <class A>
bool select_ranked(const RoutingGroup<A>& group, const typename Order<A>::Key* ranked_EL,
                   bool eliminated, Index tokens, Index experts, Index top_k) {
  kernels<A>().top_k(ranked_EL, experts, top_k, group.top_keys_KL, group.ids_KL);
  if (!eliminated || !holds_losers(group, tokens, top_k)) return false;
  refill_from_losers(group, group.keys_EL, group.ranked_EL, tokens, experts, top_k);
  return true;
}

/// What RoutingPass does with a group.
template <class A>
struct PlainSelection {
  using Group = RoutingGroup<A>;
  using Key = typename Order<A>::Key;
  static constexpr bool is_recorded = false;

  Index top_k = 0;
  ActiveCompetition<A> competition;

  static Group carve(Arena& arena, Index experts, const SelectionRule& rule) {
    return carve_group<A>(arena, experts, rule.top_k);
  }
  /// The keys by which experts rank.
  const Key* rank(const Group& group, const TokenRange&, Index experts) const {
    return compete(group, experts, competition);
  }
  /// ids_KL and selected_KL. True if losers were selected.
  bool choose(const Group& group, const Key* ranked_EL, const TokenRange& tokens,
              Index experts) const {
    return select_ranked(group, ranked_EL, competition.eliminate, tokens.count, experts, top_k);
  }
  /// other_ids_KL: who would be chosen if nobody competed.
  void choose_unpenalised(const Group& group, Index experts) const {
    kernels<A>().top_k(group.keys_EL, experts, top_k, group.other_keys_KL, group.other_ids_KL);
  }
  /// weights_KL, scores_KL and nonfinite_L of the selected.
  void weigh(const Group& group, const TokenRange&) const {
    kernels<A>().softmax(group.selected_KL, top_k, group.weights_KL, group.nonfinite_L);
  }
};

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_PLAIN_SELECTION_HPP
