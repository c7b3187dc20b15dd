// SPDX-License-Identifier: MIT
// Stage: gradients of the gating logits, to X and to W.
//
// The gradient of the logits comes in two parts that are added: the selected logits' (T x K, from
// softmax_backward) and, if auxiliary losses act on the logits, a dense one (T x E).
#ifndef GATEPRO_GATE_GRADIENT_HPP
#define GATEPRO_GATE_GRADIENT_HPP

#include <algorithm>

#include "gatepro/core/checks.hpp"
#include "gatepro/gate/dense_gradient.hpp"

namespace gatepro {
inline namespace GATEPRO_ABI {

/// Bytes of workspace for gate_backward_tokens.
template <class A>
std::size_t gate_backward_tokens_workspace_bytes(Index num_experts, int workers = 1) {
  detail::Checks("gate_backward_tokens").query_experts(num_experts);
  const auto bytes = [&](const auto& carve) {
    return detail::measure([&](detail::Arena& arena) { detail::PerWorker(arena, workers, carve); });
  };
  return (std::max)(
      bytes(detail::CarveTokenLists<A>{num_experts}),
      bytes(detail::CarveDense<A>{detail::gradient_tokens(num_experts), num_experts}));
}

/// Bytes of workspace for gate_backward_weights.
template <class A>
std::size_t gate_backward_weights_workspace_bytes(Index num_tokens, Index num_experts, Index top_k,
                                                  int workers = 1) {
  detail::Checks("gate_backward_weights").query_experts(num_experts);
  return (std::max)(detail::measure([&](detail::Arena& arena) {
                      detail::carve_sorted<A>(arena, num_tokens, num_experts, top_k);
                      detail::PerWorker(arena, workers, detail::CarveSlices<A>{});
                    }),
                    detail::measure([&](detail::Arena& arena) {
                      detail::carve_chunk<A>(arena, num_experts);
                      detail::PerWorker(arena, workers,
                                        detail::CarveDense<A>::of_lanes(num_experts));
                    }));
}

}  // namespace GATEPRO_ABI

namespace detail {
inline namespace GATEPRO_ABI {

/// Checks what both directions take.
template <class Id, class A>
void check_logit_gradients(const Checks& checks, const Choices<Id>& choices,
                           const StridedView<const A>& dselected_TK,
                           const MatrixView<const A>& dlogits_TE, Index tokens, Index experts) {
  checks.num_experts(experts);
  const Index top_k = choices.expert_ids_TK.cols;
  checks.top_k(top_k, experts);
  checks.strided("expert_ids_TK", choices.expert_ids_TK, tokens, top_k);
  checks.strided("dselected_logits_TK", dselected_TK, tokens, top_k);
  checks.optional_matrix("dlogits_TE", dlogits_TE, tokens, experts);
  check_choices(checks, "expert_ids_TK", choices, experts);
}

/// gate_backward_tokens for choices of which those of padding add nothing, nor do its dlogits.
template <class Id, class A, class W, class Executor>
void gradient_to_tokens(const Choices<Id>& choices,
                        non_deduced_t<StridedView<const A>> dselected_logits_TK,
                        non_deduced_t<MatrixView<const A>> dlogits_TE, MatrixView<W> w_EH,
                        MatrixView<A> dx_TH, Workspace workspace, const Executor& executor) {
  using Source = value_t<W>;
  check_id_type<value_t<Id>>();
  check_accumulator<A>();
  check_input_scalars<Source, Source>();
  const Checks checks("gate_backward_tokens");
  const Index tokens = dx_TH.rows;
  const Index experts = w_EH.rows;
  check_logit_gradients(checks, choices, dselected_logits_TK, dlogits_TE, tokens, experts);
  checks.matrix("w_EH", w_EH, experts, dx_TH.cols);
  checks.matrix("dx_TH", dx_TH, tokens, dx_TH.cols);
  checks.overlaps(output("dx_TH", dx_TH), output("workspace", workspace), input("w_EH", w_EH),
                  input("expert_ids_TK", choices.expert_ids_TK),
                  input("dselected_logits_TK", dselected_logits_TK),
                  input("dlogits_TE", dlogits_TE));
  const int workers = checks.workers(executor);
  Arena arena(checks.where(), workspace, gate_backward_tokens_workspace_bytes<A>(experts, workers));

  const MatrixView<const Source> weights_EH = w_EH;
  const bool dense = dlogits_TE.given();
  const int busy = useful_workers(
      executor, workers,
      {tokens, dx_TH.cols, dense ? experts : sparse_work * dselected_logits_TK.cols});
  const Index share = busy == 1 ? tokens : tokens / (Index{4} * busy);
  const Index block_tokens = std::clamp(share, least_gradient_tokens, gradient_tokens(experts));
  const auto for_each_token_block = [&](const auto& carve, const auto& add) {
    const PerWorker scratch(arena, workers, carve);
    const Index blocks = (tokens + block_tokens - 1) / block_tokens;
    for_each_block(executor, busy, blocks, [&](int worker, Index block) {
      const Index first = block * block_tokens;
      add(first, (std::min)(block_tokens, tokens - first), scratch(worker));
    });
  };
  if (dense) {
    for_each_token_block(CarveDense<A>{block_tokens, experts},
                         [&](Index first, Index count, const DenseScratch<A>& scratch) {
                           add_dense_to_tokens(middle_choices(choices, first, count),
                                               dselected_logits_TK.middle_rows(first, count),
                                               dlogits_TE.middle_rows(first, count), weights_EH,
                                               dx_TH.middle_rows(first, count), scratch);
                         });
  } else {
    for_each_token_block(CarveTokenLists<A>{experts}, [&](Index first, Index count,
                                                          const TokenListScratch<A>& scratch) {
      add_selected_to_tokens(middle_choices(choices, first, count),
                             dselected_logits_TK.middle_rows(first, count), weights_EH,
                             dx_TH.middle_rows(first, count), scratch);
    });
  }
}

/// gate_backward_weights for choices of which those of padding add nothing, nor do its dlogits.
template <class Id, class A, class X, class Executor>
void gradient_to_weights(const Choices<Id>& choices,
                         non_deduced_t<StridedView<const A>> dselected_logits_TK,
                         non_deduced_t<MatrixView<const A>> dlogits_TE, MatrixView<X> x_TH,
                         ExpertRange range, MatrixView<A> dw_EH, Workspace workspace,
                         const Executor& executor) {
  using Source = value_t<X>;
  check_id_type<value_t<Id>>();
  check_accumulator<A>();
  check_input_scalars<Source, Source>();
  const Checks checks("gate_backward_weights");
  const Index tokens = x_TH.rows;
  const Index experts = dw_EH.rows;
  check_logit_gradients(checks, choices, dselected_logits_TK, dlogits_TE, tokens, experts);
  checks.matrix("x_TH", x_TH, tokens, dw_EH.cols);
  checks.matrix("dw_EH", dw_EH, experts, dw_EH.cols);
  checks.overlaps(output("dw_EH", dw_EH), output("workspace", workspace), input("x_TH", x_TH),
                  input("expert_ids_TK", choices.expert_ids_TK),
                  input("dselected_logits_TK", dselected_logits_TK),
                  input("dlogits_TE", dlogits_TE));
  checks.need(0 <= range.begin && range.begin <= range.end && range.end <= experts,
              "0 <= range.begin <= range.end <= num_experts",
              {{"begin", range.begin}, {"end", range.end}, {"num_experts", experts}});
  const int workers = checks.workers(executor);
  const Index top_k = dselected_logits_TK.cols;
  Arena arena(checks.where(), workspace,
              gate_backward_weights_workspace_bytes<A>(tokens, experts, top_k, workers));

  const MatrixView<const Source> tokens_TH = x_TH;
  if (dlogits_TE.given()) {
    add_dense_to_weights(choices, dselected_logits_TK, dlogits_TE, tokens_TH, range, dw_EH, arena,
                         executor, workers);
  } else {
    add_selected_to_weights(choices, dselected_logits_TK, tokens_TH, range, dw_EH, arena, executor,
                            workers);
  }
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// dx_TH += dlogits W: the gradient to the tokens.
///
/// expert_ids_TK: T x K, -1 for none, which adds nothing. dselected_logits_TK: T x K. dlogits_TE: T
/// x E, or not given. w_EH: E x H. dx_TH: T x H, added to. Each element is one chain that starts
/// from the value in dx_TH and goes through the selection (or, with dlogits_TE, through the experts
/// in ascending order). Without dlogits_TE zero gradients are skipped; with it, they are multiplied
/// like others. A range of tokens is `middle_rows` of all token matrices.
///
/// Throws Error for shapes, an id that is neither in [0, E) nor -1, or a workspace that is too
/// small, before any write. Cost: 2 T K H operations, 2 T E H with dlogits_TE; no allocation.
/// Thread-safe.
template <class Id, class A, class W, class Executor = SerialExecutor>
void gate_backward_tokens(StridedView<Id> expert_ids_TK,
                          detail::non_deduced_t<StridedView<const A>> dselected_logits_TK,
                          detail::non_deduced_t<MatrixView<const A>> dlogits_TE, MatrixView<W> w_EH,
                          MatrixView<A> dx_TH, Workspace workspace, const Executor& executor = {}) {
  detail::gradient_to_tokens(Choices<Id>{expert_ids_TK}, dselected_logits_TK, dlogits_TE,
                             w_EH, dx_TH, workspace, executor);
}

/// dw_EH += dlogits^T X: the gradient to the router weights, for the experts of `range`.
///
/// expert_ids_TK: T x K, -1 for none, which adds nothing. dselected_logits_TK: T x K. dlogits_TE: T
/// x E, or not given. x_TH: T x H. dw_EH: E x H, rows of `range` added to. Each element is one
/// chain over the tokens in ascending order that starts from the value in dw_EH: splitting a batch
/// into consecutive calls, experts into ranges or columns into blocks (`middle_cols` of x_TH and
/// dw_EH) gives the same bits. Without dlogits_TE zero gradients are skipped; with it, tokens that
/// have no other gradients are.
///
/// Throws Error for shapes, a range outside [0, E], an id that is neither in [0, E) nor -1, or a
/// workspace that is too small, before any write. Cost: 2 T K H operations, 2 T E H with
/// dlogits_TE; no allocation, no atomics. Thread-safe.
template <class Id, class A, class X, class Executor = SerialExecutor>
void gate_backward_weights(StridedView<Id> expert_ids_TK,
                           detail::non_deduced_t<StridedView<const A>> dselected_logits_TK,
                           detail::non_deduced_t<MatrixView<const A>> dlogits_TE,
                           MatrixView<X> x_TH, ExpertRange range, MatrixView<A> dw_EH,
                           Workspace workspace, const Executor& executor = {}) {
  detail::gradient_to_weights(Choices<Id>{expert_ids_TK}, dselected_logits_TK, dlogits_TE,
                              x_TH, range, dw_EH, workspace, executor);
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_GATE_GRADIENT_HPP
