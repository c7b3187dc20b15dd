// SPDX-License-Identifier: MIT
// Which bias each expert needs to be among the best k of a token, counted in bins while tokens are
// routed.
#ifndef GATEPRO_ROUTING_NEEDED_BIAS_HPP
#define GATEPRO_ROUTING_NEEDED_BIAS_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/core/product.hpp"
#include "gatepro/core/workspace.hpp"
#include "gatepro/kernels/dispatch.hpp"
#include "gatepro/routing/routing_group.hpp"

namespace gatepro {
namespace detail {

/// Where bins are: from `reach` below the lowest bias, `span` wide together. What all biases have
/// in common is left out, so that a reach that is small beside it is not lost.
struct BiasRange {
  double lowest = 0;
  double reach = 0;
  double span = 0;
};

inline namespace GATEPRO_ABI {

/// How far above the lowest bias a place of the range is, in widths of one of `bins` bins.
inline double above_lowest(const BiasRange& range, double place, Index bins) {
  return product(place, range.span / static_cast<double>(bins)) - range.reach;
}

/// What biases that scores within `reach` of each other need: from `reach` below the lowest bias to
/// `reach` above the highest.
template <class A>
BiasRange bias_range(const VectorView<const A>& bias_E, double reach) {
  const auto [low, high] = std::minmax_element(bias_E.data, bias_E.data + bias_E.size);
  const auto lowest = static_cast<double>(*low);
  return {lowest, reach, static_cast<double>(*high) - lowest + 2 * reach};
}

/// Counts of tokens, E x (1 + bins): first those that choose the expert whatever its bias, then
/// those that need a bias from each bin. Tokens that cannot choose it, as a loser, in a forbidden
/// group or by a NaN, are not among them. Integers, so that no cut of a batch shows in them.
template <class A>
class NeededBias {
  using Key = typename Order<A>::Key;

 public:
  /// For `experts` = 0 nothing is taken.
  NeededBias(Arena& arena, Index experts, Index bins, int workers)
      : experts_(experts),
        bins_(bins),
        workers_(workers),
        offset_E_(arena.take<A>(experts)),
        scratch_(arena, workers, Carve{experts, bins}) {}

  /// Before a pass: the bias that it chooses by, and the padding that takes no part.
  void start(const VectorView<const A>& bias_E, double reach,
             const VectorView<const std::uint8_t>& is_padding_T) {
    const BiasRange range = bias_range(bias_E, reach);
    per_unit_ = static_cast<A>(static_cast<double>(bins_) / range.span);
    for (Index e = 0; e < experts_; ++e) {
      offset_E_[e] = static_cast<A>(static_cast<double>(bias_E[e]) - range.lowest + reach);
    }
    is_padding_T_ = is_padding_T;
    for (int worker = 0; worker < workers_; ++worker) {
      const Scratch mine = scratch_(worker);
      *mine.tokens = 0;
      std::fill_n(mine.counts_EC, experts_ * columns(), 0);
    }
  }

  /// Counts a group of which the best by choice_EL have been chosen.
  void add(int worker, const TokenRange& tokens, const Key* choice_EL, Index top_k,
           const Key* top_keys_KL) const {
    const Scratch mine = scratch_(worker);
    const Index lanes = kernels<A>().lanes;
    for (Index lane = 0; lane < lanes; ++lane) {
      const bool counts = lane < tokens.count && !is_masked(is_padding_T_, tokens.first + lane) &&
                          top_keys_KL[lane] > -Order<A>::infinity;
      mine.counted_L[lane] = counts ? Key(-1) : Key(0);
      *mine.tokens += counts ? 1 : 0;
    }
    const Key* last_keys_L = top_keys_KL + (top_k - 1) * lanes;
    quantile_kernels<A>().count_needed_bias(choice_EL, experts_, top_k, last_keys_L, mine.counted_L,
                                            {per_unit_, bins_, offset_E_}, mine.counts_EC);
  }

  /// counts_EB = what all workers counted. Returns the tokens, those that could choose any expert.
  std::int64_t finish(const MatrixView<std::int64_t>& counts_EB) const {
    std::int64_t tokens = 0;
    for (int worker = 0; worker < workers_; ++worker) {
      tokens += *scratch_(worker).tokens;
      const std::int32_t* mine_C = scratch_(worker).counts_EC;
      for (Index e = 0; e < experts_; ++e, mine_C += columns()) {
        std::int64_t* counts_B = counts_EB.row(e);
        if (worker == 0) {
          std::copy_n(mine_C, 1 + bins_, counts_B);
        } else {
          for (Index i = 0; i <= bins_; ++i) counts_B[i] += mine_C[i];
        }
      }
    }
    return tokens;
  }

 private:
  struct Scratch {
    Key* counted_L;
    std::int64_t* tokens;
    std::int32_t* counts_EC;
  };
  struct Carve {
    Index experts;
    Index bins;
    Scratch operator()(Arena& arena) const {
      Key* counted_L = arena.take<Key>(experts > 0 ? kernels<A>().lanes : 0);
      std::int64_t* tokens = arena.take<std::int64_t>(experts > 0 ? 1 : 0);
      return {counted_L, tokens, arena.take<std::int32_t>(experts, bins + 2)};
    }
  };

  Index columns() const { return bins_ + 2; }

  Index experts_;
  Index bins_;
  int workers_;
  A* offset_E_;
  A per_unit_ = 0;
  VectorView<const std::uint8_t> is_padding_T_{};
  PerWorker<Carve> scratch_;
};

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_NEEDED_BIAS_HPP
