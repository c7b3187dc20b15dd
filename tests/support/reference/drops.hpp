// SPDX-License-Identifier: MIT
// What a capacity leaves of a routing, by brute force: each expert sorts all who want it.
#ifndef GATEPRO_TESTS_SUPPORT_REFERENCE_DROPS_HPP
#define GATEPRO_TESTS_SUPPORT_REFERENCE_DROPS_HPP

#include <algorithm>
#include <cmath>
#include <gatepro/dispatch/capacity.hpp>

#include "support/reference/matrix.hpp"

namespace reference {

/// Which choices of valid tokens keep a slot.
inline std::vector<Flags> kept(const Ids& ids_TK, const Matrix& weights_TK, const Mask& padding_T,
                               int experts, std::size_t capacity, gatepro::DropPolicy policy) {
  struct Slot {
    std::size_t t, j;
    double weight;
  };
  std::vector<Flags> kept_TK(ids_TK.size(), Flags(ids_TK.empty() ? 0 : ids_TK[0].size(), false));
  for (int e = 0; e < experts; ++e) {
    std::vector<Slot> slots;
    for (std::size_t t = 0; t < ids_TK.size(); ++t) {
      for (std::size_t j = 0; j < ids_TK[t].size(); ++j) {
        if (ids_TK[t][j] == e && !masked(padding_T, t)) slots.push_back({t, j, weights_TK[t][j]});
      }
    }
    std::stable_sort(slots.begin(), slots.end(), [policy](const Slot& a, const Slot& b) {
      if (policy == gatepro::DropPolicy::choice_major) return a.j < b.j;
      if (policy == gatepro::DropPolicy::position) return false;
      if (std::isnan(a.weight) || std::isnan(b.weight)) return !std::isnan(a.weight);
      return a.weight > b.weight;
    });
    for (std::size_t i = 0; i < std::min(capacity, slots.size()); ++i) {
      kept_TK[slots[i].t][slots[i].j] = true;
    }
  }
  return kept_TK;
}

/// Drops of one token, with the survivors scaled up to what all were together, if asked.
inline Row after_drop(Row weights_K, const Flags& kept_K, bool renormalise) {
  double total = 0, sum = 0;
  for (std::size_t j = 0; j < weights_K.size(); ++j) {
    total += weights_K[j];
    if (!kept_K[j]) weights_K[j] = 0;
    sum += weights_K[j];
  }
  for (double& w : weights_K) w *= renormalise && sum > 0 ? total / sum : 1;
  return weights_K;
}

}  // namespace reference

#endif  // GATEPRO_TESTS_SUPPORT_REFERENCE_DROPS_HPP
