// SPDX-License-Identifier: MIT
// Stage: where each (token, choice) stands once the rows are sorted by expert.
#ifndef GATEPRO_DISPATCH_PLAN_HPP
#define GATEPRO_DISPATCH_PLAN_HPP

#include <algorithm>
#include <cstdint>
#include <limits>

#include "gatepro/core/checks.hpp"
#include "gatepro/core/choices.hpp"
#include "gatepro/core/workspace.hpp"

namespace gatepro {

/// The order of the rows of one expert.
enum class DispatchOrder {
  token_major,   ///< By token (FastMoE, Megatron-LM, ktransformers).
  choice_major,  ///< All first choices before all second ones, then by token (Tutel).
};

/// How rows are laid out. Plain data.
struct DispatchRule {
  DispatchOrder order = DispatchOrder::token_major;  ///< Within an expert.
  /// The rows of each expert are rounded up to a multiple of this, as grouped products like it; the
  /// gaps belong to no token. >= 1.
  Index alignment = 1;
  /// 0: each expert has as many rows as it needs. Else each has exactly this many, whether it needs
  /// them or not, as in a buffer of E x capacity x H: a multiple of alignment.
  Index rows_per_expert = 0;
  /// What DispatchPlan::position_TK says of a choice that has no row: -1, or the capacity where a
  /// consumer looks for positions that are too large (Tutel).
  std::int64_t dropped_position = -1;
};

/// Where plan_dispatch writes: everything is optional. In `Id`, "none" is -1, which is the largest
/// value of an unsigned type.
template <class Id = std::int32_t>
struct DispatchPlan {
  /// E: the choices of each expert that have a row. Gaps do not count.
  VectorView<std::int64_t> tokens_per_expert_E{};
  /// E + 1: the first row of each expert, then the number of rows.
  VectorView<std::int64_t> offsets_E1{};
  /// At least as many as there are rows: t * K + j of the choice in each row; none in gaps and
  /// behind the last row.
  VectorView<Id> choice_of_row_N{};
  /// The same with the token t.
  VectorView<Id> token_of_row_N{};
  /// The same with t * E + e: where the choice stands in a T x E matrix (see dense_routing).
  VectorView<Id> flat_index_of_row_N{};
  /// T x K: the row of each choice; none if it was dropped or masked. Strides {1, T} make it the
  /// row_id_map of TransformerEngine.
  StridedView<Id> row_TK{};
  /// T x K: the row less the first row of the expert; DispatchRule::dropped_position if dropped or
  /// masked.
  StridedView<Id> position_TK{};
};

namespace detail {

/// Scratch of a plan, E each.
struct PlanScratch {
  Index* count_E = nullptr;     ///< Choices of each expert.
  Index* next_row_E = nullptr;  ///< Where the next one goes.
};

/// The extents of a plan.
struct PlanSizes {
  Index tokens;
  Index top_k;
  Index experts;
  Index rows;
};

inline namespace GATEPRO_ABI {

inline PlanScratch carve_plan(Arena& arena, Index experts) {
  PlanScratch scratch;
  scratch.count_E = arena.take<Index>(experts);
  scratch.next_row_E = arena.take<Index>(experts);
  return scratch;
}

inline void check_dispatch_rule(const Checks& checks, const DispatchRule& rule) {
  checks.need(rule.alignment >= 1, "alignment >= 1", {{"alignment", rule.alignment}});
  checks.need(rule.rows_per_expert >= 0, "rows_per_expert >= 0",
              {{"rows_per_expert", rule.rows_per_expert}});
  checks.need(rule.rows_per_expert % rule.alignment == 0, "rows_per_expert a multiple of alignment",
              {{"rows_per_expert", rule.rows_per_expert}, {"alignment", rule.alignment}});
}

/// a + b for sizes >= 0.
inline Index checked_sum(const Checks& checks, Index a, Index b) {
  checks.need(a <= (std::numeric_limits<Index>::max)() - b, "rows within the address space",
              {{"rows", a}, {"more rows", b}});
  return a + b;
}

/// The rows that an expert with `count` choices gets.
inline Index rows_of_expert(const Checks& checks, const DispatchRule& rule, Index count) {
  if (rule.rows_per_expert > 0) {
    checks.need(count <= rule.rows_per_expert, "rows_per_expert for every expert's choices",
                {{"choices", count}, {"rows_per_expert", rule.rows_per_expert}});
    return rule.rows_per_expert;
  }
  return align_up(checks, "rows within the address space", count, rule.alignment);
}

/// All rows, given the counts.
inline Index count_rows(const Checks& checks, const DispatchRule& rule, Index experts,
                        const Index* count_E) {
  Index rows = 0;
  for (Index e = 0; e < experts; ++e) {
    rows = checked_sum(checks, rows, rows_of_expert(checks, rule, count_E[e]));
  }
  return rows;
}

/// What the plan is to hold, -1 and rule.dropped_position fit the id type.
template <class Id>
void check_plan_numbers(const Checks& checks, const DispatchRule& rule,
                        const DispatchPlan<Id>& plan, const PlanSizes& sizes) {
  Index largest = (std::max)(
      sizes.rows, checks.product("T * K within the address space", sizes.tokens, sizes.top_k));
  if (plan.flat_index_of_row_N.given()) {
    largest = (std::max)(
        largest, checks.product("T * E within the address space", sizes.tokens, sizes.experts));
  }
  constexpr auto most = static_cast<std::uint64_t>((std::numeric_limits<Id>::max)());
  checks.need(static_cast<std::uint64_t>(largest) <= most, "rows and choices within the id type",
              {{"largest number", largest}, {"largest id", most}});
  checks.need(
      rule.dropped_position >= -1 &&
          (rule.dropped_position < 0 || static_cast<std::uint64_t>(rule.dropped_position) <= most),
      "dropped_position within the id type, or -1",
      {{"dropped_position", rule.dropped_position}, {"largest id", most}});
}

template <class Id>
void check_row_list(const Checks& checks, const char* name, const VectorView<Id>& list,
                    Index rows) {
  checks.optional_vector(name, list, list.size);
  if (list.given() && list.size < rows) {
    fail_view(checks.where(), name, "an element per row", {{"size", list.size}, {"rows", rows}});
  }
}

/// The outputs that were asked for have room, and what they hold fits the id type.
template <class Id>
void check_plan(const Checks& checks, const DispatchRule& rule, const DispatchPlan<Id>& plan,
                const PlanSizes& sizes) {
  const auto& [tokens, top_k, experts, rows] = sizes;
  check_plan_numbers(checks, rule, plan, sizes);
  checks.optional_vector("tokens_per_expert_E", plan.tokens_per_expert_E, experts);
  checks.optional_vector("offsets_E1", plan.offsets_E1, experts + 1);
  check_row_list(checks, "choice_of_row_N", plan.choice_of_row_N, rows);
  check_row_list(checks, "token_of_row_N", plan.token_of_row_N, rows);
  check_row_list(checks, "flat_index_of_row_N", plan.flat_index_of_row_N, rows);
  checks.optional_strided("row_TK", plan.row_TK, tokens, top_k);
  checks.optional_strided("position_TK", plan.position_TK, tokens, top_k);
}

/// No output shares memory with another, nor with what `inputs` name.
template <class Id, class... Inputs>
void check_plan_overlaps(const Checks& checks, const DispatchPlan<Id>& plan,
                         const Workspace& workspace, const Inputs&... inputs) {
  checks.overlaps(
      output("tokens_per_expert_E", plan.tokens_per_expert_E),
      output("offsets_E1", plan.offsets_E1), output("choice_of_row_N", plan.choice_of_row_N),
      output("token_of_row_N", plan.token_of_row_N),
      output("flat_index_of_row_N", plan.flat_index_of_row_N), output("row_TK", plan.row_TK),
      output("position_TK", plan.position_TK), output("workspace", workspace), inputs...);
}

/// Counts and offsets to the plan, first rows to the scratch.
template <class Id>
void place_experts(const Checks& checks, const DispatchRule& rule, Index experts,
                   const PlanScratch& scratch, const DispatchPlan<Id>& plan) {
  Index row = 0;
  for (Index e = 0; e < experts; ++e) {
    if (plan.tokens_per_expert_E.given()) plan.tokens_per_expert_E[e] = scratch.count_E[e];
    if (plan.offsets_E1.given()) plan.offsets_E1[e] = row;
    scratch.next_row_E[e] = row;
    row += rows_of_expert(checks, rule, scratch.count_E[e]);
  }
  if (plan.offsets_E1.given()) plan.offsets_E1[experts] = row;
}

template <class Id>
void fill_choices(const StridedView<Id>& view, Id value) {
  if (!view.given()) return;
  for (Index t = 0; t < view.rows; ++t) {
    for (Index j = 0; j < view.cols; ++j) view(t, j) = value;
  }
}

/// "None" everywhere, before the choices that have a row write theirs.
template <class Id>
void clear_plan(const DispatchRule& rule, const DispatchPlan<Id>& plan) {
  constexpr Id none = static_cast<Id>(-1);
  std::fill_n(plan.choice_of_row_N.data, plan.choice_of_row_N.size, none);
  std::fill_n(plan.token_of_row_N.data, plan.token_of_row_N.size, none);
  std::fill_n(plan.flat_index_of_row_N.data, plan.flat_index_of_row_N.size, none);
  fill_choices(plan.row_TK, none);
  fill_choices(plan.position_TK, static_cast<Id>(rule.dropped_position));
}

/// Gives a choice the next row of its expert, in all outputs that were asked for.
template <class Id>
void place_choice(const DispatchPlan<Id>& plan, const PlanSizes& sizes, const PlanScratch& scratch,
                  Index t, Index j, Index e) {
  const Index row = scratch.next_row_E[e]++;
  const Index choice = t * sizes.top_k + j;
  if (plan.choice_of_row_N.given()) plan.choice_of_row_N[row] = static_cast<Id>(choice);
  if (plan.token_of_row_N.given()) plan.token_of_row_N[row] = static_cast<Id>(t);
  if (plan.flat_index_of_row_N.given()) {
    plan.flat_index_of_row_N[row] = static_cast<Id>(t * sizes.experts + e);
  }
  if (plan.row_TK.given()) plan.row_TK(t, j) = static_cast<Id>(row);
  // Within an expert, rows follow each other: what was placed so far is the position.
  if (plan.position_TK.given()) plan.position_TK(t, j) = static_cast<Id>(scratch.count_E[e]++);
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// The most rows that plan_dispatch can need: the size to reserve. Throws Error for sizes beyond
/// the address space. Thread-safe.
inline Index max_dispatch_rows(Index num_tokens, Index num_experts, Index top_k,
                               const DispatchRule& rule) {
  const detail::Checks checks("max_dispatch_rows");
  checks.num_experts(num_experts);
  checks.top_k(top_k, num_experts);
  detail::check_dispatch_rule(checks, rule);
  checks.need(num_tokens >= 0, "num_tokens >= 0", {{"num_tokens", num_tokens}});
  const char* limit = "rows within the address space";
  if (rule.rows_per_expert > 0) {
    return checks.product(limit, num_experts, rule.rows_per_expert);
  }
  const Index choices = checks.product(limit, num_tokens, top_k);
  const Index gaps = checks.product(limit, (std::min)(choices, num_experts), rule.alignment - 1);
  return detail::checked_sum(checks, choices, gaps);
}

/// dispatched_ids_TK = expert_ids_TK, but -1 (the largest value of an unsigned type) where a choice
/// has no place in an expert: dropped, or of padding. It is what consumers take that know no masks;
/// wherever ids are read, -1 means none.
///
/// choices: T x K. dispatched_ids_TK: T x K, overwritten, may be choices.expert_ids_TK; a backward
/// needs the ids of dropped choices. Throws Error for shapes, and for an id that no router can
/// have, of 2^31 - 1 experts at most, before any write: the rest fits every id type. No allocation.
/// Thread-safe.
template <class In, class Id>
void dispatched_ids(const Choices<In>& choices, StridedView<Id> dispatched_ids_TK) {
  detail::check_id_type<Id>();
  const detail::Checks checks("dispatched_ids");
  const Index tokens = choices.expert_ids_TK.rows;
  const Index top_k = choices.expert_ids_TK.cols;
  detail::check_choice_views(checks, choices, tokens, top_k);
  checks.strided("dispatched_ids_TK", dispatched_ids_TK, tokens, top_k);
  checks.overlaps(detail::output("dispatched_ids_TK", dispatched_ids_TK),
                  detail::in_place("expert_ids_TK", choices.expert_ids_TK),
                  detail::input("kept_TK", choices.kept_TK),
                  detail::input("is_padding_T", choices.is_padding_T));
  constexpr Index most_experts = (std::numeric_limits<std::int32_t>::max)();
  detail::check_choices(checks, "expert_ids_TK", choices, most_experts);
  for (Index t = 0; t < tokens; ++t) {
    for (Index j = 0; j < top_k; ++j) {
      const bool dispatched = detail::counts(choices, t, j);
      dispatched_ids_TK(t, j) =
          dispatched ? static_cast<Id>(choices.expert_ids_TK(t, j)) : static_cast<Id>(-1);
    }
  }
}

/// Bytes of workspace for plan_dispatch.
inline std::size_t plan_dispatch_workspace_bytes(Index num_experts) {
  detail::Checks("plan_dispatch").query_experts(num_experts);
  return detail::measure([&](detail::Arena& arena) { detail::carve_plan(arena, num_experts); });
}

/// Sorts the choices of a routing by expert, stably: expert after expert, each in rule.order.
///
/// choices: T x K, distinct within a row; kept_TK from drop_over_capacity. Those that do not count
/// get no row. `plan` is overwritten; its id type may differ from that of the ids.
///
/// Returns the number of rows, gaps included: offsets_E1[E]. Throws Error for shapes, settings, an
/// id that is out of range or twice in a row, more choices than rows_per_expert, numbers that do
/// not fit the id type, a row list that is too short, or a workspace that is too small, before any
/// write. Cost: O(T K + E + rows); no allocation. Thread-safe.
template <class In, class Id>
Index plan_dispatch(const Choices<In>& choices, Index num_experts, const DispatchRule& rule,
                    const DispatchPlan<Id>& plan, Workspace workspace) {
  detail::check_id_type<Id>();
  const detail::Checks checks("plan_dispatch");
  const Index tokens = choices.expert_ids_TK.rows;
  const Index top_k = choices.expert_ids_TK.cols;
  checks.num_experts(num_experts);
  checks.top_k(top_k, num_experts);
  detail::check_dispatch_rule(checks, rule);
  detail::check_choice_views(checks, choices, tokens, top_k);
  detail::check_plan_overlaps(checks, plan, workspace,
                              detail::input("expert_ids_TK", choices.expert_ids_TK),
                              detail::input("kept_TK", choices.kept_TK),
                              detail::input("is_padding_T", choices.is_padding_T));
  detail::Arena arena(checks.where(), workspace, plan_dispatch_workspace_bytes(num_experts));
  const auto scratch = detail::carve_plan(arena, num_experts);
  detail::check_distinct_choices(checks, "expert_ids_TK", choices, num_experts, scratch.count_E);

  detail::count_choices(choices, num_experts, scratch.count_E);
  const Index rows = detail::count_rows(checks, rule, num_experts, scratch.count_E);
  const detail::PlanSizes sizes{tokens, top_k, num_experts, rows};
  detail::check_plan(checks, rule, plan, sizes);

  detail::place_experts(checks, rule, num_experts, scratch, plan);
  detail::clear_plan(rule, plan);
  std::fill_n(scratch.count_E, num_experts, Index{0});
  const bool choice_major = rule.order == DispatchOrder::choice_major;
  // By value: no write to an output could change them.
  detail::for_each_choice(choices, choice_major, [=](Index t, Index j, Index e) {
    detail::place_choice(plan, sizes, scratch, t, j, e);
  });
  return rows;
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_DISPATCH_PLAN_HPP
