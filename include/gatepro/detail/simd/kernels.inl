// SPDX-License-Identifier: MIT
// The inner loops, written once on Vec. Included once per instruction set, inside its namespace.
//
// Two layouts appear. Gate and gradient kernels keep neighbouring experts or columns in the lanes.
// Routing kernels keep one token per lane: a group of `lanes` tokens is a column block `keys_EL`,
// one row of lanes per expert, so that competition is a row lookup and no step is horizontal.

#if GATEPRO_VECTOR_EXTENSIONS
template <class T>
inline constexpr int lanes_v = GATEPRO_BYTES / int(sizeof(T));
#else
template <class T>
inline constexpr int lanes_v = 1;
#endif

template <class T>
using Lanes = Vec<T, lanes_v<T>>;

// ---- Loads of storage types -------------------------------------------------------------------

/// Lanes of float from as many 16-bit patterns.
template <class Source>
GATEPRO_FN Lanes<float> widen_16_bits(const std::uint16_t* bits) {
  std::int32_t words[lanes_v<float>];
  for (int i = 0; i < lanes_v<float>; ++i) words[i] = bits[i];
  using Word = Lanes<std::int32_t>;
  const Word word = Word::load(words);
  if constexpr (std::is_same_v<Source, bfloat16>) {
    return bit_cast<float>(word << 16);
  } else {
    // The exponent moves from bias 15 to 127. Infinities and NaNs move as far again; subnormals
    // are normalised by a subtraction of floats, which is exact.
    const Word magnitude = (word & Word::splat(0x7fff)) << 13;
    const Word exponent = magnitude & Word::splat(0x7c00 << 13);
    const Word rebias = Word::splat((127 - 15) << 23);
    const Word one = Word::splat(1 << 23);
    const Word rebiased = magnitude + rebias;
    const Lanes<float> smallest_normal = bit_cast<float>(Word::splat(113 << 23));
    const Lanes<float> subnormal = bit_cast<float>(rebiased + one) - smallest_normal;
    Word wide = select(exponent == Word::splat(0x7c00 << 13), rebiased + rebias, rebiased);
    wide = select(exponent == Word::splat(0), bit_cast<std::int32_t>(subnormal), wide);
    const Word sign = (word & Word::splat(0x8000)) << 16;
    return bit_cast<float>(wide | sign);
  }
}

/// Copies `count` < 2 * Piece values, in pieces of constant size.
template <int Piece, class T>
GATEPRO_FN void copy_pieces(const T* from, T* to, int count) {
  if constexpr (Piece > 0) {
    const int here = count & Piece;
    if (here != 0) std::memcpy(to, from, Piece * sizeof(T));
    copy_pieces<Piece / 2>(from + here, to + here, count);
  }
}

/// `count` <= lanes_v<A> values of Source as A; lanes past `count` are zero.
template <class A, class Source>
GATEPRO_FN Lanes<A> load_as(const Source* from, int count) {
  A wide[lanes_v<A>] = {};
  if constexpr (std::is_same_v<A, Source>) {
    if (count == lanes_v<A>) return Lanes<A>::load(from);
    copy_pieces<lanes_v<A> / 2>(from, wide, count);
  } else if constexpr (sizeof(Source) == 2) {
    std::uint16_t bits[lanes_v<float>] = {};
    float values[lanes_v<float>];
    std::memcpy(bits, static_cast<const void*>(from), std::size_t(count) * sizeof(Source));
    widen_16_bits<Source>(bits).store(values);
    for (int i = 0; i < lanes_v<A>; ++i) wide[i] = values[i];
  } else {
    for (int i = 0; i < count; ++i) wide[i] = static_cast<A>(from[i]);
  }
  return Lanes<A>::load(wide);
}

template <class A>
GATEPRO_FN void store_first(Lanes<A> v, A* to, int count) {
  if (count == lanes_v<A>) {
    v.store(to);
    return;
  }
  A values[lanes_v<A>];
  v.store(values);
  copy_pieces<lanes_v<A> / 2>(values, to, count);
}

/// to[i] = from[i], exactly.
template <class A, class Source>
GATEPRO_KERNEL void widen(const void* from, Index count, A* to) {
  for (Index i = 0; i < count; i += lanes_v<A>) {
    const int n = count - i < lanes_v<A> ? int(count - i) : lanes_v<A>;
    store_first<A>(load_as<A>(static_cast<const Source*>(from) + i, n), to + i, n);
  }
}

// ---- Gate: logits = X W^T ---------------------------------------------------------------------

