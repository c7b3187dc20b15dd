// SPDX-License-Identifier: MIT
// From logits to scores and weights.
#ifndef GATEPRO_TESTS_SUPPORT_REFERENCE_SCORES_HPP
#define GATEPRO_TESTS_SUPPORT_REFERENCE_SCORES_HPP

#include <algorithm>
#include <cmath>
#include <gatepro/routing/rules.hpp>
#include <limits>

#include "support/reference/matrix.hpp"

namespace reference {

using gatepro::ScoreFunction;

inline double log_sum_exp(const Row& logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (double l : logits) sum += std::exp(l - top);
  return top + std::log(sum);
}

inline double sigmoid(double l) {
  return l >= 0 ? 1 / (1 + std::exp(-l)) : std::exp(l) / (1 + std::exp(l));
}
inline double softplus(double l) {
  return l > 0 ? l + std::log1p(std::exp(-l)) : std::log1p(std::exp(l));
}

inline bool is_softmax(ScoreFunction function) {
  return function != ScoreFunction::sigmoid && function != ScoreFunction::sqrt_softplus;
}

/// The score of one logit; of a softmax before it is divided by the sum.
inline double raw_score(double l, ScoreFunction function) {
  if (function == ScoreFunction::sigmoid) return sigmoid(l);
  return function == ScoreFunction::sqrt_softplus ? std::sqrt(softplus(l)) : std::exp(l);
}
/// Its derivative.
inline double raw_slope(double l, ScoreFunction function) {
  if (function == ScoreFunction::sigmoid) return sigmoid(l) * sigmoid(-l);
  return function == ScoreFunction::sqrt_softplus ? sigmoid(l) / (2 * std::sqrt(softplus(l)))
                                                  : std::exp(l);
}

/// Scores of a whole row. NaNs are left out of a softmax, losers (-inf) weigh 0 in it.
inline Row scores(const Row& logits, ScoreFunction function) {
  Row result;
  double top = is_softmax(function) ? -std::numeric_limits<double>::infinity() : 0, sum = 0;
  for (double l : logits) top = is_softmax(function) && l > top ? l : top;
  for (double l : logits) sum += std::isnan(l) ? 0 : std::exp(l - top);
  for (double l : logits) {
    result.push_back(raw_score(l - top, function) / (is_softmax(function) ? sum : 1));
  }
  return result;
}

/// log(score), which underflows nowhere; of a softmax up to what the row has in common.
inline double log_score(double l, ScoreFunction function) {
  if (function == ScoreFunction::sigmoid) {
    return -softplus(-l);
  }
  if (function != ScoreFunction::sqrt_softplus) return l;
  return l < -40 ? l / 2 : std::log(softplus(l)) / 2;
}

/// Weights by score without a scale: renormalised exactly they are a softmax of log scores.
inline Row quotients(const Row& scores, const Row& logits, const gatepro::ScoreRule& rule) {
  if (!rule.renormalise) return scores;
  Row result;
  double sum = 0;
  if (rule.renormalisation == gatepro::Renormalisation::published) {
    for (double s : scores) sum += s;
    for (double s : scores) result.push_back(s / (sum + 1e-20));
    return result;
  }
  double top = -std::numeric_limits<double>::infinity();
  for (double l : logits) top = std::max(top, log_score(l, rule.function));
  for (double l : logits) {
    result.push_back(std::exp(log_score(l, rule.function) - top));
    sum += result.back();
  }
  for (double& w : result) w /= sum;
  return result;
}

/// Scores of one token that sum to 1, and d score_i / d logit_j.
struct NormalisedScores {
  Row scores;
  Matrix jacobian;
};
inline NormalisedScores normalised_scores(Row logits, ScoreFunction function) {
  const double shift = is_softmax(function) ? log_sum_exp(logits) : 0;
  double sum = 0;
  for (double& l : logits) sum += raw_score(l -= shift, function);
  NormalisedScores result{{}, zeros(logits.size(), logits.size())};
  for (double l : logits) result.scores.push_back(raw_score(l, function) / sum);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    for (std::size_t j = 0; j < logits.size(); ++j) {
      const double slope = raw_slope(logits[j], function);
      result.jacobian[i][j] = ((i == j ? 1 : 0) - result.scores[i]) * slope / sum;
    }
  }
  return result;
}

}  // namespace reference

#endif  // GATEPRO_TESTS_SUPPORT_REFERENCE_SCORES_HPP
