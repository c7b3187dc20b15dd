// SPDX-License-Identifier: MIT
// Stage: the most similar partner of each expert (GatePro eq. 6), and the rivals that follow.
#ifndef GATEPRO_PARTNERS_PAIRING_HPP
#define GATEPRO_PARTNERS_PAIRING_HPP

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "gatepro/core/checks.hpp"
#include "gatepro/core/order.hpp"
#include "gatepro/core/views.hpp"
#include "gatepro/kernels/table.hpp"
#include "gatepro/partners/settings.hpp"

namespace gatepro {
namespace detail {

inline namespace GATEPRO_ABI {

inline void check_pairing(const Checks& checks, const Pairing& pairing, Index num_experts) {
  const Index most = std::max<Index>(1, num_experts - 1);  // one expert alone has partner "none"
  checks.need(pairing.partners_per_expert >= 1 && pairing.partners_per_expert <= most,
              "1 <= partners_per_expert <= num_experts - 1",
              {{"partners_per_expert", pairing.partners_per_expert}, {"num_experts", num_experts}});
  checks.need(pairing.min_similarity >= -1 && pairing.min_similarity <= 1,
              "-1 <= min_similarity <= 1", {{"min_similarity", pairing.min_similarity}});
}

/// The key of the least similarity that makes partners. NaN, which ranks lower, never does.
template <class A>
typename Order<A>::Key least_partner_key(const Pairing& pairing) {
  return (std::max)(key_of(static_cast<A>(pairing.min_similarity)), -Order<A>::infinity);
}

/// Where expert `j` belongs among `count` partners that rank by key, then lowest id.
/// `key_at(place)` is the key of a partner.
template <class Key, class KeyAt>
Index place_among_partners(Key key, Index j, const std::int32_t* partners, Index count,
                           const KeyAt& key_at) {
  Index at = count;
  while (at > 0 && (key_at(at - 1) < key || (key_at(at - 1) == key && j < partners[at - 1]))) --at;
  return at;
}

/// The m experts most similar to expert i, best first; `i` where there are fewer.
template <class A>
void pair_expert(const MatrixView<const A>& similarity_EE, Index i, typename Order<A>::Key least,
                 const MatrixView<std::int32_t>& partners_EM) {
  const Index m = partners_EM.cols;
  std::int32_t* partners = partners_EM.row(i);
  const auto key_at = [&](Index place) { return key_of(similarity_EE(i, partners[place])); };
  Index found = 0;
  // Equal to the last of m partners is not enough: that one's id is lower.
  auto enough = least;
  for (Index j = 0; j < similarity_EE.cols; ++j) {
    const auto key = key_of(similarity_EE(i, j));
    if (key < enough || j == i) continue;
    const Index at = place_among_partners(key, j, partners, found, key_at);
    found = (std::min)(found + 1, m);
    std::copy_backward(partners + at, partners + found - 1, partners + found);
    partners[at] = static_cast<std::int32_t>(j);
    if (found == m) enough = key_at(m - 1) + 1;
  }
  std::fill(partners + found, partners + m, static_cast<std::int32_t>(i));
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// j*(i) = argmax over j != i of S_ij (GatePro eq. 6), and the next best where m > 1.
///
/// similarity_EE: E x E; a NaN is no candidate. partners_EM: E x m with m =
/// pairing.partners_per_expert, overwritten: row i holds the ids of i's partners, most similar
/// first, lowest id on ties. "None" is stored as i itself: E = 1, no candidate, or none with
/// S >= pairing.min_similarity.
///
/// Throws Error on settings or shapes that do not fit, before any write. Cost: E^2 m worst case,
/// E^2 usually; no allocation.
template <class S>
void pair_partners(MatrixView<S> similarity_EE, const Pairing& pairing,
                   MatrixView<std::int32_t> partners_EM) {
  using A = detail::value_t<S>;
  detail::check_accumulator<A>();
  const detail::Checks checks("pair_partners");
  const Index experts = similarity_EE.rows;
  checks.num_experts(experts);
  detail::check_pairing(checks, pairing, experts);
  checks.matrix("similarity_EE", similarity_EE, experts, experts);
  checks.matrix("partners_EM", partners_EM, experts, pairing.partners_per_expert);
  checks.overlaps(detail::output("partners_EM", partners_EM),
                  detail::input("similarity_EE", similarity_EE));
  const auto least = detail::least_partner_key<A>(pairing);
  for (Index i = 0; i < experts; ++i) {
    detail::pair_expert<A>(similarity_EE, i, least, partners_EM);
  }
}

/// The rivals of each expert: whom it must not be strictly below.
///
/// Made from a partner table and Pairing::both_sides. It owns three arrays of at most 2 E m ids.
/// Reading is thread-safe.
class RivalTable {
 public:
  /// Nobody competes.
  RivalTable() = default;

  /// partners_EM: E x m ids, `i` in row i for "none". With both_sides, j is a rival of i if either
  /// names the other. Throws Error for an id out of range. Allocates.
  RivalTable(StridedView<const std::int32_t> partners_EM, bool both_sides) {
    const detail::Checks checks("RivalTable");
    const Index experts = partners_EM.rows;
    checks.num_experts(experts);
    checks.strided("partners_EM", partners_EM, experts, partners_EM.cols);
    checks.ids("partners_EM", partners_EM, experts);
    const Index most =
        checks.product("a table within the address space", 2 * partners_EM.cols, experts);
    checks.need(most <= (std::numeric_limits<std::int32_t>::max)(),
                "2 * num_experts * partners_per_expert <= 2^31 - 1", {{"product", most}});
    begin_.assign(static_cast<std::size_t>(experts) + 1, 0);
    for_each_pair(partners_EM, both_sides,
                  [&](std::int32_t i, std::int32_t) { ++begin_[at(i) + 1]; });
    for (std::size_t i = 1; i < begin_.size(); ++i) begin_[i] += begin_[i - 1];
    ids_.resize(static_cast<std::size_t>(begin_.back()));
    std::vector<std::int32_t> next(begin_.begin(), begin_.end() - 1);
    for_each_pair(partners_EM, both_sides,
                  [&](std::int32_t i, std::int32_t rival) { ids_[at(next[at(i)]++)] = rival; });
    list_only_rivals(experts);
    fingerprint_ = fingerprint_of(begin_, fingerprint_of(ids_, 14695981039346656037U));
  }

  /// A number that tables of other rivals do not share, but for chance: ranks, checkpoints and
  /// reports compare it. 0 if nobody competes.
  std::uint64_t fingerprint() const { return begin_.empty() ? 0 : fingerprint_; }
  /// E, or 0 if nobody competes.
  Index num_experts() const { return begin_.empty() ? 0 : static_cast<Index>(begin_.size()) - 1; }
  /// The table, for the library's own stages.
  detail::RivalView view() const {
    return {begin_.data(), ids_.data(), only_.empty() ? nullptr : only_.data()};
  }

 private:
  static std::size_t at(std::int32_t i) { return static_cast<std::size_t>(i); }

  template <class Visit>
  static void for_each_pair(const StridedView<const std::int32_t>& partners_EM, bool both_sides,
                            const Visit& visit) {
    for (Index i = 0; i < partners_EM.rows; ++i) {
      for (Index m = 0; m < partners_EM.cols; ++m) {
        const std::int32_t partner = partners_EM(i, m);
        if (partner == i) continue;
        visit(static_cast<std::int32_t>(i), partner);
        if (both_sides) visit(partner, static_cast<std::int32_t>(i));
      }
    }
  }

  /// FNV-1a, a word at a time.
  static std::uint64_t fingerprint_of(const std::vector<std::int32_t>& words, std::uint64_t hash) {
    for (const std::int32_t word : words) {
      hash = (hash ^ static_cast<std::uint32_t>(word)) * 1099511628211U;
    }
    return hash;
  }

  /// Fills only_ if no expert has more than one rival.
  void list_only_rivals(Index experts) {
    only_.resize(at(static_cast<std::int32_t>(experts)));
    for (std::size_t i = 0; i < only_.size(); ++i) {
      const std::int32_t count = begin_[i + 1] - begin_[i];
      if (count > 1) {
        only_.clear();
        return;
      }
      only_[i] = count == 1 ? ids_[at(begin_[i])] : static_cast<std::int32_t>(i);
    }
  }

  std::vector<std::int32_t> begin_;
  std::vector<std::int32_t> ids_;
  std::vector<std::int32_t> only_;
  std::uint64_t fingerprint_ = 0;
};

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_PARTNERS_PAIRING_HPP
