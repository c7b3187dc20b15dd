// SPDX-License-Identifier: MIT
// log(1 + u) and log(x).

/// factor * atanh(s) / s for s in [0, 1/3]: a series of positive terms, so that small s keep all
/// their digits and nothing is left for -ffast-math to cancel. The number of terms makes the
/// truncation smaller than a tenth of an ulp.
template <class A>
GATEPRO_FN Lanes<A> atanh_series(Lanes<A> factor, Lanes<A> s) {
  using V = Lanes<A>;
  constexpr int terms = sizeof(A) == 4 ? 7 : 16;
  const V z = s * s;
  V sum = V::splat(A(1) / A(2 * terms + 1));
  GATEPRO_UNROLL
  for (int i = terms - 1; i > 0; --i) sum = mul_add(sum, z, V::splat(A(1) / A(2 * i + 1)));
  return mul_add(factor * z, sum, factor);
}

/// log(1 + u) for u in [0, 1], as 2 atanh(s) with s = u / (2 + u).
template <class A>
GATEPRO_FN Lanes<A> log1p_of_fraction(Lanes<A> u) {
  const Lanes<A> s = u / (u + Lanes<A>::splat(A(2)));
  return atanh_series<A>(s + s, s);
}

/// log(1 + u) / u for u in [0, 1]; 1 for u = 0.
template <class A>
GATEPRO_FN Lanes<A> log1p_over_fraction(Lanes<A> u) {
  const Lanes<A> twice = Lanes<A>::splat(A(2)) / (u + Lanes<A>::splat(A(2)));
  return atanh_series<A>(twice, u * twice * Lanes<A>::splat(A(0.5)));
}

/// log(x) for finite x >= 1: that of the mantissa plus that of the power of two.
template <class A>
GATEPRO_FN Lanes<A> log_of_sum(Lanes<A> x) {
  using O = Order<A>;
  const Keys<A> bits = bit_cast<BitsOf<A>>(x);
  const Keys<A> exponent = (bits >> O::mantissa_bits) - Keys<A>::splat(O::exponent_bias);
  const Keys<A> one = Keys<A>::splat(BitsOf<A>(O::exponent_bias) << O::mantissa_bits);
  const Keys<A> fraction = bits & Keys<A>::splat((BitsOf<A>(1) << O::mantissa_bits) - 1);
  const Lanes<A> mantissa = bit_cast<A>(fraction | one);
  const Lanes<A> ln2 = Lanes<A>::splat(A(0.69314718055994530942));
  return mul_add(convert<A>(exponent), ln2, log1p_of_fraction<A>(mantissa - Lanes<A>::splat(A(1))));
}
