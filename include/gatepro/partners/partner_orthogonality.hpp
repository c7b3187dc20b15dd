// SPDX-License-Identifier: MIT
// An orthogonality loss over the pairs of a table of partners: a few products for each expert.
#ifndef GATEPRO_PARTNERS_PARTNER_ORTHOGONALITY_HPP
#define GATEPRO_PARTNERS_PARTNER_ORTHOGONALITY_HPP

#include <algorithm>
#include <array>
#include <cstdint>

#include "gatepro/gate/sparse_gradient.hpp"
#include "gatepro/partners/orthogonality_terms.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// A pair stands in the lists of both its experts. A list holds the own partners, best first, then
/// those that named this expert, in ascending order, then the expert itself.
template <class A>
class PartnerOrthogonality {
 public:
  /// `rows` has norms; dw_EH may be not given.
  PartnerOrthogonality(Arena& arena, const OrthogonalityRule& rule,
                       const StridedView<const std::int32_t>& partners_EM,
                       const CosineRows<A>& rows, const MatrixView<A>& dw_EH)
      : rule_(rule), partners_EM_(partners_EM), rows_(rows), dw_EH_(dw_EH) {
    const Index experts = partners_EM.rows;
    const Index entries = checked_product("orthogonality_loss", "2 E m within the address space",
                                          experts, 2 * partners_EM.cols + 1);
    cosines_EM_ = {arena.take<A>(experts, partners_EM.cols), experts, partners_EM.cols};
    value_E_ = arena.take<double>(experts);
    begin_E_ = arena.take<Index>(experts + 1);
    next_E_ = arena.take<Index>(experts);
    ids_ = arena.take<Index>(entries);
    coefficients_ = arena.take<A>(entries);
  }

  /// Fills the rows, and returns the value of the loss.
  template <class W, class Executor>
  double run(const MatrixView<const W>& w_EH, const Executor& executor, int workers) const {
    const Index experts = w_EH.rows;
    const int busy = useful_workers(executor, workers, {experts, partners_EM_.cols, w_EH.cols});
    for_each_block(executor, busy, experts, [&](int, Index i) { scale_row_into(w_EH, i, rows_); });
    if (rule_.kind == OrthogonalityKind::frobenius) {
      return run_with(FrobeniusTerms<A>{rows_}, executor, busy);
    }
    const Index most_terms = experts * (2 * partners_EM_.cols + 1);
    return run_with(SimBalTerms<A>(rows_, false, most_terms), executor, busy);
  }

 private:
  template <class Terms, class Executor>
  double run_with(const Terms& terms, const Executor& executor, int busy) const {
    const Index experts = partners_EM_.rows;
    for_each_block(executor, busy, experts, [&](int, Index i) { compare(terms, i); });
    double sum = 0;
    for (Index i = 0; i < experts; ++i) sum += value_E_[i];
    const double scale = rule_.coefficient / mean_over();
    if (dw_EH_.given()) {
      list_pairs();
      const WideNumber factor = WideNumber(scale).times(WideNumber(rule_.gradient_scale));
      for_each_block(executor, busy, experts,
                     [&](int, Index i) { add_row(terms, i, factor.times(terms.slope(i))); });
    }
    return scale * sum;
  }

  bool is_pair(Index i, Index m) const {
    return partners_EM_(i, m) != i && takes_part(rows_, i) && takes_part(rows_, partners_EM_(i, m));
  }

  /// The number of pairs for a mean, else 1.
  double mean_over() const {
    if (rule_.kind == OrthogonalityKind::simbal) return 1;
    Index pairs = 0;
    for_each_pair([&](Index, Index) { ++pairs; });
    return static_cast<double>((std::max)(pairs, Index{1}));
  }

  template <class Visit>
  void for_each_pair(const Visit& visit) const {
    for (Index i = 0; i < partners_EM_.rows; ++i) {
      for (Index m = 0; m < partners_EM_.cols; ++m) {
        if (is_pair(i, m)) visit(i, m);
      }
    }
  }

  /// The cosines of expert i with its partners, and what they add to the loss.
  template <class Terms>
  void compare(const Terms& terms, Index i) const {
    const auto dot = gradient_kernels<A, A>().dot;
    double sum = 0;
    for (Index m = 0; m < partners_EM_.cols; ++m) {
      if (!is_pair(i, m)) continue;
      const Index j = partners_EM_(i, m);
      A& cosine = cosines_EM_(i, m);
      cosine = dot(rows_.scaled_EH.row(i), rows_.scaled_EH.row(j), rows_.scaled_EH.cols);
      kernels<A>().normalise(&cosine, 1, rows_.inverse_norm_E[i], rows_.inverse_norm_E + j);
      sum += terms.value(j, cosine);
    }
    value_E_[i] = product(sum, terms.row_weight(i));
  }

  /// Fills the lists, with cosines where coefficients will stand.
  void list_pairs() const {
    const Index experts = partners_EM_.rows;
    std::fill_n(begin_E_, experts + 1, Index{1});
    begin_E_[0] = 0;
    for_each_pair([&](Index i, Index m) {
      ++begin_E_[i + 1];
      ++begin_E_[partners_EM_(i, m) + 1];
    });
    for (Index i = 0; i < experts; ++i) begin_E_[i + 1] += begin_E_[i];
    std::copy_n(begin_E_, experts, next_E_);
    const auto append = [&](Index i, Index other, A cosine) {
      ids_[next_E_[i]] = other;
      coefficients_[next_E_[i]++] = cosine;
    };
    for_each_pair([&](Index i, Index m) { append(i, partners_EM_(i, m), cosines_EM_(i, m)); });
    for_each_pair([&](Index i, Index m) { append(partners_EM_(i, m), i, cosines_EM_(i, m)); });
    for (Index i = 0; i < experts; ++i) append(i, i, A(0));
  }

  /// dw_i += its gradient.
  template <class Terms>
  void add_row(const Terms& terms, Index i, const WideNumber& factor) const {
    const Index begin = begin_E_[i], self = begin_E_[i + 1] - 1;
    double values = 0;
    for (Index at = begin; at < self; ++at) {
      values += terms.value(ids_[at], coefficients_[at]);
      coefficients_[at] = terms.coefficient(ids_[at], coefficients_[at]);
    }
    coefficients_[self] = terms.one(i, values);
    constexpr Index most = 256;  // columns at a time
    for (Index c = 0; c < dw_EH_.cols; c += most) {
      const Index cols = (std::min)(most, dw_EH_.cols - c);
      std::array<A, most> sums{};
      gradient_kernels<A, A>().add_rows(coefficients_ + begin, ids_ + begin, self + 1 - begin,
                                        rows_.scaled_EH.data + c, rows_.scaled_EH.row_stride, cols,
                                        sums.data());
      factor.add_product(sums.data(), cols, dw_EH_.row(i) + c);
    }
  }

  OrthogonalityRule rule_;
  StridedView<const std::int32_t> partners_EM_;
  CosineRows<A> rows_;
  MatrixView<A> dw_EH_;
  MatrixView<A> cosines_EM_;
  double* value_E_;
  Index* begin_E_;
  Index* next_E_;
  Index* ids_;
  A* coefficients_;
};

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_PARTNERS_PARTNER_ORTHOGONALITY_HPP
