// SPDX-License-Identifier: MIT
// Keys in lanes, one token each. A group of `lanes` tokens is a column block `keys_EL`, one row of
// lanes per expert, so that competition is a row lookup and no step is horizontal.

template <class A>
using Keys = Lanes<BitsOf<A>>;

/// Bits of numbers as keys, or keys as bits: the same exchange of negatives, but for -0.0. Without
/// a comparison, of which fewer can start in a cycle.
template <class A>
GATEPRO_FN Keys<A> exchange_negatives(Keys<A> bits) {
  const Keys<A> sign = bits >> (8 * int(sizeof(A)) - 1);
  return (bits ^ (sign & Keys<A>::splat(Order<A>::magnitude))) - sign;
}

/// Keys of values that are not NaN.
template <class A>
GATEPRO_FN Keys<A> number_keys(Lanes<A> values) {
  return exchange_negatives<A>(bit_cast<BitsOf<A>>(values));
}

/// Keys of any values. Without a shift, which would wait for the shuffles of a transpose.
template <class A>
GATEPRO_FN Keys<A> to_keys(Lanes<A> values) {
  using O = Order<A>;
  const Keys<A> bits = bit_cast<BitsOf<A>>(values);
  const Keys<A> zero = Keys<A>::splat(0);
  const Keys<A> size = bits & Keys<A>::splat(O::magnitude);
  const Keys<A> key = select(bits < zero, zero - size, size);
  return select(size > Keys<A>::splat(O::infinity), Keys<A>::splat(O::nan), key);
}

/// The inverse of to_keys for numbers; meaningless for the keys below -inf.
template <class A>
GATEPRO_FN Lanes<A> to_values(Keys<A> keys) {
  const Keys<A> size = larger(keys, Keys<A>::splat(0) - keys);
  return bit_cast<A>(size | (keys & Keys<A>::splat(Order<A>::lowest)));
}

/// Reads `tokens` <= L rows of logits into keys_EL. Lanes past `tokens` repeat the last row. Up to
/// `row_room` >= experts elements may be read from the start of each row, because whole vectors are
/// faster than the remainder that is wanted.
template <class A>
GATEPRO_KERNEL void load_keys(const A* logits, Index row_stride, Index row_room, Index tokens,
                              Index experts, BitsOf<A>* keys_EL) {
  constexpr int L = lanes_v<A>;
  for (Index e = 0; e < experts; e += L) {
    const int count = experts - e < L ? int(experts - e) : L;
    const int readable = tokens == L && e + L <= row_room ? L : count;
    Lanes<A> block[std::size_t(L)];
    load_block<A, Missing::last_row>(logits + e, row_stride, int(tokens), readable, block);
    transpose<A>(block);
    BitsOf<A> part[std::size_t(L * L)];
    BitsOf<A>* keys = count == L ? keys_EL + e * L : part;
    GATEPRO_UNROLL
    for (int i = 0; i < L; ++i) to_keys<A>(block[i]).store(keys + i * L);
    if (count == L) continue;
    for (int i = 0; i < count; ++i) Keys<A>::load(part + i * L).store(keys_EL + (e + i) * L);
  }
}

/// Interleaves the first half of N rows of lanes with the second half, log2(N) times. Read one
/// after the other, the rows then hold the first lane's N values, the second lane's, and so on.
template <class A, int N, int Rest = N>
GATEPRO_FN void to_token_major(Lanes<A> (&rows)[std::size_t(N)]) {
  if constexpr (N == lanes_v<A>) {
    transpose<A>(rows);  // the same, in cheaper shuffles
  } else if constexpr (Rest > 1) {
    Lanes<A> first[std::size_t(N / 2)];
    GATEPRO_UNROLL
    for (int i = 0; i < N / 2; ++i) first[i] = rows[i];
    GATEPRO_UNROLL
    for (int i = 0; i < N / 2; ++i) {
      const Lanes<A> second = rows[N / 2 + i];
      rows[2 * i] = interleave_low(first[i], second);
      rows[2 * i + 1] = interleave_high(first[i], second);
    }
    to_token_major<A, N, Rest / 2>(rows);
  }
}

/// Writes `cols` <= N rows of lanes as columns of the first `tokens` of L rows in memory.
template <class A, int N>
GATEPRO_FN void store_columns(const A* values_CL, int cols, Index tokens, A* to, Index row_stride) {
  constexpr int L = lanes_v<A>;
  if constexpr (N > 1) {
    if (cols <= N / 2) return store_columns<A, N / 2>(values_CL, cols, tokens, to, row_stride);
  }
  Lanes<A> rows[std::size_t(N)];
  GATEPRO_UNROLL
  for (int i = 0; i < N; ++i) rows[i] = Lanes<A>::load(values_CL + (i < cols ? i : 0) * L);
  to_token_major<A, N>(rows);
  A gapless[std::size_t(N * L)];
  const bool has_gaps = cols < N || row_stride != N || tokens < L;
  A* target = has_gaps ? gapless : to;
  GATEPRO_UNROLL
  for (int i = 0; i < N; ++i) rows[i].store(target + i * L);
  if (!has_gaps) return;
  for (Index r = 0; r < tokens; ++r) copy_pieces<N>(gapless + r * N, to + r * row_stride, cols);
}

/// Writes `cols` rows of lanes as columns of the first `tokens` of L rows in memory. The elements
/// have the size of A.
template <class A>
GATEPRO_KERNEL void store_lanes(const void* values_CL, Index cols, Index tokens, void* to,
                                Index row_stride) {
  constexpr int L = lanes_v<A>;
  for (Index c = 0; c < cols; c += L) {
    const int n = cols - c < L ? int(cols - c) : L;
    store_columns<A, L>(static_cast<const A*>(values_CL) + c * L, n, tokens,
                        static_cast<A*>(to) + c, row_stride);
  }
}

/// Adds 1 to the count of each id of the first `tokens` tokens.
template <class A>
GATEPRO_KERNEL void count_ids(const BitsOf<A>* ids_KL, Index k, Index tokens,
                              std::int64_t* tokens_per_expert_E) {
  constexpr int L = lanes_v<A>;
  for (const BitsOf<A>* ids = ids_KL; ids < ids_KL + k * L; ids += L) {
    if (tokens == L) {
      GATEPRO_UNROLL
      for (int lane = 0; lane < L; ++lane) ++tokens_per_expert_E[ids[lane]];
    } else {
      for (Index lane = 0; lane < tokens; ++lane) ++tokens_per_expert_E[ids[lane]];
    }
  }
}
