// SPDX-License-Identifier: MIT
// The gate on pairs of columns (GateArithmetic::bf16_dot): packed weights, and the tile that uses
// them.
//
// The layout is that of packing.hpp with a pair of columns for a column: two bfloat16 side by side,
// which take the place of a float. An odd last column is paired with zeros.
#ifndef GATEPRO_GATE_PAIRS_HPP
#define GATEPRO_GATE_PAIRS_HPP

#include <algorithm>
#include <cstring>

#include "gatepro/gate/arithmetic.hpp"
#include "gatepro/gate/packing.hpp"

namespace gatepro {
inline namespace GATEPRO_ABI {

/// The arithmetic of a gate with num_experts that is asked for `wanted`: bf16_dot if that is
/// wanted, the machine and GATEPRO_ISA have it, and the experts fill more than half of a vector (16
/// of them); else widened. Throws Error if GATEPRO_ISA names no instruction set.
inline GateArithmetic gate_arithmetic(GateArithmetic wanted, Index num_experts) {
  const bool pairs = wanted == GateArithmetic::bf16_dot && detail::has_bf16_dot() &&
                     !detail::are_few<float>(num_experts);
  return pairs ? GateArithmetic::bf16_dot : GateArithmetic::widened;
}

}  // namespace GATEPRO_ABI

namespace detail {
inline namespace GATEPRO_ABI {

/// Packs one vector of experts as pairs, in every depth block.
template <class A>
void pack_pairs_of_vector(const MatrixView<const bfloat16>& w_EH, Index v, A* packed) {
  constexpr Index at_once = 16;
  const Index lanes = kernels<A>().lanes;
  const Index vectors = expert_vectors<A>(w_EH.rows);
  const Panel panel = panel_of(v, vectors, kernels<A>().panel_vectors);
  const Index rows = (std::min)(lanes, w_EH.rows - v * lanes);
  const Index stride = panel.width * lanes;
  for (Index start = 0; start < w_EH.cols; start += depth_block) {
    const Index depth = (std::min)(depth_block, w_EH.cols - start);
    const Index pairs = (depth + 1) / 2;
    A* block = packed + start / 2 * vectors * lanes + panel.first * lanes * pairs;
    A* vector = block + (v - panel.first) * lanes;
    for (Index p = 0; p < pairs; p += at_once) {
      A words[16 * at_once] = {};  // of the widest vector's rows
      const Index cols = (std::min)(2 * at_once, depth - 2 * p);
      for (Index r = 0; r < rows; ++r) {
        std::memcpy(words + r * at_once, w_EH.row(v * lanes + r) + start + 2 * p,
                    static_cast<std::size_t>(cols) * sizeof(bfloat16));
      }
      gate_kernels<A, A>().pack(words, at_once, rows, (cols + 1) / 2, vector + p * stride, stride);
    }
  }
}

/// Packs all of W as pairs for `gate`: packed has packed_size elements.
template <class A, class Executor>
PackedView<A> pack_pairs(const MatrixView<const bfloat16>& w_EH, PairGate<A> gate, A* packed,
                         const Executor& executor, int workers) {
  for_each_block(executor, workers, expert_vectors<A>(w_EH.rows),
                 [&](int, Index v) { pack_pairs_of_vector(w_EH, v, packed); });
  return {packed, w_EH.rows, w_EH.cols, gate};
}

/// Packs all of W for tokens of X, as the arithmetic that is `wanted` needs it.
template <class X, class W, class A, class Executor>
PackedView<A> pack_for(GateArithmetic wanted, const MatrixView<const W>& w_EH, A* packed,
                       const Executor& executor, int workers) {
  if constexpr (has_pairs_v<X, W>) {
    if (gate_arithmetic(wanted, w_EH.rows) == GateArithmetic::bf16_dot) {
      return pack_pairs(w_EH, pair_kernels<A>().gate, packed, executor, workers);
    }
  }
  return pack<W>(w_EH, packed, executor, workers);
}

/// The columns as they are if they make whole pairs, else copied to `scratch` with a zero behind
/// each row: tile_tokens x depth_block elements.
inline MatrixView<const bfloat16> whole_pairs(const MatrixView<const bfloat16>& columns,
                                              bfloat16* scratch) {
  if (columns.cols % 2 == 0) return columns;
  for (Index t = 0; t < columns.rows; ++t) {
    bfloat16* row = std::copy_n(columns.row(t), columns.cols, scratch + t * depth_block);
    *row = bfloat16(0);
  }
  return {scratch, columns.rows, columns.cols + 1, depth_block};
}

/// Like gate_tile, for weights packed as pairs. `scratch` is what gate_tile has for widened tokens.
template <class A>
void gate_pair_tile(const MatrixView<const bfloat16>& x_TH, Index count, const PackedView<A>& w,
                    A* scratch, A* logits_TE, Index row_stride) {
  const Index vectors = expert_vectors<A>(w.experts);
  const Index lanes = kernels<A>().lanes;
  for (Index start = 0; start == 0 || start < w.hidden; start += depth_block) {
    const Index depth = (std::min)(depth_block, w.hidden - start);
    const auto x = whole_pairs(x_TH.middle_rows(0, count).middle_cols(start, depth),
                               reinterpret_cast<bfloat16*>(scratch));
    w.pair_gate(x.data, x.row_stride, count, w.data + start / 2 * vectors * lanes, x.cols / 2,
                vectors, logits_TE, row_stride, start == 0, next_rows(x_TH, count, start));
  }
}

/// Logits of a tile by either arithmetic: that for which W was packed.
template <class X, class A>
void gate_packed_tile(const MatrixView<const X>& x_TH, Index count, const PackedView<A>& w,
                      A* widened, A* logits_TE, Index row_stride) {
  if constexpr (std::is_same_v<X, bfloat16>) {
    if (w.pair_gate != nullptr) {
      gate_pair_tile(x_TH, count, w, widened, logits_TE, row_stride);
      return;
    }
  }
  gate_tile<X, A>(x_TH, count, w, widened, logits_TE, row_stride);
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_GATE_PAIRS_HPP
