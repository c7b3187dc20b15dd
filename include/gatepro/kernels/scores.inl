// SPDX-License-Identifier: MIT
// Score kernels: normalised and unnormalised scores over all experts, one token per lane.

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
template <class A>
struct SeparateScores {
  template <ScoreFunction function>
  GATEPRO_FN static void run(const BitsOf<A>* keys_EL, Index experts, A* scores_EL, A* sum_L,
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
      const Lanes<A> score = SeparateScore<A, function>::template of<false>(number, zero).value;
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
};

/// Scores over all E experts of each lane. For either softmax: exp(x) over their sum, and sum_L is
/// 1; else unnormalised, and sum_L is their sum in order of e. A NaN scores NaN and is left out of
/// the softmax of the others; losers and -inf score 0. A lane that holds +inf, or nothing above
/// -inf, has no softmax: each expert's is NaN. sum_L is NaN if a score is. log_sum_exp_L, null if
/// not wanted, is NaN for a lane that holds a NaN or has no softmax.
template <class A>
GATEPRO_KERNEL void scores(const BitsOf<A>* keys_EL, Index experts, ScoreFunction function,
                           A* scores_EL, A* sum_L, A* log_sum_exp_L) {
  if (is_softmax(function)) {
    softmax_scores<A>(keys_EL, experts, scores_EL, sum_L, log_sum_exp_L);
  } else {
    run_separate<SeparateScores<A>>(SeparateScoreFunctions(), function, keys_EL, experts, scores_EL,
                                    sum_L, log_sum_exp_L);
  }
}

template <class A>
struct SeparateSlopes {
  template <ScoreFunction function>
  GATEPRO_FN static void run(const BitsOf<A>* keys_KL, Index k, A* slopes_KL) {
    constexpr int L = lanes_v<A>;
    for (Index j = 0; j < k; ++j) {
      const Keys<A> key = Keys<A>::load(keys_KL + j * L);
      const Keys<A> number = larger(key, Keys<A>::splat(-Order<A>::infinity));
      const Lanes<A> zero = Lanes<A>::splat(A(0));
      SeparateScore<A, function>::template of<false>(number, zero).slope.store(slopes_KL + j * L);
    }
  }
};

/// d score / d logit for k keys of each lane, but for softmaxes. 0 for losers and NaNs.
template <class A>
GATEPRO_KERNEL void slopes(const BitsOf<A>* keys_KL, Index k, ScoreFunction function,
                           A* slopes_KL) {
  run_separate<SeparateSlopes<A>>(SeparateScoreFunctions(), function, keys_KL, k, slopes_KL);
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
      score = SeparateScore<A, function>::template of<relative>(number, top);
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

template <class A>
struct SeparateShares {
  template <ScoreFunction function>
  GATEPRO_FN static void run(const BitsOf<A>* keys_EL, Index experts, A* shares_EL, A* slopes_EL) {
    const RowExtremes<A> row = row_extremes<A>(keys_EL, experts);
    if (any_lane(row.top < Keys<A>::splat(0))) {
      shares_as<A, function, true>(keys_EL, experts, row, shares_EL, slopes_EL);
    } else {
      shares_as<A, function, false>(keys_EL, experts, row, shares_EL, slopes_EL);
    }
  }
};

/// Each score's share of the sum of all E of its lane, for any finite logits: shares add up to 1
/// where all scores underflow, too. slopes_EL: the share times the slope of the score's logarithm,
/// from which gradients follow without a difference or quotient of small numbers; null if not
/// wanted, and not written for either softmax, where it is the share. Losers and -inf have none. A
/// lane that holds a NaN or +inf, or nothing above -inf, has quiet NaNs.
template <class A>
GATEPRO_KERNEL void shares(const BitsOf<A>* keys_EL, Index experts, ScoreFunction function,
                           A* shares_EL, A* slopes_EL) {
  if (is_softmax(function)) {
    shares_as<A, ScoreFunction::softmax_before_top_k, false>(
        keys_EL, experts, row_extremes<A>(keys_EL, experts), shares_EL, nullptr);
  } else {
    run_separate<SeparateShares<A>>(SeparateScoreFunctions(), function, keys_EL, experts, shares_EL,
                                    slopes_EL);
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
