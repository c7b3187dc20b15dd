// SPDX-License-Identifier: MIT
// Routing kernels: one token per lane. A group of `lanes` tokens is a column block `keys_EL`, one
// row of lanes per expert, so that competition is a row lookup and no step is horizontal.

template <class A>
using Keys = Lanes<BitsOf<A>>;

/// Keys of values that are not NaN.
template <class A>
GATEPRO_FN Keys<A> number_keys(Lanes<A> values) {
  const Keys<A> bits = bit_cast<BitsOf<A>>(values);
  const Keys<A> sign = bits >> int(8 * sizeof(A) - 1);
  return ((bits & Keys<A>::splat(Order<A>::magnitude)) ^ sign) - sign;
}

template <class A>
GATEPRO_FN Keys<A> to_keys(Lanes<A> values) {
  using O = Order<A>;
  const Keys<A> size = bit_cast<BitsOf<A>>(values) & Keys<A>::splat(O::magnitude);
  return select(size > Keys<A>::splat(O::infinity), Keys<A>::splat(O::nan), number_keys<A>(values));
}

/// The inverse of to_keys for numbers; meaningless for the keys below -inf.
template <class A>
GATEPRO_FN Lanes<A> to_values(Keys<A> keys) {
  const Keys<A> sign = keys >> int(8 * sizeof(A) - 1);
  const Keys<A> size = (keys ^ sign) - sign;
  return bit_cast<A>(size | (sign & Keys<A>::splat(Order<A>::lowest)));
}

/// Reads `tokens` <= L rows of logits into keys_EL. Lanes past `tokens` repeat the last row.
template <class A>
GATEPRO_KERNEL void load_keys(const A* logits, Index row_stride, Index tokens, Index experts,
                              BitsOf<A>* keys_EL) {
  constexpr int L = lanes_v<A>;
  for (Index e = 0; e < experts; e += L) {
    const int n = experts - e < L ? int(experts - e) : L;
    Lanes<A> block[std::size_t(L)];
    GATEPRO_UNROLL
    for (int r = 0; r < L; ++r) {
      const Index row = r < tokens ? r : tokens - 1;
      block[r] = load_as<A>(logits + row * row_stride + e, n);
    }
    transpose<A>(block);
    GATEPRO_UNROLL
    for (int i = 0; i < L; ++i) {
      if (i < n) to_keys<A>(block[i]).store(keys_EL + (e + i) * L);
    }
  }
}

/// ranked_EL = keys_EL, with the losers' keys lowered: to the key of their logit minus lambda, or
/// to Order::loser. An expert loses if its key is strictly below that of any rival; NaNs never do.
template <class A, bool eliminate>
GATEPRO_FN void compete_as(const BitsOf<A>* keys_EL, Index experts, const std::int32_t* rival_begin,
                           const std::int32_t* rivals, A lambda, BitsOf<A>* ranked_EL) {
  using O = Order<A>;
  constexpr int L = lanes_v<A>;
  const Lanes<A> penalty = Lanes<A>::splat(lambda);
  for (Index e = 0; e < experts; ++e) {
    const Keys<A> own = Keys<A>::load(keys_EL + e * L);
    Keys<A> best = Keys<A>::splat(O::lowest);
    for (std::int32_t i = rival_begin[e]; i < rival_begin[e + 1]; ++i) {
      const Keys<A> rival = Keys<A>::load(keys_EL + Index(rivals[i]) * L);
      best = larger(best, rival);
    }
    Keys<A> lowered = Keys<A>::splat(O::loser);
    if constexpr (!eliminate) lowered = number_keys<A>(to_values<A>(own) - penalty);
    const Keys<A> loses = (own < best) & (own > Keys<A>::splat(O::nan));
    select(loses, lowered, own).store(ranked_EL + e * L);
  }
}

template <class A>
GATEPRO_KERNEL void compete(const BitsOf<A>* keys_EL, Index experts,
                            const std::int32_t* rival_begin, const std::int32_t* rivals,
                            bool eliminate, A lambda, BitsOf<A>* ranked_EL) {
  if (eliminate) {
    compete_as<A, true>(keys_EL, experts, rival_begin, rivals, lambda, ranked_EL);
  } else {
    compete_as<A, false>(keys_EL, experts, rival_begin, rivals, lambda, ranked_EL);
  }
}

