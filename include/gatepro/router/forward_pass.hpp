// SPDX-License-Identifier: MIT
// One forward: its scratch, and what it does with a tile of logits.
#ifndef GATEPRO_ROUTER_FORWARD_PASS_HPP
#define GATEPRO_ROUTER_FORWARD_PASS_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/gate/logits.hpp"
#include "gatepro/router/buffers.hpp"
#include "gatepro/routing/competition.hpp"
#include "gatepro/routing/penalty_statistics.hpp"

namespace gatepro {
namespace detail {

/// What one worker needs and finds out.
template <class A>
struct ForwardScratch {
  GateScratch<A> gate;
  RoutingGroup<A> group;
  std::int64_t* tokens_per_expert_E = nullptr;
  std::uint8_t* selected_E = nullptr;  ///< Zero between groups.
  RoutingReport* report = nullptr;
  PenaltyStatistics* statistics = nullptr;
};

inline namespace GATEPRO_ABI {

/// The layout of a worker's scratch.
template <class X, class A>
struct CarveForward {
  Index experts;
  Index top_k;

  ForwardScratch<A> operator()(Arena& arena) const {
    ForwardScratch<A> scratch;
    scratch.gate = carve_gate<X, A>(arena, experts);
    scratch.group = carve_group<A>(arena, experts, top_k);
    scratch.tokens_per_expert_E = arena.take<std::int64_t>(experts);
    scratch.selected_E = arena.take<std::uint8_t>(experts);
    scratch.report = arena.take<RoutingReport>(1);
    scratch.statistics = arena.take<PenaltyStatistics>(1);
    return scratch;
  }
};

/// The scratch of a whole forward, divided among workers.
template <class X, class A>
struct ForwardLayout {
  ForwardLayout(Arena& arena, Index experts, Index hidden, Index top_k, int workers_)
      : packed(arena.take<A>(packed_size<A>(experts, hidden))),
        scratch(arena, workers_, CarveForward<X, A>{experts, top_k}),
        workers(workers_) {}

  GateScratch<A> gate(int worker) const { return scratch(worker).gate; }

  A* packed;
  PerWorker<CarveForward<X, A>> scratch;
  int workers;
};

/// Routes tiles of logits into `out`. With `observe`, also counts what the penalty did; without,
/// no trace of it is compiled into the loop.
template <class X, class A, class Id, bool observe>
class ForwardPass {
 public:
  ForwardPass(const ForwardLayout<X, A>& layout, const ActiveCompetition<A>& competition,
              const FirstPartners& partners, const RoutingView<A, Id>& out, Index experts)
      : layout_(layout),
        competition_(competition),
        partners_(partners),
        out_(out),
        experts_(experts),
        top_k_(out.expert_ids_TK.cols) {
    for (int worker = 0; worker < layout_.workers; ++worker) {
      const ForwardScratch<A> mine = layout_.scratch(worker);
      std::fill_n(mine.tokens_per_expert_E, experts_, std::int64_t{0});
      std::fill_n(mine.selected_E, experts_, std::uint8_t{0});
      *mine.report = {};
      *mine.statistics = {};
    }
  }

  /// Routes the `count` tokens from `first`, whose logits stand in rows of `row_stride`, `row_room`
  /// of whose elements may be read.
  void route(int worker, Index first, Index count, const A* logits, Index row_stride,
             Index row_room) const {
    const ForwardScratch<A> mine = layout_.scratch(worker);
    const Index lanes = kernels<A>().lanes;
    for (Index done = 0; done < count; done += lanes) {
      const Index tokens = (std::min)(lanes, count - done);
      mine.report->tokens_short_of_survivors +=
          select_from_logits(mine.group, logits + done * row_stride, row_stride, row_room, tokens,
                             experts_, top_k_, competition_);
      // The ids first: the softmax would wait for the keys, which were stored one by one.
      store_ids(mine, first + done, tokens);
      mine.report->nonfinite_rows += weigh_selected(mine.group, tokens, top_k_);
      store_group(mine.group.weights_KL, out_.weights_TK.middle_rows(first + done, tokens));
      if constexpr (observe) {
        observe_group(mine.group, tokens, experts_, top_k_, competition_, partners_,
                      mine.selected_E, *mine.statistics);
      }
    }
  }

  /// Adds up the workers' counts, writes them to `out`, and returns the report.
  RoutingReport finish() const {
    RoutingReport report;
    if (out_.tokens_per_expert_E.given()) {
      std::fill_n(out_.tokens_per_expert_E.data, experts_, std::int64_t{0});
    }
    if constexpr (observe) *out_.statistics = {};
    for (int worker = 0; worker < layout_.workers; ++worker) {
      const ForwardScratch<A> mine = layout_.scratch(worker);
      report.nonfinite_rows += mine.report->nonfinite_rows;
      report.tokens_short_of_survivors += mine.report->tokens_short_of_survivors;
      if constexpr (observe) {
        *out_.statistics += *mine.statistics;
        out_.statistics->tokens_short_of_survivors += mine.report->tokens_short_of_survivors;
      }
      if (!out_.tokens_per_expert_E.given()) continue;
      for (Index e = 0; e < experts_; ++e) {
        out_.tokens_per_expert_E[e] += mine.tokens_per_expert_E[e];
      }
    }
    return report;
  }

 private:
  void store_ids(const ForwardScratch<A>& mine, Index first, Index tokens) const {
    store_group(mine.group.top_ids_KL, out_.expert_ids_TK.middle_rows(first, tokens));
    kernels<A>().count_ids(mine.group.top_ids_KL, top_k_, tokens, mine.tokens_per_expert_E);
  }

  const ForwardLayout<X, A>& layout_;
  ActiveCompetition<A> competition_;
  FirstPartners partners_;
  const RoutingView<A, Id>& out_;
  Index experts_;
  Index top_k_;
};

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTER_FORWARD_PASS_HPP
