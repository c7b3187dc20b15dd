// SPDX-License-Identifier: MIT
// Selections that losers take part in: they fill the slots for which survivors do not suffice.

/// True if a lane selected a loser. Losers rank after survivors: one without a loser in its last
/// slot has none.
template <class A>
GATEPRO_FN bool holds_losers(const BitsOf<A>* top_keys_KL, Index k) {
  const Keys<A> last = Keys<A>::load(top_keys_KL + (k - 1) * lanes_v<A>);
  return any_lane(last < Keys<A>::splat(Order<A>::loser + 1));
}

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

/// Moves ranked keys of survivors to the upper half of the integers, those of losers, in order of
/// keys_EL, and then NaNs to the lower half. Or back, if `apart`.
template <class A>
GATEPRO_FN void move_losers(const BitsOf<A>* keys_EL, Index experts, bool apart,
                            BitsOf<A>* ranked_EL) {
  constexpr BitsOf<A> half = RankedKeys<A>::half;
  const Keys<A> loser = Keys<A>::splat(Order<A>::loser);
  for (Index i = 0; i < experts * lanes_v<A>; i += lanes_v<A>) {
    const Keys<A> key = Keys<A>::load(keys_EL + i), ranked = Keys<A>::load(ranked_EL + i);
    const auto lost = apart ? ranked < Keys<A>::splat(0) : ranked < loser + Keys<A>::splat(1);
    const Keys<A> moved = (key >> 1) + select(lost, Keys<A>::splat(-half), Keys<A>::splat(half));
    (apart ? select(lost, smaller(loser, key), key) : moved).store(ranked_EL + i);
  }
}

/// The k best of ranked keys, which are keys_EL but for losers. Overwrites ranked_EL.
template <class A>
GATEPRO_KERNEL void top_k_of_survivors(const BitsOf<A>* keys_EL, Index experts, Index k,
                                       BitsOf<A>* ranked_EL, const SelectedKeys<BitsOf<A>>& scratch,
                                       const SelectedKeys<BitsOf<A>>& top) {
  const bool will_run_out = 4 * k > experts;
  if (will_run_out) {
    move_losers<A>(keys_EL, experts, false, ranked_EL);
    if (top_k_packed<A>({ranked_EL, keys_EL}, experts, k, top)) return;
    move_losers<A>(keys_EL, experts, true, ranked_EL);
  }
  top_k<A>(ranked_EL, experts, k, top);
  if (holds_losers<A>(top.keys_KL, k)) {
    refill<A>(keys_EL, experts, k, ranked_EL, scratch, top);
  }
}
