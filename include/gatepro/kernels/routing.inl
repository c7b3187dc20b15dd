// SPDX-License-Identifier: MIT
// Routing kernels: one token per lane. A group of `lanes` tokens is a column block `keys_EL`, one
// row of lanes per expert, so that competition is a row lookup and no step is horizontal.

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

/// `count` <= L columns of L rows of logits into keys_EL, reading `readable` of each. Rows past
/// `last` repeat it.
template <class A>
GATEPRO_FN void load_key_block(const A* logits, Index row_stride, int last, int readable, int count,
                               BitsOf<A>* keys_EL) {
  constexpr int L = lanes_v<A>;
  Lanes<A> block[std::size_t(L)];
  GATEPRO_UNROLL
  for (int r = 0; r < L; ++r) {
    block[r] = loaded_once(load_as<A>(logits + (r < last ? r : last) * row_stride, readable));
  }
  transpose<A>(block);
  GATEPRO_UNROLL
  for (int i = 0; i < L; ++i) {
    if (i < count) to_keys<A>(block[i]).store(keys_EL + i * L);
  }
}

/// Reads `tokens` <= L rows of logits into keys_EL. Lanes past `tokens` repeat the last row. Up to
/// `row_room` >= experts elements may be read from the start of each row, because whole vectors are
/// faster than the remainder that is wanted.
template <class A>
GATEPRO_KERNEL void load_keys(const A* logits, Index row_stride, Index row_room, Index tokens,
                              Index experts, BitsOf<A>* keys_EL) {
  constexpr int L = lanes_v<A>;
  Index e = 0;
  if (tokens == L) {
    for (; e + L <= experts; e += L) {
      load_key_block<A>(logits + e, row_stride, L - 1, L, L, keys_EL + e * L);
    }
    if (e < experts && e + L <= row_room) {
      load_key_block<A>(logits + e, row_stride, L - 1, L, int(experts - e), keys_EL + e * L);
      return;
    }
  }
  for (; e < experts; e += L) {
    const int count = experts - e < L ? int(experts - e) : L;
    load_key_block<A>(logits + e, row_stride, int(tokens - 1), count, count, keys_EL + e * L);
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

/// The largest key of the rivals of expert `e`; one more for a rival of lower id if it wins ties.
template <class A, bool several, bool ties_lose>
GATEPRO_FN Keys<A> best_rival(const BitsOf<A>* keys_EL, RivalView rivals, Index e) {
  constexpr int L = lanes_v<A>;
  if constexpr (several) {
    Keys<A> best = Keys<A>::splat(Order<A>::lowest);
    for (std::int32_t i = rivals.begin[e]; i < rivals.begin[e + 1]; ++i) {
      const Index rival = rivals.ids[i];
      Keys<A> key = Keys<A>::load(keys_EL + rival * L);
      if constexpr (ties_lose) key = key + Keys<A>::splat(rival < e ? 1 : 0);
      best = larger(best, key);
    }
    return best;
  } else {
    return Keys<A>::load(keys_EL + Index(rivals.only[e]) * L);
  }
}

template <class A, bool eliminate, bool several, bool ties_lose>
GATEPRO_FN void compete_as(const BitsOf<A>* keys_EL, Index experts, RivalView rivals, A lambda,
                           BitsOf<A>* ranked_EL) {
  using O = Order<A>;
  constexpr int L = lanes_v<A>;
  const Lanes<A> penalty = Lanes<A>::splat(lambda);
  GATEPRO_UNROLL_2
  for (Index e = 0; e < experts; ++e) {
    const Keys<A> own = Keys<A>::load(keys_EL + e * L);
    // A NaN, which ranks lower than all of these, keeps its key.
    Keys<A> lowered = Keys<A>::splat(O::loser);
    if constexpr (!eliminate) lowered = number_keys<A>(to_values<A>(own) - penalty);
    const auto loses = own < best_rival<A, several, ties_lose>(keys_EL, rivals, e);
    select(loses, smaller(lowered, own), own).store(ranked_EL + e * L);
  }
}

/// ranked_EL = keys_EL, with the losers' keys lowered: to the key of their logit minus lambda, or
/// to Order::loser. An expert loses if its key is strictly below that of any rival, or with
/// `ties_lose` equal to that of a rival of lower id; NaNs never do.
template <class A>
GATEPRO_KERNEL void compete(const BitsOf<A>* keys_EL, Index experts, const RivalView& rivals,
                            bool eliminate, bool ties_lose, A lambda, BitsOf<A>* ranked_EL) {
  const bool several = rivals.only == nullptr;
  if (ties_lose && eliminate) {
    compete_as<A, true, true, true>(keys_EL, experts, rivals, lambda, ranked_EL);
  } else if (ties_lose) {
    compete_as<A, false, true, true>(keys_EL, experts, rivals, lambda, ranked_EL);
  } else if (eliminate && several) {
    compete_as<A, true, true, false>(keys_EL, experts, rivals, lambda, ranked_EL);
  } else if (eliminate) {
    compete_as<A, true, false, false>(keys_EL, experts, rivals, lambda, ranked_EL);
  } else if (several) {
    compete_as<A, false, true, false>(keys_EL, experts, rivals, lambda, ranked_EL);
  } else {
    compete_as<A, false, false, false>(keys_EL, experts, rivals, lambda, ranked_EL);
  }
}

/// The penalised logits of up to L tokens: values of the ranked keys that differ from the logits',
/// elsewhere the logits' own bits.
template <class A>
GATEPRO_KERNEL void store_penalised(const BitsOf<A>* keys_EL, const BitsOf<A>* ranked_EL,
                                    Index experts, Index tokens, const A* logits,
                                    Index logits_stride, A* out, Index out_stride) {
  constexpr int L = lanes_v<A>;
  // No penalised logit is a NaN: NaNs pay nothing.
  const Lanes<A> not_paid = bit_cast<A>(Keys<A>::splat(Order<A>::quiet_nan_bits));
  for (Index e = 0; e < experts; e += L) {
    const int n = experts - e < L ? int(experts - e) : L;
    Lanes<A> block[std::size_t(L)];
    GATEPRO_UNROLL
    for (int i = 0; i < L; ++i) {
      const Index expert = i < n ? e + i : e;
      const Keys<A> ranked = Keys<A>::load(ranked_EL + expert * L);
      const auto same = ranked == Keys<A>::load(keys_EL + expert * L);
      block[i] = select(same, not_paid, to_values<A>(ranked));
    }
    transpose<A>(block);
    GATEPRO_UNROLL
    for (int r = 0; r < L; ++r) {
      if (r >= tokens) break;
      const Lanes<A> own = load_as<A>(logits + r * logits_stride + e, n);
      const auto paid_nothing = bit_cast<BitsOf<A>>(block[r]) == bit_cast<BitsOf<A>>(not_paid);
      store_first<A>(select(paid_nothing, own, block[r]), out + r * out_stride + e, n);
    }
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

/// Puts the larger key of each pair of positions (First, Second) first.
template <class A, int First, int Second, int... More>
GATEPRO_FN void order_pairs(Keys<A>* v) {
  const Keys<A> first = larger(v[First], v[Second]);
  v[Second] = smaller(v[First], v[Second]);
  v[First] = first;
  if constexpr (sizeof...(More) > 0) order_pairs<A, More...>(v);
}

/// Sorts 8 keys, descending: the shortest network, 19 exchanges.
template <class A>
GATEPRO_FN void sort_8(Keys<A>* v) {
  order_pairs<A, 0, 2, 1, 3, 4, 6, 5, 7>(v);
  order_pairs<A, 0, 4, 1, 5, 2, 6, 3, 7>(v);
  order_pairs<A, 0, 1, 2, 3, 4, 5, 6, 7>(v);
  order_pairs<A, 2, 4, 3, 5, 1, 4, 3, 6, 1, 2, 3, 4, 5, 6>(v);
}

/// Sorts 8 keys that rise and then fall, or the reverse.
template <class A>
GATEPRO_FN void merge_8(Keys<A>* v) {
  order_pairs<A, 0, 4, 1, 5, 2, 6, 3, 7>(v);
  order_pairs<A, 0, 2, 1, 3, 4, 6, 5, 7>(v);
  order_pairs<A, 0, 1, 2, 3, 4, 5, 6, 7>(v);
}

/// Keys whose low bits are replaced by the expert's id, counted down: a lower id wins a tie. Read
/// in order of the experts.
template <class A>
struct PackedKeys {
  Keys<A> last_id;
  Keys<A> low_bits;
  Keys<A> next_id;

  GATEPRO_FN explicit PackedKeys(Index experts) {
    BitsOf<A> low = 0;
    while (low + 1 < experts) low = BitsOf<A>(2 * low + 1);
    low_bits = Keys<A>::splat(low);
    last_id = Keys<A>::splat(BitsOf<A>(experts - 1));
    next_id = last_id;
  }

  GATEPRO_FN Keys<A> high_bits() const { return low_bits ^ Keys<A>::splat(-1); }

  GATEPRO_FN Keys<A> read(const BitsOf<A>* key_L) {
    const Keys<A> packed = (Keys<A>::load(key_L) & high_bits()) | next_id;
    next_id = next_id - Keys<A>::splat(1);
    return packed;
  }

  GATEPRO_FN Keys<A> id(Keys<A> packed) const { return last_id - (packed & low_bits); }

  /// Lanes whose keys differ in the replaced bits at most.
  GATEPRO_FN typename Keys<A>::Mask tie(Keys<A> a, Keys<A> b) const {
    return ((a ^ b) & high_bits()) == Keys<A>::splat(0);
  }
};

/// The Slots largest packed keys in descending order, then the next one: by insertion, one key at
/// a time, where the lists are short.
template <class A, int Slots>
GATEPRO_FN void insert_packed(PackedKeys<A>& packed, const BitsOf<A>* keys_EL, Index experts,
                              Keys<A>* top) {
  for (Index e = 0; e < experts; ++e) {
    const Keys<A> key = packed.read(keys_EL + e * lanes_v<A>);
    GATEPRO_UNROLL
    for (int j = Slots; j > 0; --j) top[j] = larger(top[j], smaller(top[j - 1], key));
    top[0] = larger(top[0], key);
  }
}

/// Moves the 8 larger keys of two descending lists of 8 to the first. Both then rise and fall.
template <class A>
GATEPRO_FN void split_8(Keys<A>* first, Keys<A>* second) {
  GATEPRO_UNROLL
  for (int j = 0; j < 8; ++j) {
    const Keys<A> key = first[j];
    first[j] = larger(key, second[7 - j]);
    second[7 - j] = smaller(key, second[7 - j]);
  }
}

/// Merges 8 keys with the best 8 * blocks so far; top[8 * blocks] is the best of the others. What a
/// block passes on needs no sorting. By the 0-1 principle: if the next block holds a 1, this one
/// holds only 1s, and passes on what it got.
template <class A>
GATEPRO_FN void merge_packed(Keys<A>* next, int blocks, Keys<A>* top) {
  sort_8<A>(next);
  for (int block = 0; block < blocks; ++block) {
    split_8<A>(top + 8 * block, next);
    merge_8<A>(top + 8 * block);
  }
  GATEPRO_UNROLL
  for (int j = 0; j < 8; ++j) top[8 * blocks] = larger(top[8 * blocks], next[j]);
}

/// The same as insert_packed for 8 * blocks slots, 8 keys at a time.
template <class A>
GATEPRO_FN void merge_packed(PackedKeys<A>& packed, const BitsOf<A>* keys_EL, Index experts,
                             int blocks, Keys<A>* top) {
  constexpr int L = lanes_v<A>;
  Keys<A> next[8];
  Index e = 0;
  for (; e + 8 <= experts; e += 8) {
    GATEPRO_UNROLL
    for (int j = 0; j < 8; ++j) next[j] = packed.read(keys_EL + (e + j) * L);
    merge_packed<A>(next, blocks, top);
  }
  if (e == experts) return;
  GATEPRO_UNROLL
  for (int j = 0; j < 8; ++j) {
    next[j] = Keys<A>::splat(Order<A>::lowest);
    if (e + j < experts) next[j] = packed.read(keys_EL + (e + j) * L);
  }
  merge_packed<A>(next, blocks, top);
}

/// Lanes whose keys use any of `bits`.
template <class A>
GATEPRO_FN typename Keys<A>::Mask lanes_using(Keys<A> bits, const BitsOf<A>* keys_EL,
                                              Index experts) {
  Keys<A> used = Keys<A>::splat(0);
  for (Index e = 0; e < experts; ++e) used = used | Keys<A>::load(keys_EL + e * lanes_v<A>);
  return (used & bits) > Keys<A>::splat(0);
}

/// Puts k keys in descending order. Only neighbours change places, and only if the second is
/// larger, so equal keys keep theirs.
template <class A>
GATEPRO_FN void settle_order(Index k, BitsOf<A>* keys_KL, BitsOf<A>* ids_KL) {
  constexpr int L = lanes_v<A>;
  for (Index last = L; last < k * L; last += L) {
    for (Index second = last; second > 0; second -= L) {
      const Index first = second - L;
      const Keys<A> key = Keys<A>::load(keys_KL + first), next = Keys<A>::load(keys_KL + second);
      const Keys<A> id = Keys<A>::load(ids_KL + first), next_id = Keys<A>::load(ids_KL + second);
      const auto ahead = next > key;
      larger(key, next).store(keys_KL + first);
      smaller(key, next).store(keys_KL + second);
      select(ahead, next_id, id).store(ids_KL + first);
      select(ahead, id, next_id).store(ids_KL + second);
    }
  }
}

/// Writes the first k of k + 1 packed keys: exact keys and ids. Neighbours that differ in the
/// replaced bits at most may be in the wrong order, unless their lane's keys use none of these.
/// (Logits rounded to bfloat16 do not; their ties are true ties.) Among the selected, that is put
/// right. If it may have cost the last its place, returns false, with nothing written.
template <class A>
GATEPRO_FN bool store_packed(const PackedKeys<A>& packed, const Keys<A>* top,
                             const BitsOf<A>* keys_EL, Index experts, Index k,
                             BitsOf<A>* top_keys_KL, BitsOf<A>* top_ids_KL) {
  constexpr int L = lanes_v<A>;
  const auto last_in_doubt = packed.tie(top[k - 1], top[k]);
  if (any_lane(last_in_doubt) &&
      any_lane(last_in_doubt & lanes_using<A>(packed.low_bits, keys_EL, experts))) {
    return false;
  }
  Keys<A> order_in_doubt = Keys<A>::splat(0);
  for (Index j = 0; j < k; ++j) {
    if (j > 0) order_in_doubt = order_in_doubt | packed.tie(top[j - 1], top[j]);
    BitsOf<A>* ids = top_ids_KL + j * L;
    packed.id(top[j]).store(ids);
    GATEPRO_UNROLL
    for (int lane = 0; lane < L; ++lane) {
      top_keys_KL[j * L + lane] = keys_EL[Index(ids[lane]) * L + lane];
    }
  }
  if (any_lane(order_in_doubt)) settle_order<A>(k, top_keys_KL, top_ids_KL);
  return true;
}

/// The k <= Slots largest keys of each lane by maxima and minima alone, less than half the work of
/// `insert`. False, with nothing written, if that may have cost an expert its place.
template <class A, int Slots>
GATEPRO_FN bool top_k_packed(const BitsOf<A>* keys_EL, Index experts, Index k,
                             BitsOf<A>* top_keys_KL, BitsOf<A>* top_ids_KL) {
  PackedKeys<A> packed(experts);
  Keys<A> top[std::size_t(Slots + 1)];
  const int blocks = Slots <= 8 ? 1 : int(k + 7) / 8;
  const int used_slots = Slots <= 8 ? Slots : 8 * blocks;
  for (int j = 0; j <= used_slots; ++j) top[j] = Keys<A>::splat(Order<A>::lowest);
  if constexpr (Slots < 8) {
    insert_packed<A, Slots>(packed, keys_EL, experts, top);
  } else {
    merge_packed<A>(packed, keys_EL, experts, blocks, top);
  }
  return store_packed<A>(packed, top, keys_EL, experts, k, top_keys_KL, top_ids_KL);
}

/// The same, exactly, by insertion into lists that stay in registers.
template <class A, int Slots>
GATEPRO_FN void top_k_inserted(const BitsOf<A>* keys_EL, Index experts, Index k,
                               BitsOf<A>* top_keys_KL, BitsOf<A>* top_ids_KL) {
  constexpr int L = lanes_v<A>;
  Keys<A> top_keys[std::size_t(Slots)], top_ids[std::size_t(Slots)];
  GATEPRO_UNROLL
  for (int j = 0; j < Slots; ++j) {
    top_keys[j] = Keys<A>::splat(Order<A>::empty);
    top_ids[j] = Keys<A>::splat(0);
  }
  for (Index e = 0; e < experts; ++e) {
    insert<A>(Keys<A>::load(keys_EL + e * L), Keys<A>::splat(BitsOf<A>(e)), Slots, top_keys,
              top_ids);
  }
  GATEPRO_UNROLL
  for (int j = 0; j < Slots; ++j) {
    if (j >= k) break;
    top_keys[j].store(top_keys_KL + j * L);
    top_ids[j].store(top_ids_KL + j * L);
  }
}

/// The same for any k: the lists stand in memory. Most of many keys are behind all of a short list.
template <class A>
GATEPRO_FN void top_k_in_memory(const BitsOf<A>* keys_EL, Index experts, Index k,
                                BitsOf<A>* top_keys_KL, BitsOf<A>* top_ids_KL) {
  constexpr int L = lanes_v<A>;
  for (Index j = 0; j < k; ++j) Keys<A>::splat(Order<A>::empty).store(top_keys_KL + j * L);
  for (Index e = 0; e < experts; ++e) {
    const Keys<A> key = Keys<A>::load(keys_EL + e * L);
    const Keys<A> id = Keys<A>::splat(BitsOf<A>(e));
    auto ahead = key > Keys<A>::load(top_keys_KL + (k - 1) * L);
    if (!any_lane(ahead)) continue;
    for (Index j = k - 1; j >= 0; --j) {
      BitsOf<A>* slot_key = top_keys_KL + j * L;
      BitsOf<A>* slot_id = top_ids_KL + j * L;
      const Index above = j > 0 ? j - 1 : 0;
      const Keys<A> key_above = Keys<A>::load(top_keys_KL + above * L);
      const auto ahead_of_next = j > 0 ? key > key_above : key < key;
      select(ahead, select(ahead_of_next, key_above, key), Keys<A>::load(slot_key)).store(slot_key);
      select(ahead, select(ahead_of_next, Keys<A>::load(top_ids_KL + above * L), id),
             Keys<A>::load(slot_id))
          .store(slot_id);
      ahead = ahead_of_next;
    }
  }
}

/// The k-th largest key of each lane, bit by bit from the top: the largest that k keys reach. Ends
/// early where it is known which k these are. No branch depends on a key, and all lanes share the
/// passes.
template <class A>
GATEPRO_FN Keys<A> lowest_selected(const BitsOf<A>* keys_EL, Index experts, Index k) {
  constexpr int L = lanes_v<A>;
  using Unsigned = std::make_unsigned_t<BitsOf<A>>;
  const Keys<A> most_below = Keys<A>::splat(BitsOf<A>(experts - k));
  Keys<A> lowest = Keys<A>::splat(Order<A>::lowest);
  Keys<A> below_lowest = Keys<A>::splat(0);
  for (int bit = 8 * int(sizeof(A)) - 1; bit >= 0; --bit) {
    const Keys<A> trial = lowest ^ Keys<A>::splat(BitsOf<A>(Unsigned(1) << bit));
    Keys<A> below = Keys<A>::splat(0);
    GATEPRO_UNROLL_2
    for (Index e = 0; e < experts; ++e) below = below - (Keys<A>::load(keys_EL + e * L) < trial);
    const auto too_high = below > most_below;
    lowest = select(too_high, lowest, trial);
    below_lowest = select(too_high, below_lowest, below);
    if (!any_lane(below_lowest ^ most_below)) break;
  }
  return lowest;
}

/// The k keys of each lane that reach `lowest`, in order of the experts; of those that equal it,
/// the first. Rows of keys are read in pieces that stay in the nearest cache.
template <class A>
GATEPRO_FN void gather_selected_keys(const BitsOf<A>* keys_EL, Index experts, Index k,
                                     Keys<A> lowest, BitsOf<A>* top_keys_KL,
                                     BitsOf<A>* top_ids_KL) {
  constexpr int L = lanes_v<A>;
  constexpr Index piece = 128;
  Keys<A> above = Keys<A>::splat(0);
  for (Index e = 0; e < experts; ++e) above = above - (Keys<A>::load(keys_EL + e * L) > lowest);
  BitsOf<A> lowest_L[std::size_t(L)], equals_L[std::size_t(L)];
  Index taken_L[std::size_t(L)] = {};
  lowest.store(lowest_L);
  (Keys<A>::splat(BitsOf<A>(k)) - above).store(equals_L);
  for (Index first = 0; first < experts; first += piece) {
    const Index end = first + piece < experts ? first + piece : experts;
    for (int lane = 0; lane < L; ++lane) {
      Index taken = taken_L[lane];
      BitsOf<A> equals = equals_L[lane];
      for (Index e = first; e < end && taken < k; ++e) {
        const BitsOf<A> key = keys_EL[e * L + lane];
        top_keys_KL[taken * L + lane] = key;
        top_ids_KL[taken * L + lane] = BitsOf<A>(e);
        const bool equal = key == lowest_L[lane];
        taken += Index(key > lowest_L[lane]) | Index(equal & (equals > 0));
        equals -= BitsOf<A>(equal);
      }
      taken_L[lane] = taken;
      equals_L[lane] = equals;
    }
  }
}

/// Puts rows i and j of each lane in order: the larger key first, of equal ones the lower id.
template <class A>
GATEPRO_FN void order_rows(Index i, Index j, BitsOf<A>* keys_KL, BitsOf<A>* ids_KL) {
  constexpr int L = lanes_v<A>;
  const Keys<A> key = Keys<A>::load(keys_KL + i * L), other = Keys<A>::load(keys_KL + j * L);
  const Keys<A> id = Keys<A>::load(ids_KL + i * L), other_id = Keys<A>::load(ids_KL + j * L);
  const auto swap = (other > key) | ((other == key) & (other_id < id));
  larger(key, other).store(keys_KL + i * L);
  smaller(key, other).store(keys_KL + j * L);
  select(swap, other_id, id).store(ids_KL + i * L);
  select(swap, id, other_id).store(ids_KL + j * L);
}

/// Sorts k rows: Batcher's merge exchange (Knuth, The Art of Computer Programming, volume 3,
/// 5.2.2 M), a network for any k.
template <class A>
GATEPRO_FN void sort_rows(Index k, BitsOf<A>* keys_KL, BitsOf<A>* ids_KL) {
  Index half = 1;
  while (2 * half < k) half *= 2;
  for (Index p = half; p > 0; p /= 2) {
    Index r = 0, distance = p;
    for (Index q = half; q >= p; q /= 2) {
      for (Index i = 0; i + distance < k; ++i) {
        if ((i & p) == r) order_rows<A>(i, i + distance, keys_KL, ids_KL);
      }
      distance = q - p;
      r = p;
    }
  }
}

/// The same for long lists, in time that hardly depends on k.
template <class A>
GATEPRO_FN void top_k_by_bits(const BitsOf<A>* keys_EL, Index experts, Index k,
                              BitsOf<A>* top_keys_KL, BitsOf<A>* top_ids_KL) {
  const Keys<A> lowest = lowest_selected<A>(keys_EL, experts, k);
  gather_selected_keys<A>(keys_EL, experts, k, lowest, top_keys_KL, top_ids_KL);
  sort_rows<A>(k, top_keys_KL, top_ids_KL);
}

/// The k largest keys of each lane, in descending order, with their ids.
template <class A, int Slots>
GATEPRO_FN void top_k_in_registers(const BitsOf<A>* keys_EL, Index experts, Index k,
                                   BitsOf<A>* top_keys_KL, BitsOf<A>* top_ids_KL) {
  if (!top_k_packed<A, Slots>(keys_EL, experts, k, top_keys_KL, top_ids_KL)) {
    top_k_inserted<A, Slots>(keys_EL, experts, k, top_keys_KL, top_ids_KL);
  }
}

template <class A>
GATEPRO_KERNEL void top_k(const BitsOf<A>* keys_EL, Index experts, Index k, BitsOf<A>* top_keys_KL,
                          BitsOf<A>* top_ids_KL) {
  // With more experts, a float has too few bits for key and id: a lane is in doubt too often.
  const Index most_packed = experts <= 1024 || sizeof(A) == 8 ? 64 : 32;
  if (k <= 2) {
    top_k_in_registers<A, 2>(keys_EL, experts, k, top_keys_KL, top_ids_KL);
  } else if (k <= 4) {
    top_k_in_registers<A, 4>(keys_EL, experts, k, top_keys_KL, top_ids_KL);
  } else if (k <= 8) {
    top_k_in_registers<A, 8>(keys_EL, experts, k, top_keys_KL, top_ids_KL);
  } else if (k <= most_packed &&
             top_k_packed<A, 64>(keys_EL, experts, k, top_keys_KL, top_ids_KL)) {
    return;
  } else if (k <= 32 || k * k <= experts) {
    top_k_in_memory<A>(keys_EL, experts, k, top_keys_KL, top_ids_KL);
  } else {
    top_k_by_bits<A>(keys_EL, experts, k, top_keys_KL, top_ids_KL);
  }
}

/// exp(x) for x <= 0, -inf included: 2^n times a Taylor polynomial on |r| <= ln(2) / 2. The degree
/// makes the truncation smaller than a tenth of an ulp. Below the smallest denormal it gives 0.
template <class A>
GATEPRO_FN Lanes<A> exp_nonpositive(Lanes<A> x) {
  using V = Lanes<A>;
  constexpr bool single = sizeof(A) == 4;
  constexpr int degree = single ? 7 : 13;
  constexpr A most = single ? A(104) : A(746);
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
  // With the sign of 0 set, the bits of the smaller number are the larger integer.
  const Keys<A> bits = bit_cast<BitsOf<A>>(x) | Keys<A>::splat(Order<A>::lowest);
  x = bit_cast<A>(smaller(bits, bit_cast<BitsOf<A>>(V::splat(-most))));
  const V scaled = mul_add(x, V::splat(A(1.44269504088896340736)), V::splat(A(-0.5)));
  const Keys<A> n = convert<BitsOf<A>>(scaled);
  const V whole = convert<A>(n);
  V r = mul_add(whole, V::splat(-ln2_high), x);
  r = mul_add(whole, V::splat(-ln2_low), r);
  V sum = V::splat(A(inverse_factorial[degree]));
  GATEPRO_UNROLL
  for (int i = degree - 1; i >= 0; --i) sum = mul_add(sum, r, V::splat(A(inverse_factorial[i])));
  // Two factors, because 2^n alone may be denormal. The first, 2^(n + shift), is normal.
  constexpr BitsOf<A> shift = single ? 64 : 512;
  constexpr A unshift = single ? A(0x1p-64) : A(0x1p-512);
  const Keys<A> exponent = n + Keys<A>::splat(Order<A>::exponent_bias + shift);
  const V power = bit_cast<A>(exponent << Order<A>::mantissa_bits);
  return sum * power * V::splat(unshift);
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
