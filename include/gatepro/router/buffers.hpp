// SPDX-License-Identifier: MIT
// What a forward returns: views of the results, and a helper that owns them.
#ifndef GATEPRO_ROUTER_BUFFERS_HPP
#define GATEPRO_ROUTER_BUFFERS_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "gatepro/core/error.hpp"
#include "gatepro/core/views.hpp"
#include "gatepro/core/workspace.hpp"
#include "gatepro/routing/penalty_statistics.hpp"
#include "gatepro/routing/report.hpp"

namespace gatepro {

/// Where a forward of T tokens writes. `A` is the router's Accumulator, `Id` its expert id type.
/// The first two are required; the others are written only if given.
template <class A, class Id = std::int32_t>
struct RoutingView {
  /// T x K: the selected experts, best first; distinct, in [0, E). Any strides.
  StridedView<Id> expert_ids_TK;
  /// T x K: softmax over the selected, in the same order. Any strides.
  StridedView<A> weights_TK;
  /// E: tokens routed to each expert.
  VectorView<std::int64_t> tokens_per_expert_E{};
  /// T x E: the original, unpenalised logits.
  MatrixView<A> logits_TE{};
  /// What the penalty did. Costs a second selection; null for none.
  PenaltyStatistics* statistics = nullptr;
};

inline namespace GATEPRO_ABI {

/// Owns the results of a forward and the workspaces of a router, for those who want one line.
///
/// `RoutingBuffers routing(router, max_tokens)` allocates once; forwards and backwards of up to
/// max_tokens tokens through it allocate nothing. One at a time.
template <class R>
class RoutingBuffers {
 public:
  /// The scalar of weights and logits.
  using Accumulator = typename R::Accumulator;
  /// The type of expert ids.
  using ExpertId = typename R::ExpertId;

  /// Memory for up to `max_tokens` tokens and up to `workers` workers of an executor; E logits per
  /// token only if `keep_logits`. Throws Error for a negative size. A bool is no number of workers:
  /// that does not compile.
  RoutingBuffers(const R& router, Index max_tokens, int workers = 1, bool keep_logits = false)
      : experts_(router.config().num_experts), top_k_(router.config().top_k) {
    const char* where = "RoutingBuffers";
    detail::need(max_tokens >= 0, where, "max_tokens >= 0", {{"max_tokens", max_tokens}});
    detail::need(workers >= 1, where, "workers >= 1", {{"workers", workers}});
    const auto count = [&](Index per_token) {
      return static_cast<std::size_t>(detail::checked_product(
          where, "max_tokens within the address space", per_token, max_tokens));
    };
    // First, because this query refuses sizes that no memory has.
    const std::size_t scratch = (std::max)(router.forward_workspace_bytes(workers),
                                           router.backward_workspace_bytes(max_tokens, workers));
    expert_ids_.resize(count(top_k_));
    weights_.resize(count(top_k_));
    if (keep_logits) logits_.resize(count(experts_));
    tokens_per_expert_.resize(static_cast<std::size_t>(experts_));
    workspace_.resize(scratch);
    max_tokens_ = max_tokens;
    resize(max_tokens);
  }

  template <class Flag, std::enable_if_t<std::is_same_v<Flag, bool>, int> = 0>
  RoutingBuffers(const R& router, Index max_tokens, Flag, bool = false) = delete;

  /// Sets T for the calls that follow; an Error above max_tokens. Allocates nothing.
  void resize(Index tokens) {
    check_tokens(tokens);
    tokens_ = tokens;
  }

  /// Where a forward writes. Set `statistics` of the copy to ask for them.
  RoutingView<Accumulator, ExpertId> view() { return view(tokens_); }
  /// The same for `tokens` tokens, whatever T is set; an Error above max_tokens.
  RoutingView<Accumulator, ExpertId> view(Index tokens) {
    check_tokens(tokens);
    RoutingView<Accumulator, ExpertId> out;
    out.expert_ids_TK = {expert_ids_.data(), tokens, top_k_};
    out.weights_TK = {weights_.data(), tokens, top_k_};
    out.tokens_per_expert_E = tokens_per_expert_;
    if (!logits_.empty()) out.logits_TE = {logits_.data(), tokens, experts_};
    return out;
  }
  /// Scratch for forward and backward.
  Workspace workspace() { return workspace_; }

  /// T x K ids of the last forward, best first.
  MatrixView<const ExpertId> expert_ids_TK() const { return {expert_ids_.data(), tokens_, top_k_}; }
  /// T x K weights of the last forward.
  MatrixView<const Accumulator> weights_TK() const { return {weights_.data(), tokens_, top_k_}; }
  /// E counts of the last forward.
  VectorView<const std::int64_t> tokens_per_expert_E() const { return tokens_per_expert_; }
  /// T x E logits of the last forward; not given unless they are kept.
  MatrixView<const Accumulator> logits_TE() const {
    if (logits_.empty()) return {};
    return {logits_.data(), tokens_, experts_};
  }

 private:
  void check_tokens(Index tokens) const {
    detail::need(tokens >= 0 && tokens <= max_tokens_, "RoutingBuffers",
                 "0 <= tokens <= max_tokens", {{"tokens", tokens}, {"max_tokens", max_tokens_}});
  }

  Index experts_;
  Index top_k_;
  Index max_tokens_ = 0;
  Index tokens_ = 0;
  std::vector<ExpertId> expert_ids_;
  std::vector<Accumulator> weights_;
  std::vector<Accumulator> logits_;
  std::vector<std::int64_t> tokens_per_expert_;
  std::vector<std::byte> workspace_;
};

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_ROUTER_BUFFERS_HPP
