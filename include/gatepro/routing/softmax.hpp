// SPDX-License-Identifier: MIT
// Stage: softmax over the selected experts (GatePro eq. 3-4), and its gradient.
#ifndef GATEPRO_ROUTING_SOFTMAX_HPP
#define GATEPRO_ROUTING_SOFTMAX_HPP

#include <algorithm>
#include <atomic>

#include "gatepro/core/overlap.hpp"
#include "gatepro/core/product.hpp"
#include "gatepro/routing/routing_group.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// Reads rows of a [T, K] matrix into lane-major keys. Lanes past the rows repeat the last one.
template <class A>
void load_selected(const StridedView<const A>& selected_TK, typename Order<A>::Key* keys_KL) {
  const Index lanes = kernels<A>().lanes;
  for (Index j = 0; j < selected_TK.cols; ++j) {
    for (Index lane = 0; lane < lanes; ++lane) {
      const Index t = (std::min)(lane, selected_TK.rows - 1);
      keys_KL[j * lanes + lane] = key_of(selected_TK(t, j));
    }
  }
}

/// dl_j = p_j (g_j - sum_i p_i g_i) for one token; exactly 0 where p_j is.
template <class A>
void softmax_backward_row(const StridedView<const A>& weights_TK,
                          const StridedView<const A>& dweights_TK, Index t, A* dlogits,
                          Index stride) {
  A mean = 0;
  for (Index j = 0; j < weights_TK.cols; ++j) {
    const A p = weights_TK(t, j);
    if (key_of(p) != 0) mean += product(p, dweights_TK(t, j));
  }
  for (Index j = 0; j < weights_TK.cols; ++j) {
    const A p = weights_TK(t, j);
    dlogits[j * stride] = key_of(p) != 0 ? product(p, dweights_TK(t, j) - mean) : A(0);
  }
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Bytes of workspace for softmax_selected.
template <class A>
std::size_t softmax_selected_workspace_bytes(Index top_k, Workers workers = 1) {
  return detail::measure([&](detail::Arena& arena) {
    const auto carve = [&](detail::Arena& a) { return detail::carve_group<A>(a, 1, top_k); };
    detail::PerWorker(arena, workers, carve);
  });
}

/// weights_TK = softmax over the K selected logits of each token (GatePro eq. 3-4).
///
/// selected_logits_TK: T x K, e.g. from select_top_k. weights_TK: T x K, overwritten; it may be
/// selected_logits_TK. Each row sums to 1 within K eps. -inf weighs exactly 0. A row that holds a
/// NaN or +inf, or only -inf, becomes quiet NaNs and is counted in the result. exp is accurate to 2
/// ulp.
///
/// Throws Error for shapes or a workspace that is too small, before any write. No allocation.
/// Thread-safe.
template <class A, class Executor = SerialExecutor>
Index softmax_selected(detail::non_deduced_t<StridedView<const A>> selected_logits_TK,
                       StridedView<A> weights_TK, Workspace workspace,
                       const Executor& executor = {}) {
  detail::check_accumulator<A>();
  const detail::Checks checks("softmax_selected");
  const Index tokens = selected_logits_TK.rows;
  const Index top_k = selected_logits_TK.cols;
  checks.need(top_k >= 1, "1 <= top_k", {{"top_k", top_k}});
  checks.strided("selected_logits_TK", selected_logits_TK, tokens, top_k);
  checks.strided("weights_TK", weights_TK, tokens, top_k);
  checks.overlaps(detail::output("weights_TK", weights_TK), detail::output("workspace", workspace),
                  detail::in_place("selected_logits_TK", selected_logits_TK));
  const int workers = checks.workers(executor);
  detail::Arena arena(checks.where(), workspace,
                      softmax_selected_workspace_bytes<A>(top_k, workers));

  const auto carve = [&](detail::Arena& a) { return detail::carve_group<A>(a, 1, top_k); };
  const detail::PerWorker scratch(arena, workers, carve);
  std::atomic<Index> nonfinite_rows{0};
  const int busy = detail::useful_workers(executor, workers, {detail::softmax_work, tokens, top_k});
  detail::for_each_group<A>(tokens, executor, busy, [&](int worker, const auto& range) {
    const auto group = scratch(worker);
    detail::load_selected<A>(selected_logits_TK.middle_rows(range.first, range.count),
                             group.selected_KL);
    detail::kernels<A>().softmax(group.selected_KL, top_k, group.weights_KL, group.nonfinite_L);
    detail::store_if_given(group.weights_KL, weights_TK, range);
    nonfinite_rows += detail::count_nonfinite(group, range.count, detail::EveryLane{});
  });
  return nonfinite_rows;
}

/// dselected_logits_TK = weights (dweights - sum over K of weights dweights): the gradient of
/// softmax_selected, and of the penalised logits, since the penalty is piecewise constant.
///
/// All T x K; the result is overwritten and may be dweights_TK. A weight of exactly 0 gets a
/// gradient of exactly 0; a NaN row gives NaNs. Throws Error for shapes, before any write. No
/// allocation. Thread-safe.
template <class A>
void softmax_backward(detail::non_deduced_t<StridedView<const A>> weights_TK,
                      detail::non_deduced_t<StridedView<const A>> dweights_TK,
                      StridedView<A> dselected_logits_TK) {
  detail::check_accumulator<A>();
  const detail::Checks checks("softmax_backward");
  const Index tokens = weights_TK.rows;
  const Index top_k = weights_TK.cols;
  checks.strided("weights_TK", weights_TK, tokens, top_k);
  checks.strided("dweights_TK", dweights_TK, tokens, top_k);
  checks.strided("dselected_logits_TK", dselected_logits_TK, tokens, top_k);
  checks.overlaps(detail::output("dselected_logits_TK", dselected_logits_TK),
                  detail::in_place("dweights_TK", dweights_TK),
                  detail::input("weights_TK", weights_TK));
  for (Index t = 0; t < tokens; ++t) {
    detail::softmax_backward_row<A>(weights_TK, dweights_TK, t, &dselected_logits_TK(t, 0),
                                    dselected_logits_TK.col_stride);
  }
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_SOFTMAX_HPP
