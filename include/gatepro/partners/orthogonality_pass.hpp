// SPDX-License-Identifier: MIT
// An orthogonality loss over all pairs of rows, a tile of cosines at a time.
//
// A tile of cosines with all rows becomes a tile of coefficients in place of C, whose product with
// the scaled rows is the gradient of its rows: no E x E matrix is stored, and no two tiles write
// the same.
#ifndef GATEPRO_PARTNERS_ORTHOGONALITY_PASS_HPP
#define GATEPRO_PARTNERS_ORTHOGONALITY_PASS_HPP

#include <algorithm>

#include "gatepro/gate/dense_gradient.hpp"
#include "gatepro/partners/orthogonality_terms.hpp"

namespace gatepro {
namespace detail {

/// A worker's scratch.
template <class A>
struct OrthogonalityScratch {
  A* coefficients_TE = nullptr;  ///< tile_tokens x E: cosines first.
  A* panels = nullptr;           ///< As in DenseScratch.
  A* edge = nullptr;
  A* sums = nullptr;  ///< tile_tokens rows of slab_cols.
};

inline namespace GATEPRO_ABI {

template <class A>
struct CarveOrthogonality {
  Index experts;

  OrthogonalityScratch<A> operator()(Arena& arena) const {
    OrthogonalityScratch<A> scratch;
    scratch.coefficients_TE = arena.take<A>(tile_tokens, experts);
    scratch.panels = arena.take<A>(depth_block * slab_cols);
    scratch.edge = arena.take<A>(tile_tokens * panel_cols<A>());
    scratch.sums = arena.take<A>(tile_tokens * slab_cols);
    return scratch;
  }
};

/// Takes the tiles of for_each_cosine_tile.
template <class A>
class OrthogonalityPass {
 public:
  /// `rows` has norms; dw_EH may be not given.
  OrthogonalityPass(Arena& arena, const OrthogonalityRule& rule, const CosineRows<A>& rows,
                    const MatrixView<A>& dw_EH, int workers)
      : rule_(rule),
        rows_(rows),
        dw_EH_(dw_EH),
        experts_(rows.scaled_EH.rows),
        group_((std::max)(experts_ / rule.groups, Index{1})),
        value_E_(arena.take<double>(experts_)),
        scratch_(arena, workers, CarveOrthogonality<A>{experts_}) {}

  /// A gradient needs the cosines with all rows.
  CosinePairs pairs() const { return dw_EH_.given() ? CosinePairs::twice : CosinePairs::once; }

  void take(int worker, const CosineTile<A>& tile) const {
    if (rule_.kind == OrthogonalityKind::frobenius) {
      take_with(FrobeniusTerms<A>{rows_}, scratch_(worker), tile);
    } else {
      take_with(SimBalTerms<A>(rows_, true, experts_), scratch_(worker), tile);
    }
  }

  /// Once all tiles were taken.
  double value() const {
    double sum = 0;
    for (Index i = 0; i < experts_; ++i) sum += value_E_[i];
    return scale() * sum;
  }

 private:
  /// c, divided by the number of pairs where the loss is a mean.
  double scale() const {
    if (rule_.kind == OrthogonalityKind::simbal) return rule_.coefficient;
    double pairs = 0;
    for (Index begin = 0; begin < experts_; begin += group_) {
      double rows = 0;
      for (Index i = begin; i < begin + group_; ++i) rows += takes_part(rows_, i) ? 1 : 0;
      pairs += product(rows, rule_.mean_over_others ? rows - 1 : rows);
    }
    return pairs > 0 ? rule_.coefficient / pairs : 0;
  }

  template <class Terms>
  void take_with(const Terms& terms, const OrthogonalityScratch<A>& mine,
                 const CosineTile<A>& tile) const {
    const Index begin = tile.first_expert / group_ * group_;
    const Index end = (tile.end_expert() - 1) / group_ * group_ + group_;
    for (Index i = tile.first_expert; i < tile.end_expert(); ++i) {
      A* row_E = mine.coefficients_TE + (i - tile.first_expert) * experts_;
      load_cosines(tile, i, row_E);
      const Index group_begin = i / group_ * group_;
      const double below = sum_values(terms, row_E, (std::max)(group_begin, tile.from_expert), i);
      const double above = sum_values(terms, row_E, i + 1, group_begin + group_);
      value_E_[i] = product(2 * above, terms.row_weight(i)) + terms.diagonal(i);
      if (!dw_EH_.given()) continue;
      std::fill(row_E + begin, row_E + group_begin, A(0));
      std::fill(row_E + group_begin + group_, row_E + end, A(0));
      for (Index j = group_begin; j < group_begin + group_; ++j) {
        row_E[j] = terms.coefficient(j, row_E[j]);
      }
      row_E[i] = terms.one(i, below + above);
    }
    if (dw_EH_.given()) add_gradient(terms, mine, tile, begin, end);
  }

  /// The cosines of expert i with those of its group, 0 where one takes no part.
  void load_cosines(const CosineTile<A>& tile, Index i, A* row_E) const {
    const Index begin = i / group_ * group_;
    for (Index j = (std::max)(begin, tile.from_expert); j < begin + group_; ++j) {
      row_E[j] = takes_part(rows_, i) && takes_part(rows_, j) ? tile(i, j) : A(0);
    }
  }

  template <class Terms>
  static double sum_values(const Terms& terms, const A* row_E, Index begin, Index end) {
    double sum = 0;
    for (Index j = begin; j < end; ++j) sum += terms.value(j, row_E[j]);
    return sum;
  }

  /// dw_i += slope(i) times coefficients times the scaled rows [begin, end), for the rows of a
  /// tile: in each element, one chain in ascending order.
  template <class Terms>
  void add_gradient(const Terms& terms, const OrthogonalityScratch<A>& mine,
                    const CosineTile<A>& tile, Index begin, Index end) const {
    const WideNumber factor = WideNumber(2 * scale()).times(WideNumber(rule_.gradient_scale));
    for (Index c = 0; c < dw_EH_.cols; c += slab_cols) {
      const Index cols = (std::min)(slab_cols, dw_EH_.cols - c);
      const MatrixView<A> sums{mine.sums, tile.cosines.rows, cols, slab_cols};
      std::fill_n(mine.sums, sums.rows * slab_cols, A(0));
      for (Index first = begin; first < end; first += depth_block) {
        const Index depth = (std::min)(depth_block, end - first);
        copy_to_panels<A>([&](Index j) { return rows_.scaled_EH.row(first + j) + c; }, depth, cols,
                          mine.panels);
        add_product<A>(mine.coefficients_TE + first, experts_, depth, mine.panels, sums, mine.edge,
                       RowsAhead());
      }
      for (Index i = tile.first_expert; i < tile.end_expert(); ++i) {
        const WideNumber own = factor.times(terms.slope(i));
        own.add_product(sums.row(i - tile.first_expert), cols, dw_EH_.row(i) + c);
      }
    }
  }

  OrthogonalityRule rule_;
  CosineRows<A> rows_;
  MatrixView<A> dw_EH_;
  Index experts_;
  Index group_;  // rows of a group
  double* value_E_;
  PerWorker<CarveOrthogonality<A>> scratch_;
};

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_PARTNERS_ORTHOGONALITY_PASS_HPP
