// SPDX-License-Identifier: MIT
// Router weights in the order in which the gate kernel reads them, and the tile that uses them.
//
// W is cut into depth blocks of `depth_block` columns. Within a block, experts stand in vectors of
// `lanes`, vectors in panels, and a panel is a run of columns: for each h, the weights of all its
// experts side by side. Experts are padded with zeros to whole vectors.
#ifndef GATEPRO_GATE_PACKING_HPP
#define GATEPRO_GATE_PACKING_HPP

#include <algorithm>
#include <limits>

#include "gatepro/core/checks.hpp"
#include "gatepro/core/executor.hpp"
#include "gatepro/core/views.hpp"
#include "gatepro/kernels/dispatch.hpp"

namespace gatepro {
namespace detail {

/// Columns of one depth block: a block of 64 float experts and 6 token rows share the L2 and L1
/// caches. A constant, because the sum of a logit passes through memory between blocks.
inline constexpr Index depth_block = 512;

/// Tokens that are gated and routed together: a multiple of every lane count.
inline constexpr Index tile_tokens = 48;

/// Packed weights in anyone's memory.
template <class A>
struct PackedView {
  const A* data;
  Index experts;
  Index hidden;
  PairGate<A> pair_gate = nullptr;  ///< Given if they are packed as pairs, see pairs.hpp.
  const A* bias = nullptr;          ///< Of the logits, packed, or null; see biased_weights.hpp.
};

inline namespace GATEPRO_ABI {

/// Vectors of experts in packed weights.
template <class A>
Index expert_vectors(Index experts) {
  const Index lanes = kernels<A>().lanes;
  return (experts + lanes - 1) / lanes;
}

/// Experts, padded to whole vectors.
template <class A>
Index padded_experts(Index experts) {
  return expert_vectors<A>(experts) * kernels<A>().lanes;
}

/// True if the experts are packed as rows.
template <class A>
bool are_few(Index experts) {
  return experts <= kernels<A>().lanes / 2;
}

/// Columns, padded to whole vectors.
template <class A>
Index padded_depth(Index depth) {
  const Index lanes = kernels<A>().lanes;
  return (depth + lanes - 1) / lanes * lanes;
}

/// Elements of packed weights.
template <class A>
Index packed_size(Index experts, Index hidden) {
  constexpr Index most_padding = 64;
  need(hidden >= 0 && hidden <= (std::numeric_limits<Index>::max)() - most_padding, "gate_logits",
       "hidden_size >= 0 and within the address space", {{"hidden_size", hidden}});
  const char* rule = "num_experts * hidden_size within the address space";
  const Index size =
      checked_product("gate_logits", rule, padded_experts<A>(experts), padded_depth<A>(hidden));
  checked_product("gate_logits", rule, size, sizeof(A));
  return size;
}

/// The panel that holds vector `v` of `vectors`: its first vector and its width. Panels have the
/// kernel's full width while they can, then 2 vectors, then 1.
struct Panel {
  Index first;
  Index width;
};
inline Panel panel_of(Index v, Index vectors, Index widest) {
  Index first = vectors / widest * widest;
  if (v < first) return {v / widest * widest, widest};
  if (widest > 2 && v < first + (vectors - first) / 2 * 2) {
    return {first + (v - first) / 2 * 2, 2};
  }
  return {v, 1};
}

/// Packs few experts as rows, in every depth block.
template <class W, class A>
void pack_few(const MatrixView<const W>& w_EH, A* packed) {
  const Index rows = kernels<A>().lanes / 2;
  for (Index start = 0; start < w_EH.cols; start += depth_block) {
    const Index depth = (std::min)(depth_block, w_EH.cols - start);
    const Index stride = padded_depth<A>(depth);
    A* block = packed + start * rows;
    for (Index e = 0; e < w_EH.rows; ++e) {
      gate_kernels<A, W>().widen(w_EH.row(e) + start, depth, block + e * stride);
      std::fill(block + e * stride + depth, block + (e + 1) * stride, A(0));
    }
    std::fill(block + w_EH.rows * stride, block + rows * stride, A(0));
  }
}

/// Packs one vector of experts, in every depth block.
template <class W, class A>
void pack_vector(const MatrixView<const W>& w_EH, Index v, A* packed) {
  const Kernels<A>& kernel = kernels<A>();
  const Index lanes = kernel.lanes;
  const Index vectors = expert_vectors<A>(w_EH.rows);
  const Panel panel = panel_of(v, vectors, kernel.panel_vectors);
  const Index rows = (std::min)(lanes, w_EH.rows - v * lanes);
  for (Index start = 0; start < w_EH.cols; start += depth_block) {
    const Index depth = (std::min)(depth_block, w_EH.cols - start);
    A* block = packed + start * vectors * lanes + panel.first * lanes * depth;
    gate_kernels<A, W>().pack(w_EH.row(v * lanes) + start, w_EH.row_stride, rows, depth,
                              block + (v - panel.first) * lanes, panel.width * lanes);
  }
}

/// Packs all of W: packed has packed_size elements.
template <class W, class A, class Executor>
PackedView<A> pack(const MatrixView<const W>& w_EH, A* packed, const Executor& executor,
                   int workers) {
  const bool few = are_few<A>(w_EH.rows);
  for_each_block(executor, workers, expert_vectors<A>(w_EH.rows), [&](int, Index v) {
    few ? pack_few(w_EH, packed) : pack_vector(w_EH, v, packed);
  });
  return {packed, w_EH.rows, w_EH.cols};
}

/// The columns [start, start + depth) of a tile of tokens as Read, which is X or A: as they are, or
/// widened into tile_tokens x depth_block elements.
template <class Read, class X, class A>
MatrixView<const Read> readable_columns(const MatrixView<const X>& x_TH, Index start, Index depth,
                                        [[maybe_unused]] A* widened) {
  const MatrixView<const X> columns = x_TH.middle_cols(start, depth);
  if constexpr (std::is_same_v<X, Read>) {
    return columns;
  } else {
    const auto widen = gate_kernels<A, X>().widen;
    for (Index t = 0; t < columns.rows; ++t) {
      widen(columns.row(t), depth, widened + t * depth_block);
    }
    return {widened, columns.rows, depth, depth_block};
  }
}

/// What the gate kernel fetches while it has the columns from `start`: those after them, or the
/// first ones of the tokens after the tile's `count`. None where X ends.
template <class X>
NextRows next_rows(const MatrixView<const X>& x_TH, Index count, Index start) {
  const Index next = start + depth_block;
  const bool same_tokens = next < x_TH.cols;
  if (!same_tokens && x_TH.rows < 2 * count) return {};
  const X* data = same_tokens ? x_TH.data + next : x_TH.row(count);
  constexpr Index bytes = static_cast<Index>(sizeof(X));
  return {reinterpret_cast<const char*>(data), x_TH.row_stride * bytes, bytes};
}

/// Logits of the first `count` <= tile_tokens tokens, in rows of `row_stride` elements with room
/// for padded_experts, of all experts from vector `first_vector`, the first of a widest panel.
/// `widened` holds tile_tokens x depth_block elements, unless X is A.
template <class X, class A>
void gate_tile(const MatrixView<const X>& x_TH, Index count, const PackedView<A>& w, A* widened,
               A* logits_TE, Index row_stride, Index first_vector = 0) {
  using FewRead = std::conditional_t<reads_directly_v<X, A>, X, A>;
  const MatrixView<const X> tile_TH = x_TH.middle_rows(0, count);
  const Index lanes = kernels<A>().lanes;
  const Index vectors = expert_vectors<A>(w.experts);
  // At least once, so that logits of no columns are zero.
  for (Index start = 0; start == 0 || start < w.hidden; start += depth_block) {
    const Index depth = (std::min)(depth_block, w.hidden - start);
    if (are_few<A>(w.experts)) {
      const auto x = readable_columns<FewRead>(tile_TH, start, depth, widened);
      gate_kernels<A, FewRead>().gate_few(x.data, x.row_stride, count, w.data + start * (lanes / 2),
                                          depth, logits_TE, row_stride, start == 0);
    } else {
      const auto x = readable_columns<A>(tile_TH, start, depth, widened);
      const Index skipped = first_vector * lanes;
      gate_kernels<A, A>().gate(x.data, x.row_stride, count,
                                w.data + start * vectors * lanes + skipped * depth, depth,
                                vectors - first_vector, logits_TE + skipped, row_stride, start == 0,
                                next_rows(x_TH, count, start));
    }
  }
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_GATE_PACKING_HPP
