// SPDX-License-Identifier: MIT
// What a pair of rows adds to an orthogonality loss, and what multiplies a row in a gradient.
//
// The loss is a sum over pairs (i, j) of row_weight(i) * value(j, C_ij). The gradient to row i is
// slope(i) times the sum over j of coefficient(j, C_ij) times scaled row j, plus one(i) times its
// own, which for cosines takes the part along w_i away.
#ifndef GATEPRO_PARTNERS_ORTHOGONALITY_TERMS_HPP
#define GATEPRO_PARTNERS_ORTHOGONALITY_TERMS_HPP

#include <algorithm>
#include <cmath>
#include <limits>

#include "gatepro/core/product.hpp"
#include "gatepro/partners/cosine_similarity.hpp"
#include "gatepro/partners/settings.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// Rows of W with their norms.
template <class A>
CosineRows<A> carve_normed_rows(Arena& arena, Index experts, Index hidden) {
  CosineRows<A> rows = carve_cosine_rows<A>(arena, experts, hidden);
  rows.unit_E = arena.take<A>(experts);
  rows.norm_E = arena.take<double>(experts);
  return rows;
}

/// False for a row with a NaN or infinity.
template <class A>
bool takes_part(const CosineRows<A>& rows, Index i) {
  return rows.inverse_norm_E[i] >= 0;
}

/// (C_ij - delta_ij)^2. The diagonal is 0 by definition.
template <class A>
struct FrobeniusTerms {
  const CosineRows<A>& rows;

  double row_weight(Index) const { return 1; }
  double value(Index, A cosine) const {
    const double c = static_cast<double>(cosine);
    return product(c, c);
  }
  double diagonal(Index) const { return 0; }
  double slope(Index i) const { return rows.norm_E[i] > 0 ? 2 / rows.norm_E[i] : 0.0; }
  A coefficient(Index j, A cosine) const { return cosine * rows.inverse_norm_E[j]; }
  A one(Index i, double values) const {
    return -static_cast<A>(values * static_cast<double>(rows.inverse_norm_E[i]));
  }
};

/// |<w_i, w_j> - delta_ij|.
template <class A>
struct SimBalTerms {
  const CosineRows<A>& rows;
  bool has_diagonal;

  double row_weight(Index i) const { return rows.norm_E[i]; }
  double value(Index j, A cosine) const {
    return product(std::fabs(static_cast<double>(cosine)), rows.norm_E[j]);
  }
  double diagonal(Index i) const { return std::fabs(excess(i)); }
  double slope(Index) const { return 1; }
  A coefficient(Index j, A cosine) const { return signed_by(cosine, rows.unit_E[j]); }
  A one(Index i, double) const { return signed_by(excess(i), rows.unit_E[i]); }

 private:
  double excess(Index i) const {
    const bool counts = has_diagonal && takes_part(rows, i);
    return counts ? product(rows.norm_E[i], rows.norm_E[i]) - 1 : 0.0;
  }
  template <class B>
  static A signed_by(B sign, A size) {
    return sign > 0 ? size : sign < 0 ? -size : A(0);
  }
};

/// What a row's coefficients are multiplied by: a number of A, whose products may leave the range.
template <class A>
A row_factor(double factor) {
  constexpr double most = static_cast<double>((std::numeric_limits<A>::max)());
  return static_cast<A>(std::clamp(factor, -most, most));
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_PARTNERS_ORTHOGONALITY_TERMS_HPP
