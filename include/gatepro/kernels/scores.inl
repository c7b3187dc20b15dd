// SPDX-License-Identifier: MIT
// Score kernels: normalised and unnormalised scores over all experts, one token per lane.

/// The largest key of each lane, and which lanes have no softmax (`none`: +inf, or nothing above
/// -inf) or a NaN. All masks.
template <class A>
struct RowExtremes {
  Keys<A> top;  ///< 0 in lanes without a softmax, instead of a difference of infinities.
  Keys<A> none;
  Keys<A> has_nan;
};
template <class A>
GATEPRO_FN RowExtremes<A> row_extremes(const BitsOf<A>* keys_EL, Index experts) {
  using O = Order<A>;
  constexpr int L = lanes_v<A>;
  Keys<A> best = Keys<A>::splat(O::lowest);
  Keys<A> least = Keys<A>::splat(O::infinity);
  for (Index e = 0; e < experts; ++e) {
    const Keys<A> key = Keys<A>::load(keys_EL + e * L);
    best = larger(best, key);
    least = smaller(least, key);
  }
  const Keys<A> has_nan = least == Keys<A>::splat(O::nan);
  const Keys<A> none =
      (best == Keys<A>::splat(O::infinity)) | (best < Keys<A>::splat(-O::infinity + 1));
  return {select(none, Keys<A>::splat(0), best), none, has_nan};
}

/// NaN scores where the key is a NaN, or in lanes where `all` are to have one.
template <class A>
GATEPRO_FN void spoil_scores(const BitsOf<A>* keys_EL, Index experts, Keys<A> all, A* scores_EL) {
  constexpr int L = lanes_v<A>;
  const Lanes<A> quiet_nan = bit_cast<A>(Keys<A>::splat(Order<A>::quiet_nan_bits));
  for (Index i = 0; i < experts * L; i += L) {
    const Keys<A> bad = all | (Keys<A>::load(keys_EL + i) == Keys<A>::splat(Order<A>::nan));
    select(bad, quiet_nan, Lanes<A>::load(scores_EL + i)).store(scores_EL + i);
  }
}

/// NaN for a lane that holds a NaN or has no softmax. `sum`: that of the exponentials.
template <class A>
GATEPRO_FN void store_log_sum_exp(const RowExtremes<A>& row, Lanes<A> sum, A* log_sum_exp_L) {
  const Keys<A> bad = row.none | row.has_nan;
  const Lanes<A> one = Lanes<A>::splat(A(1));
  const Lanes<A> value = to_values<A>(row.top) + log_of_sum<A>(select(bad, one, sum));
  select(bad, bit_cast<A>(Keys<A>::splat(Order<A>::quiet_nan_bits)), value).store(log_sum_exp_L);
}

template <class A>
GATEPRO_FN void softmax_scores(const BitsOf<A>* keys_EL, Index experts, A* scores_EL) {
  constexpr int L = lanes_v<A>;
  const RowExtremes<A> row = row_extremes<A>(keys_EL, experts);
  const Lanes<A> one = Lanes<A>::splat(A(1));
  const Lanes<A> sum = sum_exps<A>(keys_EL, experts, to_values<A>(row.top), scores_EL);
  const Lanes<A> scale = one / select(row.none, one, sum);
  for (Index i = 0; i < experts * L; i += L) {
    (Lanes<A>::load(scores_EL + i) * scale).store(scores_EL + i);
  }
  const Keys<A> bad = row.none | row.has_nan;
  if (any_lane(bad)) spoil_scores<A>(keys_EL, experts, row.none, scores_EL);
}

