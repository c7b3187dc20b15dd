// SPDX-License-Identifier: MIT
// Gradients of the selected logits only: sums of few rows of W, or of X, a slice of columns at a
// time.
#ifndef GATEPRO_GATE_SPARSE_GRADIENT_HPP
#define GATEPRO_GATE_SPARSE_GRADIENT_HPP

#include <algorithm>

#include "gatepro/core/choices.hpp"
#include "gatepro/core/order.hpp"
#include "gatepro/core/workspace.hpp"
#include "gatepro/gate/rounding.hpp"
#include "gatepro/kernels/dispatch.hpp"

namespace gatepro {

/// The experts [begin, end) of a gradient to W.
struct ExpertRange {
  Index begin = 0;  ///< First expert.
  Index end = 0;    ///< One past the last.
};

/// The gradient of the logits, in two parts that are added.
template <class A>
struct LogitGradients {
  StridedView<const A> dselected_logits_TK{};  ///< T x K: of the selected logits.
  MatrixView<const A> dlogits_TE{};            ///< T x E, or not given: of all logits.
};

/// What a gradient does with the values that stand where it goes.
enum class GradientMode {
  add,  ///< It is added to them.
  set,  ///< It takes their place: the bits of adding to zeros, and no pass to write zeros before.
};

namespace detail {

/// Tokens whose gradients to W are sorted, and whose columns are copied, together.
inline constexpr Index gradient_chunk = 256;

/// Rows with coefficients, as the add_rows kernel takes them.
template <class A>
struct RowList {
  A* coefficients = nullptr;
  Index* rows = nullptr;
  Index count = 0;
};

/// The selected logits' gradients, by chunk of tokens, then by expert, then by token. Rows count
/// from the start of the chunk. Zeros are left out: they would add nothing.
template <class A>
struct SortedGradients {
  A* coefficients = nullptr;  ///< T * K, a chunk's from its first token times K.
  Index* rows = nullptr;      ///< Likewise.
  Index* begin = nullptr;     ///< Chunks x (E + 2): where each expert's entries start and end.
};

inline namespace GATEPRO_ABI {

/// The gradients of `count` tokens from `first`.
template <class A>
LogitGradients<A> middle_gradients(const LogitGradients<A>& gradients, Index first, Index count) {
  return {gradients.dselected_logits_TK.middle_rows(first, count),
          gradients.dlogits_TE.middle_rows(first, count)};
}

template <class A>
RowList<A> carve_list(Arena& arena, Index most) {
  return {arena.take<A>(most), arena.take<Index>(most), 0};
}

template <class A>
bool is_zero(A value) {
  return key_of(value) == 0;
}

template <class A>
void append_nonzero(RowList<A>& list, A coefficient, Index row) {
  if (is_zero(coefficient)) return;
  list.coefficients[list.count] = coefficient;
  list.rows[list.count] = row;
  ++list.count;
}

/// Columns that a slice of X or W has at most: what add_rows keeps in registers.
template <class A>
Index slice_cols() {
  return 8 * kernels<A>().lanes;
}

/// Fetches `count` elements. A slice is too short for the hardware to see where it goes on.
template <class T>
void prefetch([[maybe_unused]] const T* from, [[maybe_unused]] Index count) {
#if GATEPRO_VECTOR_EXTENSIONS
  for (Index i = 0; i < count; i += 64 / Index(sizeof(T))) __builtin_prefetch(from + i);
#endif
}

/// Where the sums of a row of a gradient are made: in the row, or `beside` it if it has 16 bits.
/// They start from what is there, or from zeros.
template <class A, class D>
A* begin_sums(D* row, Index cols, GradientMode mode, [[maybe_unused]] A* beside) {
  A* sums;
  if constexpr (std::is_same_v<A, D>) {
    sums = row;
  } else {
    sums = beside;
    if (mode == GradientMode::add) gate_kernels<A, D>().widen(row, cols, sums);
  }
  if (mode == GradientMode::set) std::fill_n(sums, cols, A(0));
  return sums;
}

/// Copies columns in slices: all rows of the first slice_cols next to each other, then those of the
/// next. Rows a power of two apart would share a few sets of the cache; a slice does not.
template <class Source, class A>
void copy_slices(const MatrixView<const Source>& from, A* slices) {
  constexpr Index ahead = 3;
  const auto widen = gate_kernels<A, Source>().widen;
  const Index most = slice_cols<A>();
  for (Index r = 0; r < from.rows; ++r) {
    for (Index c = 0; c < from.cols; c += most) {
      const Index cols = (std::min)(most, from.cols - c);
      if (r + ahead < from.rows) prefetch(from.row(r + ahead) + c, cols);
      widen(from.row(r) + c, cols, slices + c * from.rows + r * cols);
    }
  }
}

/// Sorts one chunk of the selected logits' gradients by expert, stably.
template <class Id, class A>
void sort_chunk(const Choices<Id>& choices, const StridedView<const A>& dselected_TK, Index experts,
                Index chunk, const SortedGradients<A>& sorted) {
  const Index first = chunk * gradient_chunk;
  const StridedView<Id>& ids_TK = choices.expert_ids_TK;
  const Index last = (std::min)(ids_TK.rows, first + gradient_chunk);
  const auto for_each_nonzero = [&](const auto& visit) {
    for (Index t = first; t < last; ++t) {
      for (Index j = 0; j < ids_TK.cols; ++j) {
        const bool adds = !is_zero(dselected_TK(t, j)) && counts(choices, t, j);
        if (adds) visit(t, static_cast<Index>(ids_TK(t, j)), j);
      }
    }
  };
  // begin[e + 1] first counts expert e - 1, then is where e starts, then where e ends.
  Index* begin = sorted.begin + chunk * (experts + 2);
  std::fill_n(begin, experts + 2, Index{0});
  begin[0] = begin[1] = first * ids_TK.cols;
  for_each_nonzero([&](Index, Index e, Index) { ++begin[e + 2]; });
  for (Index e = 1; e <= experts; ++e) begin[e + 1] += begin[e];
  for_each_nonzero([&](Index t, Index e, Index j) {
    const Index at = begin[e + 1]++;
    sorted.rows[at] = t - first;
    sorted.coefficients[at] = dselected_TK(t, j);
  });
}

/// Expert `e`'s sorted entries of a chunk.
template <class A>
RowList<A> sorted_entries(const SortedGradients<A>& sorted, Index experts, Index chunk, Index e) {
  const Index* begin = sorted.begin + chunk * (experts + 2);
  return {sorted.coefficients + begin[e], sorted.rows + begin[e], begin[e + 1] - begin[e]};
}

/// Tokens whose gradients are made together, at most: the copy of W serves them all. Whole tiles.
inline constexpr Index most_gradient_tokens = 480;

/// Tokens whose gradients are made together, at least, if there are as many.
inline constexpr Index least_gradient_tokens = 48;

/// The most for E experts: lists of up to E entries each fit 128 Ki entries, if that is not less
/// than the least.
inline Index gradient_tokens(Index experts) {
  return std::clamp(131072 / std::max<Index>(experts, 1), least_gradient_tokens,
                    most_gradient_tokens);
}

/// A worker's scratch for gradients to tokens.
template <class A>
struct TokenListScratch {
  RowList<A> lists;    ///< One list of up to E rows per token of a block.
  A* slice = nullptr;  ///< E x slice_cols.
  A* sums = nullptr;   ///< slice_cols.
};

template <class A>
struct CarveTokenLists {
  Index experts;

  TokenListScratch<A> operator()(Arena& arena) const {
    TokenListScratch<A> scratch;
    scratch.lists = carve_list<A>(
        arena, checked_product("gate_backward_tokens", "E * tokens within the address space",
                               experts, gradient_tokens(experts)));
    scratch.slice = arena.take<A>(checked_product(
        "gate_backward_tokens", "E * columns within the address space", experts, slice_cols<A>()));
    scratch.sums = arena.take<A>(slice_cols<A>());
    return scratch;
  }
};

/// dx_TH += dlogits W for a block of tokens: all tokens against one slice of W, then the next.
template <class Source, class Id, class A, class D>
void add_selected_to_tokens(const Choices<Id>& choices, const LogitGradients<A>& gradients,
                            const MatrixView<const Source>& w_EH, const MatrixView<D>& dx_TH,
                            GradientMode mode, const TokenListScratch<A>& scratch) {
  const StridedView<const A>& dselected_TK = gradients.dselected_logits_TK;
  const Index experts = w_EH.rows;
  Index lengths[most_gradient_tokens];
  Index entries = 0;
  const auto list_of = [&](Index t) {
    const Index at = t * dselected_TK.cols;
    return RowList<A>{scratch.lists.coefficients + at, scratch.lists.rows + at, 0};
  };
  for (Index t = 0; t < dx_TH.rows; ++t) {
    RowList<A> list = list_of(t);
    for (Index j = 0; j < dselected_TK.cols; ++j) {
      if (!counts(choices, t, j)) continue;
      append_nonzero(list, dselected_TK(t, j), static_cast<Index>(choices.expert_ids_TK(t, j)));
    }
    lengths[t] = list.count;
    entries += list.count;
  }
  // A slice pays off if its rows are used more than once. Bits do not depend on it.
  const bool slice_weights = entries >= 2 * experts;
  const bool sums_beside = !std::is_same_v<A, D>;
  const Index most = slice_weights || sums_beside ? slice_cols<A>() : w_EH.cols;
  const auto add_rows =
      slice_weights ? gradient_kernels<A, A>().add_rows : gradient_kernels<A, Source>().add_rows;
  for (Index c = 0; c < w_EH.cols; c += most) {
    const Index cols = (std::min)(most, w_EH.cols - c);
    if (slice_weights) copy_slices(w_EH.middle_cols(c, cols), scratch.slice);
    const void* base = slice_weights ? static_cast<const void*>(scratch.slice) : w_EH.data + c;
    const Index stride = slice_weights ? cols : w_EH.row_stride;
    for (Index t = 0; t < dx_TH.rows; ++t) {
      const RowList<A> list = list_of(t);
      if (t + 4 < dx_TH.rows) prefetch(dx_TH.row(t + 4) + c, cols);
      if (mode == GradientMode::add && lengths[t] == 0) continue;
      A* sums = begin_sums(dx_TH.row(t) + c, cols, mode, scratch.sums);
      add_rows(list.coefficients, list.rows, lengths[t], base, stride, cols, sums);
      end_sums(sums, cols, dx_TH.row(t) + c);
    }
  }
}

/// What a product of the sparse backward costs, in multiply-adds of the gate: it waits for memory.
inline constexpr Index sparse_work = 4;

/// Slices of X that a worker copies in one go: longer runs of a row come faster from memory.
inline constexpr Index most_slices = 8;

/// A worker's slices of X: gradient_chunk rows.
template <class A>
struct CarveSlices {
  A* operator()(Arena& arena) const {
    return arena.take<A>(gradient_chunk * most_slices * slice_cols<A>());
  }
};

template <class A>
SortedGradients<A> carve_sorted(Arena& arena, Index tokens, Index experts, Index top_k) {
  const Index entries =
      checked_product("gate_backward_weights", "T * K within the address space", tokens, top_k);
  const Index chunks = blocks_of(tokens, gradient_chunk);
  SortedGradients<A> sorted;
  sorted.coefficients = arena.take<A>(entries);
  sorted.rows = arena.take<Index>(entries);
  sorted.begin = arena.take<Index>(checked_product(
      "gate_backward_weights", "T * E within the address space", chunks, experts + 2));
  return sorted;
}

/// dw += dlogits^T X for the experts of `range` and the columns of x_TH and dw_EH, up to
/// most_slices: chunk by chunk, so that each element is one chain over the tokens. `slices` holds
/// gradient_chunk rows.
template <class Source, class A>
void add_sorted_to_weights(const SortedGradients<A>& sorted, const MatrixView<const Source>& x_TH,
                           ExpertRange range, const MatrixView<A>& dw_EH, A* slices) {
  const auto add_rows = gradient_kernels<A, A>().add_rows;
  const Index most = slice_cols<A>();
  for (Index first = 0; first < x_TH.rows; first += gradient_chunk) {
    const Index rows = (std::min)(gradient_chunk, x_TH.rows - first);
    copy_slices(x_TH.middle_rows(first, rows), slices);
    for (Index c = 0; c < x_TH.cols; c += most) {
      const Index cols = (std::min)(most, x_TH.cols - c);
      for (Index e = range.begin; e < range.end; ++e) {
        const auto list = sorted_entries(sorted, dw_EH.rows, first / gradient_chunk, e);
        add_rows(list.coefficients, list.rows, list.count, slices + c * rows, cols, cols,
                 dw_EH.row(e) + c);
      }
    }
  }
}

/// dw_EH += dlogits^T X for the experts of `range`. Workers divide the columns; bits do not depend
/// on how many each takes.
template <class Source, class Id, class A, class Executor>
void add_selected_to_weights(const Choices<Id>& choices, const LogitGradients<A>& gradients,
                             const MatrixView<const Source>& x_TH, ExpertRange range,
                             const MatrixView<A>& dw_EH, Arena& arena, const Executor& executor,
                             int workers) {
  const StridedView<const A>& dselected_TK = gradients.dselected_logits_TK;
  const auto sorted = carve_sorted<A>(arena, x_TH.rows, dw_EH.rows, dselected_TK.cols);
  const PerWorker slices(arena, workers, CarveSlices<A>{});
  const Index chunks = (x_TH.rows + gradient_chunk - 1) / gradient_chunk;
  const int busy =
      useful_workers(executor, workers, {sparse_work, x_TH.rows, dselected_TK.cols, dw_EH.cols});
  for_each_block(executor, busy, chunks, [&](int, Index chunk) {
    sort_chunk(choices, dselected_TK, dw_EH.rows, chunk, sorted);
  });
  const Index all_slices = (dw_EH.cols + slice_cols<A>() - 1) / slice_cols<A>();
  const Index slices_each = std::clamp<Index>(all_slices / busy, 1, most_slices);
  const Index most = slices_each * slice_cols<A>();
  for_each_block(executor, busy, (dw_EH.cols + most - 1) / most, [&](int worker, Index i) {
    const Index cols = (std::min)(most, dw_EH.cols - i * most);
    add_sorted_to_weights(sorted, x_TH.middle_cols(i * most, cols), range,
                          dw_EH.middle_cols(i * most, cols), slices(worker));
  });
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_GATE_SPARSE_GRADIENT_HPP
