// SPDX-License-Identifier: MIT
// Cosines of the rows of W, a tile of rows at a time: the upper triangle, by the gate kernel.
#ifndef GATEPRO_PARTNERS_COSINE_TILES_HPP
#define GATEPRO_PARTNERS_COSINE_TILES_HPP

#include <algorithm>
#include <cmath>
#include <limits>

#include "gatepro/gate/logits.hpp"

namespace gatepro {
namespace detail {

/// The rows of W, ready for products.
template <class A>
struct CosineRows {
  MatrixView<A> scaled_EH;      ///< Times a power of two each.
  A* packed = nullptr;          ///< The same, packed.
  A* inverse_norm_E = nullptr;  ///< Of scaled rows: 0 for a zero row, -1 for a non-finite one.
  A* unit_E = nullptr;          ///< Optional: what scaled rows have to be multiplied by.
  int* exponent_E = nullptr;    ///< With unit_E: its logarithm to base 2.
  double* norm_E = nullptr;  ///< With unit_E: |w|, at most the largest double; 0 for no direction.
};

/// Which cosines of a tile are computed.
enum class CosinePairs {
  once,   ///< Those with the rows of the tile and all after it: each pair once.
  twice,  ///< Those with all rows.
};

/// What became of a row of W.
template <class A>
struct ScaledRow {
  A inverse_norm;    ///< See CosineRows.
  int exponent = 0;  ///< Times 2^exponent it is what it was.
};

/// Cosines of a few rows of W with the rows from `from_expert` on: at least the diagonal and all
/// after it.
template <class A>
struct CosineTile {
  Index first_expert = 0;
  Index from_expert = 0;
  MatrixView<const A> cosines;