/// Fetches a vector of each of the next R rows of X, where there are any. The hardware follows a
/// row, but does not see the next one coming.
template <class A, int R>
GATEPRO_FN void prefetch_rows([[maybe_unused]] const A* next, [[maybe_unused]] Index stride) {
#if GATEPRO_VECTOR_EXTENSIONS
  if (next == nullptr) return;
  GATEPRO_UNROLL
  for (int r = 0; r < R; ++r) __builtin_prefetch(next + r * stride);
#endif
}

/// R tokens against C vectors of experts, over `depth` columns: out += x * w, or out = x * w.
/// Each logit is one chain of additions in ascending column order, wherever its token stands.
/// `next` are the rows of X to fetch meanwhile, or null.
template <class A, int R, int C>
GATEPRO_FN void gate_block(const A* x, const A* next, Index x_stride, const A* w, Index depth,
                           A* out, Index out_stride, bool first) {
  using V = Lanes<A>;
  constexpr int L = lanes_v<A>;
  constexpr Index line = 64 / Index(sizeof(A));
  V sum[std::size_t(R)][std::size_t(C)];
  GATEPRO_UNROLL
  for (int r = 0; r < R; ++r) {
    GATEPRO_UNROLL
    for (int c = 0; c < C; ++c) {
      sum[r][c] = first ? V::splat(A(0)) : V::load(out + r * out_stride + c * L);
    }
  }
  for (Index start = 0; start < depth; start += line) {
    prefetch_rows<A, R>(next == nullptr ? nullptr : next + start, x_stride);
    const Index end = depth - start < line ? depth : start + line;
    for (Index h = start; h < end; ++h) {
      V weights[std::size_t(C)];
      GATEPRO_UNROLL
      for (int c = 0; c < C; ++c) weights[c] = V::load(w + (h * C + c) * L);
      GATEPRO_UNROLL
      for (int r = 0; r < R; ++r) {
        const V token = V::splat(x[r * x_stride + h]);
        GATEPRO_UNROLL
        for (int c = 0; c < C; ++c) sum[r][c] = mul_add(token, weights[c], sum[r][c]);
      }
    }
  }
  GATEPRO_UNROLL
  for (int r = 0; r < R; ++r) {
    GATEPRO_UNROLL
    for (int c = 0; c < C; ++c) sum[r][c].store(out + r * out_stride + c * L);
  }
}

/// One panel of C vectors of experts against all tokens of the tile. The first panel fetches X for
/// itself and the others.
template <class A, int C>
GATEPRO_FN void gate_panel(const A* x, Index x_stride, Index tokens, const A* w, Index depth,
                           A* out, Index out_stride, bool first, bool fetch) {
  Index t = 0;
  for (; t + 6 <= tokens; t += 6) {
    const A* next = fetch && t + 12 <= tokens ? x + (t + 6) * x_stride : nullptr;
    gate_block<A, 6, C>(x + t * x_stride, next, x_stride, w, depth, out + t * out_stride,
                        out_stride, first);
  }
  for (; t + 2 <= tokens; t += 2) {
    gate_block<A, 2, C>(x + t * x_stride, nullptr, x_stride, w, depth, out + t * out_stride,
                        out_stride, first);
  }
  if (t < tokens) {
    gate_block<A, 1, C>(x + t * x_stride, nullptr, x_stride, w, depth, out + t * out_stride,
                        out_stride, first);
  }
}

/// A tile of tokens against one depth block of packed weights (layout: detail/packing.hpp).
template <class A>
GATEPRO_KERNEL void gate(const A* x, Index x_stride, Index tokens, const A* packed, Index depth,
                         Index expert_vectors, A* out, Index out_stride, bool first) {
  constexpr int L = lanes_v<A>;
  constexpr int C = GATEPRO_PANEL_VECTORS;
  Index v = 0;
  for (; v + C <= expert_vectors; v += C) {
    gate_panel<A, C>(x, x_stride, tokens, packed + v * L * depth, depth, out + v * L, out_stride,
                     first, v == 0);
  }
  if constexpr (C > 2) {
    for (; v + 2 <= expert_vectors; v += 2) {
      gate_panel<A, 2>(x, x_stride, tokens, packed + v * L * depth, depth, out + v * L, out_stride,
                       first, v == 0);
    }
  }
  for (; v < expert_vectors; ++v) {
    gate_panel<A, 1>(x, x_stride, tokens, packed + v * L * depth, depth, out + v * L, out_stride,
                     first, v == 0);
  }
}

