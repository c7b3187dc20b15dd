// SPDX-License-Identifier: MIT
// exp, and the softmax over the selected.

/// Towards zero.
template <class A, int N>
GATEPRO_FN Vec<A, N> truncate(Vec<A, N> v) {
  return convert<A>(convert<BitsOf<A>>(v));
}

/// v * 2^n for v from 1/2 to 2 and a whole n <= 1 whose 2^n may be denormal: with one rounding.
template <class A, int N>
GATEPRO_FN Vec<A, N> times_power_of_2(Vec<A, N> v, Vec<A, N> n) {
  // Two factors; the first, 2^(n + shift), is normal.
  constexpr bool single = sizeof(A) == 4;
  constexpr BitsOf<A> shift = single ? 64 : 512;
  constexpr A unshift = single ? A(0x1p-64) : A(0x1p-512);
  const Keys<A> exponent = convert<BitsOf<A>>(n) + Keys<A>::splat(Order<A>::exponent_bias + shift);
  const Lanes<A> power = bit_cast<A>(exponent << Order<A>::mantissa_bits);
  return v * power * Lanes<A>::splat(unshift);
}

#if GATEPRO_VECTOR_EXTENSIONS && GATEPRO_BYTES == 64  // has instructions for both
GATEPRO_FN Vec<float, 16> truncate(Vec<float, 16> v) {
  return {__builtin_ia32_rndscaleps_mask(v.raw, 3, v.raw, all_16_lanes, 4)};
}
GATEPRO_FN Vec<float, 16> times_power_of_2(Vec<float, 16> v, Vec<float, 16> n) {
  return {__builtin_ia32_scalefps512_mask(v.raw, n.raw, v.raw, all_16_lanes, 4)};
}
#endif

/// Vectors whose exponentials are computed side by side: each is a long chain, and processors look
/// ahead too little to find the next one. As many as there are registers for.
#if GATEPRO_BYTES == 64 || GATEPRO_NEON
inline constexpr int chains_v = 4;
#else
inline constexpr int chains_v = 2;
#endif

/// The polynomial that comes closest to exp(r) on |r| <= ln(2) / 2, relatively, among those whose
/// first two coefficients are 1: closer than a tenth of an ulp. By Remez's algorithm.
template <class A>
inline constexpr A exp_polynomial[] = {1.0F,
                                       1.0F,
                                       0.49999993451688878681F,
                                       0.16666520689542444186F,
                                       0.041668387364680906864F,
                                       0.0083687098594472411105F,
                                       0.0013814613187712525496F};
template <>
inline constexpr double exp_polynomial<double>[] = {1.0,
                                                    1.0,
                                                    0.50000000000000100809,
                                                    0.16666666666666673202,
                                                    0.041666666666523179381,
                                                    0.0083333333333232735901,
                                                    0.0013888888947516380259,
                                                    0.00019841269883918839884,
                                                    0.000024801487632460606291,
                                                    2.7557244980232044886e-6,
                                                    2.7632549702056417965e-7,
                                                    2.5109147637486606619e-8};

/// ln(2), in two parts: products of the first with the whole numbers that occur are exact.
template <class A>
inline constexpr A ln2_high = 0.693359375F;
template <>
inline constexpr double ln2_high<double> = 0.693147180369123816490;
template <class A>
inline constexpr A ln2_low = -2.12194440e-4F;
template <>
inline constexpr double ln2_low<double> = 1.90821492927058770002e-10;

