// SPDX-License-Identifier: MIT
// Losses that keep rows apart, by their definitions.
#ifndef GATEPRO_TESTS_SUPPORT_REFERENCE_ORTHOGONALITY_HPP
#define GATEPRO_TESTS_SUPPORT_REFERENCE_ORTHOGONALITY_HPP

#include <cmath>
#include <gatepro/partners/settings.hpp>
#include <numeric>
#include <utility>

#include "support/reference/partners.hpp"

namespace reference {

// The ordered pairs that a loss compares. partners: read with only_partners.
inline std::vector<std::pair<std::size_t, std::size_t>> compared_pairs(
    const Matrix& w_EH, const gatepro::OrthogonalityRule& rule, const Ids& partners) {
  std::vector<std::pair<std::size_t, std::size_t>> pairs;
  const std::size_t group = w_EH.size() / static_cast<std::size_t>(rule.groups);
  for (std::size_t i = 0; i < w_EH.size(); ++i) {
    const auto compare = [&](std::size_t j) {
      if (is_finite(w_EH[i]) && is_finite(w_EH[j])) pairs.emplace_back(i, j);
    };
    if (rule.only_partners) {
      for (int p : partners[i]) {
        if (p != static_cast<int>(i)) compare(static_cast<std::size_t>(p));
      }
    } else {
      for (std::size_t j = i / group * group; j < i / group * group + group; ++j) compare(j);
    }
  }
  return pairs;
}

inline double orthogonality(const Matrix& w_EH, const gatepro::OrthogonalityRule& rule,
                            const Ids& partners = {}) {
  const Matrix similarity_EE = cosine_similarity(w_EH);
  const auto pairs = compared_pairs(w_EH, rule, partners);
  double sum = 0, over = 0;
  for (const auto& [i, j] : pairs) {
    over += rule.mean_over_others && i == j ? 0 : 1;
    if (rule.kind == gatepro::OrthogonalityKind::simbal) {
      const double dot = std::inner_product(w_EH[i].begin(), w_EH[i].end(), w_EH[j].begin(), 0.0);
      sum += std::abs(dot - (i == j ? 1 : 0));
    } else if (i != j) {
      sum += similarity_EE[i][j] * similarity_EE[i][j];
    }
  }
  if (rule.kind == gatepro::OrthogonalityKind::frobenius) {
    sum = over > 0 ? sum / over : 0;
  }
  return rule.coefficient * sum;
}

}  // namespace reference

#endif  // GATEPRO_TESTS_SUPPORT_REFERENCE_ORTHOGONALITY_HPP
