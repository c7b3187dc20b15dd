// SPDX-License-Identifier: MIT
// Gradients of all logits: products of whole matrices, made by the gate kernel. A panel of columns
// of W, or of X, is copied to the layout that the kernel takes as packed weights.
#ifndef GATEPRO_GATE_DENSE_GRADIENT_HPP
#define GATEPRO_GATE_DENSE_GRADIENT_HPP

#include <algorithm>

#include "gatepro/gate/packing.hpp"
#include "gatepro/gate/sparse_gradient.hpp"

namespace gatepro {
namespace detail {

/// Tokens of a chunk that have a gradient, and their gradients, transposed.
template <class A>
struct DenseChunk {
  Index* tokens = nullptr;    ///< gradient_chunk.
  Index count = 0;            ///< How many tokens.
  A* gradients_EC = nullptr;  ///< E x gradient_chunk.
};

/// A worker's scratch for dense gradients.
template <class A>
struct DenseScratch {
  A* merged_TE = nullptr;  ///< Gradients of all logits of a block of tokens.
  A* panels = nullptr;     ///< A depth block of rows of slab_cols.
  A* edge = nullptr;       ///< tile_tokens rows of panel_cols, for columns that fill no panel.
  A* sums = nullptr;       ///< Rows of slab_cols, for gradients of 16 bits.
};

inline namespace GATEPRO_ABI {

/// Columns that are copied to panels in one go, at most: longer runs of a row come faster from
/// memory, but two slabs should fit the second cache. A multiple of all panels.
inline constexpr Index slab_cols = 256;

/// Rows that will be read soon. The gate kernel fetches a part of them in each of its calls.
class RowsAhead {
 public:
  RowsAhead() = default;
  template <class T>
  explicit RowsAhead(const MatrixView<T>& rows)
      : rows_{reinterpret_cast<const char*>(rows.data), rows.row_stride * Index{sizeof(T)},
              Index{sizeof(T)}},
        count_(rows.rows),
        cols_(rows.cols) {}

  /// The part for a call with `rows` rows, 6 at a time, and `depth` columns: it fetches as many.
  NextRows take(Index rows, Index depth) {
    if (col_ >= cols_ || count_ < rows) return {};
    const NextRows part = rows_.from_row((std::min)(row_, count_ - rows)).after(col_);
    row_ += rows / 6 * 6;
    if (row_ >= count_) {
      row_ = 0;
      col_ += depth;
    }
    return part;
  }

 private:
  NextRows rows_;
  Index count_ = 0, cols_ = 0;
  Index row_ = 0, col_ = 0;  // where the next part begins
};

/// Columns of a panel: what the gate kernel takes at once.
template <class A>
Index panel_cols() {
  return kernels<A>().panel_vectors * kernels<A>().lanes;
}

template <class A>
struct CarveDense {
  Index merged_rows;  ///< Tokens whose gradients are merged together.
  Index experts;
  Index sum_rows = 0;  ///< As many if their gradients have 16 bits.

  /// As many tokens as are transposed together.
  static CarveDense of_lanes(Index experts) { return {kernels<A>().lanes, experts}; }

  DenseScratch<A> operator()(Arena& arena) const {
    DenseScratch<A> scratch;
    scratch.merged_TE = arena.take<A>(checked_product(
        "gate_backward", "E * tokens within the address space", experts, merged_rows));
    scratch.panels = arena.take<A>(depth_block * slab_cols);
    scratch.edge = arena.take<A>(tile_tokens * panel_cols<A>());
    scratch.sums = arena.take<A>(sum_rows * slab_cols);
    return scratch;
  }
};

template <class A>
DenseChunk<A> carve_chunk(Arena& arena, Index experts) {
  DenseChunk<A> chunk;
  chunk.tokens = arena.take<Index>(gradient_chunk);
  chunk.gradients_EC = arena.take<A>(checked_product(
      "gate_backward", "E * tokens within the address space", experts, gradient_chunk));
  return chunk;
}

/// The gradient of all logits of token `t`, which is not padding, in merged_E: dense plus selected.
template <class Id, class A>
void merge_row(const Choices<Id>& choices, const LogitGradients<A>& gradients, Index t,
               A* merged_E) {
  const StridedView<const A>& dselected_TK = gradients.dselected_logits_TK;
  std::copy_n(gradients.dlogits_TE.row(t), gradients.dlogits_TE.cols, merged_E);
  for (Index j = 0; j < dselected_TK.cols; ++j) {
    const auto id = choices.expert_ids_TK(t, j);
    if (is_some(id)) merged_E[static_cast<Index>(id)] += dselected_TK(t, j);
  }
}

/// Copies rows to panels that stand one after the other, with zeros behind the last column.
/// `row(r)` is the address of row r.
template <class A, class Row>
void copy_to_panels(const Row& row, Index rows, Index cols, A* panels) {
  using Source = std::remove_const_t<std::remove_pointer_t<decltype(row(0))>>;
  constexpr Index ahead = 4;
  const auto widen = gate_kernels<A, Source>().widen;
  const Index panel = panel_cols<A>();
  for (Index r = 0; r < rows; ++r) {
    for (Index c = 0; c < cols; c += panel) {
      A* to = panels + c * rows + r * panel;
      const Index width = (std::min)(panel, cols - c);
      if (r + ahead < rows) prefetch(row(r + ahead) + c, width);
      widen(row(r) + c, width, to);
      std::fill(to + width, to + panel, A(0));
    }
  }
}

/// out += x * panel for a tile of rows: each element is one chain over `depth`, in ascending order,
/// that starts from the value in out. Fetches `next`.
template <class A>
void add_tile(const A* x, Index x_stride, Index depth, const A* panel, const MatrixView<A>& out,
              A* edge, const NextRows& next) {
  const auto gate = gate_kernels<A, A>().gate;
  const Index vectors = kernels<A>().panel_vectors;
  if (out.cols == panel_cols<A>()) {
    gate(x, x_stride, out.rows, panel, depth, vectors, out.data, out.row_stride, false, next);
    return;
  }
  copy_to_panels<A>([&](Index r) { return out.row(r); }, out.rows, out.cols, edge);
  gate(x, x_stride, out.rows, panel, depth, vectors, edge, panel_cols<A>(), false, next);
  for (Index r = 0; r < out.rows; ++r) {
    std::copy_n(edge + r * panel_cols<A>(), out.cols, out.row(r));
  }
}

/// The same for any number of rows and panels. Fetches the sums of each tile during the one before,
/// and then what is `ahead` of this product.
template <class A>
void add_product(const A* x, Index x_stride, Index depth, const A* panels, const MatrixView<A>& out,
                 A* edge, RowsAhead ahead) {
  for (Index first = 0; first < out.rows; first += tile_tokens) {
    const Index rows = (std::min)(tile_tokens, out.rows - first);
    const Index below = (std::min)(first + rows, out.rows - rows);
    RowsAhead sums = below > first ? RowsAhead(out.middle_rows(below, rows)) : RowsAhead();
    for (Index c = 0; c < out.cols; c += panel_cols<A>()) {
      const Index cols = (std::min)(panel_cols<A>(), out.cols - c);
      NextRows next = sums.take(rows, depth);
      if (next.data == nullptr) next = ahead.take(rows, depth);
      add_tile(x + first * x_stride, x_stride, depth, panels + c * depth,
               out.middle_rows(first, rows).middle_cols(c, cols), edge, next);
    }
  }
}

/// Calls `visit(first, count)` for each run of tokens that are not padding.
template <class Visit>
void for_each_valid_run(const VectorView<const std::uint8_t>& is_padding_T, Index tokens,
                        const Visit& visit) {
  Index first = 0;
  for (Index t = 0; t <= tokens; ++t) {
    if (t < tokens && !is_masked(is_padding_T, t)) continue;
    if (first < t) visit(first, t - first);
    first = t + 1;
  }
}

/// begin_sums for all rows of a block.
template <class A, class D>
MatrixView<A> begin_block(const MatrixView<D>& block, GradientMode mode,
                          [[maybe_unused]] A* beside) {
  MatrixView<A> sums;
  if constexpr (std::is_same_v<A, D>) {
    sums = block;
  } else {
    sums = {beside, block.rows, block.cols, slab_cols};
  }
  for (Index t = 0; t < block.rows; ++t) begin_sums(block.row(t), block.cols, mode, sums.row(t));
  return sums;
}

/// end_sums for all rows of a block, but for padding that nothing was added to.
template <class A, class D>
void end_block(const MatrixView<A>& sums, GradientMode mode,
               const VectorView<const std::uint8_t>& is_padding_T, const MatrixView<D>& block) {
  for (Index t = 0; t < block.rows; ++t) {
    if (mode == GradientMode::add && is_masked(is_padding_T, t)) continue;
    end_sums(sums.row(t), block.cols, block.row(t));
  }
}

/// dx_TH += dlogits W for a block of tokens. Padding takes no part: zeros times W may be NaN.
template <class Source, class Id, class A, class D>
void add_dense_to_tokens(const Choices<Id>& choices, const LogitGradients<A>& gradients,
                         const MatrixView<const Source>& w_EH, const MatrixView<D>& dx_TH,
                         GradientMode mode, const DenseScratch<A>& scratch) {
  const Index experts = w_EH.rows;
  for (Index t = 0; t < dx_TH.rows; ++t) {
    if (is_masked(choices.is_padding_T, t)) continue;
    merge_row(choices, gradients, t, scratch.merged_TE + t * experts);
  }
  for (Index c = 0; c < w_EH.cols; c += slab_cols) {
    const Index cols = (std::min)(slab_cols, w_EH.cols - c);
    const MatrixView<D> block = dx_TH.middle_cols(c, cols);
    const MatrixView<A> sums = begin_block(block, mode, scratch.sums);
    for (Index first = 0; first < experts; first += depth_block) {
      const Index depth = (std::min)(depth_block, experts - first);
      copy_to_panels<A>([&](Index e) { return w_EH.row(first + e) + c; }, depth, cols,
                        scratch.panels);
      const MatrixView<D> next =
          dx_TH.middle_cols(c + cols, (std::min)(slab_cols, w_EH.cols - c - cols));
      for_each_valid_run(choices.is_padding_T, dx_TH.rows, [&](Index t, Index count) {
        add_product<A>(scratch.merged_TE + t * experts + first, experts, depth, scratch.panels,
                       sums.middle_rows(t, count), scratch.edge,
                       RowsAhead(next.middle_rows(t, (std::min)(tile_tokens, count))));
      });
    }
    end_block(sums, mode, choices.is_padding_T, block);
  }
}

/// Lists the tokens of [first, first + rows) that have a gradient. The others add nothing to the
/// weights, whatever stands in their rows of X.
template <class Id, class A>
void list_tokens(const Choices<Id>& choices, const LogitGradients<A>& gradients, Index first,
                 Index rows, DenseChunk<A>& chunk) {
  const StridedView<const A>& dselected_TK = gradients.dselected_logits_TK;
  const MatrixView<const A>& dlogits_TE = gradients.dlogits_TE;
  chunk.count = 0;
  for (Index t = first; t < first + rows; ++t) {
    if (is_masked(choices.is_padding_T, t)) continue;
    bool any = kernels<A>().largest_magnitude(dlogits_TE.row(t), dlogits_TE.cols) != 0;
    for (Index j = 0; j < dselected_TK.cols && !any; ++j) {
      any = !is_zero(dselected_TK(t, j)) && counts(choices, t, j);
    }
    if (any) chunk.tokens[chunk.count++] = t;
  }
}

/// Merges and transposes the gradients of the chunk's tokens [first, first + lanes).
template <class Id, class A>
void transpose_gradients(const Choices<Id>& choices, const LogitGradients<A>& gradients,
                         Index first, const DenseChunk<A>& chunk, A* merged_TE) {
  const Index experts = gradients.dlogits_TE.cols;
  const Index rows = std::min<Index>(kernels<A>().lanes, chunk.count - first);
  for (Index i = 0; i < rows; ++i) {
    merge_row(choices, gradients, chunk.tokens[first + i], merged_TE + i * experts);
  }
  gate_kernels<A, A>().pack(merged_TE, experts, rows, experts, chunk.gradients_EC + first,
                            gradient_chunk);
}

/// dw_EH += dlogits^T X for the experts of `range`, the tokens of a chunk, and the columns of x_TH
/// and dw_EH, up to slab_cols.
template <class Source, class A>
void add_chunk_to_weights(const DenseChunk<A>& chunk, const MatrixView<const Source>& x_TH,
                          ExpertRange range, const MatrixView<A>& dw_EH,
                          const DenseScratch<A>& scratch, const RowsAhead& ahead) {
  copy_to_panels<A>([&](Index i) { return x_TH.row(chunk.tokens[i]); }, chunk.count, x_TH.cols,
                    scratch.panels);
  add_product<A>(chunk.gradients_EC + range.begin * gradient_chunk, gradient_chunk, chunk.count,
                 scratch.panels, dw_EH.middle_rows(range.begin, range.end - range.begin),
                 scratch.edge, ahead);
}

/// dw_EH += dlogits^T X for the experts of `range`, chunk by chunk of tokens, so that each element
/// is one chain over the tokens. Workers divide the columns.
template <class Source, class Id, class A, class Executor>
void add_dense_to_weights(const Choices<Id>& choices, const LogitGradients<A>& gradients,
                          const MatrixView<const Source>& x_TH, ExpertRange range,
                          const MatrixView<A>& dw_EH, Arena& arena, const Executor& executor,
                          int workers) {
  DenseChunk<A> chunk = carve_chunk<A>(arena, dw_EH.rows);
  const PerWorker scratch(arena, workers, CarveDense<A>::of_lanes(dw_EH.rows));
  const Index lanes = kernels<A>().lanes;
  const Index all_panels = (dw_EH.cols + panel_cols<A>() - 1) / panel_cols<A>();
  const int busy = useful_workers(executor, workers, {x_TH.rows, dw_EH.rows, dw_EH.cols});
  const Index panels_each = std::clamp<Index>(all_panels / busy, 1, slab_cols / panel_cols<A>());
  const Index most = panels_each * panel_cols<A>();
  const Index slabs = (dw_EH.cols + most - 1) / most;
  const auto slab = [&](const auto& rows, Index i) {
    return rows.middle_cols(i * most, (std::min)(most, rows.cols - i * most));
  };
  for (Index first = 0; first < x_TH.rows; first += gradient_chunk) {
    const Index rows = (std::min)(gradient_chunk, x_TH.rows - first);
    list_tokens(choices, gradients, first, rows, chunk);
    const Index groups = (chunk.count + lanes - 1) / lanes;
    for_each_block(executor, busy, groups, [&](int worker, Index i) {
      transpose_gradients(choices, gradients, i * lanes, chunk, scratch(worker).merged_TE);
    });
    for_each_block(executor, busy, slabs, [&](int worker, Index i) {
      // What this worker is likely to take next, of this chunk or the one after.
      const Index next = (i + busy) % slabs;
      const Index skipped = next > i ? first : first + rows;
      const Index count = (std::min)(gradient_chunk, x_TH.rows - skipped);
      const RowsAhead ahead(slab(x_TH.middle_rows(skipped, count), next));
      add_chunk_to_weights(chunk, slab(x_TH, i), range, slab(dw_EH, i), scratch(worker), ahead);
    });
  }
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_GATE_DENSE_GRADIENT_HPP
