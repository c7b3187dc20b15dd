// SPDX-License-Identifier: MIT
// Selection kernels: the k largest keys of each lane, by one of three ways that give the same.

/// What experts rank by. In elimination all survivors rank before all losers, whose keys decide
/// among themselves: half of the integers are for either, so that keys lose their lowest bit.
template <class A>
struct RankedKeys {
  const BitsOf<A>* order_EL;  ///< Which ranks first, but for its lowest bits.
  const BitsOf<A>* exact_EL;  ///< What decides between those that rank the same; may be order_EL.

  static constexpr BitsOf<A> half = BitsOf<A>(1) << (8 * int(sizeof(A)) - 2);

  GATEPRO_FN bool splits_losers() const { return order_EL != exact_EL; }
  /// The bits of exact keys that are lost where `order` loses `low_bits`.
  GATEPRO_FN Keys<A> lost_bits(Keys<A> low_bits) const {
    return splits_losers() ? low_bits << 1 | Keys<A>::splat(1) : low_bits;
  }
};

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

/// The expert of the largest exact key among those that tie with `last`, in the lanes of `which`.
template <class A>
GATEPRO_FN void settle_last(const PackedKeys<A>& packed, const RankedKeys<A>& keys, Index experts,
                            Keys<A> last, typename Keys<A>::Mask which, BitsOf<A>* ids_L) {
  constexpr int L = lanes_v<A>;
  const Keys<A> packed_id = Keys<A>::load(ids_L);
  Keys<A> best = Keys<A>::splat(Order<A>::empty);
  Keys<A> best_id = packed_id;
  for (Index e = 0; e < experts; ++e) {
    const Keys<A> exact = Keys<A>::load(keys.exact_EL + e * L);
    const auto ties = packed.tie(Keys<A>::load(keys.order_EL + e * L), last);
    const auto ahead = ties & (exact > best);
    best = select(ahead, exact, best);
    best_id = select(ahead, Keys<A>::splat(BitsOf<A>(e)), best_id);
  }
  select(which, best_id, packed_id).store(ids_L);
}

/// Puts exact keys that tie in descending order. Only neighbours change places, and only if the
/// second is larger, so equal keys keep theirs.
template <class A>
GATEPRO_FN void settle_order(const PackedKeys<A>& packed, const Keys<A>* top, Index k,
                             const SelectedKeys<BitsOf<A>>& to) {
  constexpr int L = lanes_v<A>;
  for (Index last = 1; last < k; ++last) {
    for (Index second = last; second > 0; --second) {
      BitsOf<A>* keys = to.keys_KL + (second - 1) * L;
      BitsOf<A>* ids = to.ids_KL + (second - 1) * L;
      const Keys<A> key = Keys<A>::load(keys), next = Keys<A>::load(keys + L);
      const Keys<A> id = Keys<A>::load(ids), next_id = Keys<A>::load(ids + L);
      const auto ahead = packed.tie(top[second - 1], top[second]) & (next > key);
      select(ahead, next, key).store(keys);
      select(ahead, key, next).store(keys + L);
      select(ahead, next_id, id).store(ids);
      select(ahead, id, next_id).store(ids + L);
    }
  }
}

/// Keys of the selected that rank among losers become Order::loser; a NaN keeps its own, which is
/// lower.
template <class A>
GATEPRO_FN void mark_losers_of(const Keys<A>* top, Index k, BitsOf<A>* keys_KL) {
  for (Index j = 0; j < k; ++j) {
    const Keys<A> exact = Keys<A>::load(keys_KL + j * lanes_v<A>);
    const Keys<A> lowered = smaller(Keys<A>::splat(Order<A>::loser), exact);
    select(top[j] < Keys<A>::splat(0), lowered, exact).store(keys_KL + j * lanes_v<A>);
  }
}

