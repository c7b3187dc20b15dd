// SPDX-License-Identifier: MIT
// A group of tokens, one token per lane: its scratch, and how it is read and written.
//
//   logits --load--> keys_EL --compete--> ranked_EL --choose--> ids_KL --weigh--> weights_KL
//
// Selections (plain_selection.hpp and its neighbours) say how a group chooses and weighs,
// RoutingPass goes through the groups of a call.
#ifndef GATEPRO_ROUTING_ROUTING_GROUP_HPP
#define GATEPRO_ROUTING_ROUTING_GROUP_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/core/choices.hpp"
#include "gatepro/core/order.hpp"
#include "gatepro/core/workspace.hpp"
#include "gatepro/kernels/dispatch.hpp"

namespace gatepro {
namespace detail {

/// Scratch for a group: L tokens, E experts, K choices.
template <class A>
struct RoutingGroup {
  using Key = typename Order<A>::Key;
  Key* keys_EL = nullptr;      ///< The logits' keys.
  Key* ranked_EL = nullptr;    ///< The same after competition.
  Key* top_keys_KL = nullptr;  ///< What the selected were chosen by, best first.
  Key* ids_KL = nullptr;       ///< Ids of the selected.
  Key* other_keys_KL = nullptr;
  Key* other_ids_KL = nullptr;  ///< A second selection: refill, or the unpenalised one.
  Key* selected_KL = nullptr;   ///< Ranked keys of the selected: their logits, loser or NaN.
  A* scores_KL = nullptr;       ///< Scores of the selected.
  A* weights_KL = nullptr;      ///< Their weights.
  Key* nonfinite_L = nullptr;   ///< All ones where the weights are NaN.
  int worker = 0;               ///< Whose scratch this is.

