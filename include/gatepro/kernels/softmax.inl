// SPDX-License-Identifier: MIT
// exp, and the softmax over the selected.

/// exp(x) for x <= 0, -inf included: 2^n times a Taylor polynomial on |r| <= ln(2) / 2. The degree
/// makes the truncation smaller than a tenth of an ulp. Below the smallest denormal it gives 0.
template <class A>
GATEPRO_FN Lanes<A> exp_nonpositive(Lanes<A> x) {
  using V = Lanes<A>;
  constexpr bool single = sizeof(A) == 4;
  constexpr int degree = single ? 7 : 13;
  constexpr A most = single ? A(104) : A(746);
  constexpr A ln2_high = single ? A(0.693359375) : A(0.693147180369123816490);
  constexpr A ln2_low = single ? A(-2.12194440e-4) : A(1.90821492927058770002e-10);
  constexpr double inverse_factorial[14] = {1.0,
                                            1.0,
                                            1.0 / 2,
                                            1.0 / 6,
                                            1.0 / 24,
                                            1.0 / 120,
                                            1.0 / 720,
                                            1.0 / 5040,
                                            1.0 / 40320,
                                            1.0 / 362880,
                                            1.0 / 3628800,
                                            1.0 / 39916800,
                                            1.0 / 479001600,
                                            1.0 / 6227020800};
  // With the sign of 0 set, the bits of the smaller number are the larger integer.
  const Keys<A> bits = bit_cast<BitsOf<A>>(x) | Keys<A>::splat(Order<A>::lowest);
  x = bit_cast<A>(smaller(bits, bit_cast<BitsOf<A>>(V::splat(-most))));
  const V scaled = mul_add(x, V::splat(A(1.44269504088896340736)), V::splat(A(-0.5)));
  const Keys<A> n = convert<BitsOf<A>>(scaled);
  const V whole = convert<A>(n);
  V r = mul_add(whole, V::splat(-ln2_high), x);
  r = mul_add(whole, V::splat(-ln2_low), r);
  V sum = V::splat(A(inverse_factorial[degree]));
  GATEPRO_UNROLL
  for (int i = degree - 1; i >= 0; --i) sum = mul_add(sum, r, V::splat(A(inverse_factorial[i])));
  // Two factors, because 2^n alone may be denormal. The first, 2^(n + shift), is normal.
  constexpr BitsOf<A> shift = single ? 64 : 512;
  constexpr A unshift = single ? A(0x1p-64) : A(0x1p-512);
  const Keys<A> exponent = n + Keys<A>::splat(Order<A>::exponent_bias + shift);
  const V power = bit_cast<A>(exponent << Order<A>::mantissa_bits);
  return sum * power * V::splat(unshift);
}

/// Softmax over the k keys of each lane. -inf and losers weigh exactly 0. A lane that holds a NaN
/// or +inf, or nothing above -inf, gets quiet NaNs and an all-ones mask in nonfinite_L.
template <class A>
GATEPRO_KERNEL void softmax(const BitsOf<A>* keys_KL, Index k, A* weights_KL,
                            BitsOf<A>* nonfinite_L) {
  using O = Order<A>;
  constexpr int L = lanes_v<A>;
  const Keys<A> minus_infinity = Keys<A>::splat(-O::infinity);
  Keys<A> best = Keys<A>::splat(O::lowest);
  Keys<A> nonfinite = Keys<A>::splat(0);
  for (Index j = 0; j < k; ++j) {
    const Keys<A> key = Keys<A>::load(keys_KL + j * L);
    best = larger(best, key);
    nonfinite = nonfinite | (key == Keys<A>::splat(O::nan));
  }
  nonfinite = nonfinite | (best == Keys<A>::splat(O::infinity)) |
              (best < minus_infinity + Keys<A>::splat(1));
  nonfinite.store(nonfinite_L);
  // Lanes without a softmax take 0 - 0 instead of a difference of infinities.
  const Keys<A> top = select(nonfinite, Keys<A>::splat(0), best);
  const Lanes<A> zero = Lanes<A>::splat(A(0));
  Lanes<A> sum = zero;
  for (Index j = 0; j < k; ++j) {
    const Keys<A> key = Keys<A>::load(keys_KL + j * L);
    const Keys<A> alive = (key > minus_infinity) & (nonfinite ^ Keys<A>::splat(-1));
    const Lanes<A> below_top = to_values<A>(select(alive, key, top)) - to_values<A>(top);
    const Lanes<A> weight = select(alive, exp_nonpositive<A>(below_top), zero);
    weight.store(weights_KL + j * L);
    sum = sum + weight;
  }
  const Lanes<A> scale = Lanes<A>::splat(A(1)) / sum;
  const Lanes<A> quiet_nan = bit_cast<A>(Keys<A>::splat(O::quiet_nan_bits));
  for (Index j = 0; j < k; ++j) {
    const Lanes<A> weight = Lanes<A>::load(weights_KL + j * L);
    select(nonfinite, quiet_nan, weight * scale).store(weights_KL + j * L);
  }
}
