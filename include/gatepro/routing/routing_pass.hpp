// SPDX-License-Identifier: MIT
// The scratch of a scored routing, and what its stages do with a routed group.
#ifndef GATEPRO_ROUTING_ROUTING_PASS_HPP
#define GATEPRO_ROUTING_ROUTING_PASS_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/core/choices.hpp"
#include "gatepro/routing/report.hpp"
#include "gatepro/routing/ruled_selection.hpp"

namespace gatepro {
namespace detail {

/// What one worker needs and finds out.
template <class A>
struct ScoredScratch {
  ScoredGroup<A> group;
  std::int64_t* tokens_per_expert_E = nullptr;
  RoutingReport* report = nullptr;
};

inline namespace GATEPRO_ABI {

template <class A>
struct CarveScored {
  Index experts;
  SelectionRule rule;

  ScoredScratch<A> operator()(Arena& arena) const {
    ScoredScratch<A> scratch;
    scratch.group = carve_scored_group<A>(arena, experts, rule);
    scratch.tokens_per_expert_E = arena.take<std::int64_t>(experts);
    scratch.report = arena.take<RoutingReport>(1);
    return scratch;
  }
};

/// The scratch of a whole call, divided among workers.
template <class A>
struct ScoredLayout {
  ScoredLayout(Arena& arena, Index experts, const SelectionRule& rule, int workers_)
      : bias_E(arena.take<A>(experts)),
        last_token_E(arena.take<Index>(experts)),
        scratch(arena, workers_, CarveScored<A>{experts, rule}),
        workers(workers_) {}

  /// Zeroes what workers find out.
  void begin(Index experts) const {
    for (int worker = 0; worker < workers; ++worker) {
      const ScoredScratch<A> mine = scratch(worker);
      std::fill_n(mine.tokens_per_expert_E, experts, std::int64_t{0});
      *mine.report = {};
    }
  }

  /// Adds up what the workers found out.
  RoutingReport finish(const VectorView<std::int64_t>& tokens_per_expert_E) const {
    RoutingReport report;
    std::fill_n(tokens_per_expert_E.data, tokens_per_expert_E.size, std::int64_t{0});
    for (int worker = 0; worker < workers; ++worker) {
      const ScoredScratch<A> mine = scratch(worker);
      report.nonfinite_rows += mine.report->nonfinite_rows;
      report.tokens_short_of_survivors += mine.report->tokens_short_of_survivors;
      for (Index e = 0; e < tokens_per_expert_E.size; ++e) {
        tokens_per_expert_E[e] += mine.tokens_per_expert_E[e];
      }
    }
    return report;
  }

  A* bias_E;
  Index* last_token_E;
  PerWorker<CarveScored<A>> scratch;
  int workers;
};

template <class A>
std::size_t scored_workspace_bytes(const char* where, Index experts, const SelectionRule& rule,
                                   int workers) {
  check_selection<A>(where, rule, experts);
  return measure([&](Arena& arena) { ScoredLayout<A>(arena, experts, rule, workers); });
}

/// Counts one token: its experts, and whether it needs attention.
template <class A>
void count_token(const ScoredScratch<A>& mine, Index top_k, Index lane) {
  const ScoredGroup<A>& group = mine.group;
  bool short_of_survivors = false;
  for (Index i = lane; i < top_k * kernels<A>().lanes; i += kernels<A>().lanes) {
    ++mine.tokens_per_expert_E[group.routing.top_ids_KL[i]];
    short_of_survivors = short_of_survivors || group.selected_KL[i] == Order<A>::loser;
  }
  mine.report->tokens_short_of_survivors += short_of_survivors ? 1 : 0;
  mine.report->nonfinite_rows += group.routing.nonfinite_L[lane] != 0 ? 1 : 0;
}

/// Zeroes the weights of padding, and counts the rest.
template <class A>
void finish_group(const ScoredScratch<A>& mine, const SelectionRule& rule,
                  const VectorView<const std::uint8_t>& is_padding_T, Index first, Index tokens) {
  const ScoredGroup<A>& group = mine.group;
  if (!is_padding_T.given() && rule.competition.mode != CompetitionMode::eliminate) {
    kernels<A>().count_ids(group.routing.top_ids_KL, rule.top_k, tokens, mine.tokens_per_expert_E);
    mine.report->nonfinite_rows += count_nonfinite(group.routing, tokens);
    return;
  }
  fill_lanes(group, rule.top_k, A(0),
             [&](Index lane) { return lane < tokens && is_masked(is_padding_T, first + lane); });
  for (Index lane = 0; lane < tokens; ++lane) {
    if (!is_masked(is_padding_T, first + lane)) count_token(mine, rule.top_k, lane);
  }
}

template <class A>
void store_scored_weights(const ScoredGroup<A>& group, Index first, Index tokens,
                          const StridedView<A>& weights_TK, const StridedView<A>& scores_TK) {
  store_group(group.routing.weights_KL, weights_TK.middle_rows(first, tokens));
  if (scores_TK.given()) store_group(group.scores_KL, scores_TK.middle_rows(first, tokens));
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_ROUTING_PASS_HPP
