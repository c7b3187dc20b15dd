// SPDX-License-Identifier: MIT
// Stages: tokens to rows sorted by expert, and the experts' rows back to tokens.
//
//   x_TH --permute--> rows_NH --experts--> rows_NH --combine, with the weights--> y_TH
//
// Llama 4 scales what goes in instead: permute_scaled, and combine with weights of one.
//
// All take the table of the plan first, then the weights, the experts' rows or the tokens, the
// gradient, and last what is written.
#ifndef GATEPRO_DISPATCH_PERMUTE_HPP
#define GATEPRO_DISPATCH_PERMUTE_HPP

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "gatepro/core/checks.hpp"
#include "gatepro/core/choices.hpp"
#include "gatepro/core/order.hpp"
#include "gatepro/core/scalar.hpp"
#include "gatepro/kernels/dispatch.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// What an element that is copied or added takes, in multiply-adds of the gate, while caches hold
/// it.
inline constexpr Index row_work = 16;

/// Every element of a plan's table is "none" or in [0, limit).
template <class Id>
void check_plan_table(const Checks& checks, const char* name, const StridedView<Id>& table,
                      Index limit) {
  for (Index r = 0; r < table.rows; ++r) {
    for (Index c = 0; c < table.cols; ++c) {
      const auto id = table(r, c);
      const bool in_range =
          !is_some(id) || static_cast<std::uint64_t>(id) < static_cast<std::uint64_t>(limit);
      if (!in_range) {
        checks.refuse(name, "every element in range, or none",
                      {{"element", id}, {"row", r}, {"column", c}, {"limit", limit}});
      }
    }
  }
}

/// The same for a list.
template <class Id>
void check_plan_list(const Checks& checks, const char* name, const VectorView<Id>& list, Index size,
                     Index limit) {
  checks.vector(name, list, size);
  check_plan_table(checks, name, StridedView<Id>(list.data, size, 1), limit);
}

/// out += coefficient * row, element by element, as the gradients of the gate are added.
template <class Source, class A>
void add_row(A coefficient, const Source* row, Index width, A* out) {
  const Index first = 0;
  gradient_kernels<A, Source>().add_rows(&coefficient, &first, 1, row, width, width, out);
}

/// What products are added to without a change, not even of the sign of a zero.
template <class A>
struct MinusZeros {
  static constexpr Index count = 256;
  A values[count] = {};

  constexpr MinusZeros() {
    for (A& value : values) value = A(-0.0);
  }
};
template <class A>
inline constexpr MinusZeros<A> minus_zeros{};

