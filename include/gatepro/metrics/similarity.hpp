// SPDX-License-Identifier: MIT
// How similar the rows of the router's weights are: all pairs, and each expert with its partner.
#ifndef GATEPRO_METRICS_SIMILARITY_HPP
#define GATEPRO_METRICS_SIMILARITY_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "gatepro/core/checks.hpp"
#include "gatepro/core/product.hpp"
#include "gatepro/partners/similar_pairs.hpp"

namespace gatepro {

/// Cosines of some pairs of experts.
struct SimilarityMetrics {
  Index pairs = 0;          ///< Pairs of finite rows; with none of them, the rest is 0.
  double mean = 0;          ///< Mean cosine: the paper's average similarity, over all pairs.
  double deviation = 0;     ///< Standard deviation over the pairs.
  double smallest = 0;      ///< Of all.
  double largest = 0;       ///< Of all.
  double mean_degrees = 0;  ///< Mean angle in degrees: 90 if nothing is similar.
};

namespace detail {
inline namespace GATEPRO_ABI {

/// The metrics of the cosines that `for_each(visit)` visits, twice.
template <class ForEach>
SimilarityMetrics similarity_metrics(const ForEach& for_each) {
  constexpr double degrees = 57.29577951308232;
  SimilarityMetrics metrics;
  metrics.smallest = 2;
  metrics.largest = -2;
  double sum = 0, angles = 0, squares = 0;
  for_each([&](double cosine) {
    ++metrics.pairs;
    sum += cosine;
    angles += std::acos((std::max)(-1.0, (std::min)(cosine, 1.0)));
    metrics.smallest = (std::min)(metrics.smallest, cosine);
    metrics.largest = (std::max)(metrics.largest, cosine);
  });
  if (metrics.pairs == 0) return {};
  const auto pairs = static_cast<double>(metrics.pairs);
  metrics.mean = sum / pairs;
  metrics.mean_degrees = degrees * angles / pairs;
  for_each(
      [&](double cosine) { squares += product(cosine - metrics.mean, cosine - metrics.mean); });
  metrics.deviation = std::sqrt(squares / pairs);
  return metrics;
}

/// Adds a cosine to bins of equal width from -1 to 1.
inline void bin_cosine(double cosine, const VectorView<std::int64_t>& counts_B) {
  const double place = (cosine + 1) / 2 * static_cast<double>(counts_B.size);
  const auto bin = static_cast<Index>(place);
  ++counts_B[(std::max)(Index{0}, (std::min)(bin, counts_B.size - 1))];
}

template <class A>
void check_similarity(const Checks& checks, const MatrixView<const A>& similarity_EE) {
  check_accumulator<A>();
  checks.num_experts(similarity_EE.rows);
  checks.matrix("similarity_EE", similarity_EE, similarity_EE.rows, similarity_EE.rows);
}

inline void check_partners(const Checks& checks, const char* argument,
                           const StridedView<const std::int32_t>& partners_EM, Index experts) {
  checks.need(partners_EM.cols >= 1, "a partner per expert", {{"cols", partners_EM.cols}});
  checks.strided(argument, partners_EM, experts, partners_EM.cols);
  checks.ids(argument, partners_EM, experts);
}

inline void check_bins(const Checks& checks, const VectorView<std::int64_t>& counts_B) {
  checks.need(counts_B.size >= 1, "a bin or more", {{"bins", counts_B.size}});
  checks.vector("counts_B", counts_B, counts_B.size);
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Metrics of the cosines of all pairs i < j of rows.
///
/// similarity_EE: E x E, symmetric, as SimilarityCache::similarity or cosine_similarity give it;
/// NaN marks a row that is not finite, whose pairs do not count. Throws Error for the shape. Cost:
/// E^2 values are read, and E^2 / 2 arccosines. No allocation. Thread-safe.
template <class S>
SimilarityMetrics pairwise_similarity(MatrixView<S> similarity_EE) {
  using A = detail::value_t<S>;
  const MatrixView<const A> all_EE = similarity_EE;
  detail::check_similarity<A>("pairwise_similarity", all_EE);
  return detail::similarity_metrics(
      [&](const auto& visit) { detail::for_each_pair(all_EE, visit); });
}

/// The same of each expert and its most similar one, its first partner; experts without one do not
/// count. partners_EM: E x m ids, i itself in row i for "none". Throws Error for shapes or an id
/// out of range. Cost: E. No allocation. Thread-safe.
template <class S>
SimilarityMetrics partner_similarity(MatrixView<S> similarity_EE,
                                     StridedView<const std::int32_t> partners_EM) {
  using A = detail::value_t<S>;
  const MatrixView<const A> all_EE = similarity_EE;
  detail::check_similarity<A>("partner_similarity", all_EE);
  detail::check_partners("partner_similarity", "partners_EM", partners_EM, all_EE.rows);
  return detail::similarity_metrics(
      [&](const auto& visit) { detail::for_each_partner(all_EE, partners_EM, visit); });
}

/// counts_B[b] += the pairs i < j whose cosine stands in bin b of B that divide [-1, 1] evenly; a
/// cosine on a border belongs to the upper bin, 1 to the last. Integers: layers and steps add up.
/// Throws Error for shapes or B < 1, before any write. Cost: E^2 / 2. No allocation. Thread-safe.
template <class S>
void add_pairwise_histogram(MatrixView<S> similarity_EE, VectorView<std::int64_t> counts_B) {
  using A = detail::value_t<S>;
  const MatrixView<const A> all_EE = similarity_EE;
  const detail::Checks checks("add_pairwise_histogram");
  detail::check_similarity<A>(checks, all_EE);
  detail::check_bins(checks, counts_B);
  detail::for_each_pair(all_EE, [&](double cosine) { detail::bin_cosine(cosine, counts_B); });
}

/// The same of each expert and its first partner. Throws Error as partner_similarity does, too.
/// Cost: E.
template <class S>
void add_partner_histogram(MatrixView<S> similarity_EE, StridedView<const std::int32_t> partners_EM,
                           VectorView<std::int64_t> counts_B) {
  using A = detail::value_t<S>;
  const MatrixView<const A> all_EE = similarity_EE;
  const detail::Checks checks("add_partner_histogram");
  detail::check_similarity<A>(checks, all_EE);
  detail::check_partners(checks, "partners_EM", partners_EM, all_EE.rows);
  detail::check_bins(checks, counts_B);
  detail::for_each_partner(all_EE, partners_EM,
                           [&](double cosine) { detail::bin_cosine(cosine, counts_B); });
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_METRICS_SIMILARITY_HPP