/// Inserts one expert per lane into descending lists of `k`. Only a strictly larger key moves
/// ahead, so equal keys stay in ascending order of id. All comparisons are with the candidate:
/// there is no chain from slot to slot.
template <class A>
GATEPRO_FN void insert(Keys<A> key, Keys<A> id, int k, Keys<A>* top_keys, Keys<A>* top_ids) {
  auto ahead = key > top_keys[k - 1];
  GATEPRO_UNROLL
  for (int j = k - 1; j > 0; --j) {
    const auto ahead_of_next = key > top_keys[j - 1];
    top_keys[j] = select(ahead, select(ahead_of_next, top_keys[j - 1], key), top_keys[j]);
    top_ids[j] = select(ahead, select(ahead_of_next, top_ids[j - 1], id), top_ids[j]);
    ahead = ahead_of_next;
  }
  top_keys[0] = select(ahead, key, top_keys[0]);
  top_ids[0] = select(ahead, id, top_ids[0]);
}

/// The K largest keys of each lane by maxima and minima alone, less than half the work of `insert`:
/// the low bits of each key make room for the id, counted down, so that the lower id wins a tie.
/// Returns false, with nothing written, if that may have cost an order: if two neighbours among the
/// K + 1 best differ in those bits at most, in a lane whose keys use them. (Logits rounded to
/// bfloat16 leave them zero; their ties are true ties.)
template <class A, int K>
GATEPRO_FN bool top_k_packed(const BitsOf<A>* keys_EL, Index experts, BitsOf<A>* top_keys_KL,
                             BitsOf<A>* top_ids_KL) {
  constexpr int L = lanes_v<A>;
  BitsOf<A> low = 0;
  while (low + 1 < experts) low = BitsOf<A>(2 * low + 1);
  const Keys<A> low_bits = Keys<A>::splat(low);
  const Keys<A> high_bits = Keys<A>::splat(BitsOf<A>(~low));
  Keys<A> top[std::size_t(K + 1)];
  GATEPRO_UNROLL
  for (int j = 0; j <= K; ++j) top[j] = Keys<A>::splat(Order<A>::lowest);
  Keys<A> used_bits = Keys<A>::splat(0);
  for (Index e = 0; e < experts; ++e) {
    const Keys<A> key = Keys<A>::load(keys_EL + e * L);
    used_bits = used_bits | key;
    const Keys<A> packed = (key & high_bits) | Keys<A>::splat(BitsOf<A>(experts - 1 - e));
    GATEPRO_UNROLL
    for (int j = K; j > 0; --j) top[j] = larger(top[j], smaller(top[j - 1], packed));
    top[0] = larger(top[0], packed);
  }
  const Keys<A> zero = Keys<A>::splat(0);
  Keys<A> in_doubt = zero;
  GATEPRO_UNROLL
  for (int j = 0; j < K; ++j) in_doubt = in_doubt | (((top[j] ^ top[j + 1]) & high_bits) == zero);
  in_doubt = in_doubt & ((used_bits & low_bits) > zero);
  BitsOf<A> doubts[std::size_t(L)];
  in_doubt.store(doubts);
  BitsOf<A> any = 0;
  for (int lane = 0; lane < L; ++lane) any = any | doubts[lane];
  if (any != 0) return false;
  GATEPRO_UNROLL
  for (int j = 0; j < K; ++j) {
    BitsOf<A>* ids = top_ids_KL + j * L;
    (Keys<A>::splat(BitsOf<A>(experts - 1)) - (top[j] & low_bits)).store(ids);
    for (int lane = 0; lane < L; ++lane) {
      top_keys_KL[j * L + lane] = keys_EL[Index(ids[lane]) * L + lane];
    }
  }
  return true;
}

