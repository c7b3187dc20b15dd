// SPDX-License-Identifier: MIT
// Stage: gradients of the gating logits, to X and to W.
//
// The gradient of the logits comes in two parts: that of the selected logits, from
// softmax_backward, and, if auxiliary losses act on the logits, that of all of them.
#ifndef GATEPRO_GATE_GRADIENT_HPP
#define GATEPRO_GATE_GRADIENT_HPP

#include <algorithm>
#include <optional>

#include "gatepro/core/checks.hpp"
#include "gatepro/gate/dense_gradient.hpp"

namespace gatepro {

/// What the gradients of the gate are added to; each may be not given. `D`: the type of dX, that
/// of the sums or, for tokens of 16 bits, theirs: each element is then summed in float, starting
/// from what is there, and rounded once.
template <class A, class D = A>
struct GateGradients {
  MatrixView<D> dx_TH{};  ///< T x H: of the tokens.
  MatrixView<A> dw_EH{};  ///< E x H: of the router weights.
  /// Whether dX is added to what is there, or takes its place: zeros of T x H take a tenth of the
  /// time of a backward, those of E x H next to none.
  GradientMode dx_mode = GradientMode::add;
  VectorView<A> dbias_E{};  ///< E: of the logits' bias, see BiasedWeights.
};

namespace detail {

/// The smallest type that gradients of tokens X may have where sums are in A. It needs the most
/// workspace.
template <class X, class A>
using smallest_gradient_t = std::conditional_t<std::is_same_v<accumulator_t<X>, A>, X, A>;

template <class X, class A, class D>
constexpr void check_token_gradient() {
  static_assert(std::is_same_v<D, A> || std::is_same_v<D, smallest_gradient_t<X, A>>,
                "gatepro: dX has the type of the sums or, where that is float, that of the tokens");
}

/// Rows of sums that stand beside `tokens` gradients of D.
template <class D>
constexpr Index sums_beside(Index tokens) {
  return is_accumulator_v<D> ? 0 : tokens;
}

}  // namespace detail

inline namespace GATEPRO_ABI {

/// Bytes of workspace for gate_backward_tokens with a dX of D.
template <class D>
std::size_t gate_backward_tokens_workspace_bytes(Index num_experts, Workers workers = 1) {
  using A = accumulator_t<D>;
  detail::Checks("gate_backward_tokens").query_experts(num_experts);
  const auto bytes = [&](const auto& carve) {
    return detail::measure([&](detail::Arena& arena) { detail::PerWorker(arena, workers, carve); });
  };
  const Index tokens = detail::gradient_tokens(num_experts);
  return (std::max)(
      bytes(detail::CarveTokenLists<A>{num_experts}),
      bytes(detail::CarveDense<A>{tokens, num_experts, detail::sums_beside<D>(tokens)}));
}

/// Bytes of workspace for gate_backward_weights.
template <class A>
std::size_t gate_backward_weights_workspace_bytes(Index num_tokens, Index num_experts, Index top_k,
                                                  Workers workers = 1) {
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

/// The experts that a gradient is wanted for: all, or `range`.
inline ExpertRange checked_range(const Checks& checks, const std::optional<ExpertRange>& range,
                                 Index experts) {
  const ExpertRange wanted = range.value_or(ExpertRange{0, experts});
  checks.need(0 <= wanted.begin && wanted.begin <= wanted.end && wanted.end <= experts,
              "0 <= range.begin <= range.end <= num_experts",
              {{"begin", wanted.begin}, {"end", wanted.end}, {"num_experts", experts}});
  return wanted;
}

/// Checks what all directions take.
template <class Id, class A>
void check_logit_gradients(const Checks& checks, const Choices<Id>& choices,
                           const LogitGradients<A>& gradients, Index tokens, Index experts) {
  check_accumulator<A>();
  checks.num_experts(experts);
  const Index top_k = choices.expert_ids_TK.cols;
  checks.top_k(top_k, experts);
  check_choice_views(checks, choices, tokens, top_k);
  checks.strided("dselected_logits_TK", gradients.dselected_logits_TK, tokens, top_k);
  checks.optional_matrix("dlogits_TE", gradients.dlogits_TE, tokens, experts);
  check_choices(checks, "expert_ids_TK", choices, experts);
}

/// The same for the memory that they read, beside what `others` read and write.
template <class Id, class A, class... Others>
void check_gradient_overlaps(const Checks& checks, const Choices<Id>& choices,
                             const LogitGradients<A>& gradients, const Others&... others) {
  checks.overlaps(others..., input("expert_ids_TK", choices.expert_ids_TK),
                  input("is_padding_T", choices.is_padding_T),
                  input("dselected_logits_TK", gradients.dselected_logits_TK),
                  input("dlogits_TE", gradients.dlogits_TE));
}

/// What adding a gradient of logits takes for each element, in multiply-adds of the gate.
inline constexpr Index merge_work = 32;

/// dx_TH += dlogits W, on checked arguments.
template <class Source, class Id, class A, class D, class Executor>
void add_to_tokens(const Choices<Id>& choices, const LogitGradients<A>& gradients,
                   const MatrixView<const Source>& w_EH, const MatrixView<D>& dx_TH,
                   GradientMode mode, Arena& arena, const Executor& executor, int workers) {
  const Index tokens = dx_TH.rows;
  const Index experts = w_EH.rows;
  const bool dense = gradients.dlogits_TE.given();
  const Index top_k = choices.expert_ids_TK.cols;
  const int busy = useful_workers(executor, workers,
                                  {tokens, dx_TH.cols, dense ? experts : sparse_work * top_k});
  const Index share = busy == 1 ? tokens : tokens / (Index{4} * busy);
  const Index tokens_per_block = std::clamp(share, least_gradient_tokens, gradient_tokens(experts));
  const auto for_each_token_block = [&](const auto& carve, const auto& add) {
    const PerWorker scratch(arena, workers, carve);
    for_each_block(
        executor, busy, blocks_of(tokens, tokens_per_block), [&](int worker, Index block) {
          const Index first = block * tokens_per_block;
          const Index count = (std::min)(tokens_per_block, tokens - first);
          add(middle_choices(choices, first, count), middle_gradients(gradients, first, count),
              w_EH, dx_TH.middle_rows(first, count), mode, scratch(worker));
        });
  };
  if (dense) {
    for_each_token_block(CarveDense<A>{tokens_per_block, experts, sums_beside<D>(tokens_per_block)},
                         [](const auto&... block) { add_dense_to_tokens(block...); });
  } else {
    for_each_token_block(CarveTokenLists<A>{experts},
                         [](const auto&... block) { add_selected_to_tokens(block...); });
  }
}

/// dw_EH += dlogits^T X for the experts of `range`, on checked arguments.
template <class Source, class Id, class A, class Executor>
void add_to_weights(const Choices<Id>& choices, const LogitGradients<A>& gradients,
                    const MatrixView<const Source>& x_TH, ExpertRange range,
                    const MatrixView<A>& dw_EH, Arena& arena, const Executor& executor,
                    int workers) {
  if (gradients.dlogits_TE.given()) {
    add_dense_to_weights(choices, gradients, x_TH, range, dw_EH, arena, executor, workers);
  } else {
    add_selected_to_weights(choices, gradients, x_TH, range, dw_EH, arena, executor, workers);
  }
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// dx_TH += dlogits W: the gradient to the tokens.
///
/// choices: T x K. Those without an expert or of padding add nothing, nor do all logits of padding;
/// kept_TK is not read, because the gate has chosen what was dropped later, too. gradients: see
/// LogitGradients, in float for a dX of 16 bits. w_EH: E x H. dx_TH: T x H, of any input scalar,
/// added to, or overwritten with GradientMode::set. Each element is one chain in accumulator_t<D>,
/// rounded once to a D of 16 bits (to nearest even; a NaN stays one), that starts from the value in
/// dx_TH and goes through the selection (or, with dlogits_TE, through the experts in ascending
/// order). Without dlogits_TE zero gradients are skipped; with it, they are multiplied like others.
/// A range of tokens is `middle_rows` of all token matrices.
///
/// Throws Error for shapes, an id that is neither in [0, E) nor -1, or a workspace that is too
/// small, before any write. Cost: 2 T K H operations, 2 T E H with dlogits_TE; no allocation.
/// Thread-safe.
template <class Id, class D, class W, class Executor = SerialExecutor>
void gate_backward_tokens(const Choices<Id>& choices,
                          const detail::non_deduced_t<LogitGradients<accumulator_t<D>>>& gradients,
                          MatrixView<W> w_EH, MatrixView<D> dx_TH, Workspace workspace,
                          const Executor& executor = {}, GradientMode mode = GradientMode::add) {
  using Source = detail::value_t<W>;
  detail::check_input_scalars<D, Source>();
  const detail::Checks checks("gate_backward_tokens");
  const Choices<Id> chosen = detail::before_drops(choices);
  const Index tokens = dx_TH.rows;
  const Index experts = w_EH.rows;
  detail::check_logit_gradients(checks, chosen, gradients, tokens, experts);
  checks.matrix("w_EH", w_EH, experts, dx_TH.cols);
  checks.matrix("dx_TH", dx_TH, tokens, dx_TH.cols);
  detail::check_gradient_overlaps(checks, chosen, gradients, detail::output("dx_TH", dx_TH),
                                  detail::output("workspace", workspace),
                                  detail::input("w_EH", w_EH));
  const int workers = checks.workers(executor);
  detail::Arena arena(checks.where(), workspace,
                      gate_backward_tokens_workspace_bytes<D>(experts, workers));
  detail::add_to_tokens<Source>(chosen, gradients, w_EH, dx_TH, mode, arena, executor, workers);
}

/// dw_EH += dlogits^T X: the gradient to the router weights, for all experts or those of `range`.
///
/// choices, gradients: as in gate_backward_tokens. x_TH: T x H. dw_EH: E x H, the rows of `range`
/// added to. Each element is one chain over the tokens in ascending order that starts from the
/// value in dw_EH: splitting a batch into consecutive calls, experts into ranges or columns into
/// blocks
/// (`middle_cols` of x_TH and dw_EH) gives the same bits. Without dlogits_TE zero gradients are
/// skipped; with it, tokens that have no other gradients are.
///
/// Throws Error for shapes, a range outside [0, E], an id that is neither in [0, E) nor -1, or a
/// workspace that is too small, before any write. Cost: 2 T K H operations, 2 T E H with
/// dlogits_TE; no allocation, no atomics. Thread-safe.
template <class Id, class A, class X, class Executor = SerialExecutor>
void gate_backward_weights(const Choices<Id>& choices,
                           const detail::non_deduced_t<LogitGradients<A>>& gradients,
                           MatrixView<X> x_TH, MatrixView<A> dw_EH, Workspace workspace,
                           const Executor& executor = {},
                           const std::optional<ExpertRange>& range = std::nullopt) {
  using Source = detail::value_t<X>;
  detail::check_input_scalars<Source, Source>();
  const detail::Checks checks("gate_backward_weights");
  const Choices<Id> chosen = detail::before_drops(choices);
  const Index tokens = x_TH.rows;
  const Index experts = dw_EH.rows;
  detail::check_logit_gradients(checks, chosen, gradients, tokens, experts);
  checks.matrix("x_TH", x_TH, tokens, dw_EH.cols);
  checks.matrix("dw_EH", dw_EH, experts, dw_EH.cols);
  detail::check_gradient_overlaps(checks, chosen, gradients, detail::output("dw_EH", dw_EH),
                                  detail::output("workspace", workspace),
                                  detail::input("x_TH", x_TH));
  const ExpertRange added = detail::checked_range(checks, range, experts);
  const int workers = checks.workers(executor);
  const Index top_k = chosen.expert_ids_TK.cols;
  detail::Arena arena(checks.where(), workspace,
                      gate_backward_weights_workspace_bytes<A>(tokens, experts, top_k, workers));
  detail::add_to_weights<Source>(chosen, gradients, x_TH, added, dw_EH, arena, executor, workers);
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_GATE_GRADIENT_HPP
