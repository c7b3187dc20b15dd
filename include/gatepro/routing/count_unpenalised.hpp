// SPDX-License-Identifier: MIT
// Stage: the loads that plain top-k of the raw logits would give, for losses that ask for them.
#ifndef GATEPRO_ROUTING_COUNT_UNPENALISED_HPP
#define GATEPRO_ROUTING_COUNT_UNPENALISED_HPP

#include <cstdint>

#include "gatepro/core/overlap.hpp"
#include "gatepro/routing/route_logits.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// The choice that nothing but the scores decides.
inline SelectionRule plain_selection(ScoreFunction function, Index top_k) {
  SelectionRule rule;
  rule.top_k = top_k;
  rule.scores.function = function;
  rule.competition = Competition::off();
  return rule;
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Bytes of workspace for count_unpenalised, whatever T is.
template <class A>
std::size_t count_unpenalised_workspace_bytes(Index num_experts, Index top_k, Workers workers = 1) {
  return route_logits_workspace_bytes<A>(
      num_experts, detail::plain_selection(ScoreFunction::softmax_after_top_k, top_k), workers);
}

/// tokens_per_expert_E (E, overwritten) = the tokens that would choose each expert by score alone:
/// no competition, no bias, no group limit, no capacity. Megatron-LM counts so for its losses; the
/// counts of what is dispatched come with the routing. See CountSource.
///
/// logits_TE: T x E, before any penalty. `function` decides between scores that are equal though
/// their logits are not, such as saturated sigmoids: the lower id wins. The counts are those of
/// route_logits with competition off. is_padding_T: T bytes, nonzero for padding, or not given.
///
/// Throws Error for shapes, top_k, or a workspace below count_unpenalised_workspace_bytes(E, K,
/// executor.workers()), before any write. Cost: a second selection of the experts. No allocation.
/// Thread-safe. Counts do not depend on the executor.
template <class L, class Executor = SerialExecutor>
void count_unpenalised(MatrixView<L> logits_TE, ScoreFunction function, Index top_k,
                       VectorView<const std::uint8_t> is_padding_T,
                       VectorView<std::int64_t> tokens_per_expert_E, Workspace workspace,
                       const Executor& executor = {}) {
  using A = detail::value_t<L>;
  detail::check_accumulator<A>();
  const detail::Checks checks("count_unpenalised");
  const Index tokens = logits_TE.rows;
  const Index experts = logits_TE.cols;
  const SelectionRule rule = detail::plain_selection(function, top_k);
  const auto selection = detail::checked_selection<A>(checks, rule, RivalTable(), experts);
  checks.matrix("logits_TE", logits_TE, tokens, experts);
  checks.optional_vector("is_padding_T", is_padding_T, tokens);
  checks.vector("tokens_per_expert_E", tokens_per_expert_E, experts);
  checks.overlaps(detail::output("tokens_per_expert_E", tokens_per_expert_E),
                  detail::output("workspace", workspace), detail::input("logits_TE", logits_TE),
                  detail::input("is_padding_T", is_padding_T));
  const int workers = checks.workers(executor);
  detail::Arena arena(checks.where(), workspace,
                      count_unpenalised_workspace_bytes<A>(experts, top_k, workers));

  RoutingView<A> out;
  out.tokens_per_expert_E = tokens_per_expert_E;
  detail::run_pass(arena, rule, selection, RoutingInputs<A>{logits_TE, {}, is_padding_T}, out,
                   executor, workers);
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_COUNT_UNPENALISED_HPP