/// Scores that each follow from one logit.
template <class A>
struct SeparateScores {
  template <ScoreFunction function>
  GATEPRO_FN static void run(const BitsOf<A>* keys_EL, Index experts, A* scores_EL) {
    using O = Order<A>;
    constexpr int L = lanes_v<A>;
    const Lanes<A> zero = Lanes<A>::splat(A(0));
    Keys<A> least = Keys<A>::splat(O::infinity);
    for (Index e = 0; e < experts; e += chains_v) {
      Score<A> scores[std::size_t(chains_v)];
      separate_scores<A, function, false>(keys_EL + e * L, experts - e, zero, scores);
      GATEPRO_UNROLL
      for (int u = 0; u < chains_v; ++u) {
        if (e + u >= experts) break;
        scores[u].value.store(scores_EL + (e + u) * L);
        least = smaller(least, Keys<A>::load(keys_EL + (e + u) * L));
      }
    }
    const auto has_nan = least == Keys<A>::splat(O::nan);
    if (any_lane(has_nan)) spoil_scores<A>(keys_EL, experts, Keys<A>::splat(0), scores_EL);
  }
};

/// Scores over all E experts of each lane. For either softmax: exp(x) over their sum; else
/// unnormalised. A NaN scores NaN and is left out of the softmax of the others; losers and -inf
/// score 0. A lane that holds +inf, or nothing above -inf, has no softmax: each expert's is NaN.
template <class A>
GATEPRO_KERNEL void scores(const BitsOf<A>* keys_EL, Index experts, ScoreFunction function,
                           A* scores_EL) {
  if (is_softmax(function)) {
    softmax_scores<A>(keys_EL, experts, scores_EL);
  } else {
    run_separate<SeparateScores<A>>(SeparateScoreFunctions(), function, keys_EL, experts,
                                    scores_EL);
  }
}

template <class A>
struct SeparateSlopes {
  template <ScoreFunction function>
  GATEPRO_FN static void run(const BitsOf<A>* keys_KL, Index k, A* slopes_KL) {
    constexpr int L = lanes_v<A>;
    for (Index j = 0; j < k; j += chains_v) {
      Score<A> scores[std::size_t(chains_v)];
      const Lanes<A> zero = Lanes<A>::splat(A(0));
      separate_scores<A, function, false>(keys_KL + j * L, k - j, zero, scores);
      GATEPRO_UNROLL
      for (int u = 0; u < chains_v; ++u) {
        if (j + u < k) scores[u].slope.store(slopes_KL + (j + u) * L);
      }
    }
  }
};

/// d score / d logit for k keys of each lane, but for softmaxes. 0 for losers and NaNs.
template <class A>
GATEPRO_KERNEL void slopes(const BitsOf<A>* keys_KL, Index k, ScoreFunction function,
                           A* slopes_KL) {
  run_separate<SeparateSlopes<A>>(SeparateScoreFunctions(), function, keys_KL, k, slopes_KL);
}

template <class A>
GATEPRO_FN void softmax_shares(const BitsOf<A>* keys_EL, Index experts, A* shares_EL,
                               A* log_sum_exp_L) {
  const RowExtremes<A> row = row_extremes<A>(keys_EL, experts);
  const Lanes<A> quiet_nan = bit_cast<A>(Keys<A>::splat(Order<A>::quiet_nan_bits));
  const Lanes<A> sum = sum_exps<A>(keys_EL, experts, to_values<A>(row.top), shares_EL);
  if (log_sum_exp_L != nullptr) store_log_sum_exp<A>(row, sum, log_sum_exp_L);
  if (shares_EL == nullptr) return;
  const Lanes<A> scale = Lanes<A>::splat(A(1)) / select(row.none | row.has_nan, quiet_nan, sum);
  for (Index i = 0; i < experts * lanes_v<A>; i += lanes_v<A>) {
    (Lanes<A>::load(shares_EL + i) * scale).store(shares_EL + i);
  }
}