  GATEPRO_ALWAYS_INLINE SelectedKeys<Key> top() const { return {top_keys_KL, ids_KL}; }
  GATEPRO_ALWAYS_INLINE SelectedKeys<Key> other() const { return {other_keys_KL, other_ids_KL}; }
};

/// The tokens of a group: `count` <= L of the caller's T, from `first`.
struct TokenRange {
  Index first = 0;
  Index count = 0;
};

/// Rows of logits, one per token, of which `row_room` elements may be read from each row's start.
template <class A>
struct LogitRows {
  const A* data = nullptr;
  Index row_stride = 0;
  Index row_room = 0;
};

/// Names every lane, for stages that know of no padding.
struct EveryLane {
  GATEPRO_ALWAYS_INLINE bool operator()(Index) const { return true; }
};

inline namespace GATEPRO_ABI {

/// What a routing takes of a logit, comparisons mostly, and what softmax takes of one or its
/// gradient, in multiply-adds of the gate.
inline constexpr Index routing_work = 32, softmax_work = 256;

/// A group whose selected are chosen by ranked key and weighed by score: both have one memory.
template <class A>
RoutingGroup<A> carve_group(Arena& arena, Index experts, Index top_k) {
  using Key = typename Order<A>::Key;
  const Index lanes = kernels<A>().lanes;
  RoutingGroup<A> group;
  group.keys_EL = arena.take<Key>(experts, lanes);
  group.ranked_EL = arena.take<Key>(experts, lanes);
  group.top_keys_KL = arena.take<Key>(top_k, lanes);
  group.ids_KL = arena.take<Key>(top_k, lanes);
  group.other_keys_KL = arena.take<Key>(top_k, lanes);
  group.other_ids_KL = arena.take<Key>(top_k, lanes);
  group.weights_KL = arena.take<A>(top_k, lanes);
  group.nonfinite_L = arena.take<Key>(lanes);
  group.selected_KL = group.top_keys_KL;
  group.scores_KL = group.weights_KL;
  return group;
}

/// Rows that follow without a gap belong to the same matrix: they may be read beyond a row's end,
/// unless somebody writes there meanwhile.
template <class A>
LogitRows<A> logit_rows(const MatrixView<const A>& logits_TE, const TokenRange& tokens,
                        bool others_write = false) {
  const bool ends_with_row = others_write || logits_TE.row_stride != logits_TE.cols;
  const Index rows_left = logits_TE.rows - tokens.first - tokens.count + 1;
  return {logits_TE.row(tokens.first), logits_TE.row_stride,
          ends_with_row ? logits_TE.cols : rows_left * logits_TE.cols};
}

/// The logits' keys, one token per lane. Lanes past `tokens` repeat the last one.
template <class A>
void load_keys(const LogitRows<A>& logits, Index tokens, Index experts,
               typename Order<A>::Key* keys_EL) {
  kernels<A>().load_keys(logits.data, logits.row_stride, logits.row_room, tokens, experts, keys_EL);
}

/// of_selected_KL = of_all_EL of the experts in ids_KL.
template <class A, class T>
void gather_selected(const RoutingGroup<A>& group, Index top_k, const T* of_all_EL,
                     T* of_selected_KL) {
  const Index lanes = kernels<A>().lanes;
  for (Index j = 0; j < top_k; ++j) {
    for (Index lane = 0; lane < lanes; ++lane) {
      const Index e = static_cast<Index>(group.ids_KL[j * lanes + lane]);
      of_selected_KL[j * lanes + lane] = of_all_EL[e * lanes + lane];
    }
  }
}

/// Fills the weights and scores of the lanes that `which(lane)` names.
template <class A, class Which>
void fill_lanes(const RoutingGroup<A>& group, Index top_k, A value, const Which& which) {
  const Index lanes = kernels<A>().lanes;
  for (Index lane = 0; lane < lanes; ++lane) {
    if (!which(lane)) continue;
    for (Index i = lane; i < top_k * lanes; i += lanes) {
      group.weights_KL[i] = value;
      group.scores_KL[i] = value;
    }
  }
}

/// Of the first `tokens` lanes, those that `which(lane)` names and whose weights are NaN.
template <class A, class Which>
Index count_nonfinite(const RoutingGroup<A>& group, Index tokens, const Which& which) {
  Index count = 0;
  for (Index lane = 0; lane < tokens; ++lane) {
    count += group.nonfinite_L[lane] != 0 && which(lane) ? 1 : 0;
  }
  return count;
}

/// The same for those that selected a loser.
template <class A, class Which>
Index count_short(const RoutingGroup<A>& group, Index tokens, Index top_k, const Which& which) {
  const Index lanes = kernels<A>().lanes;
  Index count = 0;
  for (Index lane = 0; lane < tokens; ++lane) {
    bool is_short = false;
    for (Index i = lane; i < top_k * lanes; i += lanes) {
      is_short |= group.selected_KL[i] == Order<A>::loser;
    }
    count += is_short && which(lane) ? 1 : 0;
  }
  return count;
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

/// The same for the rows of `tokens`, if the caller wants it.
template <class From, class To>
void store_if_given(const From* values_KL, const StridedView<To>& to_TK, const TokenRange& tokens) {
  if (to_TK.given()) store_group(values_KL, to_TK.middle_rows(tokens.first, tokens.count));
}

/// Tokens of a block of for_each_group: whole groups of any lane count.
inline constexpr Index block_tokens = 256;

/// Calls `body(worker, tokens)` for all groups of T tokens, several to a block.
template <class A, class Executor, class Body>
void for_each_group(Index tokens, const Executor& executor, int workers, const Body& body) {
  const Index lanes = kernels<A>().lanes;
  const Index blocks = blocks_of(tokens, block_tokens);
  for_each_block(executor, workers, blocks, [&](int worker, Index block) {
    const Index end = block + 1 < blocks ? (block + 1) * block_tokens : tokens;
    for (Index first = block * block_tokens; first < end; first += lanes) {
      body(worker, TokenRange{first, (std::min)(lanes, end - first)});
    }
  });
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_ROUTING_GROUP_HPP
