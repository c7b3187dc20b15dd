// SPDX-License-Identifier: MIT
// The routers of published models, one token at a time in double, by their own formulas.
#ifndef GATEPRO_TESTS_SUPPORT_REFERENCE_PUBLISHED_HPP
#define GATEPRO_TESTS_SUPPORT_REFERENCE_PUBLISHED_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>

#include "support/reference/matrix.hpp"

namespace reference {
namespace published {

/// A token's experts, best first, and their weights.
struct Choice {
  std::vector<int> ids;
  Row weights;
};

inline double at(const Row& row, int i) { return row[static_cast<std::size_t>(i)]; }

inline Row softmax(const Row& logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  Row result;
  for (double l : logits) result.push_back(std::exp(l - top));
  const double sum = std::accumulate(result.begin(), result.end(), 0.0);
  for (double& p : result) p /= sum;
  return result;
}

inline Row sigmoid(const Row& logits) {
  Row result;
  for (double l : logits) result.push_back(1 / (1 + std::exp(-l)));
  return result;
}

/// The k largest, best first; equal ones in the order of their ids.
inline std::vector<int> top_k(const Row& values, std::size_t k) {
  std::vector<int> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return at(values, a) > at(values, b); });
  order.resize(k);
  return order;
}

inline Choice gather(const std::vector<int>& ids, const Row& scores) {
  Choice choice{ids, {}};
  for (int id : ids) choice.weights.push_back(at(scores, id));
  return choice;
}

inline double sum(const Row& row) { return std::accumulate(row.begin(), row.end(), 0.0); }

inline Choice divided(Choice choice, double by) {
  for (double& w : choice.weights) w /= by;
  return choice;
}

/// -inf for the experts outside the best groups, ranked by the sum of their best `count` values.
inline Row limit_to_groups(const Row& values, std::size_t groups, std::size_t kept,
                           std::size_t count) {
  const std::size_t size = values.size() / groups;
  Row group_scores;
  for (std::size_t g = 0; g < groups; ++g) {
    const auto first = values.begin() + static_cast<std::ptrdiff_t>(g * size);
    const Row members(first, first + static_cast<std::ptrdiff_t>(size));
    double score = 0;
    for (int id : top_k(members, count)) score += at(members, id);
    group_scores.push_back(score);
  }
  Row limited(values.size(), -std::numeric_limits<double>::infinity());
  for (int g : top_k(group_scores, kept)) {
    const auto first = static_cast<std::size_t>(g) * size;
    for (std::size_t e = first; e < first + size; ++e) limited[e] = values[e];
  }
  return limited;
}

/// Mixtral, Qwen3-MoE with norm_topk_prob, and, by the 1-norm, DBRX.
inline Choice softmax_top_k_normalised(const Row& logits, std::size_t k) {
  const Row scores = softmax(logits);
  const Choice choice = gather(top_k(scores, k), scores);
  return divided(choice, sum(choice.weights));
}

/// OLMoE, Jamba.
inline Choice softmax_top_k(const Row& logits, std::size_t k) {
  const Row scores = softmax(logits);
  return gather(top_k(scores, k), scores);
}

/// GPT-OSS, whose logits have a bias.
inline Choice top_k_softmax(const Row& logits, std::size_t k) {
  const Choice choice = gather(top_k(logits, k), logits);
  return {choice.ids, softmax(choice.weights)};
}

/// DeepSeek-V2, group_limited_greedy; its forbidden groups get the score 0.
inline Choice deepseek_v2(const Row& logits, std::size_t k, double scale) {
  const Row scores = softmax(logits);
  return divided(gather(top_k(limit_to_groups(scores, 8, 3, 1), k), scores), 1 / scale);
}

/// DeepSeek-V3, noaux_tc; of one group Kimi-K2 and GLM-4.5.
inline Choice noaux_tc(const Row& logits, const Row& bias, std::size_t groups, std::size_t kept,
                       std::size_t k, double scale) {
  const Row scores = sigmoid(logits);
  Row values = scores;
  for (std::size_t e = 0; e < values.size(); ++e) values[e] += bias[e];
  if (groups > 1) values = limit_to_groups(values, groups, kept, 2);
  const Choice choice = gather(top_k(values, k), scores);
  return divided(choice, (sum(choice.weights) + 1e-20) / scale);
}

/// Llama-4: the weight multiplies what the expert is given.
inline Choice llama_4(const Row& logits, std::size_t k) {
  return gather(top_k(logits, k), sigmoid(logits));
}

/// ERNIE-4.5.
inline Choice ernie_4_5(const Row& logits, const Row& bias, std::size_t k) {
  const Row scores = softmax(logits);
  Row values = scores;
  for (std::size_t e = 0; e < values.size(); ++e) values[e] += bias[e];
  const Choice choice = gather(top_k(values, k), scores);
  return divided(choice, std::max(sum(choice.weights), 1e-12));
}

/// Hunyuan-A13B.
inline Choice hunyuan(const Row& logits, std::size_t k) {
  const Row scores = softmax(logits);
  const Choice choice = gather(top_k(scores, k), scores);
  return divided(choice,
                 std::max(sum(choice.weights), double(std::numeric_limits<float>::epsilon())));
}

/// Phi-3.5-MoE outside training: a weight is a share of the logits that are close to the best of
/// those not taken, within 2 eps of the larger magnitude.
inline Choice sparsemixer(const Row& logits, std::size_t k, double eps) {
  const double inf = std::numeric_limits<double>::infinity();
  Choice choice;
  Row left = logits;
  for (std::size_t j = 0; j < k; ++j) {
    const int best = top_k(left, 1)[0];
    const double top = at(left, best);
    Row close = left;
    for (std::size_t e = 0; e < logits.size(); ++e) {
      const double factor = std::max(std::abs(logits[e]), top);
      if ((top - logits[e]) / factor > 2 * eps) close[e] = -inf;
    }
    choice.ids.push_back(best);
    choice.weights.push_back(at(softmax(close), best));
    left[static_cast<std::size_t>(best)] = -inf;
  }
  return choice;
}

}  // namespace published
}  // namespace reference

#endif  // GATEPRO_TESTS_SUPPORT_REFERENCE_PUBLISHED_HPP
