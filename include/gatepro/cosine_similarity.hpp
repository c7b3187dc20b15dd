// SPDX-License-Identifier: MIT
// Stage: cosine similarity of the router's weight rows (GatePro eq. 5).
#ifndef GATEPRO_COSINE_SIMILARITY_HPP
#define GATEPRO_COSINE_SIMILARITY_HPP

#include <algorithm>
#include <cmath>
#include <cstring>

#include "gatepro/gate_logits.hpp"

namespace gatepro {

/// Rows of W that have no direction.
struct SimilarityReport {
  Index degenerate_rows = 0;  ///< All zero: similarity 0 to every expert.
  Index nonfinite_rows = 0;   ///< With a NaN or infinity: similarity NaN, nobody's partner.
};

namespace detail {
inline namespace GATEPRO_ABI {

/// Writes one row of W times a power of two, so that its largest element lies in [1, 2): exact,
/// and no sum of squares can leave the range of A. A non-finite row becomes zeros and gives false.
template <class W, class A>
bool scale_row(const W* w, Index hidden, A* scaled) {
  const Kernels<A>& kernel = kernels<A>();
  kernel.widen[source_index<W>()](w, hidden, scaled);
  const auto largest = kernel.largest_magnitude(scaled, hidden);
  if (largest >= Order<A>::infinity) {
    std::fill_n(scaled, hidden, A(0));
    return false;
  }
  if (largest == 0) return true;
  // In two factors, because 2^-exponent alone may leave the range.
  const int exponent = std::ilogb(value_of<A>(largest));
  const A first = std::ldexp(A(1), -(exponent / 2));
  const A second = std::ldexp(A(1), -(exponent - exponent / 2));
  kernel.scale(scaled, hidden, first, second);
  return true;
}

/// Products of each row with itself and, at least, the rows after it. The others follow by
/// symmetry: a product is one chain over h, whichever of the two rows is called X.
template <class A, class Executor>
void upper_products(const MatrixView<const A>& rows_EH, const PackedView<A>& packed,
                    const MatrixView<A>& products_EE, Arena& arena, const Executor& executor,
                    int workers) {
  const Index experts = rows_EH.rows;
  const PerWorker scratch(arena, workers,
                          [experts](Arena& a) { return carve_gate<A, A>(a, experts); });
  const Index panel = kernels<A>().panel_vectors * kernels<A>().lanes;
  const Index tiles = (experts + tile_tokens - 1) / tile_tokens;
  for_each_block(executor, workers, tiles, [&](int worker, Index tile) {
    const Index first = tile * tile_tokens;
    const Index count = std::min(tile_tokens, experts - first);
    const Index stride = padded_experts<A>(experts);
    const Index from = first / panel * panel;
    const GateScratch<A> mine = scratch(worker);
    gate_tile<A, A>(rows_EH.middle_rows(first, count), packed, mine.widened, mine.logits_TE, stride,
                    from / kernels<A>().lanes);
    for (Index i = 0; i < count; ++i) {
      const A* products = mine.logits_TE + i * stride;
      std::copy(products + from, products + experts, products_EE.row(first + i) + from);
    }
  });
}

/// Divides the products of row `i` with the rows from `i` by both norms; marks what has no
/// similarity.
template <class A>
void normalise_row(Index i, const A* inverse_norm_E, const MatrixView<A>& similarity_EE) {
  kernels<A>().normalise(similarity_EE.row(i) + i, similarity_EE.cols - i, inverse_norm_E[i],
                         inverse_norm_E + i);
  if (inverse_norm_E[i] > 0) similarity_EE(i, i) = A(1);
}

/// 1 / |w_i| of the scaled rows: 0 for a zero row, -1 for a non-finite one.
template <class A>
SimilarityReport invert_norms(const MatrixView<A>& products_EE, const bool* finite_E,
                              A* inverse_norm_E) {
  SimilarityReport report;
  for (Index i = 0; i < products_EE.rows; ++i) {
    const A square = products_EE(i, i);
    inverse_norm_E[i] = square > 0 ? A(1) / std::sqrt(square) : A(0);
    if (!finite_E[i]) inverse_norm_E[i] = A(-1);
    report.nonfinite_rows += finite_E[i] ? 0 : 1;
    report.degenerate_rows += finite_E[i] && !(square > 0) ? 1 : 0;
  }
  return report;
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Bytes of workspace for cosine_similarity of E x H weights.
template <class W>
std::size_t cosine_similarity_workspace(Index num_experts, Index hidden_size, int workers = 1) {
  using A = accumulator_t<W>;
  return detail::measure([&](detail::Arena& arena) {
    arena.take<A>(detail::checked_product("cosine_similarity",
                                          "num_experts * hidden_size within the address space",
                                          num_experts, hidden_size));
    arena.take<bool>(num_experts);
    arena.take<A>(num_experts);
    arena.take<A>(detail::packed_size<A>(num_experts, hidden_size));
    const auto carve = [&](detail::Arena& a) { return detail::carve_gate<A, A>(a, num_experts); };
    detail::PerWorker(arena, workers, carve);
  });
}

/// S_ij = <w_i, w_j> / (|w_i| |w_j|) (GatePro eq. 5).
///
/// w_EH: E x H router weights. similarity_EE: E x E, overwritten; symmetric to the bit, in
/// [-1, 1], 1 on the diagonal. Very small and very large rows lose nothing: rows are scaled by
/// powers of two first. A zero row has similarity 0 to all, itself included; a row with a NaN or
/// infinity has similarity NaN. Error <= c sqrt(H) eps.
///
/// Throws Error on a shape, stride, null or workspace that does not fit, before any write. Cost:
/// about E^2 H operations, no allocation. Bits do not depend on the executor.
template <class W, class A, class Executor = SerialExecutor>
SimilarityReport cosine_similarity(MatrixView<W> w_EH, MatrixView<A> similarity_EE,
                                   Workspace workspace, const Executor& executor = {}) {
  using Weight = detail::value_t<W>;
  detail::check_input_scalars<Weight, Weight>();
  detail::check_executor<Executor>();
  static_assert(std::is_same_v<A, accumulator_t<Weight>>,
                "gatepro: similarities are double if W is, else float");
  const char* where = "cosine_similarity";
  const Index experts = w_EH.rows;
  const Index hidden = w_EH.cols;
  detail::check_num_experts(where, experts);
  detail::check_matrix(where, "w_EH", w_EH, experts, hidden);
  detail::check_matrix(where, "similarity_EE", similarity_EE, experts, experts);
  const int workers = detail::checked_workers(where, executor);
  detail::Arena arena(where, workspace,
                      cosine_similarity_workspace<Weight>(experts, hidden, workers));

  const MatrixView<A> scaled_EH(arena.take<A>(experts * hidden), experts, hidden);
  bool* finite_E = arena.take<bool>(experts);
  A* inverse_norm_E = arena.take<A>(experts);
  A* memory = arena.take<A>(detail::packed_size<A>(experts, hidden));
  detail::for_each_block(executor, workers, experts, [&](int, Index i) {
    finite_E[i] = detail::scale_row(w_EH.row(i), hidden, scaled_EH.row(i));
  });
  const MatrixView<const A> rows_EH = scaled_EH;
  const auto packed = detail::pack<A>(rows_EH, memory, executor, workers);
  detail::upper_products(rows_EH, packed, similarity_EE, arena, executor, workers);
  const SimilarityReport report = detail::invert_norms(similarity_EE, finite_E, inverse_norm_E);
  detail::for_each_block(executor, workers, experts, [&](int, Index i) {
    detail::normalise_row(i, inverse_norm_E, similarity_EE);
  });
  detail::for_each_block(executor, workers, experts, [&](int, Index i) {
    for (Index j = 0; j < i; ++j) similarity_EE(i, j) = similarity_EE(j, i);
  });
  return report;
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_COSINE_SIMILARITY_HPP
