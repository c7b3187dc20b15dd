// SPDX-License-Identifier: MIT
// Stages: soft caps of logits, and their gradient.
#ifndef GATEPRO_GATE_SOFT_CAP_HPP
#define GATEPRO_GATE_SOFT_CAP_HPP

#include <algorithm>

#include "gatepro/core/checks.hpp"
#include "gatepro/core/choices.hpp"
#include "gatepro/core/order.hpp"
#include "gatepro/core/workspace.hpp"
#include "gatepro/kernels/dispatch.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// What capping a logit, or multiplying by its slope, takes in multiply-adds of the gate.
inline constexpr Index soft_cap_work = 256;

/// Rows that a worker caps in one go.
inline constexpr Index soft_cap_rows = 64;

template <class A>
void check_soft_cap(const Checks& checks, double cap) {
  checks.need(is_finite_as<A>(cap) && key_of(static_cast<A>(cap)) > 0,
              "a soft cap that is finite and > 0, also in the logits' precision", {{"cap", cap}});
}

/// Caps rows, in one run if nothing stands between them: those of few experts fill no vectors.
template <class A>
void soft_cap_block(A cap, const MatrixView<A>& logits_TE) {
  const auto soft_cap = cap_kernels<A>().soft_cap;
  if (logits_TE.row_stride == logits_TE.cols) {
    soft_cap(logits_TE.data, logits_TE.rows * logits_TE.cols, cap);
  } else {
    for (Index t = 0; t < logits_TE.rows; ++t) soft_cap(logits_TE.row(t), logits_TE.cols, cap);
  }
}

/// dlogits_TE *= slope, on checked arguments.
template <class A, class Executor>
void multiply_by_slopes(A cap, const MatrixView<const A>& capped_TE,
                        const MatrixView<A>& dlogits_TE, const Executor& executor, int workers) {
  const auto slopes = cap_kernels<A>().soft_cap_slopes;
  const int busy =
      useful_workers(executor, workers, {soft_cap_work, capped_TE.rows, capped_TE.cols});
  for_each_row(dlogits_TE.rows, executor, busy,
               [&](Index t) { slopes(capped_TE.row(t), capped_TE.cols, cap, dlogits_TE.row(t)); });
}

/// The same for the gradients of the selected logits. Choices that do not count are left alone.
template <class Id, class A, class Executor>
void multiply_selected_by_slopes(A cap, const MatrixView<const A>& capped_TE,
                                 const Choices<Id>& choices, const StridedView<A>& dselected_TK,
                                 const Executor& executor, int workers) {
  const auto slopes = cap_kernels<A>().soft_cap_slopes;
  const int busy =
      useful_workers(executor, workers, {soft_cap_work, capped_TE.rows, dselected_TK.cols});
  for_each_row(capped_TE.rows, executor, busy, [&](Index t) {
    for (Index j = 0; j < dselected_TK.cols; ++j) {
      if (!counts(choices, t, j)) continue;
      slopes(&capped_TE(t, static_cast<Index>(choices.expert_ids_TK(t, j))), 1, cap,
             &dselected_TK(t, j));
    }
  });
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// logits_TE = cap tanh(logits_TE / cap), in place: logits between -cap and cap, which are about
/// the same where they are small (Gemma 2 caps its logits so).
///
/// logits_TE: T x E. A float is the double result, rounded: an error below 0.51 ulp, and no two
/// logits change their order, but they may become equal. A double errs by 4 ulp at most, where it
/// is not below 2^-960, and logits closer than that may change places. Odd; exactly +-cap from
/// 20 cap on, infinities included; a NaN stays. So a -inf is no mask behind it: mask afterwards.
///
/// Throws Error for shapes, or a cap that is not finite and > 0 as an A, before any write. Cost:
/// T E exponentials in double; no allocation. Thread-safe.
template <class A, class Executor = SerialExecutor>
void soft_cap_logits(double cap, MatrixView<A> logits_TE, const Executor& executor = {}) {
  detail::check_accumulator<A>();
  const detail::Checks checks("soft_cap_logits");
  detail::check_soft_cap<A>(checks, cap);
  checks.matrix("logits_TE", logits_TE, logits_TE.rows, logits_TE.cols);
  const int busy = detail::useful_workers(executor, checks.workers(executor),
                                          {detail::soft_cap_work, logits_TE.rows, logits_TE.cols});
  const Index blocks = detail::blocks_of(logits_TE.rows, detail::soft_cap_rows);
  detail::for_each_block(executor, busy, blocks, [&](int, Index block) {
    const Index first = block * detail::soft_cap_rows;
    const Index count = (std::min)(detail::soft_cap_rows, logits_TE.rows - first);
    detail::soft_cap_block(static_cast<A>(cap), logits_TE.middle_rows(first, count));
  });
}

/// dlogits_TE *= 1 - (capped_TE / cap)^2, in place: gradients of capped logits become those of the
/// logits before.
///
/// capped_TE: T x E, what soft_cap_logits made. The slope errs by 2 eps: near the cap it has few
/// digits, as the capped logit has. Throws Error as soft_cap_logits does. No allocation.
/// Thread-safe.
template <class A, class Executor = SerialExecutor>
void soft_cap_backward(double cap, detail::non_deduced_t<MatrixView<const A>> capped_TE,
                       MatrixView<A> dlogits_TE, const Executor& executor = {}) {
  detail::check_accumulator<A>();
  const detail::Checks checks("soft_cap_backward");
  detail::check_soft_cap<A>(checks, cap);
  checks.matrix("capped_TE", capped_TE, capped_TE.rows, capped_TE.cols);
  checks.matrix("dlogits_TE", dlogits_TE, capped_TE.rows, capped_TE.cols);
  checks.overlaps(detail::output("dlogits_TE", dlogits_TE), detail::input("capped_TE", capped_TE));
  detail::multiply_by_slopes(static_cast<A>(cap), capped_TE, dlogits_TE, executor,
                             checks.workers(executor));
}

/// The same for gradients of the selected logits, T x K: those of choices that count.
template <class Id, class A, class Executor = SerialExecutor>
void soft_cap_backward(double cap, detail::non_deduced_t<MatrixView<const A>> capped_TE,
                       const Choices<Id>& choices, StridedView<A> dselected_logits_TK,
                       const Executor& executor = {}) {
  detail::check_accumulator<A>();
  const detail::Checks checks("soft_cap_backward");
  const Choices<Id> chosen = detail::before_drops(choices);
  const Index tokens = capped_TE.rows;
  const Index top_k = chosen.expert_ids_TK.cols;
  detail::check_soft_cap<A>(checks, cap);
  checks.matrix("capped_TE", capped_TE, tokens, capped_TE.cols);
  detail::check_choice_views(checks, chosen, tokens, top_k);
  checks.strided("dselected_logits_TK", dselected_logits_TK, tokens, top_k);
  detail::check_choices(checks, "expert_ids_TK", chosen, capped_TE.cols);
  checks.overlaps(detail::output("dselected_logits_TK", dselected_logits_TK),
                  detail::input("capped_TE", capped_TE),
                  detail::input("expert_ids_TK", chosen.expert_ids_TK),
                  detail::input("is_padding_T", chosen.is_padding_T));
  detail::multiply_selected_by_slopes(static_cast<A>(cap), capped_TE, chosen, dselected_logits_TK,
                                      executor, checks.workers(executor));
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_GATE_SOFT_CAP_HPP