/// Sums of the lanes of N = L / 2 vectors: lane i of the result holds half of the sum of vector i,
/// lane i + N the other half.
template <class A, int N, int Step>
GATEPRO_FN Lanes<A> half_sums(const Lanes<A>* vectors) {
  if constexpr (N == 1) {
    return vectors[0];
  } else {
    const Lanes<A> even = half_sums<A, N / 2, 2 * Step>(vectors);
    const Lanes<A> odd = half_sums<A, N / 2, 2 * Step>(vectors + Step);
    return interleave_low(even, odd) + interleave_high(even, odd);
  }
}

/// R tokens against up to L / 2 experts, with columns in the lanes.
template <class A, int R>
GATEPRO_FN void gate_few_block(const A* x, const A* next, Index x_stride, const A* w, Index depth,
                               A* out, Index out_stride, bool first) {
  constexpr int L = lanes_v<A>;
  constexpr int N = L / 2;
  const Index w_stride = (depth + L - 1) / L * L;
  Lanes<A> sum[std::size_t(R)][std::size_t(N)];
  GATEPRO_UNROLL
  for (int r = 0; r < R; ++r) {
    GATEPRO_UNROLL
    for (int e = 0; e < N; ++e) sum[r][e] = Lanes<A>::splat(A(0));
  }
  for (Index h = 0; h < depth; h += L) {
    prefetch_rows<A, R>(next == nullptr ? nullptr : next + h, x_stride);
    const int n = depth - h < L ? int(depth - h) : L;
    Lanes<A> tokens[std::size_t(R)];
    GATEPRO_UNROLL
    for (int r = 0; r < R; ++r) tokens[r] = load_as<A>(x + r * x_stride + h, n);
    GATEPRO_UNROLL
    for (int e = 0; e < N; ++e) {
      const Lanes<A> weights = Lanes<A>::load(w + e * w_stride + h);
      GATEPRO_UNROLL
      for (int r = 0; r < R; ++r) sum[r][e] = mul_add(tokens[r], weights, sum[r][e]);
    }
  }
  GATEPRO_UNROLL
  for (int r = 0; r < R; ++r) {
    A halves[std::size_t(L)];
    half_sums<A, N, 1>(sum[r]).store(halves);
    A* logits = out + r * out_stride;
    for (int e = 0; e < N; ++e) {
      const A block = halves[e] + halves[e + N];
      logits[e] = first ? block : logits[e] + block;
    }
  }
}

/// Like gate, for so few experts that half of the lanes or more would stay empty.
template <class A>
GATEPRO_KERNEL void gate_few(const A* x, Index x_stride, Index tokens, const A* packed,
                             Index depth, A* out, Index out_stride, bool first) {
  if constexpr (lanes_v<A> > 1) {
    Index t = 0;
    for (; t + 3 <= tokens; t += 3) {
      const A* next = t + 6 <= tokens ? x + (t + 3) * x_stride : nullptr;
      gate_few_block<A, 3>(x + t * x_stride, next, x_stride, packed, depth, out + t * out_stride,
                           out_stride, first);
    }
    for (; t < tokens; ++t) {
      gate_few_block<A, 1>(x + t * x_stride, nullptr, x_stride, packed, depth, out + t * out_stride,
                           out_stride, first);
    }
  }
}

// ---- Routing: one token per lane --------------------------------------------------------------

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
  return select(size > Keys<A>::splat(O::infinity), Keys<A>::splat(O::nan),
                number_keys<A>(values));
}

/// The inverse of to_keys for numbers; meaningless for the keys below -inf.
template <class A>
GATEPRO_FN Lanes<A> to_values(Keys<A> keys) {
  const Keys<A> sign = keys >> int(8 * sizeof(A) - 1);
  const Keys<A> size = (keys ^ sign) - sign;
  return bit_cast<A>(size | (sign & Keys<A>::splat(Order<A>::lowest)));
}

