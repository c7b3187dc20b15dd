// SPDX-License-Identifier: MIT
// How much of the tokens' scores each expert has, summed while tokens are routed.
#ifndef GATEPRO_BALANCE_SHARE_SUMS_HPP
#define GATEPRO_BALANCE_SHARE_SUMS_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "gatepro/core/order.hpp"
#include "gatepro/core/workspace.hpp"
#include "gatepro/kernels/dispatch.hpp"

namespace gatepro {
namespace detail {

/// What one worker adds up.
template <class A>
struct ShareTotals {
  using Key = typename Order<A>::Key;
  static constexpr int high_bits = share_bits_v<float>, low_bits = share_bits_v<double>;
  struct State {
    Index groups = 0;      ///< In totals_EL.
    bool spoiled = false;  ///< A token had no shares.
  };

  Key* counted_L = nullptr;
  Key* totals_EL = nullptr;        ///< Of the last groups, see add_shares.
  std::int64_t* high_E = nullptr;  ///< Of the groups before, in units of 2^-high_bits,
  std::int64_t* low_E = nullptr;   ///< and what these leave, in units of 2^-low_bits.
  State* state = nullptr;
};

inline namespace GATEPRO_ABI {

/// Sums over tokens of the shares that add_shares knows: integers until the end, so that neither
/// the executor nor the cut of a batch shows in them.
template <class A>
class ShareSums {
 public:
  ShareSums(Arena& arena, Index experts, int workers)
      : totals_(arena, workers, Carve{experts}), experts_(experts), workers_(workers) {}

  void clear() const {
    for (int worker = 0; worker < workers_; ++worker) {
      const ShareTotals<A> mine = totals_(worker);
      std::fill_n(mine.totals_EL, experts_ * kernels<A>().lanes, 0);
      std::fill_n(mine.high_E, experts_, 0);
      std::fill_n(mine.low_E, experts_, 0);
      *mine.state = {};
    }
  }

  /// Adds the shares of a group in the lanes that `counts(lane)` names.
  template <class Counts>
  void add(int worker, const A* shares_EL, const Counts& counts) const {
    using Key = typename Order<A>::Key;
    const ShareTotals<A> mine = totals_(worker);
    for (Index lane = 0; lane < kernels<A>().lanes; ++lane) {
      mine.counted_L[lane] = counts(lane) ? Key(-1) : Key(0);
    }
    const bool all =
        score_kernels<A>().add_shares(shares_EL, experts_, mine.counted_L, mine.totals_EL);
    mine.state->spoiled = mine.state->spoiled || !all;
    if (++mine.state->groups == most_groups_per_total) empty(mine);
  }

  /// sums_E = what all workers added; NaNs if a token that counts had no shares.
  void finish(const VectorView<double>& sums_E) const {
    bool spoiled = false;
    const ShareTotals<A> first = totals_(0);
    for (int worker = 0; worker < workers_; ++worker) {
      const ShareTotals<A> mine = totals_(worker);
      empty(mine);
      spoiled = spoiled || mine.state->spoiled;
      for (Index e = 0; worker > 0 && e < experts_; ++e) {
        first.high_E[e] += mine.high_E[e];
        first.low_E[e] += mine.low_E[e];
      }
    }
    for (Index e = 0; e < experts_; ++e) {
      const double sum = std::ldexp(static_cast<double>(first.high_E[e]), -first.high_bits) +
                         std::ldexp(static_cast<double>(first.low_E[e]), -first.low_bits);
      sums_E[e] = spoiled ? value_of<double>(Order<double>::nan) : sum;
    }
  }

 private:
  struct Carve {
    Index experts;
    ShareTotals<A> operator()(Arena& arena) const {
      using Key = typename Order<A>::Key;
      const Index lanes = kernels<A>().lanes;
      ShareTotals<A> totals;
      totals.counted_L = arena.take<Key>(lanes);
      totals.totals_EL = arena.take<Key>(experts, lanes);
      totals.high_E = arena.take<std::int64_t>(experts);
      totals.low_E = arena.take<std::int64_t>(experts);
      totals.state = arena.take<typename ShareTotals<A>::State>(1);
      return totals;
    }
  };

  /// Moves totals_EL to where there is more room.
  void empty(const ShareTotals<A>& mine) const {
    constexpr int shift = share_bits_v<A> - ShareTotals<A>::high_bits;
    const Index lanes = kernels<A>().lanes;
    for (Index e = 0; e < experts_; ++e) {
      for (Index i = e * lanes; i < (e + 1) * lanes; ++i) {
        const auto high = mine.totals_EL[i] >> shift;
        mine.high_E[e] += high;
        mine.low_E[e] += mine.totals_EL[i] - (high << shift);
        mine.totals_EL[i] = 0;
      }
    }
    mine.state->groups = 0;
  }

  PerWorker<Carve> totals_;
  Index experts_;
  int workers_;
};

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_BALANCE_SHARE_SUMS_HPP
