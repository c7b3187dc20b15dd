// SPDX-License-Identifier: MIT
// The complete router once more, in double, token by token, as plainly as it can be written: what
// its tests compare with. It shares no code with the library but plain option structs.
#ifndef GATEPRO_TESTS_SUPPORT_COMPLETE_REFERENCE_HPP
#define GATEPRO_TESTS_SUPPORT_COMPLETE_REFERENCE_HPP

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <gatepro/router/complete_options.hpp>
#include <limits>
#include <numeric>
#include <vector>

#include "support/reference.hpp"

namespace complete_reference {

using gatepro::ScoreFunction;
using reference::Ids;
using reference::Matrix;
using Row = std::vector<double>;
using Flags = std::vector<bool>;

inline double log_sum_exp(const Row& row) {
  const double top = *std::max_element(row.begin(), row.end());
  double sum = 0;
  for (double v : row) sum += std::exp(v - top);
  return top + std::log(sum);
}

inline double softplus(double v) { return std::max(v, 0.0) + std::log1p(std::exp(-std::abs(v))); }

// f of a row. Experts that are left out score 0.
inline Row scores(const Row& logits, const Flags& left_out, ScoreFunction f) {
  Row result(logits.size(), 0.0);
  double sum = 0, top = -std::numeric_limits<double>::infinity();
  for (std::size_t e = 0; e < logits.size(); ++e) {
    if (!left_out[e]) top = std::max(top, logits[e]);
  }
  for (std::size_t e = 0; e < logits.size(); ++e) {
    if (left_out[e]) continue;
    switch (f) {
      case ScoreFunction::softmax_after_top_k:
      case ScoreFunction::softmax_before_top_k:
        result[e] = std::exp(logits[e] - top);
        break;
      case ScoreFunction::sigmoid:
        result[e] = 1 / (1 + std::exp(-logits[e]));
        break;
      case ScoreFunction::sqrt_softplus:
        result[e] = std::sqrt(softplus(logits[e]));
        break;
    }
    sum += result[e];
  }
  const bool softmax =
      f == ScoreFunction::softmax_after_top_k || f == ScoreFunction::softmax_before_top_k;
  if (softmax) {
    for (double& s : result) s /= sum;
  }
  return result;
}

// The scores of the losses: of raw logits, normalised over all experts.
inline Row loss_scores(const Row& logits, ScoreFunction f) {
  Row s = scores(logits, Flags(logits.size(), false), f);
  const double sum = std::accumulate(s.begin(), s.end(), 0.0);
  for (double& v : s) v /= sum;
  return s;
}

/// What a token chose: a step function of its logits.
struct Choice {
  std::vector<int> ids;
  Flags lost_E;  ///< Competition's losers.
  bool short_of_survivors = false;
};

struct Rules {
  gatepro::Index top_k = 1;
  gatepro::ScoreRule scores;
  gatepro::GroupLimit groups;
  gatepro::Competition competition;
  Row bias_E;  // all 0 for none
  Ids rivals;