/// row = weight * token, each element rounded once; those of 16 bits are multiplied in float.
template <class X, class A>
void scale_row(A weight, const X* token, Index width, X* row) {
  for (Index c = 0; c < width; c += MinusZeros<A>::count) {
    const Index count = (std::min)(MinusZeros<A>::count, width - c);
    if constexpr (std::is_same_v<X, A>) {
      std::copy_n(minus_zeros<A>.values, count, row + c);
      add_row(weight, token + c, count, row + c);
    } else {
      MinusZeros<A> products;
      add_row(weight, token + c, count, products.values);
      narrow_kernels<X>().narrow(products.values, count, row + c);
    }
  }
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// rows_NH[r] = x_TH[token_of_row_N[r]]: each token's features, once per choice, sorted by expert.
///
/// token_of_row_N: N, from plan_dispatch; none gives a row of zeros. x_TH: T x H. rows_NH: N x H,
/// overwritten, of the same scalar as X: the bits are copied. Throws Error for shapes or a token
/// outside [0, T), before any write. Cost: N H copies; no allocation. Thread-safe.
template <class X, class Id, class Executor = SerialExecutor>
void permute(VectorView<Id> token_of_row_N, detail::non_deduced_t<MatrixView<const X>> x_TH,
             MatrixView<X> rows_NH, const Executor& executor = {}) {
  detail::check_input_scalars<X, X>();
  detail::check_id_type<detail::value_t<Id>>();
  const detail::Checks checks("permute");
  const Index rows = rows_NH.rows;
  checks.matrix("x_TH", x_TH, x_TH.rows, x_TH.cols);
  checks.matrix("rows_NH", rows_NH, rows, x_TH.cols);
  checks.overlaps(detail::output("rows_NH", rows_NH), detail::input("x_TH", x_TH),
                  detail::input("token_of_row_N", token_of_row_N));
  detail::check_plan_list(checks, "token_of_row_N", token_of_row_N, rows, x_TH.rows);
  const int busy = detail::useful_workers(executor, checks.workers(executor),
                                          {detail::row_work, rows, x_TH.cols});

  detail::for_each_row(rows, executor, busy, [&](Index r) {
    const auto token = token_of_row_N[r];
    if (detail::is_some(token)) {
      std::copy_n(x_TH.row(static_cast<Index>(token)), x_TH.cols, rows_NH.row(r));
    } else {
      std::fill_n(rows_NH.row(r), x_TH.cols, static_cast<X>(0));
    }
  });
}

/// dx_TH[t] += sum over j of drows_NH[row_TK(t, j)]: the gradient of permute.
///
/// row_TK: T x K, from plan_dispatch; none adds nothing. drows_NH: N x H. dx_TH: T x H, added to:
/// each element is one chain that starts from its value and goes through the choices in order.
/// Throws Error for shapes or a row outside [0, N), before any write. Cost: T K H additions; no
/// allocation. Thread-safe.
template <class Id, class A, class Executor = SerialExecutor>
void permute_backward(StridedView<Id> row_TK, detail::non_deduced_t<MatrixView<const A>> drows_NH,
                      MatrixView<A> dx_TH, const Executor& executor = {}) {
  detail::check_id_type<detail::value_t<Id>>();
  detail::check_accumulator<A>();
  const detail::Checks checks("permute_backward");
  checks.matrix("drows_NH", drows_NH, drows_NH.rows, dx_TH.cols);
  checks.matrix("dx_TH", dx_TH, dx_TH.rows, dx_TH.cols);
  checks.strided("row_TK", row_TK, dx_TH.rows, row_TK.cols);
  checks.overlaps(detail::output("dx_TH", dx_TH), detail::input("drows_NH", drows_NH),
                  detail::input("row_TK", row_TK));
  detail::check_plan_table(checks, "row_TK", row_TK, drows_NH.rows);
  const int busy = detail::useful_workers(executor, checks.workers(executor),
                                          {detail::row_work, dx_TH.rows, row_TK.cols, dx_TH.cols});

  detail::for_each_row(dx_TH.rows, executor, busy, [&](Index t) {
    for (Index j = 0; j < row_TK.cols; ++j) {
      if (!detail::is_some(row_TK(t, j))) continue;
      detail::add_row(A(1), drows_NH.row(static_cast<Index>(row_TK(t, j))), dx_TH.cols,
                      dx_TH.row(t));
    }
  });
}

/// rows_NH[r] = weights_TK(t, j) x_TH[t] for the choice (t, j) in row r: permute for experts whose
/// input is scaled, not their output (Llama 4). Their outputs are then added up by combine with
/// weights of one: a view of one number with strides of 0 will do.
///
/// choice_of_row_N: N, t * K + j, from plan_dispatch; none gives a row of zeros, as does a weight
/// of exactly 0, whatever the token holds. weights_TK: T x K, double if X is, else float. x_TH: T x
/// H. rows_NH: N x H, overwritten, of the same scalar as X; each product is rounded once, to
/// nearest. Throws Error for shapes or a choice outside [0, T K), before any write. Cost: N H
/// products; no allocation. Thread-safe.
///
/// The gradient to the tokens is combine(row_TK, weights_TK, drows_NH, dx_TH), that to the weights
/// permute_scaled_backward_weights.
template <class X, class Id, class Executor = SerialExecutor>
void permute_scaled(VectorView<Id> choice_of_row_N,
                    detail::non_deduced_t<StridedView<const accumulator_t<X>>> weights_TK,
                    detail::non_deduced_t<MatrixView<const X>> x_TH, MatrixView<X> rows_NH,
                    const Executor& executor = {}) {
  detail::check_input_scalars<X, X>();
  detail::check_id_type<detail::value_t<Id>>();
  const detail::Checks checks("permute_scaled");
  const Index rows = rows_NH.rows;
  const Index top_k = weights_TK.cols;
  checks.matrix("x_TH", x_TH, x_TH.rows, x_TH.cols);
  checks.matrix("rows_NH", rows_NH, rows, x_TH.cols);
  checks.strided("weights_TK", weights_TK, x_TH.rows, top_k);
  const Index choices = checks.product("T * K within the address space", x_TH.rows, top_k);
  detail::check_plan_list(checks, "choice_of_row_N", choice_of_row_N, rows, choices);
  checks.overlaps(detail::output("rows_NH", rows_NH), detail::input("x_TH", x_TH),
                  detail::input("choice_of_row_N", choice_of_row_N),
                  detail::input("weights_TK", weights_TK));
  const int busy = detail::useful_workers(executor, checks.workers(executor),
                                          {detail::row_work, rows, x_TH.cols});

  detail::for_each_row(rows, executor, busy, [&](Index r) {
    const auto choice = static_cast<Index>(choice_of_row_N[r]);
    const bool some = detail::is_some(choice_of_row_N[r]);
    const accumulator_t<X> weight = some ? weights_TK(choice / top_k, choice % top_k) : 0;
    if (detail::key_of(weight) == 0) {
      std::fill_n(rows_NH.row(r), x_TH.cols, static_cast<X>(0));
    } else {
      detail::scale_row(weight, x_TH.row(choice / top_k), x_TH.cols, rows_NH.row(r));
    }
  });
}

/// dweights_TK(t, j) += <x_TH[t], drows_NH[row_TK(t, j)]>: permute_scaled's gradient to the
/// weights.
///
/// row_TK: T x K, from plan_dispatch; none adds nothing. x_TH: T x H, as permute_scaled took them.
/// drows_NH: N x H. dweights_TK: T x K, added to. Throws Error for shapes or a row outside [0, N),
/// before any write. Cost: 2 T K H operations; no allocation. Thread-safe.
template <class X, class Id, class A, class Executor = SerialExecutor>
void permute_scaled_backward_weights(StridedView<Id> row_TK, MatrixView<X> x_TH,
                                     detail::non_deduced_t<MatrixView<const A>> drows_NH,
                                     StridedView<A> dweights_TK, const Executor& executor = {}) {
  using Token = detail::value_t<X>;
  detail::check_input_scalars<Token, Token>();
  detail::check_id_type<detail::value_t<Id>>();
  detail::check_accumulator<A>();
  const detail::Checks checks("permute_scaled_backward_weights");
  checks.matrix("x_TH", x_TH, x_TH.rows, x_TH.cols);
  checks.matrix("drows_NH", drows_NH, drows_NH.rows, x_TH.cols);
  checks.strided("row_TK", row_TK, x_TH.rows, row_TK.cols);
  checks.strided("dweights_TK", dweights_TK, x_TH.rows, row_TK.cols);
  checks.overlaps(detail::output("dweights_TK", dweights_TK), detail::input("x_TH", x_TH),
                  detail::input("row_TK", row_TK), detail::input("drows_NH", drows_NH));
  detail::check_plan_table(checks, "row_TK", row_TK, drows_NH.rows);
  const int busy = detail::useful_workers(executor, checks.workers(executor),
                                          {detail::row_work, x_TH.rows, row_TK.cols, x_TH.cols});

  const auto dot = detail::gradient_kernels<A, Token>().dot;
  detail::for_each_row(x_TH.rows, executor, busy, [&](Index t) {
    for (Index j = 0; j < row_TK.cols; ++j) {
      if (!detail::is_some(row_TK(t, j))) continue;
      const A* drow = drows_NH.row(static_cast<Index>(row_TK(t, j)));
      dweights_TK(t, j) += dot(drow, x_TH.row(t), x_TH.cols);
    }
  });
}

/// row_weights_N[r] = weights_TK of the choice in row r: weights in the order of the rows, for
/// experts that scale their rows themselves.
///
/// choice_of_row_N: N, t * K + j, from plan_dispatch; none gives 0. weights_TK: T x K.
/// row_weights_N: N, overwritten. Throws Error for shapes or a choice outside [0, T K), before any
/// write. Cost: O(N); no allocation. Thread-safe.
template <class Id, class A>
void permute_weights(VectorView<Id> choice_of_row_N,
                     detail::non_deduced_t<StridedView<const A>> weights_TK,
                     VectorView<A> row_weights_N) {
  detail::check_id_type<detail::value_t<Id>>();
  detail::check_accumulator<A>();
  const detail::Checks checks("permute_weights");
  const Index top_k = weights_TK.cols;
  checks.strided("weights_TK", weights_TK, weights_TK.rows, top_k);
  checks.vector("row_weights_N", row_weights_N, row_weights_N.size);
  const Index choices = checks.product("T * K within the address space", weights_TK.rows, top_k);
  detail::check_plan_list(checks, "choice_of_row_N", choice_of_row_N, row_weights_N.size, choices);
  checks.overlaps(detail::output("row_weights_N", row_weights_N),
                  detail::input("choice_of_row_N", choice_of_row_N),
                  detail::input("weights_TK", weights_TK));
  for (Index r = 0; r < row_weights_N.size; ++r) {
    const auto choice = static_cast<Index>(choice_of_row_N[r]);
    row_weights_N[r] =
        detail::is_some(choice_of_row_N[r]) ? weights_TK(choice / top_k, choice % top_k) : A(0);
  }
}

/// dweights_TK(t, j) += drow_weights_N[row_TK(t, j)]: the gradient of permute_weights.
///
/// row_TK: T x K, from plan_dispatch; none adds nothing. drow_weights_N: N. dweights_TK: T x K,
/// added to. Throws Error for shapes or a row outside [0, N), before any write. Cost: O(T K); no
/// allocation. Thread-safe.
template <class Id, class A>
void permute_weights_backward(StridedView<Id> row_TK,
                              detail::non_deduced_t<VectorView<const A>> drow_weights_N,
                              StridedView<A> dweights_TK) {
  detail::check_id_type<detail::value_t<Id>>();
  detail::check_accumulator<A>();
  const detail::Checks checks("permute_weights_backward");
  checks.strided("row_TK", row_TK, dweights_TK.rows, dweights_TK.cols);
  checks.vector("drow_weights_N", drow_weights_N, drow_weights_N.size);
  checks.strided("dweights_TK", dweights_TK, dweights_TK.rows, dweights_TK.cols);
  checks.overlaps(detail::output("dweights_TK", dweights_TK), detail::input("row_TK", row_TK),
                  detail::input("drow_weights_N", drow_weights_N));
  detail::check_plan_table(checks, "row_TK", row_TK, drow_weights_N.size);
  for (Index t = 0; t < row_TK.rows; ++t) {
    for (Index j = 0; j < row_TK.cols; ++j) {
      if (!detail::is_some(row_TK(t, j))) continue;
      dweights_TK(t, j) += drow_weights_N[static_cast<Index>(row_TK(t, j))];
    }
  }
}

/// y_TH[t] += sum over j of weights_TK(t, j) rows_NH[row_TK(t, j)]: the experts' results, weighted.
///
/// row_TK: T x K, from plan_dispatch; none adds nothing, nor does a weight of exactly 0, whatever
/// the row holds. weights_TK: T x K. rows_NH: N x H, float, double, bfloat16 or half. y_TH: T x H,
/// added to: each element is one chain that starts from its value and goes through the choices in
/// order. Throws Error for shapes or a row outside [0, N), before any write. Cost: 2 T K H
/// operations; no allocation. Thread-safe.
template <class R, class Id, class A, class Executor = SerialExecutor>
void combine(StridedView<Id> row_TK, detail::non_deduced_t<StridedView<const A>> weights_TK,
             MatrixView<R> rows_NH, MatrixView<A> y_TH, const Executor& executor = {}) {
  using Source = detail::value_t<R>;
  detail::check_input_scalars<Source, Source>();
  detail::check_id_type<detail::value_t<Id>>();
  detail::check_accumulator<A>();
  const detail::Checks checks("combine");
  checks.matrix("rows_NH", rows_NH, rows_NH.rows, y_TH.cols);
  checks.matrix("y_TH", y_TH, y_TH.rows, y_TH.cols);
  checks.strided("row_TK", row_TK, y_TH.rows, row_TK.cols);
  checks.strided("weights_TK", weights_TK, y_TH.rows, row_TK.cols);
  checks.overlaps(detail::output("y_TH", y_TH), detail::input("rows_NH", rows_NH),
                  detail::input("row_TK", row_TK), detail::input("weights_TK", weights_TK));
  detail::check_plan_table(checks, "row_TK", row_TK, rows_NH.rows);
  const int busy = detail::useful_workers(executor, checks.workers(executor),
                                          {detail::row_work, y_TH.rows, row_TK.cols, y_TH.cols});

  detail::for_each_row(y_TH.rows, executor, busy, [&](Index t) {
    for (Index j = 0; j < row_TK.cols; ++j) {
      const A weight = weights_TK(t, j);
      if (!detail::is_some(row_TK(t, j)) || detail::key_of(weight) == 0) continue;
      const Source* row = rows_NH.row(static_cast<Index>(row_TK(t, j)));
      detail::add_row(weight, row, y_TH.cols, y_TH.row(t));
    }
  });
}

/// drows_NH[r] += w dy_TH[t] for the choice (t, j) in row r: combine's gradient to the rows.
///
/// choice_of_row_N: N, t * K + j, from plan_dispatch; none adds nothing, nor does a weight of
/// exactly 0. weights_TK: T x K. dy_TH: T x H. drows_NH: N x H, added to. Throws Error for shapes
/// or a choice outside [0, T K), before any write. Cost: 2 N H operations; no allocation.
/// Thread-safe.
template <class Id, class A, class Executor = SerialExecutor>
void combine_backward_rows(VectorView<Id> choice_of_row_N,
                           detail::non_deduced_t<StridedView<const A>> weights_TK,
                           detail::non_deduced_t<MatrixView<const A>> dy_TH, MatrixView<A> drows_NH,
                           const Executor& executor = {}) {
  detail::check_id_type<detail::value_t<Id>>();
  detail::check_accumulator<A>();
  const detail::Checks checks("combine_backward_rows");
  const Index top_k = weights_TK.cols;
  checks.matrix("dy_TH", dy_TH, dy_TH.rows, drows_NH.cols);
  checks.matrix("drows_NH", drows_NH, drows_NH.rows, drows_NH.cols);
  checks.strided("weights_TK", weights_TK, dy_TH.rows, top_k);
  const Index choices = checks.product("T * K within the address space", dy_TH.rows, top_k);
  detail::check_plan_list(checks, "choice_of_row_N", choice_of_row_N, drows_NH.rows, choices);
  checks.overlaps(detail::output("drows_NH", drows_NH),
                  detail::input("choice_of_row_N", choice_of_row_N),
                  detail::input("weights_TK", weights_TK), detail::input("dy_TH", dy_TH));
  const int busy = detail::useful_workers(executor, checks.workers(executor),
                                          {detail::row_work, drows_NH.rows, drows_NH.cols});

  detail::for_each_row(drows_NH.rows, executor, busy, [&](Index r) {
    if (!detail::is_some(choice_of_row_N[r])) return;
    const auto choice = static_cast<Index>(choice_of_row_N[r]);
    const Index t = choice / top_k;
    const A weight = weights_TK(t, choice % top_k);
    if (detail::key_of(weight) == 0) return;
    detail::add_row(weight, dy_TH.row(t), drows_NH.cols, drows_NH.row(r));
  });
}

/// dweights_TK(t, j) += <dy_TH[t], rows_NH[row_TK(t, j)]>: combine's gradient to the weights.
///
/// row_TK: T x K, from plan_dispatch; none adds nothing. rows_NH: N x H, as combine took them.
/// dy_TH: T x H. dweights_TK: T x K, added to. Throws Error for shapes or a row outside [0, N),
/// before any write. Cost: 2 T K H operations; no allocation. Thread-safe.
template <class R, class Id, class A, class Executor = SerialExecutor>
void combine_backward_weights(StridedView<Id> row_TK, MatrixView<R> rows_NH,
                              detail::non_deduced_t<MatrixView<const A>> dy_TH,
                              StridedView<A> dweights_TK, const Executor& executor = {}) {
  using Source = detail::value_t<R>;
  detail::check_input_scalars<Source, Source>();
  detail::check_id_type<detail::value_t<Id>>();
  detail::check_accumulator<A>();
  const detail::Checks checks("combine_backward_weights");
  checks.matrix("rows_NH", rows_NH, rows_NH.rows, dy_TH.cols);
  checks.matrix("dy_TH", dy_TH, dy_TH.rows, dy_TH.cols);
  checks.strided("row_TK", row_TK, dy_TH.rows, row_TK.cols);
  checks.strided("dweights_TK", dweights_TK, dy_TH.rows, row_TK.cols);
  checks.overlaps(detail::output("dweights_TK", dweights_TK), detail::input("rows_NH", rows_NH),
                  detail::input("row_TK", row_TK), detail::input("dy_TH", dy_TH));
  detail::check_plan_table(checks, "row_TK", row_TK, rows_NH.rows);
  const int busy = detail::useful_workers(executor, checks.workers(executor),
                                          {detail::row_work, dy_TH.rows, row_TK.cols, dy_TH.cols});

  const auto dot = detail::gradient_kernels<A, Source>().dot;
  detail::for_each_row(dy_TH.rows, executor, busy, [&](Index t) {
    for (Index j = 0; j < row_TK.cols; ++j) {
      if (!detail::is_some(row_TK(t, j))) continue;
      const Source* row = rows_NH.row(static_cast<Index>(row_TK(t, j)));
      dweights_TK(t, j) += dot(dy_TH.row(t), row, dy_TH.cols);
    }
  });
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_DISPATCH_PERMUTE_HPP
