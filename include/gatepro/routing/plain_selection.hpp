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

/// Selects the best K of ranked_EL, the logits' keys with losers. True if losers were selected.
template <class A>
bool select_survivors(const RoutingGroup<A>& group, Index tokens, Index experts, Index top_k) {
  const Kernels<A>& kernel = kernels<A>();
  const bool in_order =
      kernel.top_k_with_losers(group.keys_EL, experts, top_k, group.ranked_EL, group.top());
  if (!in_order) kernel.top_k(group.ranked_EL, experts, top_k, group.top());
  const bool lost_some = holds_losers(group, tokens, top_k);
  if (lost_some && !in_order) {
    kernel.refill(group.keys_EL, experts, top_k, group.ranked_EL, group.other(), group.top());
  }
  return lost_some;
}

/// What RoutingPass does with a group.
template <class A>
struct PlainSelection {
  using Group = RoutingGroup<A>;
  using Key = typename Order<A>::Key;
  static constexpr bool is_recorded = false;
  static constexpr bool knows_choice_values = false;

  Index top_k = 0;
  ActiveCompetition<A> competition;

  static Group carve(Arena& arena, Index experts, const SelectionRule& rule) {
    return carve_group<A>(arena, experts, rule.top_k);
  }
  /// ids_KL and selected_KL. True if losers were selected.
  bool choose(const Group& group, const TokenRange& tokens, Index experts) const {
    const Key* ranked_EL = compete(group, experts, competition);
    if (!competition.eliminate) {
      kernels<A>().top_k(ranked_EL, experts, top_k, group.top());
      return false;
    }
    return select_survivors(group, tokens.count, experts, top_k);
  }
  /// other_ids_KL: who would be chosen if nobody competed.
  void choose_unpenalised(const Group& group, Index experts) const {
    kernels<A>().top_k(group.keys_EL, experts, top_k, group.other());
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
