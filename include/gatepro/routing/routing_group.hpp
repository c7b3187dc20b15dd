// SPDX-License-Identifier: MIT
// Routes one group of tokens, one token per lane: the steps that every routing stage is made of.
//
//   logits --load--> keys_EL --rank--> ranked_EL --select--> top_*_KL --softmax--> weights_KL
#ifndef GATEPRO_ROUTING_ROUTING_GROUP_HPP
#define GATEPRO_ROUTING_ROUTING_GROUP_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/core/order.hpp"
#include "gatepro/core/workspace.hpp"
#include "gatepro/kernels/dispatch.hpp"
#include "gatepro/partners/pairing.hpp"
#include "gatepro/routing/rules.hpp"

namespace gatepro {
namespace detail {

/// The competition as the kernels take it.
template <class A>
struct ActiveCompetition {
  bool active = false;
  bool eliminate = false;
  bool ties_lose = false;  ///< The higher id loses where logits are equal.
  A lambda = 0;
  RivalView rivals;
};

/// Scratch for a group: L tokens, E experts, K choices.
template <class A>
struct RoutingGroup {
  using Key = typename Order<A>::Key;
  Key* keys_EL = nullptr;      ///< The logits' keys.
  Key* ranked_EL = nullptr;    ///< The same after competition.
  Key* top_keys_KL = nullptr;  ///< Ranked keys of the selected, best first.
  Key* top_ids_KL = nullptr;   ///< Ids of the selected.
  Key* other_keys_KL = nullptr;
  Key* other_ids_KL = nullptr;  ///< A second selection: refill, or the unpenalised one.
  A* weights_KL = nullptr;
  Key* nonfinite_L = nullptr;  ///< All ones where the weights are NaN.
};

inline namespace GATEPRO_ABI {

template <class A>
RoutingGroup<A> carve_group(Arena& arena, Index experts, Index top_k) {
  using Key = typename Order<A>::Key;
  const Index lanes = kernels<A>().lanes;
  RoutingGroup<A> group;
  group.keys_EL = arena.take<Key>(experts, lanes);
  group.ranked_EL = arena.take<Key>(experts, lanes);
  group.top_keys_KL = arena.take<Key>(top_k, lanes);
  group.top_ids_KL = arena.take<Key>(top_k, lanes);
  group.other_keys_KL = arena.take<Key>(top_k, lanes);
  group.other_ids_KL = arena.take<Key>(top_k, lanes);
  group.weights_KL = arena.take<A>(top_k, lanes);
  group.nonfinite_L = arena.take<Key>(lanes);
  return group;
}

/// The keys by which experts are selected: the logits' own where nobody competes.
template <class A>
const typename Order<A>::Key* rank_group(const RoutingGroup<A>& group, Index experts,
                                         const ActiveCompetition<A>& competition) {
  if (!competition.active) return group.keys_EL;
  kernels<A>().compete(group.keys_EL, experts, competition.rivals, competition.eliminate,
                       competition.ties_lose, competition.lambda, group.ranked_EL);
  return group.ranked_EL;
}

/// True if an expert that is a number lost to a rival, also where its penalty vanished in rounding.
/// keys_E: those of one token, `lanes` apart. Without branches, which would be mispredicted.
template <class A>
bool has_lost(const typename Order<A>::Key* keys_E, Index lanes, Index e,
              const ActiveCompetition<A>& competition) {
  using Key = typename Order<A>::Key;
  const RivalView& rivals = competition.rivals;
  const Key own = keys_E[e * lanes];
  const auto is_below = [&](Index rival) {
    const bool wins_ties = competition.ties_lose & (rival < e);
    return own < keys_E[rival * lanes] + Key(wins_ties);
  };
  const bool is_number = own != Order<A>::nan;
  if (rivals.only != nullptr) return is_number & is_below(rivals.only[e]);
  bool below = false;
  for (auto r = rivals.begin[e]; r < rivals.begin[e + 1]; ++r) below |= is_below(rivals.ids[r]);
  return is_number & below;
}

/// True if one of the first `tokens` tokens selected a loser.
template <class A>
bool holds_losers(const RoutingGroup<A>& group, Index tokens, Index top_k) {
  // Losers rank after survivors: a token without one in its last slot has none.
  const auto* last_keys_L = group.top_keys_KL + (top_k - 1) * kernels<A>().lanes;
  return std::any_of(last_keys_L, last_keys_L + tokens,
                     [](auto key) { return key <= Order<A>::loser; });
}

/// Gives the slots that survivors could not fill to the losers, in order of order_EL, then id. The
/// selection left them to the losers in order of id, because all losers share one key. Overwrites
/// ranked_EL. Returns how many of the first `tokens` tokens were short of survivors.
template <class A>
Index refill_from_losers(const RoutingGroup<A>& group, const typename Order<A>::Key* order_EL,
                         typename Order<A>::Key* ranked_EL, Index tokens, Index experts,
                         Index top_k) {
  using O = Order<A>;
  const Index lanes = kernels<A>().lanes;
  for (Index i = 0; i < experts * lanes; ++i) {
    ranked_EL[i] = ranked_EL[i] == O::loser ? order_EL[i] : O::empty;
  }
  kernels<A>().top_k(ranked_EL, experts, top_k, group.other_keys_KL, group.other_ids_KL);
  Index short_tokens = 0;
  for (Index lane = 0; lane < tokens; ++lane) {
    Index next_loser = lane;
    for (Index i = lane; i < top_k * lanes; i += lanes) {
      if (group.top_keys_KL[i] != O::loser) continue;
      group.top_ids_KL[i] = group.other_ids_KL[next_loser];
      next_loser += lanes;
    }
    short_tokens += next_loser != lane ? 1 : 0;
  }
  return short_tokens;
}

/// Selects the best K of the ranked keys, which stand in group.ranked_EL if some may be
/// `eliminated`. Returns the tokens that were short of survivors.
template <class A>
Index select_group(const RoutingGroup<A>& group, const typename Order<A>::Key* ranked_EL,
                   bool eliminated, Index tokens, Index experts, Index top_k) {
  kernels<A>().top_k(ranked_EL, experts, top_k, group.top_keys_KL, group.top_ids_KL);
  if (!eliminated || !holds_losers(group, tokens, top_k)) return 0;
  return refill_from_losers(group, group.keys_EL, group.ranked_EL, tokens, experts, top_k);
}

/// The first `tokens` tokens whose weights are NaN.
template <class A>
Index count_nonfinite(const RoutingGroup<A>& group, Index tokens) {
  Index count = 0;
  for (Index lane = 0; lane < tokens; ++lane) count += group.nonfinite_L[lane] != 0 ? 1 : 0;
  return count;
}

/// From `tokens` <= lanes rows of logits to the selected; row_room as in the load_keys kernel.
/// Returns the tokens that were short of survivors.
template <class A>
Index select_from_logits(const RoutingGroup<A>& group, const A* logits, Index row_stride,
                         Index row_room, Index tokens, Index experts, Index top_k,
                         const ActiveCompetition<A>& competition) {
  kernels<A>().load_keys(logits, row_stride, row_room, tokens, experts, group.keys_EL);
  const auto* ranked_EL = rank_group(group, experts, competition);
  return select_group(group, ranked_EL, competition.eliminate, tokens, experts, top_k);
}

/// From the selected to their weights. Returns the tokens whose weights are NaN.
template <class A>
Index weigh_selected(const RoutingGroup<A>& group, Index tokens, Index top_k) {
  kernels<A>().softmax(group.top_keys_KL, top_k, group.weights_KL, group.nonfinite_L);
  return count_nonfinite(group, tokens);
}

/// Elements that may be read from the start of each of `count` rows: rows that follow without a gap
/// belong to the same matrix, which nobody writes.
template <class A>
Index row_room(const MatrixView<const A>& logits_TE, Index first, Index count) {
  const bool has_gaps = logits_TE.row_stride != logits_TE.cols;
  return has_gaps ? logits_TE.cols : (logits_TE.rows - first - count + 1) * logits_TE.cols;
}

/// Copies lane-major results to the caller's [T, K] memory.
template <class From, class To>
void store_group(const From* values_KL, const StridedView<To>& to_TK) {
  const auto& kernel = kernels<std::conditional_t<sizeof(From) == 4, float, double>>();
  if (std::is_same_v<From, To> && to_TK.col_stride == 1) {
    kernel.store_lanes(values_KL, to_TK.cols, to_TK.rows, to_TK.data, to_TK.row_stride);
    return;
  }
  for (Index t = 0; t < to_TK.rows; ++t) {
    for (Index j = 0; j < to_TK.cols; ++j) {
      to_TK(t, j) = static_cast<To>(values_KL[j * kernel.lanes + t]);
    }
  }
}

/// Calls `body(worker, first_token, tokens)` for all groups of T tokens, several to a block.
template <class A, class Executor, class Body>
void for_each_group(Index tokens, const Executor& executor, int workers, const Body& body) {
  constexpr Index block_tokens = 256;
  const Index lanes = kernels<A>().lanes;
  const Index blocks = (tokens + block_tokens - 1) / block_tokens;
  for_each_block(executor, workers, blocks, [&](int worker, Index block) {
    const Index end = block + 1 < blocks ? (block + 1) * block_tokens : tokens;
    for (Index first = block * block_tokens; first < end; first += lanes) {
      body(worker, first, end - first < lanes ? end - first : lanes);
    }
  });
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_ROUTING_GROUP_HPP
