// SPDX-License-Identifier: MIT
// Scored routing once more, in double, as plainly as it can be written: what the tests compare
// with. It shares no code with the library but the structs of settings.
#ifndef GATEPRO_TESTS_SUPPORT_SCORED_REFERENCE_HPP
#define GATEPRO_TESTS_SUPPORT_SCORED_REFERENCE_HPP

#include <algorithm>
#include <cmath>
#include <gatepro/routing/rules.hpp>
#include <limits>
#include <numeric>
#include <vector>

#include "support/reference.hpp"

namespace reference {

using Row = std::vector<double>;
using gatepro::ScoreFunction;

/// Scores of a whole row. NaNs are left out of a softmax, losers (-inf) weigh 0 in it.
inline Row scores(const Row& logits, ScoreFunction function) {
  Row result;
  double top = -std::numeric_limits<double>::infinity(), sum = 0;
  for (double l : logits) top = l > top ? l : top;
  for (double l : logits) sum += std::isnan(l) ? 0 : std::exp(l - top);
  for (double l : logits) {
    if (function == ScoreFunction::sigmoid) {
      result.push_back(l >= 0 ? 1 / (1 + std::exp(-l)) : std::exp(l) / (1 + std::exp(l)));
    } else if (function == ScoreFunction::sqrt_softplus) {
      result.push_back(std::sqrt(l > 0 ? l + std::log1p(std::exp(-l)) : std::log1p(std::exp(l))));
    } else {
      result.push_back(std::exp(l - top) / sum);
    }
  }
  return result;
}

/// log(score), which underflows nowhere; of a softmax up to what the row has in common.
inline double log_score(double l, ScoreFunction function) {
  if (function == ScoreFunction::sigmoid) {
    return l >= 0 ? -std::log1p(std::exp(-l)) : l - std::log1p(std::exp(l));
  }
  if (function != ScoreFunction::sqrt_softplus) return l;
  return l < -40 ? l / 2
                 : std::log(l > 0 ? l + std::log1p(std::exp(-l)) : std::log1p(std::exp(l))) / 2;
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

/// One token's way through a SelectionRule.
struct ScoredToken {
  std::vector<int> ids;
  Row weights;
  Row scores;
  std::vector<int> penalised;
  bool nonfinite = false;
  bool short_of_survivors = false;
};

/// What all steps of a token need to know of its experts.
struct Contest {
  Row logits;               ///< After the penalty.
  std::vector<bool> loses;  ///< Below a rival.
  std::vector<bool> out;    ///< Loses in elimination.
  Row choice;               ///< Score plus bias; of losers in elimination, as if nobody competed.
};

template <class Round>
Contest contest(const Row& logits, const Ids& rivals, const gatepro::SelectionRule& rule,
                const Row& bias, const Round& round) {
  const gatepro::Competition& competition = rule.competition;
  const bool eliminate = competition.mode == gatepro::CompetitionMode::eliminate;
  const std::size_t experts = logits.size();
  Contest c{logits, std::vector<bool>(experts), std::vector<bool>(experts), {}};
  for (std::size_t e = 0; e < experts && competition.active(); ++e) {
    c.loses[e] = loses(logits, e, rivals[e], competition);
    c.out[e] = eliminate && c.loses[e];
    if (c.loses[e] && !eliminate) c.logits[e] = round(logits[e] - competition.lambda);
    if (c.out[e]) c.logits[e] = -std::numeric_limits<double>::infinity();
  }
  const bool by_logit = rule.scores.function == ScoreFunction::softmax_after_top_k;
  const Row before = by_logit ? logits : scores(logits, rule.scores.function);
  const Row after = by_logit ? c.logits : scores(c.logits, rule.scores.function);
  for (std::size_t e = 0; e < experts; ++e) {
    const double b = bias.empty() ? 0 : bias[e];
    c.choice.push_back(round((c.out[e] ? before[e] : after[e]) + b));
  }
  return c;
}

/// Ids in order of rank, without regard to groups.
inline std::vector<int> ranking(const Contest& c) {
  std::vector<int> order(c.choice.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int i, int j) {
    const auto a = static_cast<std::size_t>(i), b = static_cast<std::size_t>(j);
    const bool a_nan = !c.out[a] && std::isnan(c.choice[a]);
    const bool b_nan = !c.out[b] && std::isnan(c.choice[b]);
    if (a_nan != b_nan) return b_nan;
    if (a_nan) return false;
    if (c.out[a] != c.out[b]) return bool(c.out[b]);
    return c.choice[a] > c.choice[b];
  });
  return order;
}

/// The groups a token may use, as a flag per group.
template <class Round>
std::vector<bool> allowed_groups(const Contest& c, const std::vector<int>& order,
                                 const gatepro::SelectionRule& rule, const Round& round) {
  const auto groups = static_cast<std::size_t>(rule.groups.num_groups);
  const auto wanted = static_cast<std::size_t>(rule.groups.groups_per_token);
  if (groups == 1) return {true};
  const std::size_t size = c.choice.size() / groups;
  std::size_t best = static_cast<std::size_t>(rule.top_k) / wanted;
  if (rule.groups.score == gatepro::GroupScore::top_2) best = 2;
  if (rule.groups.score == gatepro::GroupScore::best_n) {
    best = static_cast<std::size_t>(rule.groups.best);
  }
  std::vector<int> unusable(groups), taken(groups);
  Row sum(groups);
  for (int id : order) {
    const auto e = static_cast<std::size_t>(id);
    const std::size_t g = e / size;
    if (static_cast<std::size_t>(taken[g]++) >= best) continue;
    if (c.out[e] || std::isnan(c.choice[e])) {
      ++unusable[g];
    } else {
      sum[g] = round(sum[g] + c.choice[e]);
    }
  }
  std::vector<std::size_t> ranked(groups);
  std::iota(ranked.begin(), ranked.end(), std::size_t{0});
  std::stable_sort(ranked.begin(), ranked.end(), [&](std::size_t a, std::size_t b) {
    if (unusable[a] != unusable[b]) return unusable[a] < unusable[b];
    if (std::isnan(sum[a]) != std::isnan(sum[b])) return std::isnan(sum[b]);  // inf - inf
    return sum[a] > sum[b];
  });
  std::vector<bool> allowed(groups, false);
  for (std::size_t i = 0; i < wanted; ++i) allowed[ranked[i]] = true;
  return allowed;
}

/// Weights and scores of the experts in token.ids.
inline void weigh(const Contest& c, const gatepro::SelectionRule& rule, bool is_padding,
                  ScoredToken& token) {
  const double inf = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  Row selected;
  bool any_number = false;
  for (int id : token.ids) {
    const auto e = static_cast<std::size_t>(id);
    selected.push_back(c.logits[e]);
    token.penalised.push_back(c.loses[e] ? 1 : 0);
    token.short_of_survivors = token.short_of_survivors || c.out[e];
    any_number = any_number || selected.back() > -inf;
    token.nonfinite = token.nonfinite || std::isnan(selected.back()) || selected.back() == inf;
  }
  token.nonfinite = token.nonfinite || !any_number;
  if (rule.scores.function == ScoreFunction::softmax_after_top_k) {
    token.scores = scores(selected, rule.scores.function);
  } else {
    const Row all = scores(c.logits, rule.scores.function);
    for (int id : token.ids) token.scores.push_back(all[static_cast<std::size_t>(id)]);
    const bool plus_infinity =
        std::any_of(c.logits.begin(), c.logits.end(), [&](double l) { return l == inf; });
    if (rule.scores.function == ScoreFunction::softmax_before_top_k && plus_infinity) {
      token.nonfinite = true;
    }
  }
  token.weights = quotients(token.scores, selected, rule.scores);
  for (std::size_t j = 0; j < token.ids.size(); ++j) {
    token.weights[j] *= rule.scores.scale;
    if (token.nonfinite) token.weights[j] = token.scores[j] = nan;
    if (is_padding) token.weights[j] = token.scores[j] = 0;
  }
  if (is_padding) token.nonfinite = token.short_of_survivors = false;
}

/// `round` rounds to the scalar in which the library works.
template <class Round>
ScoredToken route_scored(const Row& logits, const Ids& rivals, const gatepro::SelectionRule& rule,
                         const Row& bias, bool is_padding, const Round& round) {
  const Contest c = contest(logits, rivals, rule, bias, round);
  const std::vector<int> order = ranking(c);
  const std::vector<bool> allowed = allowed_groups(c, order, rule, round);
  const std::size_t size = logits.size() / allowed.size();
  ScoredToken token;
  for (int id : order) {
    if (!allowed[static_cast<std::size_t>(id) / size]) continue;
    if (static_cast<gatepro::Index>(token.ids.size()) < rule.top_k) token.ids.push_back(id);
  }
  weigh(c, rule, is_padding, token);
  return token;
}

/// The same for experts that were chosen before.
template <class Round>
ScoredToken replay_scored(const Row& logits, const Ids& rivals, const gatepro::SelectionRule& rule,
                          const std::vector<int>& ids, bool is_padding, const Round& round) {
  ScoredToken token;
  token.ids = ids;
  weigh(contest(logits, rivals, rule, {}, round), rule, is_padding, token);
  return token;
}

}  // namespace reference

#endif  // GATEPRO_TESTS_SUPPORT_SCORED_REFERENCE_HPP
