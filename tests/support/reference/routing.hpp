// SPDX-License-Identifier: MIT
// One token's way from its logits to the weights of its choices, by full sorts.
#ifndef GATEPRO_TESTS_SUPPORT_REFERENCE_ROUTING_HPP
#define GATEPRO_TESTS_SUPPORT_REFERENCE_ROUTING_HPP

#include <algorithm>
#include <cmath>
#include <gatepro/routing/rules.hpp>
#include <limits>
#include <numeric>

#include "support/reference/matrix.hpp"
#include "support/reference/scores.hpp"

namespace reference {

/// GatePro eq. 7, strictly, or with ties that the higher id loses. False for NaN.
inline bool loses(const Row& logits, std::size_t i, const std::vector<int>& rivals,
                  const gatepro::Competition& competition) {
  for (int rival : rivals) {
    const auto r = static_cast<std::size_t>(rival);
    if (logits[i] < logits[r]) return true;
    const bool ties_lose = competition.ties == gatepro::TieRule::higher_id_loses;
    if (ties_lose && logits[i] == logits[r] && r < i) return true;
  }
  return false;
}
inline Flags losers(const Row& logits, const Ids& rivals, const gatepro::Competition& competition) {
  Flags result(logits.size());
  for (std::size_t e = 0; e < logits.size() && competition.active(); ++e) {
    result[e] = loses(logits, e, rivals[e], competition);
  }
  return result;
}

/// What all steps of a token need to know of its experts.
struct Contest {
  Flags loses;  ///< Below a rival.
  Flags out;    ///< Loses in elimination.
  Row logits;   ///< After competition: -inf for who is out.
  Row choice;   ///< Score plus bias; of who is out, as if nobody competed.
};

/// The nearest multiple of the step, of two the one further from 0.
inline double rounded(double score, double step) {
  return step > 0 && std::isfinite(score) ? std::round(score / step) * step : score;
}

/// GatePro eq. 8.
template <class Round>
Contest contest(const Row& logits, const Flags& loses, const gatepro::SelectionRule& rule,
                const Row& bias, const Round& round) {
  const bool eliminate = rule.competition.mode == gatepro::CompetitionMode::eliminate;
  const std::size_t experts = logits.size();
  Contest c{loses, eliminate ? loses : Flags(experts), logits, {}};
  for (std::size_t e = 0; e < experts; ++e) {
    if (loses[e] && !eliminate) c.logits[e] = round(logits[e] - rule.competition.lambda);
    if (c.out[e]) c.logits[e] = -std::numeric_limits<double>::infinity();
  }
  const bool by_logit = rule.scores.function == ScoreFunction::softmax_after_top_k;
  const Row before = by_logit ? logits : scores(logits, rule.scores.function);
  const Row after = by_logit ? c.logits : scores(c.logits, rule.scores.function);
  for (std::size_t e = 0; e < experts; ++e) {
    const double b = bias.empty() ? 0 : bias[e];
    const double score = round(c.out[e] ? before[e] : after[e]);
    c.choice.push_back(round(rounded(score, rule.choice.step) + b));
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
Flags allowed_groups(const Contest& c, const std::vector<int>& order,
                     const gatepro::SelectionRule& rule, const Round& round) {
  const auto groups = static_cast<std::size_t>(rule.groups.num_groups);
  const auto wanted = static_cast<std::size_t>(rule.groups.groups_per_token);
  if (groups == 1) return {true};
  const std::size_t size = c.choice.size() / groups;
  std::size_t best = static_cast<std::size_t>(rule.top_k) / wanted;
  if (rule.groups.score == gatepro::GroupScore::top_1) best = 1;
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
  Flags allowed(groups, false);
  for (std::size_t i = 0; i < wanted; ++i) allowed[ranked[i]] = true;
  return allowed;
}

struct Token {
  Contest contest;
  std::vector<int> ids;  ///< K, in the order of the outputs.
  Row weights;
  Row scores;
  std::vector<int> penalised;  ///< 1 for a loser.
  bool nonfinite = false;      ///< The weights are NaN.
  bool short_of_survivors = false;
};

/// A token with given choices.
inline Token weigh(const Contest& c, const std::vector<int>& ids,
                   const gatepro::SelectionRule& rule, bool is_padding) {
  Token token;
  token.contest = c;
  token.ids = ids;
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
  return token;
}

/// `round` rounds to the scalar in which the library works, so that ties come out the same.
template <class Round>
Token route(const Row& logits, const Ids& rivals, const gatepro::SelectionRule& rule,
            const Row& bias, bool is_padding, const Round& round) {
  const Contest c = contest(logits, losers(logits, rivals, rule.competition), rule, bias, round);
  const std::vector<int> order = ranking(c);
  const Flags allowed = allowed_groups(c, order, rule, round);
  const std::size_t size = logits.size() / allowed.size();
  std::vector<int> ids;
  for (int id : order) {
    if (!allowed[static_cast<std::size_t>(id) / size]) continue;
    if (static_cast<gatepro::Index>(ids.size()) < rule.top_k) ids.push_back(id);
  }
  if (rule.choice.order == gatepro::ChoiceOrder::ascending_ids) std::sort(ids.begin(), ids.end());
  return weigh(c, ids, rule, is_padding);
}

/// GatePro eq. 2-4 and 7-8.
template <class Round>
Token route(const Row& logits, const Ids& rivals, const gatepro::Competition& competition,
            gatepro::Index top_k, const Round& round) {
  return route(logits, rivals, gatepro::SelectionRule{top_k, {}, {}, competition}, {}, false,
               round);
}

}  // namespace reference

#endif  // GATEPRO_TESTS_SUPPORT_REFERENCE_ROUTING_HPP
