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

/// A list of rows with coefficients, as the add_rows kernel takes it.
template <class A>
struct RowList {
  A* coefficients = nullptr;
  Index* rows = nullptr;
  Index count = 0;
};

/// The selected logits' gradients by expert: expert e has entries begin[e] to begin[e + 1] - 1, in
/// ascending order of token. Zeros are left out: they would add nothing.
template <class A>
struct GradientsByExpert {
  A* coefficients = nullptr;
  Index* tokens = nullptr;
  Index* begin = nullptr;
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

/// The gradient of all logits of token `t`, in merged_E: dense plus selected.
template <class Id, class A>
void merge_row(const StridedView<Id>& expert_ids_TK, const StridedView<const A>& dselected_TK,
               const MatrixView<const A>& dlogits_TE, Index t, A* merged_E) {
  std::copy_n(dlogits_TE.row(t), dlogits_TE.cols, merged_E);
  for (Index j = 0; j < expert_ids_TK.cols; ++j) {
    merged_E[static_cast<Index>(expert_ids_TK(t, j))] += dselected_TK(t, j);
  }
}

/// Sorts the selected logits' gradients by expert, stably.
template <class Id, class A>
void sort_by_expert(const StridedView<Id>& expert_ids_TK,
                    const StridedView<const A>& dselected_TK, Index experts,
                    GradientsByExpert<A>& sorted) {
  const auto for_each_nonzero = [&](const auto& visit) {
    for (Index t = 0; t < expert_ids_TK.rows; ++t) {
      for (Index j = 0; j < expert_ids_TK.cols; ++j) {
        if (!is_zero(dselected_TK(t, j))) visit(t, static_cast<Index>(expert_ids_TK(t, j)), j);
      }
    }
  };
  // begin[e + 1] counts, then marks the start of e, then moves to its end.
  std::fill_n(sorted.begin, experts + 2, Index{0});
  for_each_nonzero([&](Index, Index e, Index) { ++sorted.begin[e + 2]; });
  for (Index e = 1; e <= experts; ++e) sorted.begin[e + 1] += sorted.begin[e];
  for_each_nonzero([&](Index t, Index e, Index j) {
    const Index at = sorted.begin[e + 1]++;
    sorted.tokens[at] = t;
    sorted.coefficients[at] = dselected_TK(t, j);
  });
}

/// Column `e` of the merged gradient, as a list of tokens.
template <class A>
RowList<A> merged_column(const GradientsByExpert<A>& selected, const MatrixView<const A>& dlogits_TE,
                         Index e, RowList<A> list) {
  Index next = selected.begin[e];
  const Index end = selected.begin[e + 1];
  for (Index t = 0; t < dlogits_TE.rows; ++t) {
    A gradient = dlogits_TE(t, e);
    for (; next < end && selected.tokens[next] == t; ++next) {
      gradient += selected.coefficients[next];
    }
    append_nonzero(list, gradient, t);
  }
  return list;
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
  if (dlogits_TE.given()) check_matrix(where, "dlogits_TE", dlogits_TE, tokens, experts);
  check_ids(where, "expert_ids_TK", expert_ids_TK, experts);
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Bytes of workspace for gate_backward_tokens.
template <class A>
std::size_t gate_backward_tokens_workspace(Index num_experts, int workers = 1) {
  return detail::measure([&](detail::Arena& arena) {
    const auto carve = [&](detail::Arena& a) { return detail::carve_list<A>(a, num_experts); };
    detail::PerWorker(arena, workers, carve);
    const auto row = [&](detail::Arena& a) { return a.take<A>(num_experts); };
    detail::PerWorker(arena, workers, row);
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
                          detail::non_deduced_t<MatrixView<const A>> dlogits_TE,
                          MatrixView<W> w_EH, MatrixView<A> dx_TH, Workspace workspace,
                          const Executor& executor = {}) {
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

  const auto carve = [&](detail::Arena& a) { return detail::carve_list<A>(a, experts); };
  const auto row = [&](detail::Arena& a) { return a.take<A>(experts); };
  const detail::PerWorker lists(arena, workers, carve);
  const detail::PerWorker merged_rows(arena, workers, row);
  const auto add_rows = detail::kernels<A>().add_rows[detail::source_index<Source>()];
  constexpr Index block_tokens = 32;
  const Index blocks = (tokens + block_tokens - 1) / block_tokens;
  detail::for_each_block(executor, workers, blocks, [&](int worker, Index block) {
    const Index end = std::min(tokens, (block + 1) * block_tokens);
    for (Index t = block * block_tokens; t < end; ++t) {
      detail::RowList<A> list = lists(worker);
      if (dlogits_TE.given()) {
        A* merged_E = merged_rows(worker);
        detail::merge_row(expert_ids_TK, dselected_logits_TK, dlogits_TE, t, merged_E);
        for (Index e = 0; e < experts; ++e) detail::append_nonzero(list, merged_E[e], e);
      } else {
        for (Index j = 0; j < expert_ids_TK.cols; ++j) {
          detail::append_nonzero(list, dselected_logits_TK(t, j),
                                 static_cast<Index>(expert_ids_TK(t, j)));
        }
      }
      add_rows(list.coefficients, list.rows, list.count, w_EH.data, w_EH.row_stride, dx_TH.cols,
               dx_TH.row(t));
    }
  });
}

/// Bytes of workspace for gate_backward_weights.
template <class A>
std::size_t gate_backward_weights_workspace(Index num_tokens, Index num_experts, Index top_k,
                                            int workers = 1) {
  return detail::measure([&](detail::Arena& arena) {
    const Index entries = detail::checked_product(
        "gate_backward_weights", "T * K within the address space", num_tokens, top_k);
    arena.take<A>(entries);
    arena.take<Index>(entries);
    arena.take<Index>(num_experts + 2);
    const auto carve = [&](detail::Arena& a) { return detail::carve_list<A>(a, num_tokens); };
    detail::PerWorker(arena, workers, carve);
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
                           MatrixView<X> x_TH, ExpertRange range, MatrixView<A> dw_EH, Workspace workspace,
                           const Executor& executor = {}) {
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

  detail::GradientsByExpert<A> sorted;
  sorted.coefficients = arena.take<A>(tokens * top_k);
  sorted.tokens = arena.take<Index>(tokens * top_k);
  sorted.begin = arena.take<Index>(experts + 2);
  detail::sort_by_expert(expert_ids_TK, dselected_logits_TK, experts, sorted);

  const auto carve = [&](detail::Arena& a) { return detail::carve_list<A>(a, tokens); };
  const detail::PerWorker lists(arena, workers, carve);
  const auto add_rows = detail::kernels<A>().add_rows[detail::source_index<Source>()];
  // Neighbouring tasks share columns of X, which then come from cache.
  constexpr Index block_cols = 512;
  const Index range_size = range.end - range.begin;
  const Index col_blocks = (dw_EH.cols + block_cols - 1) / block_cols;
  detail::for_each_block(executor, workers, col_blocks * range_size, [&](int worker, Index task) {
    const Index first_col = task / range_size * block_cols;
    const Index e = range.begin + task % range_size;
    detail::RowList<A> list{sorted.coefficients + sorted.begin[e], sorted.tokens + sorted.begin[e],
                            sorted.begin[e + 1] - sorted.begin[e]};
    if (dlogits_TE.given()) {
      list = detail::merged_column(sorted, dlogits_TE, e, lists(worker));
    }
    add_rows(list.coefficients, list.rows, list.count, x_TH.data + first_col, x_TH.row_stride,
             std::min(block_cols, dw_EH.cols - first_col), dw_EH.row(e) + first_col);
  });
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_GATE_BACKWARD_HPP