/// Transposes an L x L block in registers: log2(L) rounds of interleaving row r with r + L/2.
template <class A>
GATEPRO_FN void transpose(Lanes<A> (&rows)[std::size_t(lanes_v<A>)]) {
#if GATEPRO_VECTOR_EXTENSIONS
  constexpr int L = lanes_v<A>;
  GATEPRO_UNROLL
  for (int round = 1; round < L; round *= 2) {
    Lanes<A> next[std::size_t(L)];
    GATEPRO_UNROLL
    for (int r = 0; r < L / 2; ++r) {
      next[2 * r] = interleave_low(rows[r], rows[r + L / 2]);
      next[2 * r + 1] = interleave_high(rows[r], rows[r + L / 2]);
    }
    GATEPRO_UNROLL
    for (int r = 0; r < L; ++r) rows[r] = next[r];
  }
#else
  (void)rows;  // 1 x 1
#endif
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
GATEPRO_FN void compete_as(const BitsOf<A>* keys_EL, Index experts,
                           const std::int32_t* rival_begin, const std::int32_t* rivals, A lambda,
                           BitsOf<A>* ranked_EL) {
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
      insert<A>(Keys<A>::load(keys_EL + e * L), Keys<A>::splat(BitsOf<A>(e)), K, top_keys,
                top_ids);
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
GATEPRO_KERNEL void top_k(const BitsOf<A>* keys_EL, Index experts, Index k,
                          BitsOf<A>* top_keys_KL, BitsOf<A>* top_ids_KL) {
  switch (k) {
    case 1: return top_k_as<A, 1>(keys_EL, experts, k, top_keys_KL, top_ids_KL);
    case 2: return top_k_as<A, 2>(keys_EL, experts, k, top_keys_KL, top_ids_KL);
    case 4: return top_k_as<A, 4>(keys_EL, experts, k, top_keys_KL, top_ids_KL);
    case 6: return top_k_as<A, 6>(keys_EL, experts, k, top_keys_KL, top_ids_KL);
    case 8: return top_k_as<A, 8>(keys_EL, experts, k, top_keys_KL, top_ids_KL);
    default: return top_k_as<A, 0>(keys_EL, experts, k, top_keys_KL, top_ids_KL);
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
  constexpr double inverse_factorial[14] = {1.0, 1.0, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120,
                                            1.0 / 720, 1.0 / 5040, 1.0 / 40320, 1.0 / 362880,
                                            1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600,
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

// ---- Gradients --------------------------------------------------------------------------------

/// The same pointer, in a register of its own: g++ would otherwise fold the address of a row into
/// that of each of its vectors, and compute all of them anew.
template <class T>
GATEPRO_FN const T* in_register(const T* pointer) {
#if GATEPRO_VECTOR_EXTENSIONS
  __asm__("" : "+r"(pointer));
#endif
  return pointer;
}

template <class A, class Source, int N>
GATEPRO_FN void add_rows_block(const A* coefficients, const Index* rows, Index count,
                               const Source* base, Index stride, A* out, int last) {
  constexpr int L = lanes_v<A>;
  Lanes<A> sum[std::size_t(N)];
  GATEPRO_UNROLL
  for (int v = 0; v < N; ++v) sum[v] = load_as<A>(out + v * L, v + 1 < N ? L : last);
  for (Index i = 0; i < count; ++i) {
    const Lanes<A> c = Lanes<A>::splat(coefficients[i]);
    const Source* row = in_register(base + rows[i] * stride);
    GATEPRO_UNROLL
    for (int v = 0; v < N; ++v) {
      sum[v] = mul_add(c, load_as<A>(row + v * L, v + 1 < N ? L : last), sum[v]);
    }
  }
  GATEPRO_UNROLL
  for (int v = 0; v < N; ++v) store_first<A>(sum[v], out + v * L, v + 1 < N ? L : last);
}

/// out[c] += sum over i of coefficients[i] * base[rows[i] * stride + c]: one chain per element, in
/// the order of i, from the value that out holds.
template <class A, class Source>
GATEPRO_KERNEL void add_rows(const A* coefficients, const Index* rows, Index count,
                             const void* base, Index stride, Index width, A* out) {
  constexpr int L = lanes_v<A>;
  const Source* from = static_cast<const Source*>(base);
  Index c = 0;
  for (; c + 8 * L <= width; c += 8 * L) {
    add_rows_block<A, Source, 8>(coefficients, rows, count, from + c, stride, out + c, L);
  }
  for (; c + 2 * L <= width; c += 2 * L) {
    add_rows_block<A, Source, 2>(coefficients, rows, count, from + c, stride, out + c, L);
  }
  for (; c < width; c += L) {
    const int n = width - c < L ? int(width - c) : L;
    add_rows_block<A, Source, 1>(coefficients, rows, count, from + c, stride, out + c, n);
  }
}

// ---- The table --------------------------------------------------------------------------------

template <class A>
inline constexpr Kernels<A> kernels{
    lanes_v<A>,
    GATEPRO_PANEL_VECTORS,
    {widen<A, float>, widen<A, double>, widen<A, bfloat16>, widen<A, half>},
    gate<A>,
    gate_few<A>,
    load_keys<A>,
    compete<A>,
    top_k<A>,
    softmax<A>,
    {add_rows<A, float>, add_rows<A, double>, add_rows<A, bfloat16>, add_rows<A, half>}};
