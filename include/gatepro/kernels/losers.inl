// SPDX-License-Identifier: MIT
// Selections that losers take part in: they fill the slots for which survivors do not suffice.

/// Gives the slots that survivors could not fill to the losers, in order of order_EL, then id. The
/// selection left them to the losers in order of id, because all losers share one key. Overwrites
/// ranked_EL.
template <class A>
GATEPRO_KERNEL void refill(const BitsOf<A>* order_EL, Index experts, Index k, BitsOf<A>* ranked_EL,
                           const SelectedKeys<BitsOf<A>>& scratch,
                           const SelectedKeys<BitsOf<A>>& top) {
  using O = Order<A>;
  constexpr int L = lanes_v<A>;
  for (Index i = 0; i < experts * L; i += L) {
    const auto lost = Keys<A>::load(ranked_EL + i) == Keys<A>::splat(O::loser);
    select(lost, Keys<A>::load(order_EL + i), Keys<A>::splat(O::empty)).store(ranked_EL + i);
  }
  top_k<A>(ranked_EL, experts, k, scratch);
  for (int lane = 0; lane < L; ++lane) {
    Index next_loser = lane;
    for (Index i = lane; i < k * L; i += L) {
      if (top.keys_KL[i] != O::loser) continue;
      top.ids_KL[i] = scratch.ids_KL[next_loser];
      next_loser += L;
    }
  }
}

/// Moves ranked keys of survivors to the upper half of the integers; those of losers, in order of
/// keys_EL, and behind them NaNs to the lower half.
template <class A>
GATEPRO_FN void part_losers(const BitsOf<A>* keys_EL, Index experts, BitsOf<A>* ranked_EL) {
  constexpr BitsOf<A> half = RankedKeys<A>::half;
  for (Index i = 0; i < experts * lanes_v<A>; i += lanes_v<A>) {
    const auto lost = Keys<A>::load(ranked_EL + i) < Keys<A>::splat(Order<A>::loser + 1);
    const Keys<A> halved = Keys<A>::load(keys_EL + i) >> 1;
    (halved + select(lost, Keys<A>::splat(-half), Keys<A>::splat(half))).store(ranked_EL + i);
  }
}

/// Undoes that.
template <class A>
GATEPRO_FN void rejoin_losers(const BitsOf<A>* keys_EL, Index experts, BitsOf<A>* ranked_EL) {
  for (Index i = 0; i < experts * lanes_v<A>; i += lanes_v<A>) {
    const Keys<A> key = Keys<A>::load(keys_EL + i);
    const auto lost = Keys<A>::load(ranked_EL + i) < Keys<A>::splat(0);
    select(lost, smaller(Keys<A>::splat(Order<A>::loser), key), key).store(ranked_EL + i);
  }
}

/// The k best of ranked keys, which are keys_EL but for losers, with losers in their own order: by
/// one selection, where so many are wanted that survivors often run out. Overwrites ranked_EL.
/// False, with ranked_EL as it was, where that is not so, or if it may have cost an expert its
/// place.
template <class A>
GATEPRO_KERNEL bool top_k_with_losers(const BitsOf<A>* keys_EL, Index experts, Index k,
                                      BitsOf<A>* ranked_EL, const SelectedKeys<BitsOf<A>>& top) {
  if (4 * k <= experts) return false;
  part_losers<A>(keys_EL, experts, ranked_EL);
  if (top_k_packed<A>({ranked_EL, keys_EL}, experts, k, top)) return true;
  rejoin_losers<A>(keys_EL, experts, ranked_EL);
  return false;
}
