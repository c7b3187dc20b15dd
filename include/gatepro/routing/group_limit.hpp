// SPDX-License-Identifier: MIT
// Which groups of experts a token may choose from, one token per lane.
#ifndef GATEPRO_ROUTING_GROUP_LIMIT_HPP
#define GATEPRO_ROUTING_GROUP_LIMIT_HPP

#include <algorithm>

#include "gatepro/core/order.hpp"
#include "gatepro/core/workspace.hpp"
#include "gatepro/kernels/dispatch.hpp"
#include "gatepro/routing/selection_checks.hpp"

namespace gatepro {
namespace detail {

/// What ranks a group of experts for one token.
template <class A>
struct GroupRank {
  Index unusable = 0;              ///< Losers and NaNs among its best; fewer is better.
  typename Order<A>::Key sum = 0;  ///< Key of the sum of the others; larger is better.
};

/// Scratch: L tokens, G groups, the N best of each.
template <class A>
struct GroupLimitScratch {
  using Key = typename Order<A>::Key;
  Key* best_keys_NL = nullptr;
  Key* best_ids_NL = nullptr;
  GroupRank<A>* ranks_GL = nullptr;
  bool* allowed_GL = nullptr;
};

inline namespace GATEPRO_ABI {

template <class A>
GroupLimitScratch<A> carve_group_limit(Arena& arena, const SelectionRule& rule) {
  GroupLimitScratch<A> scratch;
  if (!rule.groups.active()) return scratch;
  using Key = typename Order<A>::Key;
  const Index lanes = kernels<A>().lanes;
  scratch.best_keys_NL = arena.take<Key>(experts_per_group_score(rule), lanes);
  scratch.best_ids_NL = arena.take<Key>(experts_per_group_score(rule), lanes);
  scratch.ranks_GL = arena.take<GroupRank<A>>(rule.groups.num_groups, lanes);
  scratch.allowed_GL = arena.take<bool>(rule.groups.num_groups, lanes);
  return scratch;
}

template <class A>
bool ranks_before(const GroupRank<A>& a, const GroupRank<A>& b) {
  return a.unusable != b.unusable ? a.unusable < b.unusable : a.sum > b.sum;
}

/// The rank of a group whose best N choice keys stand in every `lanes`-th element.
template <class A>
GroupRank<A> rank_of_best(const typename Order<A>::Key* best_keys, Index count, Index lanes) {
  GroupRank<A> rank;
  A sum = 0;
  for (Index n = 0; n < count; ++n) {
    const auto key = best_keys[n * lanes];
    if (key <= Order<A>::loser) {
      ++rank.unusable;
    } else {
      sum += value_of<A>(key);
    }
  }
  rank.sum = key_of(sum);
  return rank;
}

template <class A>
void rank_groups(const GroupLimitScratch<A>& scratch, const SelectionRule& rule,
                 const typename Order<A>::Key* choice_EL, Index experts) {
  const Index lanes = kernels<A>().lanes;
  const Index group_size = experts / rule.groups.num_groups;
  const Index count = experts_per_group_score(rule);
  for (Index g = 0; g < rule.groups.num_groups; ++g) {
    kernels<A>().top_k(choice_EL + g * group_size * lanes, group_size, count,
                       {scratch.best_keys_NL, scratch.best_ids_NL});
    for (Index lane = 0; lane < lanes; ++lane) {
      scratch.ranks_GL[g * lanes + lane] =
          rank_of_best<A>(scratch.best_keys_NL + lane, count, lanes);
    }
  }
}

/// Marks the best M groups of each lane, the lower id first among equals.
template <class A>
void allow_best_groups(const GroupLimitScratch<A>& scratch, const GroupLimit& groups) {
  const Index lanes = kernels<A>().lanes;
  std::fill_n(scratch.allowed_GL, groups.num_groups * lanes, false);
  for (Index lane = 0; lane < lanes; ++lane) {
    for (Index m = 0; m < groups.groups_per_token; ++m) {
      Index best = -1;
      for (Index i = lane; i < groups.num_groups * lanes; i += lanes) {
        if (scratch.allowed_GL[i]) continue;
        if (best < 0 || ranks_before(scratch.ranks_GL[i], scratch.ranks_GL[best])) best = i;
      }
      scratch.allowed_GL[best] = true;
    }
  }
}

/// limited_EL = choice_EL, with the experts of other groups behind everything, NaNs included: an
/// empty slot takes none of them. The two may be the same memory.
template <class A>
void limit_to_best_groups(const GroupLimitScratch<A>& scratch, const SelectionRule& rule,
                          const typename Order<A>::Key* choice_EL, Index experts,
                          typename Order<A>::Key* limited_EL) {
  rank_groups(scratch, rule, choice_EL, experts);
  allow_best_groups(scratch, rule.groups);
  const Index lanes = kernels<A>().lanes;
  const Index group_size = experts / rule.groups.num_groups;
  for (Index e = 0; e < experts; ++e) {
    const bool* allowed_L = scratch.allowed_GL + e / group_size * lanes;
    for (Index lane = 0; lane < lanes; ++lane) {
      const Index i = e * lanes + lane;
      limited_EL[i] = allowed_L[lane] ? choice_EL[i] : Order<A>::empty;
    }
  }
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_GROUP_LIMIT_HPP
