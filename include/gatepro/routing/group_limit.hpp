// SPDX-License-Identifier: MIT
// Which groups of experts a token may choose from, one token per lane.
#ifndef GATEPRO_ROUTING_GROUP_LIMIT_HPP
#define GATEPRO_ROUTING_GROUP_LIMIT_HPP

#include "gatepro/core/order.hpp"
#include "gatepro/core/workspace.hpp"
#include "gatepro/kernels/dispatch.hpp"
#include "gatepro/routing/selection_checks.hpp"

namespace gatepro {
namespace detail {

inline namespace GATEPRO_ABI {

/// Null pointers where groups limit nothing.
template <class A>
GroupsScratch<typename Order<A>::Key> carve_group_limit(Arena& arena, const SelectionRule& rule) {
  using Key = typename Order<A>::Key;
  GroupsScratch<Key> scratch;
  if (!rule.groups.active()) return scratch;
  const Index lanes = kernels<A>().lanes;
  scratch.best.keys_KL = arena.take<Key>(experts_per_group_score(rule), lanes);
  scratch.best.ids_KL = arena.take<Key>(experts_per_group_score(rule), lanes);
  scratch.ranks_G2L = arena.take<Key>(2 * rule.groups.num_groups, lanes);
  scratch.places_GL = arena.take<Key>(rule.groups.num_groups, lanes);
  return scratch;
}

/// limited_EL = choice_EL, with the experts of groups that are not among the best behind
/// everything, NaNs included. The two may be the same memory.
template <class A>
void limit_to_best_groups(const GroupsScratch<typename Order<A>::Key>& scratch,
                          const SelectionRule& rule, const typename Order<A>::Key* choice_EL,
                          Index experts, typename Order<A>::Key* limited_EL) {
  const GroupsRule groups{rule.groups.num_groups, rule.groups.groups_per_token,
                          experts_per_group_score(rule)};
  score_kernels<A>().limit_groups(choice_EL, experts, groups, scratch, limited_EL);
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_GROUP_LIMIT_HPP