  GATEPRO_ALWAYS_INLINE Index end_expert() const { return first_expert + cosines.rows; }
  /// S_ij for an expert i of the tile.
  GATEPRO_ALWAYS_INLINE A operator()(Index i, Index j) const {
    return cosines(i - first_expert, j - from_expert);
  }
};

inline namespace GATEPRO_ABI {

template <class A>
CosineRows<A> carve_cosine_rows(Arena& arena, Index experts, Index hidden) {
  CosineRows<A> rows;
  A* scaled = arena.take<A>(checked_product(
      "cosine_similarity", "num_experts * hidden_size within the address space", experts, hidden));
  rows.scaled_EH = {scaled, experts, hidden};
  rows.packed = arena.take<A>(packed_size<A>(experts, hidden));
  rows.inverse_norm_E = arena.take<A>(experts);
  return rows;
}

/// A row of numbers so small that denormals among them count, times 2^(2 * mantissa_bits): exact,
/// and by integers, because threads that flush denormals would multiply zeros.
template <class A>
void lift_row(A* row, Index count) {
  using O = Order<A>;
  using Key = typename O::Key;
  constexpr Key smallest_normal = Key(1) << O::mantissa_bits;
  // The smallest denormal, lifted.
  const A unit = value_of<A>(Key(1 + O::mantissa_bits) << O::mantissa_bits);
  for (Index i = 0; i < count; ++i) {
    const Key key = key_of(row[i]);
    const Key size = key < 0 ? -key : key;
    const A lifted = size < smallest_normal
                         ? static_cast<A>(size) * unit
                         : value_of<A>(size + (Key(2 * O::mantissa_bits) << O::mantissa_bits));
    row[i] = key < 0 ? -lifted : lifted;
  }
}

/// Writes one row of W times a power of two, so that its largest element lies in [1, 2): exact,
/// and no sum of squares can leave the range of A. A non-finite row becomes zeros.
template <class W, class A>
ScaledRow<A> scale_row(const W* w, Index hidden, A* scaled) {
  const Kernels<A>& kernel = kernels<A>();
  gate_kernels<A, W>().widen(w, hidden, scaled);
  auto largest = kernel.largest_magnitude(scaled, hidden);
  if (largest >= Order<A>::infinity) {
    std::fill_n(scaled, hidden, A(0));
    return {A(-1)};
  }
  if (largest == 0) return {A(0)};
  int lifted = 0;
  if (largest < typename Order<A>::Key(2 * Order<A>::mantissa_bits) << Order<A>::mantissa_bits) {
    lift_row(scaled, hidden);
    lifted = 2 * Order<A>::mantissa_bits;
    largest = kernel.largest_magnitude(scaled, hidden);
  }
  // In two factors, because 2^-exponent alone may leave the range.
  const int exponent = std::ilogb(value_of<A>(largest));
  const A first = std::ldexp(A(1), -(exponent / 2));
  const A second = std::ldexp(A(1), -(exponent - exponent / 2));
  return {A(1) / std::sqrt(kernel.scale(scaled, hidden, first, second)), exponent - lifted};
}

/// Divides the products of an expert with those from `tile.from_expert` by both norms.
template <class A>
void normalise_row(const CosineRows<A>& rows, Index i, Index from, A* products) {
  kernels<A>().normalise(products, rows.scaled_EH.rows - from, rows.inverse_norm_E[i],
                         rows.inverse_norm_E + from);
  if (rows.inverse_norm_E[i] > 0) products[i - from] = A(1);
}

/// Scales row i of W into `rows`.
template <class W, class A>
void scale_row_into(const MatrixView<const W>& w_EH, Index i, const CosineRows<A>& rows) {
  const ScaledRow<A> row = scale_row(w_EH.row(i), w_EH.cols, rows.scaled_EH.row(i));
  rows.inverse_norm_E[i] = row.inverse_norm;
  if (rows.unit_E == nullptr) return;
  const double unit = std::ldexp(1.0, row.exponent);
  const double norm = row.inverse_norm > 0 ? unit / static_cast<double>(row.inverse_norm) : 0.0;
  rows.unit_E[i] = static_cast<A>(unit);
  rows.exponent_E[i] = row.exponent;
  rows.norm_E[i] = (std::min)(norm, (std::numeric_limits<double>::max)());
}

/// Fills `rows` from w_EH, then calls `body(worker, tile)` for tiles that cover each pair of
/// experts. A product is one chain over h, whichever of the two rows is called X.
template <class W, class A, class Executor, class Body>
void for_each_cosine_tile(const MatrixView<const W>& w_EH, const CosineRows<A>& rows, Arena& arena,
                          const Executor& executor, int workers, const Body& body,
                          CosinePairs pairs = CosinePairs::once) {
  const Index experts = w_EH.rows;
  const auto carve = [experts](Arena& a) { return carve_gate<A, A>(a, experts); };
  const PerWorker scratch(arena, workers, carve);
  const int busy = useful_workers(executor, workers, {experts, experts / 2, w_EH.cols});
  for_each_block(executor, busy, experts, [&](int, Index i) { scale_row_into(w_EH, i, rows); });
  const MatrixView<const A> scaled_EH = rows.scaled_EH;
  const auto packed = pack<A>(scaled_EH, rows.packed, executor, busy);
  const Index lanes = kernels<A>().lanes;
  const Index panel = kernels<A>().panel_vectors * lanes;
  const Index stride = padded_experts<A>(experts);
  const Index tiles = (experts + tile_tokens - 1) / tile_tokens;
  for_each_block(executor, busy, tiles, [&](int worker, Index tile) {
    const Index first = tile * tile_tokens;
    const Index count = (std::min)(tile_tokens, experts - first);
    const Index from = pairs == CosinePairs::once ? first / panel * panel : 0;
    const GateScratch<A> mine = scratch(worker);
    gate_tile<A, A>(scaled_EH.middle_rows(first, experts - first), count, packed, mine.widened,
                    mine.logits_TE, stride, from / lanes);
    A* products = mine.logits_TE + from;
    for (Index i = 0; i < count; ++i) normalise_row(rows, first + i, from, products + i * stride);
    body(worker, CosineTile<A>{first, from, {products, count, experts - from, stride}});
  });
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_PARTNERS_COSINE_TILES_HPP
