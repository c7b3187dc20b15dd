// SPDX-License-Identifier: MIT
// Selection kernels: the k largest keys of each lane, by one of four ways that give the same.

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

/// Puts the larger of two keys first.
template <class A>
GATEPRO_FN void order_pair(Keys<A>& first, Keys<A>& second) {
#if GATEPRO_BYTES == 16 && defined(__SSE2__) && !defined(__SSE4_1__)
  // Without instructions for maxima and minima, both by one comparison.
  const Keys<A> exchange = (second > first) & (first ^ second);
  first = first ^ exchange;
  second = second ^ exchange;
#else
  const Keys<A> smaller_key = smaller(first, second);
  first = larger(first, second);
  second = smaller_key;
#endif
}

/// Puts the larger key of each pair of positions (First, Second) first.
template <class A, int First, int Second, int... More>
GATEPRO_FN void order_pairs(Keys<A>* v) {
  order_pair<A>(v[First], v[Second]);
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
    order_pair<A>(first[j], second[7 - j]);
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
  for (Index e = 0; e < experts; e += 8) {
    Keys<A> next[8];
    const bool whole = e + 8 <= experts;
    GATEPRO_UNROLL
    for (int j = 0; j < 8; ++j) {
      next[j] = Keys<A>::splat(Order<A>::lowest);
      if (whole || e + j < experts) next[j] = packed.read(keys_EL + (e + j) * L);
    }
    merge_packed<A>(next, blocks, top);
  }
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
GATEPRO_SHARED bool store_packed(const PackedKeys<A>& packed, const Keys<A>* top,
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
  // Copies have addresses, so that what the loops above change may stay in registers.
  const PackedKeys<A> ids = packed;
  Keys<A> selected[std::size_t(Slots + 1)];
  for (Index j = 0; j <= k; ++j) selected[j] = top[j];
  return store_packed<A>(ids, selected, keys_EL, experts, k, top_keys_KL, top_ids_KL);
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
  // Where registers are short, the code for longer lists serves lists of 8 as well.
  constexpr bool lists_of_8_fit = GATEPRO_BYTES > 16;
  // With more experts, a float has too few bits for key and id: a lane is in doubt too often.
  const Index most_packed = experts <= 1024 || sizeof(A) == 8 ? 64 : 32;
  if (k <= 2) {
    top_k_in_registers<A, 2>(keys_EL, experts, k, top_keys_KL, top_ids_KL);
  } else if (k <= 4) {
    top_k_in_registers<A, 4>(keys_EL, experts, k, top_keys_KL, top_ids_KL);
  } else if (k <= 8 && lists_of_8_fit) {
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
