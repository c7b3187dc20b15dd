// SPDX-License-Identifier: MIT
// Stage: gradients of the gating logits, to X and to W.
//
// The gradient of the logits comes in two parts that are added: the selected logits' (T x K, from
// softmax_backward) and, if auxiliary losses act on the logits, a dense one (T x E).
#ifndef GATEPRO_GATE_BACKWARD_HPP
#define GATEPRO_GATE_BACKWARD_HPP

#include <algorithm>

#include "gatepro/detail/checks.hpp"
#include "gatepro/detail/order.hpp"
#include "gatepro/detail/simd/dispatch.hpp"
#include "gatepro/workspace.hpp"

namespace gatepro {

/// The experts [begin, end) of a gradient to W.
struct ExpertRange {
  Index begin = 0;  ///< First expert.
  Index end = 0;    ///< One past the last.
};

namespace detail {

/// Tokens whose gradients are sorted, and whose columns are copied, together.
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

/// Copies neighbouring columns of all rows next to each other. Rows a power of two apart would
/// share a few sets of the cache; a slice does not.
template <class Source, class A>
void copy_slice(const MatrixView<const Source>& from, A* slice) {
  for (Index r = 0; r < from.rows; ++r) {
    if (r + 8 < from.rows) prefetch(from.row(r + 8), from.cols);
    kernels<A>().widen[source_index<Source>()](from.row(r), from.cols, slice + r * from.cols);
  }
}

/// The gradient of all logits of token `t`, in merged_E: dense plus selected.
template <class Id, class A>
void merge_row(const StridedView<Id>& expert_ids_TK, const StridedView<const A>& dselected_TK,
               const MatrixView<const A>& dlogits_TE, Index t, A* merged_E) {
  std::copy_n(dlogits_TE.row(t), dlogits_TE.cols, merged_E);
  for (Index j = 0; j < expert_ids_TK.cols; ++j) {
    merged_E[static_cast<Index>(expert_ids_TK(t, j))] += dselected_TK(t, j);
  }
}

/// Sorts one chunk of the selected logits' gradients by expert, stably.
template <class Id, class A>
void sort_chunk(const StridedView<Id>& expert_ids_TK, const StridedView<const A>& dselected_TK,
                Index experts, Index chunk, const SortedGradients<A>& sorted) {
  const Index first = chunk * gradient_chunk;
  const Index last = std::min(expert_ids_TK.rows, first + gradient_chunk);
  const auto for_each_nonzero = [&](const auto& visit) {
    for (Index t = first; t < last; ++t) {
      for (Index j = 0; j < expert_ids_TK.cols; ++j) {
        if (!is_zero(dselected_TK(t, j))) visit(t, static_cast<Index>(expert_ids_TK(t, j)), j);
      }
    }
  };
  // begin[e + 1] first counts expert e - 1, then is where e starts, then where e ends.
  Index* begin = sorted.begin + chunk * (experts + 2);
  std::fill_n(begin, experts + 2, Index{0});
  begin[0] = begin[1] = first * expert_ids_TK.cols;
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

/// Column `e` of the merged gradient in a chunk that starts at token `first`.
template <class A>
RowList<A> merge_column(const RowList<A>& selected, const MatrixView<const A>& dlogits_TE, Index e,
                        Index first, RowList<A> list) {
  const Index count = std::min(gradient_chunk, dlogits_TE.rows - first);
  Index next = 0;
  for (Index row = 0; row < count; ++row) {
    A gradient = dlogits_TE(first + row, e);
    for (; next < selected.count && selected.rows[next] == row; ++next) {
      gradient += selected.coefficients[next];
    }
    append_nonzero(list, gradient, row);
  }
  return list;
}

/// A worker's scratch for gradients to tokens.
template <class A>
struct TokenGradientScratch {
  RowList<A> lists;  ///< One list of up to E rows per token of a block.
  A* merged_E = nullptr;
  A* slice = nullptr;  ///< E x slice_cols.
};

template <class A>
struct CarveTokens {
  Index experts;

  /// Tokens whose lists fit 64 Ki entries, but at least 16.
  Index block_tokens() const {
    return std::clamp<Index>(65536 / std::max<Index>(experts, 1), 16, gradient_chunk);
  }

  TokenGradientScratch<A> operator()(Arena& arena) const {
    TokenGradientScratch<A> scratch;
    scratch.lists = carve_list<A>(arena, experts * block_tokens());
    scratch.merged_E = arena.take<A>(experts);
    scratch.slice = arena.take<A>(experts * slice_cols<A>());
    return scratch;
  }
};

/// The nonzero gradients of token `t`, by expert.
template <class Id, class A>
RowList<A> list_token(const StridedView<Id>& expert_ids_TK,
                      const StridedView<const A>& dselected_TK,
                      const MatrixView<const A>& dlogits_TE, Index t, A* merged_E,
                      RowList<A> list) {
  if (dlogits_TE.given()) {
    merge_row(expert_ids_TK, dselected_TK, dlogits_TE, t, merged_E);
    for (Index e = 0; e < dlogits_TE.cols; ++e) append_nonzero(list, merged_E[e], e);
  } else {
    for (Index j = 0; j < expert_ids_TK.cols; ++j) {
      append_nonzero(list, dselected_TK(t, j), static_cast<Index>(expert_ids_TK(t, j)));
    }
  }
  return list;
}

/// dx_TH += dlogits W for a block of tokens: all tokens against one slice of W, then the next.
template <class Source, class Id, class A>
void add_token_gradients(const StridedView<Id>& expert_ids_TK,
                         const StridedView<const A>& dselected_TK,
                         const MatrixView<const A>& dlogits_TE,
                         const MatrixView<const Source>& w_EH, const MatrixView<A>& dx_TH,
                         const TokenGradientScratch<A>& scratch) {
  const Index experts = w_EH.rows;
  Index counts[gradient_chunk];
  Index entries = 0;
  const auto list_of = [&](Index t) {
    return RowList<A>{scratch.lists.coefficients + t * experts, scratch.lists.rows + t * experts,
                      0};
  };
  for (Index t = 0; t < dx_TH.rows; ++t) {
    counts[t] =
        list_token(expert_ids_TK, dselected_TK, dlogits_TE, t, scratch.merged_E, list_of(t)).count;
    entries += counts[t];
  }
  // A slice pays off if its rows are used more than once. Bits do not depend on it.
  const bool slice_weights = entries >= 2 * experts;
  const Index most = slice_weights ? slice_cols<A>() : w_EH.cols;
  for (Index c = 0; c < w_EH.cols; c += most) {
    const Index cols = std::min(most, w_EH.cols - c);
    if (slice_weights) copy_slice(w_EH.middle_cols(c, cols), scratch.slice);
    for (Index t = 0; t < dx_TH.rows; ++t) {
      const RowList<A> list = list_of(t);
      if (t + 4 < dx_TH.rows) prefetch(dx_TH.row(t + 4) + c, cols);
      if (slice_weights) {
        kernels<A>().add_rows[source_index<A>()](list.coefficients, list.rows, counts[t],
                                                 scratch.slice, cols, cols, dx_TH.row(t) + c);
      } else {
        kernels<A>().add_rows[source_index<Source>()](list.coefficients, list.rows, counts[t],
                                                      w_EH.data, w_EH.row_stride, cols,
                                                      dx_TH.row(t));
      }
    }
  }
}

/// A worker's scratch for gradients to weights.
template <class A>
struct WeightGradientScratch {
  RowList<A> column;   ///< gradient_chunk entries.
  A* slice = nullptr;  ///< gradient_chunk x slice_cols.
};

template <class A>
struct CarveWeights {
  WeightGradientScratch<A> operator()(Arena& arena) const {
    WeightGradientScratch<A> scratch;
    scratch.column = carve_list<A>(arena, gradient_chunk);
    scratch.slice = arena.take<A>(gradient_chunk * slice_cols<A>());
    return scratch;
  }
};

template <class A>
SortedGradients<A> carve_sorted(Arena& arena, Index tokens, Index experts, Index top_k) {
  const Index entries =
      checked_product("gate_backward_weights", "T * K within the address space", tokens, top_k);
  const Index chunks = (tokens + gradient_chunk - 1) / gradient_chunk;
  SortedGradients<A> sorted;
  sorted.coefficients = arena.take<A>(entries);
  sorted.rows = arena.take<Index>(entries);
  sorted.begin = arena.take<Index>(checked_product(
      "gate_backward_weights", "T * E within the address space", chunks, experts + 2));
  return sorted;
}

/// dw += dlogits^T X for the experts of `range` and the columns of x_TH and dw_EH, which fit a
/// slice: chunk by chunk, so that each element is one chain over the tokens.
template <class Source, class A>
void add_weight_gradients(const SortedGradients<A>& sorted, const MatrixView<const A>& dlogits_TE,
                          const MatrixView<const Source>& x_TH, ExpertRange range,
                          const MatrixView<A>& dw_EH, const WeightGradientScratch<A>& scratch) {
  for (Index first = 0; first < x_TH.rows; first += gradient_chunk) {
    const Index chunk = first / gradient_chunk;
    copy_slice(x_TH.middle_rows(first, std::min(gradient_chunk, x_TH.rows - first)), scratch.slice);
    for (Index e = range.begin; e < range.end; ++e) {
      RowList<A> list = sorted_entries(sorted, dw_EH.rows, chunk, e);
      if (dlogits_TE.given()) list = merge_column(list, dlogits_TE, e, first, scratch.column);
      kernels<A>().add_rows[source_index<A>()](list.coefficients, list.rows, list.count,
                                               scratch.slice, x_TH.cols, x_TH.cols, dw_EH.row(e));
    }
  }
}

/// Checks what both directions take.
template <class Id, class A>
void check_logit_gradients(const char* where, const StridedView<Id>& expert_ids_TK,
                           const StridedView<const A>& dselected_TK,
                           const MatrixView<const A>& dlogits_TE, Index tokens, Index experts) {
  check_num_experts(where, experts);
  const Index top_k = expert_ids_TK.cols;
  check_top_k(where, top_k, experts);
  check_strided(where, "expert_ids_TK", expert_ids_TK, tokens, top_k);
  check_strided(where, "dselected_logits_TK", dselected_TK, tokens, top_k);
  check_optional_matrix(where, "dlogits_TE", dlogits_TE, tokens, experts);
  check_ids(where, "expert_ids_TK", expert_ids_TK, experts);
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Bytes of workspace for gate_backward_tokens.
template <class A>
std::size_t gate_backward_tokens_workspace(Index num_experts, int workers = 1) {
  return detail::measure([&](detail::Arena& arena) {
    detail::PerWorker(arena, workers, detail::CarveTokens<A>{num_experts});
  });
}

/// dx_TH += dlogits W: the gradient to the tokens.
///
/// expert_ids_TK, dselected_logits_TK: T x K. dlogits_TE: T x E, or not given. w_EH: E x H.
/// dx_TH: T x H, added to. Each element is one chain that starts from the value in dx_TH and goes
/// through the selection (or, with dlogits_TE, through the experts in ascending order). Zero
/// gradients are skipped. A range of tokens is `middle_rows` of all token matrices.
///
/// Throws Error for shapes, an id outside [0, E) or a workspace that is too small, before any
/// write. Cost: 2 T K H operations, 2 T E H with dlogits_TE; no allocation. Thread-safe.
template <class Id, class A, class W, class Executor = SerialExecutor>
void gate_backward_tokens(StridedView<Id> expert_ids_TK,
                          detail::non_deduced_t<StridedView<const A>> dselected_logits_TK,
                          detail::non_deduced_t<MatrixView<const A>> dlogits_TE, MatrixView<W> w_EH,
                          MatrixView<A> dx_TH, Workspace workspace, const Executor& executor = {}) {
  using Source = detail::value_t<W>;
  detail::check_id_type<detail::value_t<Id>>();
  detail::check_accumulator<A>();
  detail::check_input_scalars<Source, Source>();
  detail::check_executor<Executor>();
  const char* where = "gate_backward_tokens";
  const Index tokens = dx_TH.rows;
  const Index experts = w_EH.rows;
  detail::check_logit_gradients(where, expert_ids_TK, dselected_logits_TK, dlogits_TE, tokens,
                                experts);
  detail::check_matrix(where, "w_EH", w_EH, experts, dx_TH.cols);
  detail::check_matrix(where, "dx_TH", dx_TH, tokens, dx_TH.cols);
  const int workers = detail::checked_workers(where, executor);
  detail::Arena arena(where, workspace, gate_backward_tokens_workspace<A>(experts, workers));

  const detail::CarveTokens<A> carve{experts};
  const detail::PerWorker scratch(arena, workers, carve);
  const Index block_tokens = carve.block_tokens();
  const Index blocks = (tokens + block_tokens - 1) / block_tokens;
  detail::for_each_block(executor, workers, blocks, [&](int worker, Index block) {
    const Index first = block * block_tokens;
    const Index count = std::min(block_tokens, tokens - first);
    detail::add_token_gradients<Source>(
        expert_ids_TK.middle_rows(first, count), dselected_logits_TK.middle_rows(first, count),
        dlogits_TE.middle_rows(first, count), MatrixView<const Source>(w_EH),
        dx_TH.middle_rows(first, count), scratch(worker));
  });
}

/// Bytes of workspace for gate_backward_weights.
template <class A>
std::size_t gate_backward_weights_workspace(Index num_tokens, Index num_experts, Index top_k,
                                            int workers = 1) {
  return detail::measure([&](detail::Arena& arena) {
    detail::carve_sorted<A>(arena, num_tokens, num_experts, top_k);
    detail::PerWorker(arena, workers, detail::CarveWeights<A>{});
  });
}

/// dw_EH += dlogits^T X: the gradient to the router weights, for the experts of `range`.
///
/// expert_ids_TK, dselected_logits_TK: T x K. dlogits_TE: T x E, or not given. x_TH: T x H.
/// dw_EH: E x H, rows of `range` added to. Each element is one chain over the tokens in ascending
/// order that starts from the value in dw_EH: splitting a batch into consecutive calls, experts
/// into ranges or columns into blocks (`middle_cols` of x_TH and dw_EH) gives the same bits. Zero
/// gradients are skipped.
///
/// Throws Error for shapes, a range outside [0, E], an id outside [0, E) or a workspace that is too
/// small, before any write. Cost: 2 T K H operations, 2 T E H with dlogits_TE; no allocation, no
/// atomics. Thread-safe.
template <class Id, class A, class X, class Executor = SerialExecutor>
void gate_backward_weights(StridedView<Id> expert_ids_TK,
                           detail::non_deduced_t<StridedView<const A>> dselected_logits_TK,
                           detail::non_deduced_t<MatrixView<const A>> dlogits_TE,
                           MatrixView<X> x_TH, ExpertRange range, MatrixView<A> dw_EH,
                           Workspace workspace, const Executor& executor = {}) {
  using Source = detail::value_t<X>;
  detail::check_id_type<detail::value_t<Id>>();
  detail::check_accumulator<A>();
  detail::check_input_scalars<Source, Source>();
  detail::check_executor<Executor>();
  const char* where = "gate_backward_weights";
  const Index tokens = x_TH.rows;
  const Index experts = dw_EH.rows;
  detail::check_logit_gradients(where, expert_ids_TK, dselected_logits_TK, dlogits_TE, tokens,
                                experts);
  detail::check_matrix(where, "x_TH", x_TH, tokens, dw_EH.cols);
  detail::check_matrix(where, "dw_EH", dw_EH, experts, dw_EH.cols);
  detail::require(0 <= range.begin && range.begin <= range.end && range.end <= experts, where,
                  "0 <= range.begin <= range.end <= num_experts",
                  {{"begin", range.begin}, {"end", range.end}, {"num_experts", experts}});
  const int workers = detail::checked_workers(where, executor);
  const Index top_k = expert_ids_TK.cols;
  detail::Arena arena(where, workspace,
                      gate_backward_weights_workspace<A>(tokens, experts, top_k, workers));

  const auto sorted = detail::carve_sorted<A>(arena, tokens, experts, top_k);
  const detail::PerWorker scratch(arena, workers, detail::CarveWeights<A>{});
  const Index chunks = (tokens + detail::gradient_chunk - 1) / detail::gradient_chunk;
  detail::for_each_block(executor, workers, chunks, [&](int, Index chunk) {
    detail::sort_chunk(expert_ids_TK, dselected_logits_TK, experts, chunk, sorted);
  });
  const Index slice = detail::slice_cols<A>();
  const Index slices = (dw_EH.cols + slice - 1) / slice;
  detail::for_each_block(executor, workers, slices, [&](int worker, Index i) {
    const Index cols = std::min(slice, dw_EH.cols - i * slice);
    detail::add_weight_gradients<Source>(
        sorted, dlogits_TE, MatrixView<const Source>(x_TH.middle_cols(i * slice, cols)), range,
        dw_EH.middle_cols(i * slice, cols), scratch(worker));
  });
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_GATE_BACKWARD_HPP
