// SPDX-License-Identifier: MIT
// The engine: takes tiles of logits through competition, selection, weights, padding and counts.
//
// What is local to a token happens here, group by group, while its logits are in cache. What needs
// all tokens (loads of all ranks, losses, capacity, a plan) follows once, on what was written.
#ifndef GATEPRO_ROUTING_ROUTING_PASS_HPP
#define GATEPRO_ROUTING_ROUTING_PASS_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/core/choices.hpp"
#include "gatepro/routing/observe_penalty.hpp"
#include "gatepro/routing/view.hpp"

namespace gatepro {
namespace detail {

/// What one worker needs and finds out.
template <class Group>
struct PassScratch {
  Group group;
  std::int64_t* tokens_per_expert_E = nullptr;
  std::uint8_t* selected_E = nullptr;  ///< Zero between groups.
  RoutingReport* report = nullptr;
  PenaltyStatistics* statistics = nullptr;
};

/// Tiles of logits are routed as they are.
struct Untouched {
  static constexpr bool active() { return false; }
  GATEPRO_ALWAYS_INLINE void operator()(const TokenRange&) const {}
};

/// A pass that is all there is to do with the logits.
struct ObserveNothing {
  template <class Key>
  GATEPRO_ALWAYS_INLINE void operator()(int, const Key*, const TokenRange&) const {}
};

inline namespace GATEPRO_ABI {

/// The shapes of what a routing writes; ids and weights must be given.
template <class A, class Id>
void check_routing_view(const Checks& checks, const RoutingView<A, Id>& out, Index tokens,
                        Index experts, Index top_k) {
  checks.strided("expert_ids_TK", out.expert_ids_TK, tokens, top_k);
  checks.strided("weights_TK", out.weights_TK, tokens, top_k);
  checks.optional_vector("tokens_per_expert_E", out.tokens_per_expert_E, experts);
  checks.optional_matrix("logits_TE", out.logits_TE, tokens, experts);
  checks.optional_strided("scores_TK", out.scores_TK, tokens, top_k);
  checks.optional_strided("penalised_TK", out.penalised_TK, tokens, top_k);
  checks.optional_strided("choice_values_TK", out.choice_values_TK, tokens, top_k);
}

/// The layout of a worker's scratch.
template <class Selection>
struct CarvePass {
  Index experts;
  SelectionRule rule;

  PassScratch<typename Selection::Group> operator()(Arena& arena) const {
    PassScratch<typename Selection::Group> scratch;
    scratch.group = Selection::carve(arena, experts, rule);
    scratch.tokens_per_expert_E = arena.take<std::int64_t>(experts);
    scratch.selected_E = arena.take<std::uint8_t>(experts);
    scratch.report = arena.take<RoutingReport>(1);
    scratch.statistics = arena.take<PenaltyStatistics>(1);
    return scratch;
  }
};

/// The scratch of a pass, divided among workers.
template <class Selection>
struct PassLayout {
  PassLayout(Arena& arena, Index experts_, const SelectionRule& rule, int workers_)
      : scratch(arena, workers_, CarvePass<Selection>{experts_, rule}),
        experts(experts_),
        workers(workers_) {}

  PerWorker<CarvePass<Selection>> scratch;
  Index experts;
  int workers;
};

/// Routes tiles of logits into `out`, whose members may all be not given. `Selection` says how a
/// group chooses and weighs; its type decides which steps are compiled. `observe(worker, keys_EL,
/// tokens)` sees each group's logits before.
template <class A, class Id, class Selection, class Observe = ObserveNothing>
class RoutingPass {
 public:
  /// `partners` are those that statistics count.
  RoutingPass(const PassLayout<Selection>& layout, const Selection& selection,
              const RoutingView<A, Id>& out, const FirstPartners& partners = {},
              const VectorView<const std::uint8_t>& is_padding_T = {}, const Observe& observe = {})
      : layout_(layout),
        selection_(selection),
        out_(out),
        partners_(partners),
        is_padding_T_(is_padding_T),
        observe_(observe) {
    for (int worker = 0; worker < layout_.workers; ++worker) {
      const Scratch mine = layout_.scratch(worker);
      std::fill_n(mine.tokens_per_expert_E, layout_.experts, std::int64_t{0});
      std::fill_n(mine.selected_E, layout_.experts, std::uint8_t{0});
      *mine.report = {};
      *mine.statistics = {};
    }
  }

  /// Routes a tile of any number of tokens.
  void route(int worker, const TokenRange& tile, const LogitRows<A>& logits) const {
    Scratch mine = layout_.scratch(worker);
    mine.group.worker = worker;
    const Index lanes = kernels<A>().lanes;
    for (Index done = 0; done < tile.count; done += lanes) {
      const TokenRange tokens{tile.first + done, (std::min)(lanes, tile.count - done)};
      const LogitRows<A> rows{logits.data + done * logits.row_stride, logits.row_stride,
                              logits.row_room};
      load_keys(rows, tokens.count, layout_.experts, mine.group.keys_EL);
      observe_(worker, mine.group.keys_EL, tokens);
      route_group(mine, tokens);
    }
  }

  /// Routes all rows of a matrix. If change.active(), `change(tile)` may change the logits of
  /// a tile before they are read.
  template <class Executor, class Change>
  void route_all(const MatrixView<const A>& logits_TE, const Executor& executor,
                 const Change& change) const {
    constexpr Index tile_tokens = 48;  // a multiple of every lane count
    const Index rows = logits_TE.rows;
    const int busy =
        useful_workers(executor, layout_.workers, {routing_work, rows, layout_.experts});
    for_each_block(executor, busy, blocks_of(rows, tile_tokens), [&](int worker, Index block) {
      const Index first = block * tile_tokens;
      const TokenRange tile{first, (std::min)(tile_tokens, rows - first)};
      change(tile);
      route(worker, tile, logit_rows(logits_TE, tile, change.active()));
    });
  }

  /// Adds up the workers' counts, writes them to `out`, and returns the report.
  RoutingReport finish() const {
    RoutingReport report;
    const VectorView<std::int64_t>& counts_E = out_.tokens_per_expert_E;
    std::fill_n(counts_E.data, counts_E.size, std::int64_t{0});
    if (out_.statistics != nullptr) *out_.statistics = {};
    for (int worker = 0; worker < layout_.workers; ++worker) {
      const Scratch mine = layout_.scratch(worker);
      report += *mine.report;
      if (out_.statistics != nullptr) *out_.statistics += *mine.statistics;
      for (Index e = 0; e < counts_E.size; ++e) counts_E[e] += mine.tokens_per_expert_E[e];
      for (Index e = 0; e < layout_.experts; ++e) report.choices += mine.tokens_per_expert_E[e];
    }
    if (out_.statistics != nullptr) {
      out_.statistics->tokens_short_of_survivors = report.tokens_short_of_survivors;
    }
    return report;
  }

 private:
  using Group = typename Selection::Group;
  using Scratch = PassScratch<Group>;

  void route_group(const Scratch& mine, const TokenRange& tokens) const {
    const Group& group = mine.group;
    mine.report->tokens += tokens.count;
    const bool lost_some = selection_.choose(group, tokens, layout_.experts);
    // The ids first: the softmax would wait for the keys, which were stored one by one.
    if constexpr (!Selection::is_recorded) store_if_given(group.ids_KL, out_.expert_ids_TK, tokens);
    if constexpr (Selection::knows_choice_values) tell_choice_values(group, tokens);
    count_choices_of(mine, tokens);
    if (lost_some) {
      mine.report->tokens_short_of_survivors +=
          count_short(group, tokens.count, selection_.top_k, not_padding(tokens));
    }
    if (out_.weights_TK.given()) weigh_group_of(mine, tokens);
    if constexpr (!Selection::is_recorded) tell_penalty(mine, tokens);
  }

  void weigh_group_of(const Scratch& mine, const TokenRange& tokens) const {
    const Group& group = mine.group;
    selection_.weigh(group, tokens);
    mine.report->nonfinite_rows += count_nonfinite(group, tokens.count, not_padding(tokens));
    if (is_padding_T_.given()) {
      fill_lanes(group, selection_.top_k, A(0), [&](Index lane) {
        return lane < tokens.count && is_masked(is_padding_T_, tokens.first + lane);
      });
    }
    store_if_given(group.weights_KL, out_.weights_TK, tokens);
    store_if_given(group.scores_KL, out_.scores_TK, tokens);
  }

  /// Who had lost, and what that changed.
  void tell_penalty(const Scratch& mine, const TokenRange& tokens) const {
    const Group& group = mine.group;
    if (out_.penalised_TK.given()) {
      mark_losers(group, selection_.competition,
                  out_.penalised_TK.middle_rows(tokens.first, tokens.count));
    }
    if (out_.statistics == nullptr) return;
    selection_.choose_unpenalised(group, layout_.experts);
    observe_group(group, tokens.count, layout_.experts, selection_.top_k, selection_.competition,
                  partners_, mine.selected_E, *mine.statistics, not_padding(tokens));
  }

  void tell_choice_values(const Group& group, const TokenRange& tokens) const {
    if (!out_.choice_values_TK.given()) return;
    const Index lanes = kernels<A>().lanes;
    for (Index lane = 0; lane < tokens.count; ++lane) {
      for (Index j = 0; j < selection_.top_k; ++j) {
        const Index i = j * lanes + lane;
        const bool lost = group.selected_KL[i] == Order<A>::loser;
        out_.choice_values_TK(tokens.first + lane, j) =
            value_of<A>(lost ? Order<A>::loser : group.top_keys_KL[i]);
      }
    }
  }

  void count_choices_of(const Scratch& mine, const TokenRange& tokens) const {
    if (!Selection::is_recorded && !is_padding_T_.given()) {
      kernels<A>().count_ids(mine.group.ids_KL, selection_.top_k, tokens.count,
                             mine.tokens_per_expert_E);
      return;
    }
    const Index lanes = kernels<A>().lanes;
    for (Index lane = 0; lane < tokens.count; ++lane) {
      for (Index j = 0; j < selection_.top_k; ++j) {
        if (!is_choice(tokens.first + lane, j)) continue;
        ++mine.tokens_per_expert_E[mine.group.ids_KL[j * lanes + lane]];
      }
    }
  }

  bool is_choice(Index t, Index j) const {
    if constexpr (Selection::is_recorded) {
      return counts(selection_.choices, t, j);
    } else {
      return !is_masked(is_padding_T_, t);
    }
  }

  /// Names the lanes that hold a token which is not padding.
  auto not_padding(const TokenRange& tokens) const {
    return [this, first = tokens.first](Index lane) {
      return !is_masked(is_padding_T_, first + lane);
    };
  }

  const PassLayout<Selection>& layout_;
  Selection selection_;
  RoutingView<A, Id> out_;
  FirstPartners partners_;
  VectorView<const std::uint8_t> is_padding_T_;
  Observe observe_;
};

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_ROUTING_PASS_HPP
