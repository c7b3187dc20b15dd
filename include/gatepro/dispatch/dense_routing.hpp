// SPDX-License-Identifier: MIT
// Stage: a routing as dense matrices over all experts, for consumers that read those.
#ifndef GATEPRO_DISPATCH_DENSE_ROUTING_HPP
#define GATEPRO_DISPATCH_DENSE_ROUTING_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/core/checks.hpp"
#include "gatepro/core/choices.hpp"

namespace gatepro {

/// Where dense_routing writes: everything is optional.
template <class A>
struct DenseRouting {
  /// T x E: the weight of the choice, 0 where the token did not choose the expert.
  MatrixView<A> probs_TE{};
  /// T x E: 1 where the token chose the expert, also with a weight of 0; else 0. What C++ and
  /// LibTorch have as bool.
  MatrixView<std::uint8_t> routing_map_TE{};
  /// T x ceil(E / 8): the same, expert e in bit e % 8 of byte e / 8; bits past E are 0.
  MatrixView<std::uint8_t> routing_bits_TB{};
};

namespace detail {
inline namespace GATEPRO_ABI {

/// What an element of a dense matrix takes, in multiply-adds of the gate.
inline constexpr Index dense_work = 16;

/// No token holds an expert twice. Without scratch, for few choices.
template <class Id>
void check_distinct_rows(const Checks& checks, const char* name, const Choices<Id>& choices) {
  for_each_choice(before_drops(choices), false, [&](Index t, Index j, Index e) {
    for (Index i = 0; i < j; ++i) {
      if (choices.expert_ids_TK(t, i) != choices.expert_ids_TK(t, j)) continue;
      checks.refuse(name, "distinct ids in each row", {{"id", e}, {"row", t}, {"column", j}});
    }
  });
}

/// Zeros in one row of a matrix that was asked for.
template <class T>
void clear_row(const MatrixView<T>& matrix, Index row) {
  if (matrix.given()) std::fill_n(matrix.row(row), matrix.cols, T(0));
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// The routing map and the probabilities of Megatron-LM and InfiniTrain, from ids and weights.
///
/// choices: T x K; those that do not count (dropped, of padding, -1) are left out. weights_TK:
/// T x K. out: overwritten. Throws Error for shapes, or an id that is out of range or twice in a
/// row, before any write. Cost: O(T (E + K^2)); no allocation. Thread-safe.
template <class Id, class A, class Executor = SerialExecutor>
void dense_routing(const Choices<Id>& choices, Index num_experts,
                   detail::non_deduced_t<StridedView<const A>> weights_TK,
                   const DenseRouting<A>& out, const Executor& executor = {}) {
  detail::check_accumulator<A>();
  const detail::Checks checks("dense_routing");
  const Index tokens = choices.expert_ids_TK.rows;
  const Index top_k = choices.expert_ids_TK.cols;
  checks.num_experts(num_experts);
  checks.top_k(top_k, num_experts);
  detail::check_choice_views(checks, choices, tokens, top_k);
  checks.strided("weights_TK", weights_TK, tokens, top_k);
  checks.optional_matrix("probs_TE", out.probs_TE, tokens, num_experts);
  checks.optional_matrix("routing_map_TE", out.routing_map_TE, tokens, num_experts);
  checks.optional_matrix("routing_bits_TB", out.routing_bits_TB, tokens, (num_experts + 7) / 8);
  checks.overlaps(detail::output("probs_TE", out.probs_TE),
                  detail::output("routing_map_TE", out.routing_map_TE),
                  detail::output("routing_bits_TB", out.routing_bits_TB),
                  detail::input("expert_ids_TK", choices.expert_ids_TK),
                  detail::input("kept_TK", choices.kept_TK),
                  detail::input("is_padding_T", choices.is_padding_T),
                  detail::input("weights_TK", weights_TK));
  detail::check_choices(checks, "expert_ids_TK", choices, num_experts);
  detail::check_distinct_rows(checks, "expert_ids_TK", choices);
  const int busy = detail::useful_workers(executor, checks.workers(executor),
                                          {detail::dense_work, tokens, num_experts});

  detail::for_each_row(tokens, executor, busy, [&](Index t) {
    detail::clear_row(out.probs_TE, t);
    detail::clear_row(out.routing_map_TE, t);
    detail::clear_row(out.routing_bits_TB, t);
    for (Index j = 0; j < top_k; ++j) {
      if (!detail::counts(choices, t, j)) continue;
      const auto e = static_cast<Index>(choices.expert_ids_TK(t, j));
      if (out.probs_TE.given()) out.probs_TE(t, e) = weights_TK(t, j);
      if (out.routing_map_TE.given()) out.routing_map_TE(t, e) = 1;
      if (out.routing_bits_TB.given()) {
        std::uint8_t& byte = out.routing_bits_TB(t, e / 8);
        byte = static_cast<std::uint8_t>(byte | (1U << (e % 8)));
      }
    }
  });
}

/// dweights_TK(t, j) += dprobs_TE(t, e) for the expert e of the choice: the gradient of
/// dense_routing.
///
/// choices: as in the forward; those that do not count add nothing. dprobs_TE: T x E; what it holds
/// elsewhere does not matter. dweights_TK: T x K, added to. Throws Error for shapes, or an id that
/// is neither in [0, E) nor -1, before any write. Cost: O(T K); no allocation. Thread-safe.
template <class Id, class A>
void dense_routing_backward(const Choices<Id>& choices,
                            detail::non_deduced_t<MatrixView<const A>> dprobs_TE,
                            StridedView<A> dweights_TK) {
  detail::check_accumulator<A>();
  const detail::Checks checks("dense_routing_backward");
  const Index tokens = choices.expert_ids_TK.rows;
  const Index top_k = choices.expert_ids_TK.cols;
  checks.num_experts(dprobs_TE.cols);
  checks.top_k(top_k, dprobs_TE.cols);
  detail::check_choice_views(checks, choices, tokens, top_k);
  checks.matrix("dprobs_TE", dprobs_TE, tokens, dprobs_TE.cols);
  checks.strided("dweights_TK", dweights_TK, tokens, top_k);
  checks.overlaps(detail::output("dweights_TK", dweights_TK),
                  detail::input("expert_ids_TK", choices.expert_ids_TK),
                  detail::input("kept_TK", choices.kept_TK),
                  detail::input("is_padding_T", choices.is_padding_T),
                  detail::input("dprobs_TE", dprobs_TE));
  detail::check_choices(checks, "expert_ids_TK", choices, dprobs_TE.cols);
  detail::for_each_choice(choices, false,
                          [&](Index t, Index j, Index e) { dweights_TK(t, j) += dprobs_TE(t, e); });
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_DISPATCH_DENSE_ROUTING_HPP