/// x = exp(x) for x <= 0, -inf included: 2^n times a polynomial of what is left. Below the smallest
/// denormal it gives 0.
template <class A, std::size_t U>
GATEPRO_FN void exp_nonpositive(Lanes<A> (&x)[U]) {
  using V = Lanes<A>;
  constexpr bool single = sizeof(A) == 4;
  constexpr int degree = int(std::size(exp_polynomial<A>)) - 1;
  constexpr A most = single ? A(104) : A(746);
  V n[U], sum[U];
  GATEPRO_UNROLL
  for (std::size_t u = 0; u < U; ++u) {
    // With the sign of 0 set, the bits of the smaller number are the larger integer.
    const Keys<A> bits = bit_cast<BitsOf<A>>(x[u]) | Keys<A>::splat(Order<A>::lowest);
    x[u] = bit_cast<A>(smaller(bits, bit_cast<BitsOf<A>>(V::splat(-most))));
  }
  GATEPRO_UNROLL
  for (std::size_t u = 0; u < U; ++u) {
    n[u] = truncate(mul_add(x[u], V::splat(A(1.44269504088896340736)), V::splat(A(-0.5))));
  }
  GATEPRO_UNROLL
  for (std::size_t u = 0; u < U; ++u) x[u] = mul_add(n[u], V::splat(-ln2_high<A>), x[u]);
  GATEPRO_UNROLL
  for (std::size_t u = 0; u < U; ++u) x[u] = mul_add(n[u], V::splat(-ln2_low<A>), x[u]);
  GATEPRO_UNROLL
  for (std::size_t u = 0; u < U; ++u) sum[u] = V::splat(exp_polynomial<A>[degree]);
  GATEPRO_UNROLL
  for (int i = degree - 1; i >= 0; --i) {
    GATEPRO_UNROLL
    for (std::size_t u = 0; u < U; ++u) {
      sum[u] = mul_add(sum[u], x[u], V::splat(exp_polynomial<A>[i]));
    }
  }
  GATEPRO_UNROLL
  for (std::size_t u = 0; u < U; ++u) x[u] = times_power_of_2(sum[u], n[u]);
}
template <class A>
GATEPRO_FN Lanes<A> exp_nonpositive(Lanes<A> x) {
  Lanes<A> alone[1] = {x};
  exp_nonpositive<A>(alone);
  return alone[0];
}

/// exp(x - top) for the keys of the next vectors, of which `count` are left: 0 for NaN, losers and
/// -inf.
template <class A>
GATEPRO_FN void exp_below(const BitsOf<A>* keys_EL, Index count, Lanes<A> top,
                          Lanes<A> (&exps)[std::size_t(chains_v)]) {
  GATEPRO_UNROLL
  for (int u = 0; u < chains_v; ++u) {
    const Index here = u < count ? u : count - 1;
    exps[u] = to_values<A>(Keys<A>::load(keys_EL + here * lanes_v<A>)) - top;
  }
  exp_nonpositive<A>(exps);
}

/// The sum of exp(x - top) over all keys, in their order; the terms go to exps_EL unless it is
/// null.
template <class A>
GATEPRO_FN Lanes<A> sum_exps(const BitsOf<A>* keys_EL, Index experts, Lanes<A> top, A* exps_EL) {
  constexpr int L = lanes_v<A>;
  Lanes<A> sum = Lanes<A>::splat(A(0));
  for (Index e = 0; e < experts; e += chains_v) {
    Lanes<A> exps[std::size_t(chains_v)];
    exp_below<A>(keys_EL + e * L, experts - e, top, exps);
    GATEPRO_UNROLL
    for (int u = 0; u < chains_v; ++u) {
      if (e + u >= experts) break;
      sum = sum + exps[u];
      if (exps_EL != nullptr) exps[u].store(exps_EL + (e + u) * L);
    }
  }
  return sum;
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
  // Lanes without a softmax take a difference from 0 instead of one of infinities.
  const Keys<A> top = select(nonfinite, Keys<A>::splat(0), best);
  const Lanes<A> sum = sum_exps<A>(keys_KL, k, to_values<A>(top), weights_KL);
  const Lanes<A> scale = Lanes<A>::splat(A(1)) / sum;
  const Lanes<A> quiet_nan = bit_cast<A>(Keys<A>::splat(O::quiet_nan_bits));
  for (Index j = 0; j < k; ++j) {
    const Lanes<A> weight = Lanes<A>::load(weights_KL + j * L);
    select(nonfinite, quiet_nan, weight * scale).store(weights_KL + j * L);
  }
}
