// SPDX-License-Identifier: MIT
// Who competes with whom.
#ifndef GATEPRO_TESTS_SUPPORT_REFERENCE_PARTNERS_HPP
#define GATEPRO_TESTS_SUPPORT_REFERENCE_PARTNERS_HPP

#include <algorithm>
#include <cmath>
#include <gatepro/partners/settings.hpp>
#include <limits>
#include <numeric>

#include "support/reference/matrix.hpp"

namespace reference {

inline bool is_finite(const std::vector<double>& row) {
  return std::all_of(row.begin(), row.end(), [](double v) { return std::isfinite(v); });
}

// GatePro eq. 5. A zero row has similarity 0; a non-finite row has NaN. Rows are scaled by their
// largest element, so that squares of any float stay in the range of double.
inline Matrix cosine_similarity(Matrix w_EH) {
  const std::size_t experts = w_EH.size();
  std::vector<double> norms(experts);
  for (std::size_t i = 0; i < experts; ++i) {
    double largest = 0;
    for (double v : w_EH[i]) largest = std::max(largest, std::abs(v));
    if (is_finite(w_EH[i]) && largest > 0) {
      for (double& v : w_EH[i]) v /= largest;
    }
    norms[i] = std::sqrt(std::inner_product(w_EH[i].begin(), w_EH[i].end(), w_EH[i].begin(), 0.0));
  }
  Matrix similarity_EE = zeros(experts, experts);
  for (std::size_t i = 0; i < experts; ++i) {
    for (std::size_t j = 0; j < experts; ++j) {
      const double dot = std::inner_product(w_EH[i].begin(), w_EH[i].end(), w_EH[j].begin(), 0.0);
      double& s = similarity_EE[i][j];
      s = norms[i] == 0 || norms[j] == 0 ? 0 : dot / (norms[i] * norms[j]);
      if (!is_finite(w_EH[i]) || !is_finite(w_EH[j])) s = std::numeric_limits<double>::quiet_NaN();
    }
  }
  return similarity_EE;
}

// GatePro eq. 6, for the m best: most similar first, then lowest id; i itself for "none".
inline Ids pair_partners(const Matrix& similarity_EE, const gatepro::Pairing& pairing) {
  const int experts = static_cast<int>(similarity_EE.size());
  const auto m = static_cast<std::size_t>(pairing.partners_per_expert);
  Ids partners;
  for (int i = 0; i < experts; ++i) {
    const std::vector<double>& s = similarity_EE[static_cast<std::size_t>(i)];
    std::vector<int> candidates;
    for (int j = 0; j < experts; ++j) {
      const double similarity = s[static_cast<std::size_t>(j)];
      if (j != i && similarity >= pairing.min_similarity) candidates.push_back(j);
    }
    std::stable_sort(candidates.begin(), candidates.end(), [&](int a, int b) {
      return s[static_cast<std::size_t>(a)] > s[static_cast<std::size_t>(b)];
    });
    candidates.resize(m, i);
    partners.push_back(candidates);
  }
  return partners;
}

// Whom each expert must not be below.
inline Ids rivals(const Ids& partners, bool both_sides) {
  Ids rivals(partners.size());
  for (std::size_t i = 0; i < partners.size(); ++i) {
    for (int p : partners[i]) {
      if (p == static_cast<int>(i)) continue;
      rivals[i].push_back(p);
      if (both_sides) rivals[static_cast<std::size_t>(p)].push_back(static_cast<int>(i));
    }
  }
  return rivals;
}

}  // namespace reference

#endif  // GATEPRO_TESTS_SUPPORT_REFERENCE_PARTNERS_HPP