  bool eliminates() const { return competition.mode == gatepro::CompetitionMode::eliminate; }
};

inline Row penalised(const Row& logits, const Choice& choice, const Rules& rules) {
  Row result = logits;
  if (rules.competition.mode != gatepro::CompetitionMode::penalty) return result;
  for (std::size_t e = 0; e < logits.size(); ++e) {
    if (choice.lost_E[e]) result[e] -= rules.competition.lambda;
  }
  return result;
}

inline Flags left_out(const Choice& choice, const Rules& rules) {
  return rules.eliminates() ? choice.lost_E : Flags(choice.lost_E.size(), false);
}

/// Survivors before losers, the larger value, the lower id.
struct Better {
  const Row& value_E;
  const Flags& last_E;
  bool operator()(int a, int b) const {
    const auto i = static_cast<std::size_t>(a), j = static_cast<std::size_t>(b);
    if (last_E[i] != last_E[j]) return last_E[j];
    if (value_E[i] != value_E[j]) return value_E[i] > value_E[j];
    return a < b;
  }
};

// Which experts stand in one of the best groups.
inline Flags allowed_experts(const Better& better, const Rules& rules) {
  const std::size_t experts = better.value_E.size();
  const auto groups = static_cast<std::size_t>(rules.groups.num_groups);
  if (groups == 1) return Flags(experts, true);
  const std::size_t size = experts / groups;
  gatepro::Index scored = rules.top_k / rules.groups.groups_per_token;
  if (rules.groups.score == gatepro::GroupScore::top_2) scored = 2;
  if (rules.groups.score == gatepro::GroupScore::best_n) scored = rules.groups.best;
  const auto best = static_cast<std::size_t>(scored);
  struct Group {
    int losers = 0;
    double sum = 0;
    std::size_t id = 0;
  };
  std::vector<Group> ranking;
  for (std::size_t g = 0; g < groups; ++g) {
    std::vector<int> members(size);
    std::iota(members.begin(), members.end(), static_cast<int>(g * size));
    std::sort(members.begin(), members.end(), better);
    Group group;
    group.id = g;
    for (std::size_t i = 0; i < best; ++i) {
      const auto e = static_cast<std::size_t>(members[i]);
      group.losers += better.last_E[e] ? 1 : 0;
      group.sum += better.last_E[e] ? 0 : better.value_E[e];
    }
    ranking.push_back(group);
  }
  std::stable_sort(ranking.begin(), ranking.end(), [](const Group& a, const Group& b) {
    return a.losers != b.losers ? a.losers < b.losers : a.sum > b.sum;
  });
  Flags allowed(experts, false);
  for (std::size_t i = 0; i < static_cast<std::size_t>(rules.groups.groups_per_token); ++i) {
    for (std::size_t e = 0; e < size; ++e) allowed[ranking[i].id * size + e] = true;
  }
  return allowed;
}

inline Choice choose(const Row& logits, const Rules& rules) {
  const std::size_t experts = logits.size();
  Choice choice;
  choice.lost_E.assign(experts, false);
  for (std::size_t e = 0; e < experts && rules.competition.active(); ++e) {
    choice.lost_E[e] = reference::loses(logits, e, rules.rivals[e], rules.competition);
  }
  const Row l = penalised(logits, choice, rules);
  const Flags out = left_out(choice, rules);
  const ScoreFunction f = rules.scores.function;
  Row value = f == ScoreFunction::softmax_after_top_k ? l : scores(l, Flags(experts, false), f);
  if (f == ScoreFunction::softmax_before_top_k) {
    // Survivors share the softmax; a loser's value orders losers only.
    const Row survivors = scores(l, out, f);
    for (std::size_t e = 0; e < experts; ++e) {
      if (!out[e]) value[e] = survivors[e];
    }
  }
  for (std::size_t e = 0; e < experts; ++e) value[e] += rules.bias_E[e];

  const Better better{value, out};
  const Flags allowed = allowed_experts(better, rules);
  std::vector<int> order;
  for (std::size_t e = 0; e < experts; ++e) {
    if (allowed[e]) order.push_back(static_cast<int>(e));
  }
  std::sort(order.begin(), order.end(), better);
  choice.ids.assign(order.begin(), order.begin() + rules.top_k);
  for (int id : choice.ids) {
    choice.short_of_survivors = choice.short_of_survivors || out[static_cast<std::size_t>(id)];
  }
  return choice;
}

// The weights of a choice: smooth in the logits.
inline Row weights(const Row& logits, const Choice& choice, const Rules& rules) {
  const Row l = penalised(logits, choice, rules);
  Flags out = left_out(choice, rules);
  if (rules.scores.function == ScoreFunction::softmax_after_top_k) {
    Flags selected(logits.size(), false);
    for (int id : choice.ids) selected[static_cast<std::size_t>(id)] = true;
    for (std::size_t e = 0; e < out.size(); ++e) out[e] = out[e] || !selected[e];
  }
  const Row s = scores(l, out, rules.scores.function);
  Row result;
  double sum = 0;
  for (int id : choice.ids) {
    result.push_back(s[static_cast<std::size_t>(id)]);
    sum += result.back();
  }
  for (double& w : result) {
    w *= rules.scores.scale / (rules.scores.renormalise ? sum : 1);
  }
  return result;
}

// Which choices of valid tokens keep a slot.
inline std::vector<Flags> kept(const Ids& ids_TK, const Matrix& weights_TK, const Flags& padding_T,
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
        if (ids_TK[t][j] == e && !padding_T[t]) slots.push_back({t, j, weights_TK[t][j]});
      }
    }
    std::stable_sort(slots.begin(), slots.end(), [policy](const Slot& a, const Slot& b) {
      if (policy == gatepro::DropPolicy::probability && a.weight != b.weight) {
        return a.weight > b.weight;
      }
      if (policy == gatepro::DropPolicy::choice_major && a.j != b.j) return a.j < b.j;
      return a.t < b.t;
    });
    for (std::size_t i = 0; i < std::min(capacity, slots.size()); ++i) {
      kept_TK[slots[i].t][slots[i].j] = true;
    }
  }
  return kept_TK;
}

// Drops of one token, with the survivors scaled up to what all were together, if asked.
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

/// Everything about a batch that is fixed while logits move a little.
struct Batch {
  std::vector<Choice> choices_T;
  Matrix routed_TK;  ///< Weights before drops.
  std::vector<Flags> kept_TK;
  std::vector<std::int64_t> counts_E, loss_counts_E;
  std::int64_t tokens = 0;  ///< Valid ones.
  Ids counted_TK;           ///< The choices that the losses count.
};

inline std::vector<std::int64_t> count(const Ids& ids_TK, const Flags& padding_T,
                                       std::size_t experts, std::size_t begin, std::size_t end) {
  std::vector<std::int64_t> counts(experts, 0);
  for (std::size_t t = begin; t < end; ++t) {
    for (int id : ids_TK[t]) counts[static_cast<std::size_t>(id)] += padding_T[t] ? 0 : 1;
  }
  return counts;
}

