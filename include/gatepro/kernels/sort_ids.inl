// SPDX-License-Identifier: MIT
// The choices of a token in order of their ids, one token per lane.

/// Sorts the k ids of each lane; keys_KL goes along. By insertion: k is small, and each step moves
/// all lanes.
template <class A>
GATEPRO_KERNEL void sort_ids(Index k, BitsOf<A>* ids_KL, BitsOf<A>* keys_KL) {
  constexpr int L = lanes_v<A>;
  for (Index end = L; end < k * L; end += L) {
    Keys<A> id = Keys<A>::load(ids_KL + end);
    Keys<A> key = Keys<A>::load(keys_KL + end);
    for (Index i = 0; i < end; i += L) {
      const Keys<A> other_id = Keys<A>::load(ids_KL + i);
      const Keys<A> other_key = Keys<A>::load(keys_KL + i);
      const auto moves = other_id > id;
      select(moves, id, other_id).store(ids_KL + i);
      select(moves, key, other_key).store(keys_KL + i);
      id = select(moves, other_id, id);
      key = select(moves, other_key, key);
    }
    id.store(ids_KL + end);
    key.store(keys_KL + end);
  }
}
