// SPDX-License-Identifier: MIT
// Weight kernels: from the scores of the selected to their weights, one token per lane.

/// weights_KL: the scores, with `divide` over their sum + 1e-20, which keeps them from 0 / 0.
/// nonfinite_L: all ones where a score is NaN, as that of a NaN is, +inf was selected, or nothing
/// above -inf.
template <class A>
GATEPRO_KERNEL void weigh_scores(const BitsOf<A>* keys_KL, const A* scores_KL, Index k, bool divide,
                                 A* weights_KL, BitsOf<A>* nonfinite_L) {
  using O = Order<A>;
  constexpr int L = lanes_v<A>;
  const Keys<A> nan = Keys<A>::splat(O::nan);
  Keys<A> best = Keys<A>::splat(O::lowest), nonfinite = Keys<A>::splat(0);
  Lanes<A> sum = Lanes<A>::splat(A(0));
  for (Index i = 0; i < k * L; i += L) {
    const Keys<A> key = Keys<A>::load(keys_KL + i);
    const Lanes<A> score = Lanes<A>::load(scores_KL + i);
    best = larger(best, key);
    nonfinite = nonfinite | (to_keys<A>(score) == nan);
    sum = sum + score;
  }
  const Keys<A> above = Keys<A>::splat(-O::infinity) < best;
  const Keys<A> infinite = best == Keys<A>::splat(O::infinity);
  (nonfinite | infinite | (above == Keys<A>::splat(0))).store(nonfinite_L);
  const Lanes<A> divisor = divide ? sum + Lanes<A>::splat(A(1e-20)) : Lanes<A>::splat(A(1));
  for (Index i = 0; i < k * L; i += L) {
    (Lanes<A>::load(scores_KL + i) / divisor).store(weights_KL + i);
  }
}

/// Scales the weights; NaNs, of scores too, in the lanes that nonfinite_L marks.
template <class A>
GATEPRO_KERNEL void finish_weights(const BitsOf<A>* nonfinite_L, Index k, A scale, A* scores_KL,
                                   A* weights_KL) {
  constexpr int L = lanes_v<A>;
  const Keys<A> nonfinite = Keys<A>::load(nonfinite_L);
  const Lanes<A> quiet_nan = bit_cast<A>(Keys<A>::splat(Order<A>::quiet_nan_bits));
  for (Index i = 0; i < k * L; i += L) {
    const Lanes<A> weight = Lanes<A>::load(weights_KL + i) * Lanes<A>::splat(scale);
    select(nonfinite, quiet_nan, weight).store(weights_KL + i);
    select(nonfinite, quiet_nan, Lanes<A>::load(scores_KL + i)).store(scores_KL + i);
  }
}
