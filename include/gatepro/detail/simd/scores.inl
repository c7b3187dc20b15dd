// SPDX-License-Identifier: MIT
// Score kernels: normalised and unnormalised scores over all experts, one token per lane.

/// log(1 + u) for u in [0, 1], as 2 atanh(s) with s = u / (2 + u) <= 1/3: a series of positive
/// terms, so that small u keep all their digits and nothing is left for -ffast-math to cancel. The
/// number of terms makes the truncation smaller than a tenth of an ulp.
template <class A>
GATEPRO_FN Lanes<A> log1p_of_fraction(Lanes<A> u) {
  using V = Lanes<A>;
  constexpr int terms = sizeof(A) == 4 ? 7 : 16;
  const V s = u / (u + V::splat(A(2)));
  const V z = s * s;
  V sum = V::splat(A(1) / A(2 * terms + 1));
  GATEPRO_UNROLL
  for (int i = terms - 1; i > 0; --i) sum = mul_add(sum, z, V::splat(A(1) / A(2 * i + 1)));
  const V twice = s + s;
  return mul_add(twice * z, sum, twice);
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

/// 1 / (1 + exp(-x)).
template <class A>
GATEPRO_FN Lanes<A> sigmoid(Keys<A> keys) {
  const Lanes<A> one = Lanes<A>::splat(A(1));
  const Lanes<A> e = exp_nonpositive<A>(minus_size<A>(keys));
  return select(keys > Keys<A>::splat(0), one, e) / (one + e);
}

/// The square root of softplus, log(1 + exp(x)). Far below 0 that is exp(x / 2), which is normal
/// where exp(x) no longer is.
template <class A>
GATEPRO_FN Lanes<A> sqrt_softplus(Keys<A> keys) {
  const Lanes<A> root_e = exp_nonpositive<A>(minus_size<A>(keys) * Lanes<A>::splat(A(0.5)));
  const Lanes<A> positive_part = to_values<A>(larger(keys, Keys<A>::splat(0)));
  const Lanes<A> softplus = positive_part + log1p_of_fraction<A>(root_e * root_e);
  const Keys<A> far_below = number_keys<A>(Lanes<A>::splat(A(-40)));
  return select(keys < far_below, root_e, square_root<A>(softplus));
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
    const Lanes<A> score =
        function == ScoreFunction::sigmoid ? sigmoid<A>(number) : sqrt_softplus<A>(number);
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
