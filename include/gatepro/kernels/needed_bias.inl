// SPDX-License-Identifier: MIT
// Kernels of quantile balancing: which bias each expert needs to be among the best k of a token.

/// The key that follows those of the best k, of which the last is given.
template <class A>
GATEPRO_FN Keys<A> best_of_the_rest(const BitsOf<A>* choice_EL, Index experts, Index k,
                                    Keys<A> last) {
  const Keys<A> empty = Keys<A>::splat(Order<A>::empty);
  Keys<A> best = empty;
  Keys<A> below = Keys<A>::splat(0);
  for (Index e = 0; e < experts; ++e) {
    const Keys<A> key = Keys<A>::load(choice_EL + e * lanes_v<A>);
    const auto is_below = key < last;
    best = larger(best, select(is_below, key, empty));
    below = below - is_below;
  }
  const auto all_below = below == Keys<A>::splat(BitsOf<A>(experts - k));
  return select(all_below, best, last);  // else a tie for the last place
}

/// Adds 1 to a column of each expert's row, for each lane that is counted: that of the bin of
/// the bias it needs, column 0 if it is chosen whatever its bias, the last if it cannot be chosen.
/// Lanes that are not counted go to the last one, too.
template <class A>
GATEPRO_KERNEL void count_needed_bias(const BitsOf<A>* choice_EL, Index experts, Index k,
                                      const BitsOf<A>* last_keys_L, const BitsOf<A>* counted_L,
                                      const BiasBins<A>& bins, std::int32_t* counts_EC) {
  constexpr int L = lanes_v<A>;
  const Keys<A> lowest = Keys<A>::splat(-Order<A>::infinity);  // no bias lifts what is no higher
  const Keys<A> zero = Keys<A>::splat(0);
  const Keys<A> last_bin = Keys<A>::splat(BitsOf<A>(bins.count - 1));
  const Keys<A> counted = Keys<A>::load(counted_L);
  const Keys<A> cutoff = best_of_the_rest<A>(choice_EL, experts, k, Keys<A>::load(last_keys_L));
  const auto is_contested = cutoff > lowest;
  const Lanes<A> threshold = to_values<A>(cutoff);
  for (Index e = 0; e < experts; ++e, counts_EC += bins.count + 2) {
    const Keys<A> key = Keys<A>::load(choice_EL + e * L);
    const Lanes<A> needed = threshold - to_values<A>(key) + Lanes<A>::splat(bins.offset_E[e]);
    // Clamped as a number because of infinities, as an integer because of NaNs under -ffast-math.
    const Lanes<A> place = needed * Lanes<A>::splat(bins.per_unit);
    const Lanes<A> within =
        smaller(larger(place, Lanes<A>::splat(A(0))), Lanes<A>::splat(A(bins.count - 1)));
    const Keys<A> bin = smaller(larger(convert<BitsOf<A>>(within), zero), last_bin);
    Keys<A> column = select(is_contested, bin + Keys<A>::splat(1), zero);
    column = select((key > lowest) & counted, column, Keys<A>::splat(BitsOf<A>(bins.count + 1)));
    BitsOf<A> columns[std::size_t(L)];
    column.store(columns);
    GATEPRO_UNROLL
    for (int lane = 0; lane < L; ++lane) ++counts_EC[columns[lane]];
  }
}