inline Batch route(const Matrix& logits_TE, const Rules& rules, const Flags& padding_T,
                   const gatepro::CompleteConfig& config) {
  Batch batch;
  Ids ids_TK;
  const std::size_t experts = logits_TE[0].size();
  Rules plain = rules;
  plain.scores = {};
  plain.groups = {};
  plain.competition = gatepro::Competition::off();
  plain.bias_E.assign(experts, 0);
  const bool unpenalised = config.losses.counts == gatepro::CountSource::unpenalised;
  for (std::size_t t = 0; t < logits_TE.size(); ++t) {
    batch.choices_T.push_back(choose(logits_TE[t], rules));
    ids_TK.push_back(batch.choices_T.back().ids);
    batch.counted_TK.push_back(unpenalised ? choose(logits_TE[t], plain).ids : ids_TK.back());
    batch.routed_TK.push_back(weights(logits_TE[t], batch.choices_T.back(), rules));
    if (padding_T[t]) batch.routed_TK.back().assign(ids_TK.back().size(), 0);
    batch.tokens += padding_T[t] ? 0 : 1;
  }
  batch.counts_E = count(ids_TK, padding_T, experts, 0, ids_TK.size());
  batch.loss_counts_E = count(batch.counted_TK, padding_T, experts, 0, ids_TK.size());
  const double all = static_cast<double>(batch.tokens);
  double capacity = all;
  if (config.capacity) {
    capacity = std::ceil(config.capacity->factor * all * static_cast<double>(rules.top_k) /
                         static_cast<double>(experts));
  }
  batch.kept_TK = kept(ids_TK, batch.routed_TK, padding_T, static_cast<int>(experts),
                       static_cast<std::size_t>(std::min(capacity, all)),
                       config.capacity ? config.capacity->policy : gatepro::DropPolicy::position);
  return batch;
}

// The final weights of token t, if its logits were `logits`.
inline Row final_weights(const Row& logits, std::size_t t, const Batch& batch, const Rules& rules,
                         const Flags& padding_T, const gatepro::CompleteConfig& config) {
  if (padding_T[t]) return Row(batch.routed_TK[t].size(), 0.0);
  const bool renormalise = config.capacity && config.capacity->renormalise;
  return after_drop(weights(logits, batch.choices_T[t], rules), batch.kept_TK[t], renormalise);
}

/// c E / (k N M) sum over e of n_e s_e of one token, for N tokens and a mean over M.
inline double balance_term(const Row& scores_E, const std::vector<std::int64_t>& counts_E,
                           double factor) {
  double sum = 0;
  for (std::size_t e = 0; e < scores_E.size(); ++e) {
    sum += static_cast<double>(counts_E[e]) * scores_E[e];
  }
  return factor * sum;
}

// What token t adds to the losses, if its logits were `logits`. The batch is the whole step.
inline gatepro::LossValues loss_terms(const Row& logits, std::size_t t, const Batch& batch,
                                      const Flags& padding_T,
                                      const std::vector<std::int64_t>& sequence_begin_S1,
                                      const gatepro::CompleteConfig& config) {
  gatepro::LossValues losses;
  if (padding_T[t]) return losses;
  const gatepro::LossRule& rule = config.losses;
  const Row s = loss_scores(logits, config.scores.function);
  const double all = static_cast<double>(batch.tokens);
  const double share = static_cast<double>(s.size()) / static_cast<double>(config.router.top_k);
  losses.batch = balance_term(s, batch.loss_counts_E, rule.batch * share / (all * all));
  losses.global = balance_term(s, batch.loss_counts_E, rule.global * share / (all * all));
  const double z = log_sum_exp(logits);
  losses.z = rule.z * z * z / all;
  double sequences = 0, mine = 0;
  std::vector<std::int64_t> counts_E;
  for (std::size_t i = 0; i + 1 < sequence_begin_S1.size(); ++i) {
    const auto begin = static_cast<std::size_t>(sequence_begin_S1[i]);
    const auto end = static_cast<std::size_t>(sequence_begin_S1[i + 1]);
    double valid = 0;
    for (std::size_t u = begin; u < end; ++u) valid += padding_T[u] ? 0 : 1;
    sequences += valid > 0 ? 1 : 0;
    if (t < begin || t >= end) continue;
    mine = valid;
    counts_E = count(batch.counted_TK, padding_T, s.size(), begin, end);
  }
  losses.sequence = balance_term(s, counts_E, rule.sequence * share / (mine * mine * sequences));
  return losses;
}

// (f(x + h) - f(x - h)) / 2h at each element, with the error of order h^2 taken out.
template <class F>
Row gradient(const F& f, Row x) {
  Row result;
  for (double& v : x) {
    const double at = v;
    const auto difference = [&](double h) {
      v = at + h;
      const double above = f(x);
      v = at - h;
      const double below = f(x);
      v = at;
      return (above - below) / (2 * h);
    };
    result.push_back((4 * difference(5e-4) - difference(1e-3)) / 3);
  }
  return result;
}

}  // namespace complete_reference

#endif  // GATEPRO_TESTS_SUPPORT_COMPLETE_REFERENCE_HPP