/// Writes the first k of k + 1 packed keys: exact keys and ids. Neighbours that differ in the
/// replaced bits at most may be in the wrong order, unless their lane's keys use none of these.
/// (Logits rounded to bfloat16 do not; their ties are true ties.) Among the selected, that is put
/// right, and so is who takes the last place. If it may have cost others theirs, returns false.
template <class A>
GATEPRO_SHARED bool store_packed(const PackedKeys<A>& packed, const RankedKeys<A>& keys,
                                 const Keys<A>* top, Index experts, Index k,
                                 const SelectedKeys<BitsOf<A>>& to) {
  constexpr int L = lanes_v<A>;
  for (Index j = 0; j < k; ++j) packed.id(top[j]).store(to.ids_KL + j * L);
  auto last_in_doubt = packed.tie(top[k - 1], top[k]);
  if (any_lane(last_in_doubt)) {
    const Keys<A> lost_bits = keys.lost_bits(packed.low_bits);
    last_in_doubt = last_in_doubt & lanes_using<A>(lost_bits, keys.exact_EL, experts);
    if (k > 1 && any_lane(last_in_doubt & packed.tie(top[k - 2], top[k - 1]))) return false;
    if (any_lane(last_in_doubt)) {
      settle_last<A>(packed, keys, experts, top[k - 1], last_in_doubt, to.ids_KL + (k - 1) * L);
    }
  }
  Keys<A> order_in_doubt = Keys<A>::splat(0);
  for (Index j = 0; j < k; ++j) {
    if (j > 0) order_in_doubt = order_in_doubt | packed.tie(top[j - 1], top[j]);
    GATEPRO_UNROLL
    for (int lane = 0; lane < L; ++lane) {
      to.keys_KL[j * L + lane] = keys.exact_EL[Index(to.ids_KL[j * L + lane]) * L + lane];
    }
  }
  if (any_lane(order_in_doubt)) settle_order<A>(packed, top, k, to);
  if (keys.splits_losers()) mark_losers_of<A>(top, k, to.keys_KL);
  return true;
}

/// The k <= Slots largest keys of each lane by maxima and minima alone. False if that may have cost
/// an expert its place.
template <class A, int Slots>
GATEPRO_FN bool top_k_packed(const RankedKeys<A>& keys, Index experts, Index k,
                             const SelectedKeys<BitsOf<A>>& to) {
  PackedKeys<A> packed(experts);
  Keys<A> top[std::size_t(Slots + 1)];
  const int blocks = Slots <= 8 ? 1 : int(k + 7) / 8;
  const int used_slots = Slots <= 8 ? Slots : 8 * blocks;
  for (int j = 0; j <= used_slots; ++j) top[j] = Keys<A>::splat(Order<A>::lowest);
  if constexpr (Slots < 8) {
    insert_packed<A, Slots>(packed, keys.order_EL, experts, top);
  } else {
    merge_packed<A>(packed, keys.order_EL, experts, blocks, top);
  }
  // Copies have addresses, so that what the loops above change may stay in registers.
  const PackedKeys<A> ids = packed;
  Keys<A> selected[std::size_t(Slots + 1)];
  for (Index j = 0; j <= k; ++j) selected[j] = top[j];
  return store_packed<A>(ids, keys, selected, experts, k, to);
}

/// The same for any k that is worth it.
template <class A>
GATEPRO_SHARED bool top_k_packed(const RankedKeys<A>& keys, Index experts, Index k,
                                 const SelectedKeys<BitsOf<A>>& to) {
  // With more experts, a float has too few bits for key and id: a lane is in doubt too often.
  const Index most = experts <= 1024 || sizeof(A) == 8 ? 64 : 32;
  if (k <= 2) return top_k_packed<A, 2>(keys, experts, k, to);
  if (k <= 4) return top_k_packed<A, 4>(keys, experts, k, to);
#if GATEPRO_BYTES > 16
  // Elsewhere registers are short: the code for longer lists serves these as well.
  if (k <= 8) return top_k_packed<A, 8>(keys, experts, k, to);
#endif
  return k <= most && top_k_packed<A, 64>(keys, experts, k, to);
}

/// The same by insertion, which is exact. Only a strictly larger key moves ahead, so equal keys
/// stay in ascending order of id. Most of many keys are behind all of a short list.
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
template <class A>
GATEPRO_KERNEL void top_k(const BitsOf<A>* keys_EL, Index experts, Index k,
                          const SelectedKeys<BitsOf<A>>& top) {
  if (top_k_packed<A>({keys_EL, keys_EL}, experts, k, top)) return;
  if (k <= 32 || k * k <= experts) {
    top_k_in_memory<A>(keys_EL, experts, k, top.keys_KL, top.ids_KL);
  } else {
    top_k_by_bits<A>(keys_EL, experts, k, top.keys_KL, top.ids_KL);
  }
}
