// SPDX-License-Identifier: MIT
// The partners that a full search finds, with few products while the rows of W turn little.
//
// A full search leaves the scaled rows, S and who ranks first in each row of it. Later, bounds on
// the change of each cosine leave most rows only one answer, the old one. Others have a few
// contenders, whose cosines are computed again, to the bit as a full search would. Where contenders
// are many, a full search is cheaper.
#ifndef GATEPRO_PARTNERS_LAZY_SEARCH_HPP
#define GATEPRO_PARTNERS_LAZY_SEARCH_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "gatepro/partners/cosine_bounds.hpp"
#include "gatepro/partners/search.hpp"

namespace gatepro {
namespace detail {

/// What a search found beside the partners.
struct Found {
  SimilarityReport report;
  Index rows_recomputed = 0;
};

/// What a full search leaves behind.
template <class A>
struct FullSearch {
  MatrixView<A> scaled_EH;
  MatrixView<A> similarity_EE;
  MatrixView<std::int32_t> ranked_EM;  ///< The m + 1 most similar experts, whatever the least is.
};

/// An expert that may be a partner of a row.
template <class A>
struct Contender {
  typename Order<A>::Key key;  ///< Of their similarity.
  std::int32_t expert;

  /// True for the better partner.
  bool operator<(const Contender& other) const {
    return key != other.key ? key > other.key : expert < other.expert;
  }
};

/// A row with more than one answer, and which contenders are its own.
struct OpenRow {
  Index row;
  Index first;
  Index end;
};

inline namespace GATEPRO_ABI {

/// Scratch of a search that is not full. It has room for as many contenders as experts: many more
/// cosines, one by one, would take as long as a full search.
template <class A>
struct LazyScratch {
  LazyScratch(Arena& arena, Index experts, Index hidden, Index m) {
    // An odd number of cache lines, so that rows do not share a few sets of the cache.
    constexpr Index line = 64 / static_cast<Index>(sizeof(A));
    const Index stride = ((hidden / line + 1) / 2 * 2 + 1) * line;
    scaled_EH = {arena.take<A>(experts, stride), experts, hidden, stride};
    inverse_norm_E = arena.take<A>(experts);
    turn_E = arena.take<double>(experts);
    lower_M = arena.take<double>(m);
    contender_E = arena.take<Contender<A>>(experts);
    open_E = arena.take<OpenRow>(experts);
    is_read_E = arena.take<std::uint8_t>(experts);
    const Index pairs = padded_experts<A>(experts);
    left_P = arena.take<const A*>(pairs);
    right_P = arena.take<const A*>(pairs);
    product_P = arena.take<A>(pairs);
  }

  MatrixView<A> scaled_EH;  ///< Rows of W, scaled and padded: in the end those that are read.
  A* inverse_norm_E;
  double* turn_E;
  double* lower_M;  ///< The best lower bounds on the similarities of a row, the largest first.
  Contender<A>* contender_E;
  OpenRow* open_E;
  std::uint8_t* is_read_E;
  const A** left_P;  ///< The two scaled rows of each contender's cosine, padded to whole vectors.
  const A** right_P;
  A* product_P;
};

/// Which rows the bounds leave open.
template <class A>
class OpenRows {
 public:
  OpenRows(const FullSearch<A>& then, const Pairing& pairing, const LazyScratch<A>& scratch,
           double rounding)
      : then_(then),
        scratch_(scratch),
        bounds_{scratch.turn_E, rounding},
        m_(pairing.partners_per_expert),
        least_(pairing.min_similarity > -1
                   ? static_cast<double>(static_cast<A>(pairing.min_similarity))
                   : -no_direction) {}

  /// Lists them with their contenders; false if there are too many.
  bool list() {
    const Index experts = then_.similarity_EE.rows;
    const double most = *std::max_element(scratch_.turn_E, scratch_.turn_E + experts);
    if (most >= no_direction) return false;
    for (Index i = 0; i < experts; ++i) {
      const double change = scratch_.turn_E[i] + most;
      const bool is_safe = most <= 0 || lead(i) > 2 * (change + bounds_.rounding);
      if (!is_safe && !open(i)) return false;
    }
    return true;
  }

  Index count() const { return count_; }
  Index contenders() const { return contenders_; }

 private:
  double similarity(Index i, Index j) const {
    return static_cast<double>(then_.similarity_EE(i, j));
  }

  /// The least difference in similarity that decides about the partners of row i, or their order.
  double lead(Index i) const {
    double least_gap = no_direction;
    double before = no_direction + no_direction;
    for (Index place = 0; place <= m_; ++place) {
      const std::int32_t expert = then_.ranked_EM(i, place);
      if (expert == i) break;
      const double here = similarity(i, expert);
      least_gap = (std::min)(least_gap, before - here);
      if (place < m_) least_gap = (std::min)(least_gap, std::fabs(here - least_));
      before = here;
    }
    return least_gap;
  }

  /// Lists row i if it is open; false if there is no room.
  bool open(Index i) {
    const double threshold = least_of_partners(i);
    const Index first = contenders_;
    bool changes = false;
    for (Index j = 0; j < then_.similarity_EE.cols; ++j) {
      const double change = bounds_.change(i, j);
      if (j == i || similarity(i, j) + change < threshold) continue;
      if (contenders_ == then_.similarity_EE.cols) return false;
      scratch_.contender_E[contenders_++] = {0, static_cast<std::int32_t>(j)};
      changes = changes || change > 0;
    }
    const bool is_alone = m_ == 1 && contenders_ == first + 1 && threshold > least_;
    if (!changes || is_alone) {
      contenders_ = first;
    } else {
      scratch_.open_E[count_++] = {i, first, contenders_};
    }
    return true;
  }

  /// What m experts are as similar to expert i as, at least, or the least that makes a partner.
  double least_of_partners(Index i) const {
    double* lower_M = scratch_.lower_M;
    std::fill_n(lower_M, m_, least_);
    for (Index j = 0; j < then_.similarity_EE.cols; ++j) {
      const double lower = similarity(i, j) - bounds_.change(i, j);
      if (j == i || lower <= lower_M[m_ - 1]) continue;
      Index at = m_ - 1;
      for (; at > 0 && lower > lower_M[at - 1]; --at) lower_M[at] = lower_M[at - 1];
      lower_M[at] = lower;
    }
    return lower_M[m_ - 1];
  }

  const FullSearch<A>& then_;
  const LazyScratch<A>& scratch_;
  CosineBounds bounds_;
  Index m_;
  double least_;
  Index count_ = 0;
  Index contenders_ = 0;
};

/// Calls `visit(row, contender)` for the contenders of each open row.
template <class A, class Visit>
void for_each_contender(const LazyScratch<A>& scratch, Index open_rows, const Visit& visit) {
  for (const OpenRow* open = scratch.open_E; open < scratch.open_E + open_rows; ++open) {
    for (Index p = open->first; p < open->end; ++p) visit(open->row, p);
  }
}

/// Computes the keys of all contenders.
template <class W, class A, class Executor>
void compute_contenders(const MatrixView<const W>& w_EH, const LazyScratch<A>& scratch,
                        const OpenRows<A>& rows, const Executor& executor, int workers) {
  const Kernels<A>& kernel = kernels<A>();
  std::fill_n(scratch.is_read_E, w_EH.rows, std::uint8_t{0});
  for_each_contender(scratch, rows.count(), [&](Index i, Index p) {
    const std::int32_t j = scratch.contender_E[p].expert;
    scratch.is_read_E[i] = scratch.is_read_E[j] = 1;
    scratch.left_P[p] = scratch.scaled_EH.row(i);
    scratch.right_P[p] = scratch.scaled_EH.row(j);
  });
  const Index blocks = (rows.contenders() + kernel.lanes - 1) / kernel.lanes;
  const Index padding = blocks * kernel.lanes - rows.contenders();
  std::fill_n(scratch.left_P + rows.contenders(), padding, scratch.left_P[0]);
  std::fill_n(scratch.right_P + rows.contenders(), padding, scratch.right_P[0]);

  const int busy = useful_workers(executor, workers, {rows.contenders(), w_EH.cols});
  for_each_block(executor, busy, w_EH.rows, [&](int, Index i) {
    if (scratch.is_read_E[i] == 0) return;
    A* scaled = scratch.scaled_EH.row(i);
    scratch.inverse_norm_E[i] = scale_row(w_EH.row(i), w_EH.cols, scaled).inverse_norm;
    std::fill(scaled + w_EH.cols, scaled + scratch.scaled_EH.row_stride, A(0));
  });
  for_each_block(executor, busy, blocks, [&](int, Index block) {
    const Index p = block * kernel.lanes;
    kernel.pair_products(scratch.left_P + p, scratch.right_P + p, w_EH.cols, scratch.product_P + p);
  });
  for_each_contender(scratch, rows.count(), [&](Index i, Index p) {
    Contender<A>& contender = scratch.contender_E[p];
    A* cosine = scratch.product_P + p;
    kernel.normalise(cosine, 1, scratch.inverse_norm_E[i],
                     scratch.inverse_norm_E + contender.expert);
    contender.key = key_of(*cosine);
  });
}

/// Writes the partners of row i that the full search found.
template <class A>
void write_ranked(const FullSearch<A>& then, Index i, typename Order<A>::Key least,
                  const MatrixView<std::int32_t>& partners_EM) {
  for (Index place = 0; place < partners_EM.cols; ++place) {
    const std::int32_t expert = then.ranked_EM(i, place);
    const bool is_partner = key_of(then.similarity_EE(i, expert)) >= least;
    partners_EM(i, place) = is_partner ? expert : static_cast<std::int32_t>(i);
  }
}

/// Writes the best contenders of a row.
template <class A>
void write_best(Contender<A>* first, Contender<A>* end, Index i, typename Order<A>::Key least,
                const MatrixView<std::int32_t>& partners_EM) {
  std::int32_t* partners = partners_EM.row(i);
  for (Index place = 0; place < partners_EM.cols; ++place) {
    partners[place] = static_cast<std::int32_t>(i);
    if (first == end) continue;
    std::swap(*first, *std::min_element(first, end));
    if (first->key >= least) partners[place] = first->expert;
    ++first;
  }
}

/// Finds partners as find_partners does, and keeps what may save work the next time.
///
/// Memory: E x H and E x E elements of A. A search that was not worth trying makes the next ones
/// rarer, so that rows that always turn far cost little more than full searches.
template <class A>
class LazySearch {
 public:
  /// False for so few experts that looking at their rows takes about as long as a full search.
  static bool pays(Index experts) { return experts >= 32; }

  /// The next search is full.
  void forget() { hidden_ = nothing; }

  /// The partners of w_EH, on checked arguments, to partners_EM, E x m. `scratch` grows as needed.
  template <class W, class Executor>
  Found find(const MatrixView<const W>& w_EH, const Pairing& pairing,
             const MatrixView<std::int32_t>& partners_EM, std::vector<std::byte>& scratch,
             const Executor& executor, int workers) {
    if (hidden_ == w_EH.cols && is_worth_trying()) {
      const auto open = find_open(w_EH, pairing, partners_EM, scratch, executor, workers);
      misses_ = open ? 0 : (std::min)(misses_ + 1, most_misses);
      skips_ = (1 << misses_) / 4;
      if (open) return {SimilarityReport{}, *open};
    }
    return {find_all(w_EH, pairing, partners_EM, scratch, executor, workers), w_EH.rows};
  }

 private:
  static constexpr Index nothing = -1;
  static constexpr int most_misses = 6;
  static constexpr std::size_t per_line = 64 / sizeof(A);
  /// A cache line: vectors that cross two of them would be loaded at half the speed.
  struct alignas(64) Line {
    A values[per_line];
  };

  bool is_worth_trying() {
    if (skips_ == 0) return true;
    --skips_;
    return false;
  }

  static Arena arena_of(std::vector<std::byte>& scratch, std::size_t bytes) {
    scratch.resize((std::max)(scratch.size(), bytes));
    return Arena("SimilarityCache", Workspace(scratch), bytes);
  }

  FullSearch<A> full_search(Index experts, Index hidden, Index m) {
    return {{scaled_.data()->values, experts, hidden},
            {similarity_.data(), experts, experts},
            {ranked_.data(), experts, m + 1}};
  }

  /// Memory of a full search of E x H weights.
  void reserve(Index experts, Index hidden, Index m) {
    const auto size = [](Index rows, Index cols) {
      const char* rule = "E * H and E * E within the address space";
      return static_cast<std::size_t>(checked_product("SimilarityCache", rule, rows, cols));
    };
    scaled_.resize(size(experts, hidden) / per_line + 1);
    similarity_.resize(size(experts, experts));
    ranked_.resize(size(experts, m + 1));
  }

  /// A full search.
  template <class W, class Executor>
  SimilarityReport find_all(const MatrixView<const W>& w_EH, const Pairing& pairing,
                            const MatrixView<std::int32_t>& partners_EM,
                            std::vector<std::byte>& scratch, const Executor& executor,
                            int workers) {
    const Index experts = w_EH.rows, hidden = w_EH.cols;
    forget();
    reserve(experts, hidden, partners_EM.cols);
    const FullSearch<A> now = full_search(experts, hidden, partners_EM.cols);
    Pairing one_more;
    one_more.partners_per_expert = now.ranked_EM.cols;
    Arena arena = arena_of(
        scratch, find_partners_workspace_bytes<W>(experts, hidden, now.ranked_EM.cols, workers));
    CosineRows<A> rows = carve_cosine_rows<A>(arena, experts, hidden);
    rows.scaled_EH = now.scaled_EH;
    const SimilarityReport report =
        find_partners_with<W>(w_EH, one_more, now.ranked_EM, rows, arena, executor, workers,
                              TileStore<A>{now.similarity_EE});
    const auto least = least_partner_key<A>(pairing);
    for (Index i = 0; i < experts; ++i) write_ranked(now, i, least, partners_EM);
    if (report.degenerate_rows + report.nonfinite_rows == 0) hidden_ = hidden;
    return report;
  }

  /// The partners, and how many rows were open, unless too many are.
  template <class W, class Executor>
  std::optional<Index> find_open(const MatrixView<const W>& w_EH, const Pairing& pairing,
                                 const MatrixView<std::int32_t>& partners_EM,
                                 std::vector<std::byte>& scratch_memory, const Executor& executor,
                                 int workers) {
    const Index experts = w_EH.rows, hidden = w_EH.cols, m = partners_EM.cols;
    const FullSearch<A> then = full_search(experts, hidden, m);
    const auto carve = [&](Arena& arena) { return LazyScratch<A>(arena, experts, hidden, m); };
    Arena arena = arena_of(scratch_memory, measure(carve));
    const LazyScratch<A> scratch = carve(arena);
    const double turn_error = turn_rounding<A>(hidden);
    const int busy = useful_workers(executor, workers, {experts, hidden});
    for_each_block(executor, busy, experts, [&](int, Index i) {
      scratch.turn_E[i] = turn_since(w_EH.row(i), then.scaled_EH.row(i), hidden, turn_error,
                                     scratch.scaled_EH.row(i));
    });
    OpenRows<A> open(then, pairing, scratch, 2 * cosine_rounding<A>(hidden));
    if (!open.list()) return std::nullopt;
    compute_contenders(w_EH, scratch, open, executor, workers);
    const auto least = least_partner_key<A>(pairing);
    for (Index i = 0; i < experts; ++i) write_ranked(then, i, least, partners_EM);
    for (const OpenRow* row = scratch.open_E; row < scratch.open_E + open.count(); ++row) {
      write_best(scratch.contender_E + row->first, scratch.contender_E + row->end, row->row, least,
                 partners_EM);
    }
    return open.count();
  }

  Index hidden_ = nothing;    // H of the last full search, if it helps the next one
  std::vector<Line> scaled_;  // what it left
  std::vector<A> similarity_;
  std::vector<std::int32_t> ranked_;
  int misses_ = 0;  // searches in a row that left too many rows open
  int skips_ = 0;   // full searches before the next one is tried
};

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_PARTNERS_LAZY_SEARCH_HPP
