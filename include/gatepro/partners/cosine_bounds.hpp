// SPDX-License-Identifier: MIT
// How far the cosines of rows of W can be from what they were before the rows turned.
//
// Let u and v be the directions of two rows then, u' and v' now. |u'v' - uv| <= |u' - u| + |v' -
// v|, and what a search computes is at most one rounding bound away from either. So a computed
// cosine stays within the turns of its two rows and twice that bound; if neither row has changed,
// it is the same to the bit.
#ifndef GATEPRO_PARTNERS_COSINE_BOUNDS_HPP
#define GATEPRO_PARTNERS_COSINE_BOUNDS_HPP

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "gatepro/partners/cosine_tiles.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// More than rows can turn: what a row counts for that has no direction.
inline constexpr double no_direction = 4;

/// A bound on |c - S_ij|, where c is the cosine of two scaled rows and S_ij is what a search
/// computes: gamma_n of Higham's, for n roundings on the way of each product. H are those of its
/// chain; H / lanes + lanes, and a few, those of the two norms; the rest is for the quotient, for
/// elements lost below the smallest number, and for the sums in which the bounds are used.
template <class A>
double cosine_rounding(Index hidden) {
  const Index lanes = kernels<A>().lanes;
  const double unit = static_cast<double>(std::numeric_limits<A>::epsilon()) / 2;
  const Index roundings = hidden + hidden / lanes + lanes + 64;
  const double n = static_cast<double>(roundings) * unit;
  return n < 0.5 ? n / (1 - n) : no_direction;
}

/// A bound on |u - v|^2 of two directions, less what their cosine computed by row_products says:
/// 2 gamma_n for the cosine, doubled, with chains of H / lanes + lanes in double.
template <class A>
double turn_rounding(Index hidden) {
  const Index lanes = kernels<A>().lanes;
  const double unit = std::numeric_limits<double>::epsilon() / 2;
  const Index roundings = 4 * (hidden / lanes + lanes) + 96;
  return static_cast<double>(roundings) * unit;
}

/// A bound on |u - v| from products of rows with these directions, of which `a` is any row and `b`
/// a scaled one. no_direction if `a` is not finite, zero, or so small that what a thread flushes
/// might count.
template <class A>
double turn_between(const RowProducts& products, double rounding) {
  constexpr double least = std::is_same_v<A, float> ? 0x1p-160 : 0x1p-800;
  constexpr double most = 0x1p800;
  const bool is_usual = is_finite(products.aa) && products.aa >= least && products.aa <= most;
  if (!is_usual) return no_direction;
  const double cosine = products.ab / std::sqrt(products.aa * products.bb);
  const double apart = (std::max)(1 - cosine, 0.0);
  return std::sqrt(apart + apart + rounding);
}

/// A bound on the distance between the direction of a row of W and that of an earlier row, scaled;
/// 0 only if scaling gives the same bits. `row` is overwritten.
template <class W, class A>
double turn_since(const W* w, const A* scaled_then, Index hidden, double rounding, A* row) {
  const A* now = row;
  if constexpr (std::is_same_v<W, A>) {
    now = w;
  } else {
    gate_kernels<A, W>().widen(w, hidden, row);
  }
  const double turn =
      turn_between<A>(kernels<A>().row_products(now, scaled_then, hidden), rounding);
  if (turn * turn > rounding + rounding) return turn;
  scale_row(w, hidden, row);
  const auto bytes = static_cast<std::size_t>(hidden) * sizeof(A);
  return std::memcmp(row, scaled_then, bytes) == 0 ? 0 : turn;
}

/// What the rows' turns say of S.
struct CosineBounds {
  const double* turn_E;
  double rounding;  ///< Of S then and of S now.

  /// A bound on the change of S_ij.
  double change(Index i, Index j) const {
    const double turns = turn_E[i] + turn_E[j];
    return turns > 0 ? turns + rounding : 0;
  }
};

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_PARTNERS_COSINE_BOUNDS_HPP
