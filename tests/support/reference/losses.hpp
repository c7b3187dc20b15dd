// SPDX-License-Identifier: MIT
// The auxiliary losses from their definitions. Gradients by the chain rule with the whole Jacobian
// of the scores.
#ifndef GATEPRO_TESTS_SUPPORT_REFERENCE_LOSSES_HPP
#define GATEPRO_TESTS_SUPPORT_REFERENCE_LOSSES_HPP

#include <cmath>
#include <cstdint>
#include <gatepro/routing/rules.hpp>

#include "support/reference/matrix.hpp"
#include "support/reference/scores.hpp"

namespace reference {

struct Loss {
  double value = 0;
  Matrix dlogits_TE;
};

inline double valid_tokens(const Mask& mask, std::size_t first, std::size_t end) {
  double valid = 0;
  for (std::size_t t = first; t < end; ++t) valid += masked(mask, t) ? 0 : 1;
  return valid;
}

// L = c E / (k N M) sum_e n_e sum_t s_te over the tokens [first, end).
inline void add_balance_loss(const Matrix& logits_TE, ScoreFunction function, double coefficient,
                             double top_k, const Counts& counts, double tokens, double mean_over,
                             const Mask& mask, std::size_t first, std::size_t end, Loss& loss) {
  for (std::size_t t = first; t < end; ++t) {
    if (masked(mask, t)) continue;
    const std::size_t experts = logits_TE[t].size();
    const NormalisedScores s = normalised_scores(logits_TE[t], function);
    for (std::size_t i = 0; i < experts; ++i) {
      const double price = coefficient * static_cast<double>(experts) *
                           static_cast<double>(counts[i]) / (top_k * tokens * mean_over);
      loss.value += price * s.scores[i];
      for (std::size_t j = 0; j < experts; ++j) {
        loss.dlogits_TE[t][j] += price * s.jacobian[i][j];
      }
    }
  }
}

inline Loss balance_loss(const Matrix& logits_TE, ScoreFunction function, double coefficient,
                         double top_k, const Counts& counts, double tokens, double mean_over,
                         const Mask& mask = {}) {
  Loss loss{0, zeros(logits_TE.size(), logits_TE.empty() ? 0 : logits_TE[0].size())};
  add_balance_loss(logits_TE, function, coefficient, top_k, counts, tokens, mean_over, mask, 0,
                   logits_TE.size(), loss);
  return loss;
}

// An id of -1 is none.
inline Counts count(const Ids& ids_TK, std::size_t experts, const Mask& mask, std::size_t first,
                    std::size_t end) {
  Counts counts(experts, 0);
  for (std::size_t t = first; t < end; ++t) {
    for (int id : ids_TK[t]) {
      if (id >= 0) counts[static_cast<std::size_t>(id)] += masked(mask, t) ? 0 : 1;
    }
  }
  return counts;
}

// The mean of the balance losses of the sequences that have a token. If K varies it is the mean
// number of choices of a sequence.
inline Loss sequence_balance_loss(const Matrix& logits_TE, const Ids& ids_TK, const Counts& begin,
                                  ScoreFunction function, double coefficient, const Mask& mask = {},
                                  bool k_varies = false) {
  const std::size_t experts = logits_TE[0].size();
  Loss loss{0, zeros(logits_TE.size(), experts)};
  const auto at = [&](std::size_t s) { return static_cast<std::size_t>(begin[s]); };
  double sequences = 0;
  for (std::size_t s = 0; s + 1 < begin.size(); ++s) {
    sequences += valid_tokens(mask, at(s), at(s + 1)) > 0 ? 1 : 0;
  }
  for (std::size_t s = 0; s + 1 < begin.size(); ++s) {
    const double tokens = valid_tokens(mask, at(s), at(s + 1));
    if (tokens == 0) continue;
    const Counts counts = count(ids_TK, experts, mask, at(s), at(s + 1));
    double made = 0;
    for (std::int64_t n : counts) made += static_cast<double>(n);
    const double top_k = k_varies ? made / tokens : static_cast<double>(ids_TK[0].size());
    add_balance_loss(logits_TE, function, coefficient / sequences, top_k, counts, tokens, tokens,
                     mask, at(s), at(s + 1), loss);
  }
  return loss;
}

// L = c / M sum_t lse_t^2.
inline Loss z_loss(const Matrix& logits_TE, double coefficient, double mean_over,
                   const Mask& mask = {}) {
  Loss loss{0, zeros(logits_TE.size(), logits_TE.empty() ? 0 : logits_TE[0].size())};
  for (std::size_t t = 0; t < logits_TE.size(); ++t) {
    if (masked(mask, t)) continue;
    const double lse = log_sum_exp(logits_TE[t]);
    loss.value += coefficient / mean_over * lse * lse;
    for (std::size_t e = 0; e < logits_TE[t].size(); ++e) {
      loss.dlogits_TE[t][e] = 2 * coefficient / mean_over * lse * std::exp(logits_TE[t][e] - lse);
    }
  }
  return loss;
}

}  // namespace reference

#endif  // GATEPRO_TESTS_SUPPORT_REFERENCE_LOSSES_HPP
