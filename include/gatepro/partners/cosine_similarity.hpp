// SPDX-License-Identifier: MIT
// Stage: cosine similarity of the router's weight rows (GatePro eq. 5).
#ifndef GATEPRO_PARTNERS_COSINE_SIMILARITY_HPP
#define GATEPRO_PARTNERS_COSINE_SIMILARITY_HPP

#include <algorithm>

#include "gatepro/core/checks.hpp"
#include "gatepro/partners/cosine_tiles.hpp"

namespace gatepro {

/// Rows of W that have no direction.
struct SimilarityReport {
  Index degenerate_rows = 0;  ///< All zero: similarity 0 to every expert.
  Index nonfinite_rows = 0;   ///< With a NaN or infinity: similarity NaN, nobody's partner.
};

namespace detail {
inline namespace GATEPRO_ABI {

/// Writes the rows of a tile, and their mirror image.
template <class A>
void store_cosines(const CosineTile<A>& tile, const MatrixView<A>& similarity_EE) {
  for (Index i = tile.first_expert; i < tile.end_expert(); ++i) {
    for (Index j = i; j < similarity_EE.cols; ++j) similarity_EE(i, j) = tile(i, j);
  }
  for (Index j = tile.first_expert; j < similarity_EE.rows; ++j) {
    const Index end = (std::min)(tile.end_expert(), j);
    for (Index i = tile.first_expert; i < end; ++i) similarity_EE(j, i) = tile(i, j);
  }
}

/// Writes the rows of a tile, without a mirror image; S_ii to diagonal_E.
template <class A>
void store_upper_cosines(const CosineTile<A>& tile, const MatrixView<A>& similarity_EE,
                         A* diagonal_E) {
  for (Index i = tile.first_expert; i < tile.end_expert(); ++i) {
    diagonal_E[i] = tile(i, i);
    for (Index j = i + 1; j < similarity_EE.cols; ++j) similarity_EE(i, j) = tile(i, j);
  }
}

/// Where tiles of S are kept while partners are searched in them: nowhere, if similarity_EE is not
/// given; with diagonal_E in its upper triangle alone. A type, so that all searches are one piece
/// of code.
template <class A>
struct TileStore {
  MatrixView<A> similarity_EE{};
  A* diagonal_E = nullptr;

  void operator()(int, const CosineTile<A>& tile) const {
    if (!similarity_EE.given()) return;
    if (diagonal_E == nullptr) {
      store_cosines(tile, similarity_EE);
    } else {
      store_upper_cosines(tile, similarity_EE, diagonal_E);
    }
  }
};

/// Copies the triangle i < j to the other one, or that one to this, some rows at a time: they stay
/// in cache.
template <class A>
void mirror_triangle(const MatrixView<A>& similarity_EE, bool upper_to_lower) {
  for (Index first = 0; first < similarity_EE.rows; first += tile_tokens) {
    for (Index j = first + 1; j < similarity_EE.cols; ++j) {
      const Index end = (std::min)(first + tile_tokens, j);
      for (Index i = first; i < end; ++i) {
        A& upper = similarity_EE(i, j);
        A& lower = similarity_EE(j, i);
        upper_to_lower ? lower = upper : upper = lower;
      }
    }
  }
}

template <class A>
SimilarityReport similarity_report(const CosineRows<A>& rows) {
  SimilarityReport report;
  for (Index i = 0; i < rows.scaled_EH.rows; ++i) {
    report.nonfinite_rows += rows.inverse_norm_E[i] < 0 ? 1 : 0;
    report.degenerate_rows += key_of(rows.inverse_norm_E[i]) == 0 ? 1 : 0;
  }
  return report;
}

template <class W>
void check_similarity_weights(const Checks& checks, const MatrixView<W>& w_EH) {
  check_input_scalars<value_t<W>, value_t<W>>();
  checks.num_experts(w_EH.rows);
  checks.matrix("w_EH", w_EH, w_EH.rows, w_EH.cols);
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Bytes of workspace for cosine_similarity of E x H weights.
template <class W>
std::size_t cosine_similarity_workspace_bytes(Index num_experts, Index hidden_size,
                                              Workers workers = 1) {
  detail::Checks("cosine_similarity").query_experts(num_experts);
  using A = accumulator_t<W>;
  return detail::measure([&](detail::Arena& arena) {
    detail::carve_cosine_rows<A>(arena, num_experts, hidden_size);
    const auto carve = [&](detail::Arena& a) { return detail::carve_gate<A, A>(a, num_experts); };
    detail::PerWorker(arena, workers, carve);
  });
}

/// S_ij = <w_i, w_j> / (|w_i| |w_j|) (GatePro eq. 5).
///
/// w_EH: E x H router weights. similarity_EE: E x E, overwritten; symmetric to the bit, in
/// [-1, 1], 1 on the diagonal. Very small and very large rows lose nothing: rows are scaled by
/// powers of two first. A zero row, as all are if H = 0, has similarity 0 to all, itself included;
/// a row with a NaN or infinity has similarity NaN. Error <= c sqrt(H) eps.
///
/// Throws Error on a shape, stride, null or workspace that does not fit, before any write. Cost:
/// about E^2 H operations, no allocation. Bits do not depend on the executor.
template <class W, class A, class Executor = SerialExecutor>
SimilarityReport cosine_similarity(MatrixView<W> w_EH, MatrixView<A> similarity_EE,
                                   Workspace workspace, const Executor& executor = {}) {
  using Weight = detail::value_t<W>;
  static_assert(std::is_same_v<A, accumulator_t<Weight>>,
                "gatepro: similarities are double if W is, else float");
  const detail::Checks checks("cosine_similarity");
  const Index experts = w_EH.rows;
  detail::check_similarity_weights(checks, w_EH);
  checks.matrix("similarity_EE", similarity_EE, experts, experts);
  checks.overlaps(detail::output("similarity_EE", similarity_EE),
                  detail::output("workspace", workspace), detail::input("w_EH", w_EH));
  const int workers = checks.workers(executor);
  detail::Arena arena(checks.where(), workspace,
                      cosine_similarity_workspace_bytes<Weight>(experts, w_EH.cols, workers));

  const auto rows = detail::carve_cosine_rows<A>(arena, experts, w_EH.cols);
  detail::for_each_cosine_tile<Weight>(
      w_EH, rows, arena, executor, workers,
      [&](int, const detail::CosineTile<A>& tile) { detail::store_cosines(tile, similarity_EE); });
  return detail::similarity_report(rows);
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_PARTNERS_COSINE_SIMILARITY_HPP
