// SPDX-License-Identifier: MIT
// Value, slope and floor of each score function that takes every logit by itself. The kernels in
// scores.inl hold for any of them; softmaxes, which need the whole row, are theirs.

/// Correctly rounded, unless the user's flags say otherwise.
template <class A, int N>
GATEPRO_FN Vec<A, N> square_root(Vec<A, N> v) {
  A values[std::size_t(N)];
  v.store(values);
  for (A& value : values) value = std::sqrt(value);
  return Vec<A, N>::load(values);
}

#if GATEPRO_VECTOR_EXTENSIONS && GATEPRO_BYTES == 64
GATEPRO_FN Vec<float, 16> square_root(Vec<float, 16> v) {
#if defined(__clang__)
  return {__builtin_ia32_sqrtps512(v.raw, 4)};
#else
  return {__builtin_ia32_sqrtps512_mask(v.raw, v.raw, all_16_lanes, 4)};
#endif
}
#elif GATEPRO_VECTOR_EXTENSIONS && GATEPRO_BYTES == 32
GATEPRO_FN Vec<float, 8> square_root(Vec<float, 8> v) { return {__builtin_ia32_sqrtps256(v.raw)}; }
#endif

/// -|x|, for keys from -inf to +inf.
template <class A>
GATEPRO_FN Lanes<A> minus_size(Keys<A> keys) {
  const Keys<A> size = larger(keys, Keys<A>::splat(0) - keys);
  return bit_cast<A>(size | Keys<A>::splat(Order<A>::lowest));
}

/// The score s of a logit x, which is between -inf and +inf, and its slopes. Each is a product of
/// factors that keep all digits, so that none underflows before the result does.
template <class A>
struct Score {
  Lanes<A> value;      ///< s(x) / floor(top).
  Lanes<A> slope;      ///< s'(x) / floor(top).
  Lanes<A> log_slope;  ///< s'(x) / s(x).
};

/// The floor of a score is exp(rate * x), which it comes to far below 0. Scores are relative to
/// that of `top` <= 0, which is at least x where x is below 0. Only with `relative`; the same bits
/// for top = 0.
template <class A>
struct ScoreFloor {
  Keys<A> positive;  ///< A mask: x > 0.
  Lanes<A> decay;    ///< exp(-rate * |x|).
  Lanes<A> size;     ///< 1 where x is positive, else exp(rate * (x - top)).
};

/// What the kernels take: `at_rate(v)`, v times the rate of the floor, and `of(keys, floor)`, the
/// scores of logits.
template <class A, ScoreFunction function>
struct SeparateScore;

/// 1 / (1 + exp(-x)).
template <class A>
struct SeparateScore<A, ScoreFunction::sigmoid> {
  GATEPRO_FN static Lanes<A> at_rate(Lanes<A> v) { return v; }
  GATEPRO_FN static Score<A> of(Keys<A>, const ScoreFloor<A>& x) {
    const Lanes<A> one = Lanes<A>::splat(A(1));
    const Lanes<A> value = x.size / (one + x.decay);
    const Lanes<A> log_slope = select(x.positive, x.decay, one) / (one + x.decay);
    return {value, value * log_slope, log_slope};
  }
};

/// The square root of softplus, log(1 + exp(x)).
template <class A>
struct SeparateScore<A, ScoreFunction::sqrt_softplus> {
  GATEPRO_FN static Lanes<A> at_rate(Lanes<A> v) { return v * Lanes<A>::splat(A(0.5)); }
  GATEPRO_FN static Score<A> of(Keys<A> keys, const ScoreFloor<A>& x) {
    using V = Lanes<A>;
    const V one = V::splat(A(1));
    const V half = V::splat(A(0.5));
    const V e = x.decay * x.decay;
    const V ratio = log1p_over_fraction<A>(e);
    // Over exp(x) where x is not positive.
    const V above = mul_add(e, ratio, to_values<A>(larger(keys, Keys<A>::splat(0))));
    const V softplus = select(x.positive, above, ratio);
    const V root = square_root(softplus);
    return {x.size * root, half * x.size / ((one + e) * root), half / ((one + e) * softplus)};
  }
};

/// Scores of the next vectors of keys, of which `count` are left. NaNs and losers count as -inf.
template <class A, ScoreFunction function, bool relative>
GATEPRO_FN void separate_scores(const BitsOf<A>* keys_EL, Index count, Lanes<A> top,
                                Score<A> (&scores)[std::size_t(chains_v)]) {
  using Separate = SeparateScore<A, function>;
  const Keys<A> zero = Keys<A>::splat(0);
  Keys<A> keys[std::size_t(chains_v)];
  Lanes<A> decay[std::size_t(chains_v)], below_top[std::size_t(chains_v)];
  GATEPRO_UNROLL
  for (int u = 0; u < chains_v; ++u) {
    const Index here = u < count ? u : count - 1;
    const Keys<A> key = Keys<A>::load(keys_EL + here * lanes_v<A>);
    keys[u] = larger(key, Keys<A>::splat(-Order<A>::infinity));
    decay[u] = Separate::at_rate(minus_size<A>(keys[u]));
    if constexpr (relative) {
      below_top[u] = Separate::at_rate(to_values<A>(smaller(keys[u], zero)) - top);
    }
  }
  exp_nonpositive<A>(decay);
  if constexpr (relative) exp_nonpositive<A>(below_top);
  GATEPRO_UNROLL
  for (int u = 0; u < chains_v; ++u) {
    const Keys<A> positive = keys[u] > zero;
    const Lanes<A> size = relative ? below_top[u] : decay[u];
    scores[u] =
        Separate::of(keys[u], {positive, decay[u], select(positive, Lanes<A>::splat(A(1)), size)});
  }
}

/// Runs `Kernel::run<function>(args...)` if `function` is one of `separate`.
template <class Kernel, ScoreFunction... separate, class... Args>
GATEPRO_FN void run_separate(ScoreFunctions<separate...>, ScoreFunction function, Args... args) {
  ((function == separate ? Kernel::template run<separate>(args...) : void()), ...);
}
