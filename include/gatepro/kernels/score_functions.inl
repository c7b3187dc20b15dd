// SPDX-License-Identifier: MIT
// Value, slope and floor of each score function that takes every logit by itself. The kernels in
// scores.inl hold for any of them; softmaxes, which need the whole row, are theirs.

/// Correctly rounded, unless the user's flags say otherwise.
template <class A>
GATEPRO_FN Lanes<A> square_root(Lanes<A> v) {
  A values[std::size_t(lanes_v<A>)];
  v.store(values);
  for (A& value : values) value = std::sqrt(value);
  return Lanes<A>::load(values);
}

/// -|x|, for keys from -inf to +inf.
template <class A>
GATEPRO_FN Lanes<A> minus_size(Keys<A> keys) {
  return to_values<A>(smaller(keys, Keys<A>::splat(0) - keys));
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
template <class A, bool relative>
GATEPRO_FN ScoreFloor<A> score_floor(Keys<A> keys, Lanes<A> top, A rate_of_all) {
  using V = Lanes<A>;
  const V rate = V::splat(rate_of_all);
  const V decay = exp_nonpositive<A>(minus_size<A>(keys) * rate);
  const Keys<A> zero = Keys<A>::splat(0);
  V below_top = decay;
  if constexpr (relative) {
    below_top = exp_nonpositive<A>((to_values<A>(smaller(keys, zero)) - top) * rate);
  }
  const Keys<A> positive = keys > zero;
  return {positive, decay, select(positive, V::splat(A(1)), below_top)};
}

/// What the kernels take: `of<relative>(keys, top)`, the scores of logits.
template <class A, ScoreFunction function>
struct SeparateScore;

/// 1 / (1 + exp(-x)).
template <class A>
struct SeparateScore<A, ScoreFunction::sigmoid> {
  template <bool relative>
  GATEPRO_FN static Score<A> of(Keys<A> keys, Lanes<A> top) {
    const Lanes<A> one = Lanes<A>::splat(A(1));
    const ScoreFloor<A> x = score_floor<A, relative>(keys, top, A(1));
    const Lanes<A> value = x.size / (one + x.decay);
    const Lanes<A> log_slope = select(x.positive, x.decay, one) / (one + x.decay);
    return {value, value * log_slope, log_slope};
  }
};

/// The square root of softplus, log(1 + exp(x)).
template <class A>
struct SeparateScore<A, ScoreFunction::sqrt_softplus> {
  template <bool relative>
  GATEPRO_FN static Score<A> of(Keys<A> keys, Lanes<A> top) {
    using V = Lanes<A>;
    const V one = V::splat(A(1));
    const V half = V::splat(A(0.5));
    const ScoreFloor<A> x = score_floor<A, relative>(keys, top, A(0.5));
    const V e = x.decay * x.decay;
    const V ratio = log1p_over_fraction<A>(e);
    // Over exp(x) where x is not positive.
    const V above = mul_add(e, ratio, to_values<A>(larger(keys, Keys<A>::splat(0))));
    const V softplus = select(x.positive, above, ratio);
    const V root = square_root<A>(softplus);
    return {x.size * root, half * x.size / ((one + e) * root), half / ((one + e) * softplus)};
  }
};

/// Runs `Kernel::run<function>(args...)` if `function` is one of `separate`.
template <class Kernel, ScoreFunction... separate, class... Args>
GATEPRO_FN void run_separate(ScoreFunctions<separate...>, ScoreFunction function, Args... args) {
  ((function == separate ? Kernel::template run<separate>(args...) : void()), ...);
}
