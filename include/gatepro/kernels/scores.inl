// SPDX-License-Identifier: MIT
// Score kernels: normalised and unnormalised scores over all experts, one token per lane.

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

/// The score of a logit x, which is between -inf and +inf, and its slopes. Each is a product of
/// factors that keep all digits, so that none underflows before the result does.
template <class A>
struct Score {
  Lanes<A> value;      ///< s(x) / exp(rate * top).
  Lanes<A> slope;      ///< s'(x) / exp(rate * top).
  Lanes<A> log_slope;  ///< s'(x) / s(x).
};

/// sigmoid, 1 / (1 + exp(-x)), or sqrt_softplus, the square root of log(1 + exp(x)). Below 0 that
/// is exp(rate * x) times a number between 1/2 and 1, and `top` <= 0, at least x where x is below
/// 0, is what scores are relative to. Only with `relative`; the same bits for top = 0.
template <class A, ScoreFunction function, bool relative>
GATEPRO_FN Score<A> separate_score(Keys<A> keys, Lanes<A> top) {
  using V = Lanes<A>;
  constexpr bool is_sigmoid = function == ScoreFunction::sigmoid;
  const V one = V::splat(A(1));
  const V rate = V::splat(is_sigmoid ? A(1) : A(0.5));
  const V decay = exp_nonpositive<A>(minus_size<A>(keys) * rate);
  const Keys<A> zero = Keys<A>::splat(0);
  const auto positive = keys > zero;
  V below_top = decay;
  if constexpr (relative) {
    below_top = exp_nonpositive<A>((to_values<A>(smaller(keys, zero)) - top) * rate);
  }
  const V size = select(positive, one, below_top);
  if constexpr (is_sigmoid) {
    const V value = size / (one + decay);
    const V log_slope = select(positive, decay, one) / (one + decay);
    return {value, value * log_slope, log_slope};
  } else {
    const V e = decay * decay;
    const V ratio = log1p_over_fraction<A>(e);
    // softplus(x), over exp(x) where x is not positive.
    const V softplus = select(positive, mul_add(e, ratio, to_values<A>(larger(keys, zero))), ratio);
    const V root = square_root<A>(softplus);
    const V half = V::splat(A(0.5));
    return {size * root, half * size / ((one + e) * root), half / ((one + e) * softplus)};
  }
}

/// The largest key of each lane, and which lanes have no softmax (`none`: +inf, or nothing above
/// -inf) or a NaN. All masks.
template <class A>
struct RowExtremes {
  Keys<A> top;  ///< 0 in lanes without a softmax: 0 - 0 instead of a difference of infinities.
  Keys<A> none;
  Keys<A> has_nan;
};
template <class A>
GATEPRO_FN RowExtremes<A> row_extremes(const BitsOf<A>* keys_EL, Index experts) {
  using O = Order<A>;
  constexpr int L = lanes_v<A>;
  Keys<A> best = Keys<A>::splat(O::lowest);
  Keys<A> has_nan = Keys<A>::splat(0);
  for (Index e = 0; e < experts; ++e) {
    const Keys<A> key = Keys<A>::load(keys_EL + e * L);
    best = larger(best, key);
    has_nan = has_nan | (key == Keys<A>::splat(O::nan));
  }
  const Keys<A> none =
      (best == Keys<A>::splat(O::infinity)) | (best < Keys<A>::splat(-O::infinity + 1));
  return {select(none, Keys<A>::splat(0), best), none, has_nan};
}

/// exp(x - top) for a key; 0 for NaN, losers and -inf.
template <class A>
GATEPRO_FN Lanes<A> exp_below_top(Keys<A> key, const RowExtremes<A>& row) {
  const Keys<A> alive =
      (key > Keys<A>::splat(-Order<A>::infinity)) & (row.none == Keys<A>::splat(0));
  const Lanes<A> below = to_values<A>(select(alive, key, row.top)) - to_values<A>(row.top);
  return select(alive, exp_nonpositive<A>(below), Lanes<A>::splat(A(0)));
}

template <class A>
GATEPRO_FN void store_log_sum_exp(const RowExtremes<A>& row, Lanes<A> sum, A* log_sum_exp_L) {
  const Keys<A> bad = row.none | row.has_nan;
  const Lanes<A> one = Lanes<A>::splat(A(1));
  const Lanes<A> value = to_values<A>(row.top) + log_of_sum<A>(select(bad, one, sum));
  select(bad, bit_cast<A>(Keys<A>::splat(Order<A>::quiet_nan_bits)), value).store(log_sum_exp_L);
}

