// SPDX-License-Identifier: MIT
// Stages around an exchange of rows between ranks that hold some of the experts each.
//
//   rows by expert --exchange--> [source rank][expert] --regroup--> rows by expert, of all ranks
//
// Counts of the exchange are a matrix: of rows to send, [rank][expert of that rank], which are the
// tokens_per_expert_E of a plan; of rows that come, [source rank][expert of mine].
#ifndef GATEPRO_DISPATCH_REGROUP_HPP
#define GATEPRO_DISPATCH_REGROUP_HPP

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "gatepro/dispatch/plan.hpp"

namespace gatepro {

/// What MPI_Alltoallv takes of one side of an exchange: counts and displacements per rank, in
/// elements of its datatype. Either may be not given.
struct ExchangeCounts {
  VectorView<int> counts_R{};         ///< R: elements for, or from, each rank.
  VectorView<int> displacements_R{};  ///< R: elements before them.
};

namespace detail {
inline namespace GATEPRO_ABI {

/// Counts >= 0, of a type that MPI or a plan has. Returns their sum.
template <class Count>
Index check_exchange(const Checks& checks, const char* name, const MatrixView<Count>& counts_RE) {
  static_assert(std::is_integral_v<value_t<Count>> && !std::is_same_v<value_t<Count>, bool>,
                "gatepro: counts of rows are integers");
  checks.matrix(name, counts_RE, counts_RE.rows, counts_RE.cols);
  Index sum = 0;
  for (Index r = 0; r < counts_RE.rows; ++r) {
    for (Index e = 0; e < counts_RE.cols; ++e) {
      const auto count = static_cast<std::int64_t>(counts_RE(r, e));
      if (count < 0) {
        checks.refuse(name, "counts >= 0", {{"count", count}, {"rank", r}, {"expert", e}});
      }
      sum = checked_sum(checks, sum, static_cast<Index>(count));
    }
  }
  return sum;
}

/// Calls `visit(r, first, count)` for each rank: its elements, and those before them.
template <class Count, class Visit>
void for_each_rank(const Checks& checks, const MatrixView<Count>& counts_RE, Index elements_per_row,
                   const Visit& visit) {
  Index first = 0;
  for (Index r = 0; r < counts_RE.rows; ++r) {
    Index rows = 0;
    for (Index e = 0; e < counts_RE.cols; ++e) rows += static_cast<Index>(counts_RE(r, e));
    const Index count =
        checks.product("rows * elements_per_row within the address space", rows, elements_per_row);
    visit(r, first, count);
    first = checked_sum(checks, first, count);
  }
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Counts and displacements of one side of an exchange, for MPI_Alltoallv.
///
/// counts_RE: R ranks x experts per rank, of rows: `{plan.tokens_per_expert_E.data, R, E / R}` to
/// send, what came from an exchange of these to receive. elements_per_row: elements of the datatype
/// in a row, 1 for a type that is a row (MPI_Type_contiguous), so that sums stay small. out:
/// overwritten. Rows stand without gaps: an alignment of 1 in the plan, and no rows_per_expert.
///
/// Throws Error for shapes, negative counts, and counts or displacements beyond an int, which MPI
/// takes, before any write. No allocation. Thread-safe.
template <class Count>
void exchange_counts(MatrixView<Count> counts_RE, Index elements_per_row,
                     const ExchangeCounts& out) {
  const detail::Checks checks("exchange_counts");
  const Index ranks = counts_RE.rows;
  checks.need(elements_per_row >= 1, "elements_per_row >= 1",
              {{"elements_per_row", elements_per_row}});
  detail::check_exchange(checks, "counts_RE", counts_RE);
  checks.optional_vector("counts_R", out.counts_R, ranks);
  checks.optional_vector("displacements_R", out.displacements_R, ranks);
  checks.overlaps(detail::output("counts_R", out.counts_R),
                  detail::output("displacements_R", out.displacements_R),
                  detail::input("counts_RE", counts_RE));
  constexpr int most = (std::numeric_limits<int>::max)();
  detail::for_each_rank(
      checks, counts_RE, elements_per_row, [&](Index r, Index first, Index count) {
        if (first > most || count > most) {
          checks.refuse("counts_RE", "counts and displacements within an int: exchange whole rows",
                        {{"rank", r}, {"count", count}, {"displacement", first}});
        }
      });
  detail::for_each_rank(checks, counts_RE, elements_per_row,
                        [&](Index r, Index first, Index count) {
                          if (out.counts_R.given()) out.counts_R[r] = static_cast<int>(count);
                          if (out.displacements_R.given()) {
                            out.displacements_R[r] = static_cast<int>(first);
                          }
                        });
}

/// Bytes of workspace for plan_regroup.
inline std::size_t plan_regroup_workspace_bytes(Index num_experts) {
  detail::Checks("plan_regroup").query_experts(num_experts);
  return detail::measure([&](detail::Arena& arena) { detail::carve_plan(arena, num_experts); });
}

/// Sorts rows that stand as [source rank][expert], as an exchange leaves them, by expert: within an
/// expert by source, then as they came. It is plan_dispatch with the received rows for tokens and
/// K = 1, but goes through the counts only.
///
/// counts_SE: sources x experts of this rank, of rows. `plan` is overwritten, with T the sum of the
/// counts. permute by token_of_row_N takes the rows that were received to those by expert, permute
/// by row_TK, as a list of T, takes them back; each is the gradient of the other. rule.order makes
/// no difference.
///
/// Returns the number of rows, gaps included. Throws Error as plan_dispatch does, and for negative
/// counts, before any write. Cost: O(sources * experts + rows); no allocation. Thread-safe.
template <class Count, class Id>
Index plan_regroup(MatrixView<Count> counts_SE, const DispatchRule& rule,
                   const DispatchPlan<Id>& plan, Workspace workspace) {
  detail::check_id_type<Id>();
  const detail::Checks checks("plan_regroup");
  const Index experts = counts_SE.cols;
  checks.num_experts(experts);
  detail::check_dispatch_rule(checks, rule);
  const Index received = detail::check_exchange(checks, "counts_SE", counts_SE);
  detail::check_plan_overlaps(checks, plan, workspace, detail::input("counts_SE", counts_SE));
  detail::Arena arena(checks.where(), workspace, plan_regroup_workspace_bytes(experts));
  const auto scratch = detail::carve_plan(arena, experts);
  for (Index e = 0; e < experts; ++e) {
    scratch.count_E[e] = 0;
    for (Index s = 0; s < counts_SE.rows; ++s) {
      scratch.count_E[e] += static_cast<Index>(counts_SE(s, e));
    }
  }
  const Index rows = detail::count_rows(checks, rule, experts, scratch.count_E);
  const detail::PlanSizes sizes{received, 1, experts, rows};
  detail::check_plan(checks, rule, plan, sizes);

  detail::place_experts(checks, rule, experts, scratch, plan);
  detail::clear_plan(rule, plan);
  std::fill_n(scratch.count_E, experts, Index{0});
  Index token = 0;
  for (Index s = 0; s < counts_SE.rows; ++s) {
    for (Index e = 0; e < experts; ++e) {
      for (Index i = 0; i < static_cast<Index>(counts_SE(s, e)); ++i) {
        detail::place_choice(plan, sizes, scratch, token++, 0, e);
      }
    }
  }
  return rows;
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_DISPATCH_REGROUP_HPP
