// SPDX-License-Identifier: MIT
// The cosines of the pairs of experts that have one.
#ifndef GATEPRO_PARTNERS_SIMILAR_PAIRS_HPP
#define GATEPRO_PARTNERS_SIMILAR_PAIRS_HPP

#include <cstdint>

#include "gatepro/core/order.hpp"
#include "gatepro/core/views.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// Calls `visit(cosine)`, in double, for all pairs i < j of rows that have a similarity.
template <class A, class Visit>
void for_each_pair(const MatrixView<const A>& similarity_EE, const Visit& visit) {
  for (Index i = 0; i < similarity_EE.rows; ++i) {
    for (Index j = 0; j < i; ++j) {
      const A cosine = similarity_EE(i, j);
      if (key_of(cosine) != Order<A>::nan) visit(static_cast<double>(cosine));
    }
  }
}

/// The same for each expert and its first partner, if it has one.
template <class A, class Visit>
void for_each_partner(const MatrixView<const A>& similarity_EE,
                      const StridedView<const std::int32_t>& partners_EM, const Visit& visit) {
  for (Index i = 0; i < similarity_EE.rows; ++i) {
    const Index partner = partners_EM(i, 0);
    if (partner == i) continue;
    const A cosine = similarity_EE(i, partner);
    if (key_of(cosine) != Order<A>::nan) visit(static_cast<double>(cosine));
  }
}

/// The mean of the cosines that `for_each(visit)` visits; 0 for none.
template <class ForEach>
double mean_cosine(const ForEach& for_each) {
  double sum = 0;
  Index pairs = 0;
  for_each([&](double cosine) {
    sum += cosine;
    ++pairs;
  });
  return pairs == 0 ? 0 : sum / static_cast<double>(pairs);
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_PARTNERS_SIMILAR_PAIRS_HPP
