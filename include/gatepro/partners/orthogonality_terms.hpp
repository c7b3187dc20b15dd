// SPDX-License-Identifier: MIT
// What a pair of rows adds to an orthogonality loss, and what multiplies a row in a gradient.
//
// The loss is a sum over pairs (i, j) of row_weight(i) * value(j, C_ij). The gradient to row i is
// slope(i) times the sum over j of coefficient(j, C_ij) times scaled row j, plus one(i) times its
// own, which for cosines takes the part along w_i away. All of that sum stays within the range of
// A; only its product with slope(i) may leave it.
#ifndef GATEPRO_PARTNERS_ORTHOGONALITY_TERMS_HPP
#define GATEPRO_PARTNERS_ORTHOGONALITY_TERMS_HPP

#include <algorithm>
#include <cmath>
#include <limits>

#include "gatepro/core/product.hpp"
#include "gatepro/gate/sparse_gradient.hpp"
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
  rows.exponent_E = arena.take<int>(experts);
  rows.norm_E = arena.take<double>(experts);
  return rows;
}

/// A number that may lie beyond the range of double: mantissa * 2^exponent.
class WideNumber {
 public:
  explicit WideNumber(double value, int exponent = 0) {
    mantissa_ = std::frexp(value, &exponent_);
    exponent_ += exponent;
  }

  WideNumber times(const WideNumber& other) const {
    return WideNumber(mantissa_ * other.mantissa_, exponent_ + other.exponent_);
  }

  /// dw_H += this times sums_H. Beyond the normal numbers of A that takes two factors, as an
  /// infinite one would make NaN of zeros; sums_H is overwritten then.
  template <class A>
  void add_product(A* sums_H, Index hidden, A* dw_H) const {
    using Limits = std::numeric_limits<A>;
    const int normal = std::clamp(exponent_, Limits::min_exponent, Limits::max_exponent - 1);
    if (normal != exponent_) {
      const int rest = (std::min)(exponent_ - normal, Limits::max_exponent - 1);
      kernels<A>().scale(sums_H, hidden, std::ldexp(A(1), rest), A(1));
    }
    const A factor = std::ldexp(static_cast<A>(mantissa_), normal);
    const Index row = 0;
    gradient_kernels<A, A>().add_rows(&factor, &row, 1, sums_H, hidden, hidden, dw_H);
  }

 private:
  double mantissa_;  // 0, or in [1/2, 1) but for its sign
  int exponent_ = 0;
};

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
  WideNumber slope(Index i) const {
    const double inverse = static_cast<double>((std::max)(rows.inverse_norm_E[i], A(0)));
    return WideNumber(2 * inverse, -rows.exponent_E[i]);
  }
  A coefficient(Index j, A cosine) const { return cosine * rows.inverse_norm_E[j]; }
  A one(Index i, double values) const {
    return -static_cast<A>(values * static_cast<double>(rows.inverse_norm_E[i]));
  }
};

/// |<w_i, w_j> - delta_ij|.
template <class A>
class SimBalTerms {
 public:
  /// `most_terms`: of a row's sum.
  SimBalTerms(const CosineRows<A>& rows, bool has_diagonal, Index most_terms)
      : rows_(rows),
        has_diagonal_(has_diagonal),
        lowered_(lowered_by(rows, most_terms)),
        lowering_(std::ldexp(A(1), -lowered_)) {}

  double row_weight(Index i) const { return rows_.norm_E[i]; }
  double value(Index j, A cosine) const {
    return product(std::fabs(static_cast<double>(cosine)), rows_.norm_E[j]);
  }
  double diagonal(Index i) const { return std::fabs(excess(i)); }
  WideNumber slope(Index) const { return WideNumber(1, lowered_); }
  A coefficient(Index j, A cosine) const { return signed_by(cosine, lowering_ * rows_.unit_E[j]); }
  A one(Index i, double) const { return signed_by(excess(i), lowering_ * rows_.unit_E[i]); }

 private:
  /// What keeps sums within the range of A: 0 unless rows are huge, as small ones would lose
  /// digits.
  static int lowered_by(const CosineRows<A>& rows, Index most_terms) {
    const int largest = *std::max_element(rows.exponent_E, rows.exponent_E + rows.scaled_EH.rows);
    const int sum_below = largest + 2 + std::ilogb(static_cast<double>(most_terms));
    return (std::max)(sum_below + 1 - std::numeric_limits<A>::max_exponent, 0);
  }

  double excess(Index i) const {
    const bool counts = has_diagonal_ && takes_part(rows_, i);
    return counts ? product(rows_.norm_E[i], rows_.norm_E[i]) - 1 : 0.0;
  }
  template <class B>
  static A signed_by(B sign, A size) {
    return sign > 0 ? size : sign < 0 ? -size : A(0);
  }

  const CosineRows<A>& rows_;
  bool has_diagonal_;
  int lowered_;  // coefficients are 2^-lowered_ of what they stand for
  A lowering_;   // 2^-lowered_
};

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_PARTNERS_ORTHOGONALITY_TERMS_HPP
