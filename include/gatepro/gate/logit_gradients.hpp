// SPDX-License-Identifier: MIT
// Stage: the two parts of the logits' gradient in one matrix, for those with a product of their
// own.
#ifndef GATEPRO_GATE_LOGIT_GRADIENTS_HPP
#define GATEPRO_GATE_LOGIT_GRADIENTS_HPP

#include "gatepro/gate/gradient.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// dlogits_TE += both parts of the gradient, on checked arguments.
template <class Id, class A, class Executor>
void add_logit_gradients(const Choices<Id>& choices, const LogitGradients<A>& gradients,
                         const MatrixView<A>& dlogits_TE, const Executor& executor, int workers) {
  const StridedView<const A>& dselected_TK = gradients.dselected_logits_TK;
  const MatrixView<const A>& dense_TE = gradients.dlogits_TE;
  const Index cols = dense_TE.given() ? dense_TE.cols : dselected_TK.cols;
  const int busy = useful_workers(executor, workers, {merge_work, dlogits_TE.rows, cols});
  for_each_row(dlogits_TE.rows, executor, busy, [&](Index t) {
    if (is_masked(choices.is_padding_T, t)) return;
    A* dlogits_E = dlogits_TE.row(t);
    if (dense_TE.given()) {
      for (Index e = 0; e < dlogits_TE.cols; ++e) dlogits_E[e] += dense_TE(t, e);
    }
    for (Index j = 0; j < dselected_TK.cols; ++j) {
      if (!counts(choices, t, j)) continue;
      dlogits_E[static_cast<Index>(choices.expert_ids_TK(t, j))] += dselected_TK(t, j);
    }
  });
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// dlogits_TE += the gradient of the logits: that of the selected ones at the experts' columns, and
/// that of all of them, if it is given. A GEMM then makes dX = dlogits W and dW = dlogits^T X.
///
/// choices, gradients: as in gate_backward_tokens. dlogits_TE: T x E, added to, other memory than
/// gradients.dlogits_TE; the rows of padding stay as they are. Throws Error for shapes, or an id
/// that is neither in [0, E) nor -1, before any write. Cost: T K additions, T E with
/// gradients.dlogits_TE; no allocation. Thread-safe.
template <class Id, class A, class Executor = SerialExecutor>
void merge_logit_gradients(const Choices<Id>& choices,
                           const detail::non_deduced_t<LogitGradients<A>>& gradients,
                           MatrixView<A> dlogits_TE, const Executor& executor = {}) {
  const detail::Checks checks("merge_logit_gradients");
  const Choices<Id> chosen = detail::before_drops(choices);
  const Index tokens = dlogits_TE.rows;
  const Index experts = dlogits_TE.cols;
  detail::check_logit_gradients(checks, chosen, gradients, tokens, experts);
  checks.matrix("dlogits_TE", dlogits_TE, tokens, experts);
  checks.overlaps(detail::output("dlogits_TE", dlogits_TE),
                  detail::input("expert_ids_TK", chosen.expert_ids_TK),
                  detail::input("is_padding_T", chosen.is_padding_T),
                  detail::input("dselected_logits_TK", gradients.dselected_logits_TK),
                  detail::input("gradients.dlogits_TE", gradients.dlogits_TE));
  const int workers = checks.workers(executor);
  detail::add_logit_gradients(chosen, gradients, dlogits_TE, executor, workers);
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_GATE_LOGIT_GRADIENTS_HPP
