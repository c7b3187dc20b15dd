// SPDX-License-Identifier: MIT
// Who names whom as partner: mutual pairs, hubs, and what a refresh changed.
#ifndef GATEPRO_METRICS_PARTNER_GRAPH_HPP
#define GATEPRO_METRICS_PARTNER_GRAPH_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/metrics/similarity.hpp"

namespace gatepro {

/// The graph of "i names j": its edges compete.
struct PartnerGraph {
  Index partnered_experts = 0;  ///< Experts that name a partner.
  Index mutual_pairs = 0;       ///< Pairs that name each other: only these exclude co-activation.
  Index unnamed_experts = 0;    ///< Nobody's partner: they never make others lose.
  Index largest_in_degree = 0;  ///< Experts that name the hub.
  Index hub = 0;                ///< Whom most name; the lowest id of several.
};

namespace detail {
inline namespace GATEPRO_ABI {

/// True if i has j among its partners; "none" is stored as i itself, so j != i.
inline bool names(const StridedView<const std::int32_t>& partners_EM, Index i, Index j) {
  for (Index m = 0; m < partners_EM.cols; ++m) {
    if (partners_EM(i, m) == j) return true;
  }
  return false;
}

inline bool same_partners(const StridedView<const std::int32_t>& a_EM,
                          const StridedView<const std::int32_t>& b_EM, Index i) {
  for (Index m = 0; m < a_EM.cols; ++m) {
    if (a_EM(i, m) != b_EM(i, m)) return false;
  }
  return true;
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// The graph of a table of partners.
///
/// partners_EM: E x m ids, i itself in row i for "none". in_degree_E: E, overwritten with the
/// number of experts that name each. Throws Error for shapes or an id out of range, before any
/// write. Cost: E m^2. No allocation. Thread-safe.
inline PartnerGraph partner_graph(StridedView<const std::int32_t> partners_EM,
                                  VectorView<std::int64_t> in_degree_E) {
  const detail::Checks checks("partner_graph");
  const Index experts = partners_EM.rows;
  checks.num_experts(experts);
  detail::check_partners(checks, "partners_EM", partners_EM, experts);
  checks.vector("in_degree_E", in_degree_E, experts);
  checks.overlaps(detail::output("in_degree_E", in_degree_E),
                  detail::input("partners_EM", partners_EM));
  std::fill_n(in_degree_E.data, experts, std::int64_t{0});
  PartnerGraph graph;
  for (Index i = 0; i < experts; ++i) {
    graph.partnered_experts += partners_EM(i, 0) != i ? 1 : 0;
    for (Index m = 0; m < partners_EM.cols; ++m) {
      const Index j = partners_EM(i, m);
      if (j == i) continue;
      ++in_degree_E[j];
      graph.mutual_pairs += j < i && detail::names(partners_EM, j, i) ? 1 : 0;
    }
  }
  const std::int64_t* begin = in_degree_E.data;
  const std::int64_t* largest = std::max_element(begin, begin + experts);
  graph.hub = largest - begin;
  graph.largest_in_degree = static_cast<Index>(*largest);
  graph.unnamed_experts = std::count(begin, begin + experts, std::int64_t{0});
  return graph;
}

/// Partner churn: experts whose list of partners differs between two tables (E x m), such as those
/// of two steps, or those in use and those that the present weights would have. Divide by E for a
/// rate. Throws Error for shapes or an id out of range. Cost: E m. No allocation. Thread-safe.
inline Index changed_partners(StridedView<const std::int32_t> before_EM,
                              StridedView<const std::int32_t> after_EM) {
  const detail::Checks checks("changed_partners");
  checks.num_experts(before_EM.rows);
  detail::check_partners(checks, "before_EM", before_EM, before_EM.rows);
  checks.strided("after_EM", after_EM, before_EM.rows, before_EM.cols);
  checks.ids("after_EM", after_EM, before_EM.rows);
  Index changed = 0;
  for (Index i = 0; i < before_EM.rows; ++i) {
    changed += detail::same_partners(before_EM, after_EM, i) ? 0 : 1;
  }
  return changed;
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_METRICS_PARTNER_GRAPH_HPP
