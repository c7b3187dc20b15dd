// SPDX-License-Identifier: MIT
// Which experts are selected together, and how much more often than by chance.
#ifndef GATEPRO_METRICS_COACTIVATION_HPP
#define GATEPRO_METRICS_COACTIVATION_HPP

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "gatepro/core/choices.hpp"
#include "gatepro/core/product.hpp"
#include "gatepro/metrics/similarity.hpp"
#include "gatepro/metrics/tally.hpp"

namespace gatepro {

/// Two experts, and how often they were selected for the same token.
struct CoactivatedPair {
  Index first = 0;          ///< The lower id.
  Index second = 0;         ///< The higher id.
  std::int64_t tokens = 0;  ///< Tokens that selected both.
  double lift = 0;          ///< See Coactivation::lift.
};

inline namespace GATEPRO_ABI {

/// Counts the tokens that selected experts i and j together: E x E, symmetric, the loads on the
/// diagonal. Sum the tokens of one layer: expert 0 of another layer is another expert.
///
/// Memory: E^2 int64; an all_reduce sends them, and doubles the memory.
class Coactivation : public Tally<Coactivation> {
 public:
  static constexpr const char* name = "Coactivation";  ///< In messages.

  /// For E experts, nothing counted. Throws Error for E < 1.
  explicit Coactivation(Index num_experts)
      : Tally(detail::Checks(name).product("num_experts^2 within the address space",
                                           detail::checked_experts(name, num_experts),
                                           num_experts)),
        experts_(num_experts),
        last_token_E_(static_cast<std::size_t>(num_experts)) {}

  /// E. Throws Error once moved from.
  Index num_experts() const {
    size();
    return experts_;
  }

  /// Adds the choices of some tokens: T x K ids, -1 for none, with an optional mask of padding and
  /// of choices that were not dropped. Throws Error for shapes, an id that is neither in [0, E) nor
  /// -1, an expert that a token holds twice, or a sum beyond int64, before any change. Cost: T K^2
  /// increments, and E^2 comparisons. No allocation.
  template <class Id>
  void add(const Choices<Id>& choices) {
    const detail::Checks checks(name);
    std::int64_t* const counts_EE = at(0);
    const Index tokens = choices.expert_ids_TK.rows;
    const Index top_k = choices.expert_ids_TK.cols;
    detail::check_choice_views(checks, choices, tokens, top_k);
    detail::check_distinct_choices(checks, "expert_ids_TK", choices, experts_,
                                   last_token_E_.data());
    const std::int64_t largest = *std::max_element(at(0), at(0) + size());
    checks.need(tokens <= (std::numeric_limits<std::int64_t>::max)() - largest,
                "counts whose sum fits int64", {{"sum", largest}, {"count", tokens}});
    detail::for_each_choice(choices, false, [&](Index t, Index j, Index e) {
      std::int64_t* counts_E = counts_EE + e * experts_;
      ++counts_E[e];
      for (Index i = 0; i < j; ++i) {
        if (!detail::counts(choices, t, i)) continue;
        const Index other = static_cast<Index>(choices.expert_ids_TK(t, i));
        ++counts_E[other];
        ++counts_EE[other * experts_ + e];
      }
    });
  }

  /// The counts, E x E. Valid until the object goes.
  MatrixView<const std::int64_t> counts_EE() const { return {at(0), experts_, experts_}; }
  /// Tokens that selected expert `e`.
  std::int64_t load(Index e) const { return *at(e * experts_ + e); }
  /// All choices that were counted: the sum of the loads. Throws Error for a sum beyond int64.
  /// Cost: E.
  std::int64_t choices() const {
    const detail::Checks checks(name);
    std::int64_t sum = 0;
    for (Index e = 0; e < num_experts(); ++e) {
      checks.need(load(e) <= (std::numeric_limits<std::int64_t>::max)() - sum,
                  "loads whose sum fits int64", {{"sum", sum}, {"load", load(e)}});
      sum += load(e);
    }
    return sum;
  }

  /// Observed over expected tokens that selected both i != j: 1 is chance, 2 twice as often.
  /// Expected is what the same number of pairs would give if each were drawn in proportion to the
  /// product of the two loads; so the lifts have a mean of 1, weighted by what is expected, and
  /// equal loads do not lie below 1 for the sole reason that no token selects an expert twice. 0
  /// where nothing is expected. Cost: E^2; of all pairs: see lifts.
  double lift(Index i, Index j) const { return lift_of(i, j, pairs_per_product()); }

  /// lift_EE (E x E, overwritten) = the lift of each pair, 0 on the diagonal. Throws Error for the
  /// shape, before any write. Cost: E^2. No allocation.
  void lifts(MatrixView<double> lift_EE) const {
    detail::Checks(name).matrix("lift_EE", lift_EE, experts_, experts_);
    const double scale = pairs_per_product();
    for (Index i = 0; i < experts_; ++i) {
      for (Index j = 0; j < experts_; ++j) lift_EE(i, j) = i == j ? 0 : lift_of(i, j, scale);
    }
  }

  /// The pairs of the largest lift, in descending order; ties by the lower ids. Overwrites `pairs`,
  /// and returns how many there are: fewer than pairs.size where fewer were seen together on at
  /// least `least_tokens` tokens, below which a lift is noise. Throws Error for least_tokens < 1.
  /// Cost: E^2 log(pairs.size). No allocation.
  Index top_pairs(VectorView<CoactivatedPair> pairs, std::int64_t least_tokens = 1) const {
    const detail::Checks checks(name);
    checks.vector("pairs", pairs, pairs.size);
    checks.need(least_tokens >= 1, "least_tokens >= 1", {{"least_tokens", least_tokens}});
    const double scale = pairs_per_product();
    CoactivatedPair* end = pairs.data;
    for (Index i = 0; i < experts_ && pairs.size > 0; ++i) {
      for (Index j = i + 1; j < experts_; ++j) {
        const std::int64_t tokens = *at(i * experts_ + j);
        if (tokens < least_tokens) continue;
        const CoactivatedPair pair{i, j, tokens, lift_of(i, j, scale)};
        if (end - pairs.data < pairs.size) {
          *end++ = pair;
        } else if (ranks_before(pair, *pairs.data)) {
          std::pop_heap(pairs.data, end, ranks_before);
          *(end - 1) = pair;
        } else {
          continue;
        }
        std::push_heap(pairs.data, end, ranks_before);
      }
    }
    std::sort_heap(pairs.data, end, ranks_before);
    return end - pairs.data;
  }

  /// P(j*(i) selected | i selected) over the experts that have a first partner; 0 if none of them
  /// was selected. Throws Error for the shape (E x m) or an id out of range. Cost: E.
  double partner_rate(StridedView<const std::int32_t> partners_EM) const {
    detail::check_partners(name, "partners_EM", partners_EM, experts_);
    std::int64_t both = 0, selected = 0;
    for (Index i = 0; i < experts_; ++i) {
      const Index partner = partners_EM(i, 0);
      if (partner == i) continue;
      both += *at(i * experts_ + partner);
      selected += load(i);
    }
    return detail::share_of(both, selected);
  }

  /// Observed over expected co-activations of first partners; see lift. 0 where nothing is
  /// expected. Throws Error as partner_rate does. Cost: E^2.
  double partner_lift(StridedView<const std::int32_t> partners_EM) const {
    detail::check_partners(name, "partners_EM", partners_EM, experts_);
    double both = 0, products = 0;
    for (Index i = 0; i < experts_; ++i) {
      const Index partner = partners_EM(i, 0);
      if (partner == i) continue;
      both += static_cast<double>(*at(i * experts_ + partner));
      products += load_product(i, partner);
    }
    const double expected = products * pairs_per_product();
    return detail::share_of(both, expected);
  }

 private:
  double load_product(Index i, Index j) const {
    return detail::product(static_cast<double>(load(i)), static_cast<double>(load(j)));
  }

  /// All pairs of selections over the sum of all products of loads.
  double pairs_per_product() const {
    double pairs = 0, products = 0;
    for (Index i = 0; i < experts_; ++i) {
      for (Index j = 0; j < i; ++j) {
        pairs += static_cast<double>(*at(i * experts_ + j));
        products += load_product(i, j);
      }
    }
    return detail::share_of(pairs, products);
  }

  double lift_of(Index i, Index j, double pairs_per_product) const {
    const double expected = load_product(i, j) * pairs_per_product;
    return detail::share_of(static_cast<double>(*at(i * experts_ + j)), expected);
  }

  static bool ranks_before(const CoactivatedPair& a, const CoactivatedPair& b) {
    if (a.lift < b.lift || b.lift < a.lift) return a.lift > b.lift;
    return a.first != b.first ? a.first < b.first : a.second < b.second;
  }

  Index experts_;
  std::vector<Index> last_token_E_;
};

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_METRICS_COACTIVATION_HPP