template <class A>
GATEPRO_FN void softmax_scores(const BitsOf<A>* keys_EL, Index experts, A* scores_EL, A* sum_L,
                               A* log_sum_exp_L) {
  constexpr int L = lanes_v<A>;
  const RowExtremes<A> row = row_extremes<A>(keys_EL, experts);
  const Lanes<A> one = Lanes<A>::splat(A(1));
  const Lanes<A> quiet_nan = bit_cast<A>(Keys<A>::splat(Order<A>::quiet_nan_bits));
  Lanes<A> sum = Lanes<A>::splat(A(0));
  for (Index e = 0; e < experts; ++e) {
    const Lanes<A> score = exp_below_top<A>(Keys<A>::load(keys_EL + e * L), row);
    score.store(scores_EL + e * L);
    sum = sum + score;
  }
  const Lanes<A> scale = one / select(row.none, one, sum);
  for (Index e = 0; e < experts; ++e) {
    const Keys<A> bad =
        row.none | (Keys<A>::load(keys_EL + e * L) == Keys<A>::splat(Order<A>::nan));
    const Lanes<A> score = Lanes<A>::load(scores_EL + e * L) * scale;
    select(bad, quiet_nan, score).store(scores_EL + e * L);
  }
  select(row.none | row.has_nan, quiet_nan, one).store(sum_L);
  if (log_sum_exp_L != nullptr) store_log_sum_exp<A>(row, sum, log_sum_exp_L);
}

/// Scores that each follow from one logit.
template <class A, ScoreFunction function>
GATEPRO_FN void separate_scores(const BitsOf<A>* keys_EL, Index experts, A* scores_EL, A* sum_L,
                                A* log_sum_exp_L) {
  using O = Order<A>;
  constexpr int L = lanes_v<A>;
  const Lanes<A> zero = Lanes<A>::splat(A(0));
  const Lanes<A> quiet_nan = bit_cast<A>(Keys<A>::splat(O::quiet_nan_bits));
  Lanes<A> sum = zero;
  Keys<A> has_nan = Keys<A>::splat(0);
  for (Index e = 0; e < experts; ++e) {
    const Keys<A> key = Keys<A>::load(keys_EL + e * L);
    const Keys<A> number = larger(key, Keys<A>::splat(-O::infinity));
    const Lanes<A> score = separate_score<A, function, false>(number, zero).value;
    const Keys<A> is_nan = key == Keys<A>::splat(O::nan);
    select(is_nan, quiet_nan, score).store(scores_EL + e * L);
    has_nan = has_nan | is_nan;
    sum = sum + score;
  }
  select(has_nan, quiet_nan, sum).store(sum_L);
  if (log_sum_exp_L == nullptr) return;
  const RowExtremes<A> row = row_extremes<A>(keys_EL, experts);
  sum = zero;
  for (Index e = 0; e < experts; ++e) {
    sum = sum + exp_below_top<A>(Keys<A>::load(keys_EL + e * L), row);
  }
  store_log_sum_exp<A>(row, sum, log_sum_exp_L);
}

/// Scores over all E experts of each lane. For either softmax: exp(x) over their sum, and sum_L is
/// 1; else unnormalised, and sum_L is their sum in order of e. A NaN scores NaN and is left out of
/// the softmax of the others; losers and -inf score 0. A lane that holds +inf, or nothing above
/// -inf, has no softmax: each expert's is NaN. sum_L is NaN if a score is. log_sum_exp_L, null if
/// not wanted, is NaN for a lane that holds a NaN or has no softmax.
template <class A>
GATEPRO_KERNEL void scores(const BitsOf<A>* keys_EL, Index experts, ScoreFunction function,
                           A* scores_EL, A* sum_L, A* log_sum_exp_L) {
  if (function == ScoreFunction::sigmoid) {
    separate_scores<A, ScoreFunction::sigmoid>(keys_EL, experts, scores_EL, sum_L, log_sum_exp_L);
  } else if (function == ScoreFunction::sqrt_softplus) {
    separate_scores<A, ScoreFunction::sqrt_softplus>(keys_EL, experts, scores_EL, sum_L,
                                                     log_sum_exp_L);
  } else {
    softmax_scores<A>(keys_EL, experts, scores_EL, sum_L, log_sum_exp_L);
  }
}

template <class A, ScoreFunction function>
GATEPRO_FN void separate_slopes(const BitsOf<A>* keys_KL, Index k, A* slopes_KL) {
  constexpr int L = lanes_v<A>;
  for (Index j = 0; j < k; ++j) {
    const Keys<A> key = Keys<A>::load(keys_KL + j * L);
    const Keys<A> number = larger(key, Keys<A>::splat(-Order<A>::infinity));
    const Lanes<A> zero = Lanes<A>::splat(A(0));
    separate_score<A, function, false>(number, zero).slope.store(slopes_KL + j * L);
  }
}

/// d score / d logit for k keys of each lane, of sigmoid or sqrt_softplus. 0 for losers and NaNs.
template <class A>
GATEPRO_KERNEL void slopes(const BitsOf<A>* keys_KL, Index k, ScoreFunction function,
                           A* slopes_KL) {
  if (function == ScoreFunction::sigmoid) {
    separate_slopes<A, ScoreFunction::sigmoid>(keys_KL, k, slopes_KL);
  } else {
    separate_slopes<A, ScoreFunction::sqrt_softplus>(keys_KL, k, slopes_KL);
  }
}

