// SPDX-License-Identifier: MIT
// Stage: gradient of the gating logits to their learned bias.
#ifndef GATEPRO_GATE_BIAS_GRADIENT_HPP
#define GATEPRO_GATE_BIAS_GRADIENT_HPP

#include <algorithm>
#include <cstdint>
#include <optional>

#include "gatepro/gate/gradient.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// Experts whose gradients of a token are merged together, at most, and those of a worker, at
/// least: a cache line of floats.
inline constexpr Index most_bias_experts = 64, least_bias_experts = 16;

/// Calls `visit(e - range.begin, gradient)` for the selected logits of token t in `range`.
template <class Id, class A, class Visit>
void for_each_selected_in(const Choices<Id>& choices, const StridedView<const A>& dselected_TK,
                          Index t, ExpertRange range, const Visit& visit) {
  for (Index j = 0; j < dselected_TK.cols; ++j) {
    if (!counts(choices, t, j)) continue;
    const Index e = static_cast<Index>(choices.expert_ids_TK(t, j));
    if (range.begin <= e && e < range.end) visit(e - range.begin, dselected_TK(t, j));
  }
}

/// dbias_E += the gradients of all logits of the experts of `range`, up to most_bias_experts.
template <class Id, class A>
void add_dense_to_bias(const Choices<Id>& choices, const LogitGradients<A>& gradients,
                       ExpertRange range, A* dbias_E) {
  const Index experts = range.end - range.begin;
  A merged[most_bias_experts];
  for (Index t = 0; t < gradients.dlogits_TE.rows; ++t) {
    if (is_masked(choices.is_padding_T, t)) continue;
    std::copy_n(gradients.dlogits_TE.row(t) + range.begin, experts, merged);
    for_each_selected_in(choices, gradients.dselected_logits_TK, t, range,
                         [&](Index i, A gradient) { merged[i] += gradient; });
    for (Index i = 0; i < experts; ++i) dbias_E[range.begin + i] += merged[i];
  }
}

/// The same for gradients of the selected logits only, and any number of experts.
template <class Id, class A>
void add_selected_to_bias(const Choices<Id>& choices, const LogitGradients<A>& gradients,
                          ExpertRange range, A* dbias_E) {
  for (Index t = 0; t < gradients.dselected_logits_TK.rows; ++t) {
    for_each_selected_in(choices, gradients.dselected_logits_TK, t, range,
                         [&](Index i, A gradient) { dbias_E[range.begin + i] += gradient; });
  }
}

/// dbias_E += dlogits^T 1 for the experts of `range`, on checked arguments. Workers divide the
/// experts, each of them going through all tokens.
template <class Id, class A, class Executor>
void add_to_bias(const Choices<Id>& choices, const LogitGradients<A>& gradients, ExpertRange range,
                 A* dbias_E, const Executor& executor, int workers) {
  const bool dense = gradients.dlogits_TE.given();
  const Index tokens = dense ? gradients.dlogits_TE.rows : gradients.dselected_logits_TK.rows;
  const Index experts = range.end - range.begin;
  const Index cols = dense ? experts : gradients.dselected_logits_TK.cols;
  const int busy = useful_workers(executor, workers, {merge_work, tokens, cols});
  const Index share = std::max<Index>(least_bias_experts, blocks_of(experts, busy));
  const Index most = dense ? (std::min)(share, most_bias_experts) : share;
  for_each_block(executor, busy, blocks_of(experts, most), [&](int, Index block) {
    const Index first = range.begin + block * most;
    const ExpertRange mine{first, (std::min)(first + most, range.end)};
    dense ? add_dense_to_bias(choices, gradients, mine, dbias_E)
          : add_selected_to_bias(choices, gradients, mine, dbias_E);
  });
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// dbias_E += the sum of dlogits over the tokens: the gradient to the bias of BiasedWeights, for
/// all experts or those of `range`.
///
/// choices, gradients: as in gate_backward_tokens. dbias_E: E, the elements of `range` added to.
/// Each is one chain over the tokens in ascending order that starts from the value in dbias_E; a
/// token adds the sum of both parts of its gradient. So splitting a batch into consecutive calls,
/// or experts into ranges, gives the same bits.
///
/// Throws Error for shapes, a range outside [0, E], or an id that is neither in [0, E) nor -1,
/// before any write. Cost: T K additions, T E with dlogits_TE; no allocation. Thread-safe.
template <class Id, class A, class Executor = SerialExecutor>
void gate_backward_bias(const Choices<Id>& choices,
                        const detail::non_deduced_t<LogitGradients<A>>& gradients,
                        VectorView<A> dbias_E, const Executor& executor = {},
                        const std::optional<ExpertRange>& range = std::nullopt) {
  const detail::Checks checks("gate_backward_bias");
  const Choices<Id> chosen = detail::before_drops(choices);
  const Index experts = dbias_E.size;
  detail::check_logit_gradients(checks, chosen, gradients, chosen.expert_ids_TK.rows, experts);
  checks.vector("dbias_E", dbias_E, experts);
  detail::check_gradient_overlaps(checks, chosen, gradients, detail::output("dbias_E", dbias_E));
  const ExpertRange added = detail::checked_range(checks, range, experts);
  detail::add_to_bias(chosen, gradients, added, dbias_E.data, executor, checks.workers(executor));
}

/// The same for gradients of all logits in one matrix, such as backward_logits or
/// merge_logit_gradients makes: dlogits_TE, T x E.
template <class A, class Executor = SerialExecutor>
void gate_backward_bias(detail::non_deduced_t<MatrixView<const A>> dlogits_TE,
                        VectorView<A> dbias_E, const Executor& executor = {}) {
  detail::check_accumulator<A>();
  const detail::Checks checks("gate_backward_bias");
  checks.num_experts(dbias_E.size);
  checks.matrix("dlogits_TE", dlogits_TE, dlogits_TE.rows, dbias_E.size);
  checks.vector("dbias_E", dbias_E, dbias_E.size);
  checks.overlaps(detail::output("dbias_E", dbias_E), detail::input("dlogits_TE", dlogits_TE));
  detail::add_to_bias(Choices<std::int32_t>{}, {{}, dlogits_TE}, {0, dbias_E.size}, dbias_E.data,
                      executor, checks.workers(executor));
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_GATE_BIAS_GRADIENT_HPP
