// SPDX-License-Identifier: MIT
// Group kernels: which groups of experts a token may choose from, one token per lane.

/// What ranks a group.
template <class A>
struct GroupRank {
  Keys<A> unusable;  ///< Losers and NaNs among its best experts; fewer is better.
  Keys<A> sum;       ///< Key of the sum of the others; larger is better.

  /// Of a group whose `count` best experts have these keys.
  GATEPRO_FN static GroupRank of_best(const BitsOf<A>* best_keys_NL, Index count) {
    const Keys<A> loser = Keys<A>::splat(Order<A>::loser);
    Keys<A> unusable = Keys<A>::splat(0);
    Lanes<A> sum = Lanes<A>::splat(A(0));
    for (Index n = 0; n < count; ++n) {
      const Keys<A> key = Keys<A>::load(best_keys_NL + n * lanes_v<A>);
      const auto usable = key > loser;
      unusable = unusable - (usable ^ Keys<A>::splat(-1));
      sum = sum + to_values<A>(select(usable, key, Keys<A>::splat(0)));
    }
    return {unusable, to_keys<A>(sum)};
  }
  GATEPRO_FN static GroupRank load(const BitsOf<A>* rank_2L) {
    return {Keys<A>::load(rank_2L), Keys<A>::load(rank_2L + lanes_v<A>)};
  }
  GATEPRO_FN void store(BitsOf<A>* rank_2L) const {
    unusable.store(rank_2L);
    sum.store(rank_2L + lanes_v<A>);
  }

  GATEPRO_FN typename Keys<A>::Mask is_before(const GroupRank& other) const {
    return (unusable < other.unusable) | ((unusable == other.unusable) & (sum > other.sum));
  }
};

/// The two largest keys of a group.
template <class A>
GATEPRO_FN void best_two(const BitsOf<A>* keys_EL, Index experts, BitsOf<A>* best_keys_NL) {
  Keys<A> first = Keys<A>::splat(Order<A>::empty);
  Keys<A> second = first;
  for (Index i = 0; i < experts * lanes_v<A>; i += lanes_v<A>) {
    const Keys<A> key = Keys<A>::load(keys_EL + i);
    second = larger(second, smaller(first, key));
    first = larger(first, key);
  }
  first.store(best_keys_NL);
  second.store(best_keys_NL + lanes_v<A>);
}

/// limited_EL = choice_EL, with the experts of all but the best `allowed` of `groups` groups behind
/// everything, NaNs included: an empty slot takes none of them. The sum of its `count` best experts
/// ranks a group, the lower id first among equals. The two may be the same memory.
template <class A>
GATEPRO_KERNEL void limit_groups(const BitsOf<A>* choice_EL, Index experts, const GroupsRule& rule,
                                 const GroupsScratch<BitsOf<A>>& scratch, BitsOf<A>* limited_EL) {
  constexpr int L = lanes_v<A>;
  const Index size = experts / rule.groups;
  for (Index g = 0; g < rule.groups; ++g) {
    const BitsOf<A>* keys = choice_EL + g * size * L;
    if (rule.count == 2) {
      best_two<A>(keys, size, scratch.best.keys_KL);
    } else {
      top_k<A>(keys, size, rule.count, scratch.best);
    }
    GroupRank<A>::of_best(scratch.best.keys_KL, rule.count).store(scratch.ranks_G2L + 2 * g * L);
  }
  for (Index g = 0; g < rule.groups; ++g) {
    const auto rank = GroupRank<A>::load(scratch.ranks_G2L + 2 * g * L);
    Keys<A> place = Keys<A>::splat(BitsOf<A>(g));
    for (Index h = 0; h < g; ++h) {
      BitsOf<A>* other_place = scratch.places_GL + h * L;
      const auto overtakes = rank.is_before(GroupRank<A>::load(scratch.ranks_G2L + 2 * h * L));
      place = place + overtakes;
      (Keys<A>::load(other_place) - overtakes).store(other_place);
    }
    place.store(scratch.places_GL + g * L);
  }
  for (Index g = 0; g < rule.groups; ++g) {
    const Keys<A> place = Keys<A>::load(scratch.places_GL + g * L);
    const auto is_allowed = place < Keys<A>::splat(BitsOf<A>(rule.allowed));
    for (Index i = g * size * L; i < (g + 1) * size * L; i += L) {
      select(is_allowed, Keys<A>::load(choice_EL + i), Keys<A>::splat(Order<A>::empty))
          .store(limited_EL + i);
    }
  }
}
