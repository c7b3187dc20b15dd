// SPDX-License-Identifier: MIT
// Stages: routings that are made up, to measure the rest of a system under a balanced load.
#ifndef GATEPRO_ROUTING_FORCED_ROUTING_HPP
#define GATEPRO_ROUTING_FORCED_ROUTING_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/gate/noise.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// The expert that token `token` takes with choice `choice`: experts take turns.
inline Index round_robin_expert(Index token, Index choice, Index top_k, Index experts) {
  return (token % experts * top_k + choice) % experts;
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// expert_ids_TK(t, j) = ((first_token + t) K + j) mod E: experts take turns.
///
/// Over any range of tokens, two experts' counts differ by one at most, and the ids of a token are
/// distinct. weigh_choices turns these ids and the real logits into weights, as torchtitan,
/// OLMo-core and MegaBlocks do. expert_ids_TK: T x K, overwritten. Throws Error for shapes, more
/// choices than experts or a negative first_token, before any write. No allocation. Thread-safe.
template <class Id>
void round_robin_ids(Index first_token, Index num_experts, StridedView<Id> expert_ids_TK) {
  detail::check_id_type<Id>();
  const detail::Checks checks("round_robin_ids");
  const Index top_k = expert_ids_TK.cols;
  checks.num_experts(num_experts);
  checks.top_k(top_k, num_experts);
  detail::check_first_token(checks, first_token, expert_ids_TK.rows);
  checks.strided("expert_ids_TK", expert_ids_TK, expert_ids_TK.rows, top_k);
  for (Index t = 0; t < expert_ids_TK.rows; ++t) {
    for (Index j = 0; j < top_k; ++j) {
      const Index expert = detail::round_robin_expert(first_token + t, j, top_k, num_experts);
      expert_ids_TK(t, j) = static_cast<Id>(expert);
    }
  }
}

/// Logits that make a top-k selection choose the experts of round_robin_ids: 0 for these, -16 for
/// the others.
///
/// The chosen ones weigh the same under every score function, stand in order of id, and win against
/// any expert bias whose values differ by less than their scores do; no group limit may forbid
/// them. logits_TE: T x E, overwritten; the gradient of what was there passes through unchanged, if
/// the caller lets it. Throws Error for shapes, settings or a negative first_token, before any
/// write. No allocation. Thread-safe.
template <class A>
void round_robin_logits(Index first_token, Index top_k, MatrixView<A> logits_TE) {
  detail::check_accumulator<A>();
  const detail::Checks checks("round_robin_logits");
  const Index experts = logits_TE.cols;
  checks.num_experts(experts);
  checks.top_k(top_k, experts);
  detail::check_first_token(checks, first_token, logits_TE.rows);
  checks.matrix("logits_TE", logits_TE, logits_TE.rows, experts);
  for (Index t = 0; t < logits_TE.rows; ++t) {
    std::fill_n(logits_TE.row(t), experts, A(-16));
    for (Index j = 0; j < top_k; ++j) {
      logits_TE(t, detail::round_robin_expert(first_token + t, j, top_k, experts)) = A(0);
    }
  }
}

/// logits_TE = N(0, 1), independently per element, so that experts are balanced on average
/// (Megatron-LM `moe_router_force_load_balancing`).
///
/// logits_TE: T x E, overwritten; token t of it is token noise.first_token + t of the batch. The
/// values are those of a stream of their own: add_logit_noise with the same key gives others.
/// Throws Error for shapes or a negative first_token, before any write. No allocation. Thread-safe.
template <class A, class Executor = SerialExecutor>
void random_logits(const NoiseKey& noise, MatrixView<A> logits_TE, const Executor& executor = {}) {
  detail::check_accumulator<A>();
  const detail::Checks checks("random_logits");
  detail::check_first_token(checks, noise.first_token, logits_TE.rows);
  checks.matrix("logits_TE", logits_TE, logits_TE.rows, logits_TE.cols);
  const int workers = checks.workers(executor);

  detail::for_each_noise(
      noise, detail::NoiseUse::routing, logits_TE.rows, logits_TE.cols, detail::normal_work,
      detail::normals_of, executor, workers,
      [&](Index t, Index c, double normal) { logits_TE(t, c) = static_cast<A>(normal); });
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_FORCED_ROUTING_HPP