/// With `relative`, scores of each lane are relative to its largest, which may be too small for A.
template <class A, ScoreFunction function, bool relative>
GATEPRO_FN void shares_as(const BitsOf<A>* keys_EL, Index experts, const RowExtremes<A>& row,
                          A* shares_EL, A* slopes_EL) {
  constexpr int L = lanes_v<A>;
  const Lanes<A> top = to_values<A>(smaller(row.top, Keys<A>::splat(0)));
  Lanes<A> sum = Lanes<A>::splat(A(0));
  for (Index e = 0; e < experts; e += chains_v) {
    Score<A> scores[std::size_t(chains_v)];
    separate_scores<A, function, relative>(keys_EL + e * L, experts - e, top, scores);
    GATEPRO_UNROLL
    for (int u = 0; u < chains_v; ++u) {
      if (e + u >= experts) break;
      scores[u].value.store(shares_EL + (e + u) * L);
      sum = sum + scores[u].value;
      if (slopes_EL != nullptr) scores[u].log_slope.store(slopes_EL + (e + u) * L);
    }
  }
  const Lanes<A> quiet_nan = bit_cast<A>(Keys<A>::splat(Order<A>::quiet_nan_bits));
  sum = select(row.none | row.has_nan, quiet_nan, sum);
  for (Index i = 0; i < experts * L; i += L) {
    // Divided, so that one score has the share 1. A softmax has it anyway: its score is exp(0).
    const Lanes<A> share = Lanes<A>::load(shares_EL + i) / sum;
    share.store(shares_EL + i);
    if (slopes_EL != nullptr) (share * Lanes<A>::load(slopes_EL + i)).store(slopes_EL + i);
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
/// lane that holds a NaN or +inf, or nothing above -inf, has quiet NaNs. log_sum_exp_L: of the
/// logits, with either softmax; null if not wanted. It may be all that is: with null shares_EL.
template <class A>
GATEPRO_KERNEL void shares(const BitsOf<A>* keys_EL, Index experts, ScoreFunction function,
                           A* shares_EL, A* slopes_EL, A* log_sum_exp_L) {
  if (is_softmax(function)) {
    softmax_shares<A>(keys_EL, experts, shares_EL, log_sum_exp_L);
  } else {
    run_separate<SeparateShares<A>>(SeparateScoreFunctions(), function, keys_EL, experts, shares_EL,
                                    slopes_EL);
  }
}

/// Adds shares_EL to totals_EL in whole units of 2^-share_bits_v, rounded to nearest, for the lanes
/// whose counted_L is all ones. Integers, so that totals do not depend on the order of tokens. A
/// lane whose shares are NaN adds nothing; false if it was to count.
template <class A>
GATEPRO_KERNEL bool add_shares(const A* shares_EL, Index experts, const BitsOf<A>* counted_L,
                               BitsOf<A>* totals_EL) {
  constexpr int L = lanes_v<A>;
  const Keys<A> wanted = Keys<A>::load(counted_L);
  const Keys<A> spoiled =
      wanted & (to_keys<A>(Lanes<A>::load(shares_EL)) == Keys<A>::splat(Order<A>::nan));
  const Keys<A> counted = wanted ^ spoiled;
  const Lanes<A> unit = Lanes<A>::splat(A(std::uint64_t(1) << share_bits_v<A>));
  // The number before 1/2: with 1/2 itself whole numbers of units would become the next even one
  // where A has no place for the half.
  const Lanes<A> half = Lanes<A>::splat(A(0.5) - std::numeric_limits<A>::epsilon() / 4);
  for (Index i = 0; i < experts * L; i += L) {
    const Lanes<A> units = mul_add(Lanes<A>::load(shares_EL + i), unit, half);
    const Lanes<A> added = select(counted, units, Lanes<A>::splat(A(0)));
    (Keys<A>::load(totals_EL + i) + convert<BitsOf<A>>(added)).store(totals_EL + i);
  }
  return !any_lane(spoiled);
}

/// The multiple of `step`, a power of two, that is nearest to v: of two the one further from 0.
/// NaNs, infinities and numbers too large to lie between two multiples stay.
template <class A>
GATEPRO_FN Lanes<A> to_multiple(Lanes<A> v, A step) {
  using O = Order<A>;
  const Keys<A> bits = bit_cast<BitsOf<A>>(v);
  const Keys<A> sign = bits & Keys<A>::splat(O::lowest);
  const Lanes<A> half_steps = bit_cast<A>(bits ^ sign) * Lanes<A>::splat(2 / step);
  constexpr BitsOf<A> exponent = O::exponent_bias + O::mantissa_bits + 1;
  const Keys<A> whole_from = Keys<A>::splat(exponent << O::mantissa_bits);
  const auto between = bit_cast<BitsOf<A>>(half_steps) < whole_from;
  const Keys<A> count = convert<BitsOf<A>>(select(between, half_steps, Lanes<A>::splat(A(0))));
  const Keys<A> steps = (count + Keys<A>::splat(1)) >> 1;
  const Lanes<A> size = convert<A>(steps) * Lanes<A>::splat(step);
  return select(between, bit_cast<A>(bit_cast<BitsOf<A>>(size) | sign), v);
}

/// The key by which expert e is chosen: of score + bias; null biases are 0. Losers and NaNs stay
/// what they are; a NaN score or sum becomes a NaN.
template <class A>
GATEPRO_FN Keys<A> choice_key(Keys<A> ranked, Lanes<A> score, const A* bias_E, Index e) {
  if (bias_E != nullptr) score = score + Lanes<A>::splat(bias_E[e]);
  return select(ranked < Keys<A>::splat(-Order<A>::infinity), ranked, to_keys<A>(score));
}

template <class A, bool rounds>
GATEPRO_FN void choice_keys_as(const BitsOf<A>* ranked_EL, Index experts, const A* scores_EL,
                               A step, const A* bias_E, BitsOf<A>* choice_EL) {
  constexpr int L = lanes_v<A>;
  for (Index e = 0; e < experts; ++e) {
    const Keys<A> ranked = Keys<A>::load(ranked_EL + e * L);
    Lanes<A> score =
        scores_EL == nullptr ? to_values<A>(ranked) : Lanes<A>::load(scores_EL + e * L);
    if constexpr (rounds) score = to_multiple<A>(score, step);
    choice_key<A>(ranked, score, bias_E, e).store(choice_EL + e * L);
  }
}

/// The choice keys of all experts, by scores that are there, or null for the logits themselves.
/// Either are rounded to multiples of `step` first, unless it is 0.
template <class A>
GATEPRO_KERNEL void choice_keys(const BitsOf<A>* ranked_EL, Index experts, const A* scores_EL,
                                A step, const A* bias_E, BitsOf<A>* choice_EL) {
  if (step > 0) {
    choice_keys_as<A, true>(ranked_EL, experts, scores_EL, step, bias_E, choice_EL);
  } else {
    choice_keys_as<A, false>(ranked_EL, experts, scores_EL, step, bias_E, choice_EL);
  }
}

template <class A>
struct SeparateChoices {
  template <ScoreFunction function>
  GATEPRO_FN static void run(const BitsOf<A>* ranked_EL, Index experts, const A* bias_E,
                             BitsOf<A>* choice_EL) {
    constexpr int L = lanes_v<A>;
    for (Index e = 0; e < experts; e += chains_v) {
      Score<A> scores[std::size_t(chains_v)];
      const Lanes<A> zero = Lanes<A>::splat(A(0));
      separate_scores<A, function, false>(ranked_EL + e * L, experts - e, zero, scores);
      GATEPRO_UNROLL
      for (int u = 0; u < chains_v; ++u) {
        if (e + u >= experts) break;
        const Keys<A> ranked = Keys<A>::load(ranked_EL + (e + u) * L);
        choice_key<A>(ranked, scores[u].value, bias_E, e + u).store(choice_EL + (e + u) * L);
      }
    }
  }
};

/// The same by scores that each follow from one logit, and that nobody needs of all experts.
template <class A>
GATEPRO_KERNEL void separate_choice_keys(const BitsOf<A>* ranked_EL, Index experts,
                                         ScoreFunction function, const A* bias_E,
                                         BitsOf<A>* choice_EL) {
  run_separate<SeparateChoices<A>>(SeparateScoreFunctions(), function, ranked_EL, experts, bias_E,
                                   choice_EL);
}