/// The k largest keys of each lane, in descending order, with their ids; K is k where it is small
/// enough for the lists to stay in registers, else 0.
template <class A, int K>
GATEPRO_FN void top_k_as(const BitsOf<A>* keys_EL, Index experts, Index k, BitsOf<A>* top_keys_KL,
                         BitsOf<A>* top_ids_KL) {
  constexpr int L = lanes_v<A>;
  if constexpr (K > 0) {
    if (top_k_packed<A, K>(keys_EL, experts, top_keys_KL, top_ids_KL)) return;
    Keys<A> top_keys[std::size_t(K)], top_ids[std::size_t(K)];
    GATEPRO_UNROLL
    for (int j = 0; j < K; ++j) {
      top_keys[j] = Keys<A>::splat(Order<A>::empty);
      top_ids[j] = Keys<A>::splat(0);
    }
    for (Index e = 0; e < experts; ++e) {
      insert<A>(Keys<A>::load(keys_EL + e * L), Keys<A>::splat(BitsOf<A>(e)), K, top_keys, top_ids);
    }
    GATEPRO_UNROLL
    for (int j = 0; j < K; ++j) {
      top_keys[j].store(top_keys_KL + j * L);
      top_ids[j].store(top_ids_KL + j * L);
    }
  } else {
    for (Index j = 0; j < k; ++j) Keys<A>::splat(Order<A>::empty).store(top_keys_KL + j * L);
    for (Index e = 0; e < experts; ++e) {
      const Keys<A> key = Keys<A>::load(keys_EL + e * L);
      const Keys<A> id = Keys<A>::splat(BitsOf<A>(e));
      auto ahead = key > Keys<A>::load(top_keys_KL + (k - 1) * L);
      for (Index j = k - 1; j >= 0; --j) {
        BitsOf<A>* slot_key = top_keys_KL + j * L;
        BitsOf<A>* slot_id = top_ids_KL + j * L;
        const Index above = j > 0 ? j - 1 : 0;
        const Keys<A> key_above = Keys<A>::load(top_keys_KL + above * L);
        const auto ahead_of_next = j > 0 ? key > key_above : key < key;
        select(ahead, select(ahead_of_next, key_above, key), Keys<A>::load(slot_key))
            .store(slot_key);
        select(ahead, select(ahead_of_next, Keys<A>::load(top_ids_KL + above * L), id),
               Keys<A>::load(slot_id))
            .store(slot_id);
        ahead = ahead_of_next;
      }
    }
  }
}

template <class A>
GATEPRO_KERNEL void top_k(const BitsOf<A>* keys_EL, Index experts, Index k, BitsOf<A>* top_keys_KL,
                          BitsOf<A>* top_ids_KL) {
  switch (k) {
    case 1:
      return top_k_as<A, 1>(keys_EL, experts, k, top_keys_KL, top_ids_KL);
    case 2:
      return top_k_as<A, 2>(keys_EL, experts, k, top_keys_KL, top_ids_KL);
    case 4:
      return top_k_as<A, 4>(keys_EL, experts, k, top_keys_KL, top_ids_KL);
    case 6:
      return top_k_as<A, 6>(keys_EL, experts, k, top_keys_KL, top_ids_KL);
    case 8:
      return top_k_as<A, 8>(keys_EL, experts, k, top_keys_KL, top_ids_KL);
    default:
      return top_k_as<A, 0>(keys_EL, experts, k, top_keys_KL, top_ids_KL);
  }
}

/// exp(x) for x <= 0, -inf included: 2^n times a Taylor polynomial on |r| <= ln(2) / 2. The degree
/// makes the truncation smaller than a tenth of an ulp. Below the smallest denormal it gives 0.
template <class A>
GATEPRO_FN Lanes<A> exp_nonpositive(Lanes<A> x) {
  using V = Lanes<A>;
  constexpr bool single = sizeof(A) == 4;
  constexpr int degree = single ? 7 : 13;
  constexpr A floor = single ? A(-104) : A(-746);
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
  x = select(number_keys<A>(x) > number_keys<A>(V::splat(floor)), x, V::splat(floor));
  const V scaled = mul_add(x, V::splat(A(1.44269504088896340736)), V::splat(A(-0.5)));
  const Keys<A> n = convert<BitsOf<A>>(scaled);
  const V whole = convert<A>(n);
  V r = mul_add(whole, V::splat(-ln2_high), x);
  r = mul_add(whole, V::splat(-ln2_low), r);
  V sum = V::splat(A(inverse_factorial[degree]));
  GATEPRO_UNROLL
  for (int i = degree - 1; i >= 0; --i) sum = mul_add(sum, r, V::splat(A(inverse_factorial[i])));
  // Two factors, because 2^n alone may be denormal.
  constexpr int mantissa = Order<A>::mantissa_bits;
  const Keys<A> bias = Keys<A>::splat(Order<A>::exponent_bias);
  const Keys<A> half = n >> 1;
  const V first = bit_cast<A>((half + bias) << mantissa);
  const V second = bit_cast<A>((n - half + bias) << mantissa);
  return sum * first * second;
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