/// With `relative`, scores of each lane are relative to its largest, which may be too small for A.
template <class A, ScoreFunction function, bool relative>
GATEPRO_FN void shares_as(const BitsOf<A>* keys_EL, Index experts, const RowExtremes<A>& row,
                          A* shares_EL, A* slopes_EL) {
  using O = Order<A>;
  constexpr int L = lanes_v<A>;
  const Lanes<A> one = Lanes<A>::splat(A(1));
  const Lanes<A> top = to_values<A>(smaller(row.top, Keys<A>::splat(0)));
  Lanes<A> sum = Lanes<A>::splat(A(0));
  for (Index e = 0; e < experts; ++e) {
    const Keys<A> key = Keys<A>::load(keys_EL + e * L);
    Score<A> score{};
    if constexpr (function == ScoreFunction::softmax_before_top_k) {
      score.value = exp_below_top<A>(key, row);
    } else {
      const Keys<A> number = larger(key, Keys<A>::splat(-O::infinity));
      score = separate_score<A, function, relative>(number, top);
      if (slopes_EL != nullptr) score.log_slope.store(slopes_EL + e * L);
    }
    score.value.store(shares_EL + e * L);
    sum = sum + score.value;
  }
  const auto bad = row.none | row.has_nan;
  const Lanes<A> quiet_nan = bit_cast<A>(Keys<A>::splat(O::quiet_nan_bits));
  sum = select(bad, quiet_nan, sum);
  const Lanes<A> scale = one / sum;
  for (Index e = 0; e < experts; ++e) {
    const Lanes<A> score = Lanes<A>::load(shares_EL + e * L);
    if constexpr (function == ScoreFunction::softmax_before_top_k) {
      (score * scale).store(shares_EL + e * L);
    } else {
      // Divided, so that one score has the share 1. A softmax has it anyway: its score is exp(0).
      const Lanes<A> share = score / sum;
      share.store(shares_EL + e * L);
      if (slopes_EL == nullptr) continue;
      (share * Lanes<A>::load(slopes_EL + e * L)).store(slopes_EL + e * L);
    }
  }
}

template <class A, ScoreFunction function>
GATEPRO_FN void separate_shares(const BitsOf<A>* keys_EL, Index experts, A* shares_EL,
                                A* slopes_EL) {
  const RowExtremes<A> row = row_extremes<A>(keys_EL, experts);
  if (any_lane(row.top < Keys<A>::splat(0))) {
    shares_as<A, function, true>(keys_EL, experts, row, shares_EL, slopes_EL);
  } else {
    shares_as<A, function, false>(keys_EL, experts, row, shares_EL, slopes_EL);
  }
}

/// Each score's share of the sum of all E of its lane, for any finite logits: shares add up to 1
/// where all scores underflow, too. slopes_EL: the share times the slope of the score's logarithm,
/// from which gradients follow without a difference or quotient of small numbers; null if not
/// wanted, and not written for either softmax, where it is the share. Losers and -inf have none. A
/// lane that holds a NaN or +inf, or nothing above -inf, has quiet NaNs.
template <class A>
GATEPRO_KERNEL void shares(const BitsOf<A>* keys_EL, Index experts, ScoreFunction function,
                           A* shares_EL, A* slopes_EL) {
  if (function == ScoreFunction::sigmoid) {
    separate_shares<A, ScoreFunction::sigmoid>(keys_EL, experts, shares_EL, slopes_EL);
  } else if (function == ScoreFunction::sqrt_softplus) {
    separate_shares<A, ScoreFunction::sqrt_softplus>(keys_EL, experts, shares_EL, slopes_EL);
  } else {
    shares_as<A, ScoreFunction::softmax_before_top_k, false>(
        keys_EL, experts, row_extremes<A>(keys_EL, experts), shares_EL, nullptr);
  }
}

/// The keys by which experts are chosen: of score + bias. Null scores are the logits themselves,
/// null biases are 0. Losers and NaNs stay what they are; a NaN score or sum becomes a NaN.
template <class A>
GATEPRO_KERNEL void choice_keys(const BitsOf<A>* ranked_EL, Index experts, const A* scores_EL,
                                const A* bias_E, BitsOf<A>* choice_EL) {
  constexpr int L = lanes_v<A>;
  for (Index e = 0; e < experts; ++e) {
    const Keys<A> ranked = Keys<A>::load(ranked_EL + e * L);
    Lanes<A> value =
        scores_EL == nullptr ? to_values<A>(ranked) : Lanes<A>::load(scores_EL + e * L);
    if (bias_E != nullptr) value = value + Lanes<A>::splat(bias_E[e]);
    select(ranked < Keys<A>::splat(-Order<A>::infinity), ranked, to_keys<A>(value))
        .store(choice_EL + e * L);
  }
}
