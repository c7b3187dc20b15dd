// SPDX-License-Identifier: MIT
// A batch through the complete router: what its tokens share, and the losses.
#ifndef GATEPRO_TESTS_SUPPORT_REFERENCE_COMPLETE_HPP
#define GATEPRO_TESTS_SUPPORT_REFERENCE_COMPLETE_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <gatepro/router/complete_options.hpp>

#include "support/reference/drops.hpp"
#include "support/reference/losses.hpp"
#include "support/reference/routing.hpp"

namespace reference {

/// What is not a token's own: a batch is routed by one set of these.
struct Rules {
  gatepro::SelectionRule selection;
  Row bias_E;
  Ids rivals;
};

/// Everything about a batch that is fixed while logits move a little.
struct Batch {
  std::vector<Token> tokens_T;  ///< Before drops.
  std::vector<Flags> kept_TK;
  Ids counted_TK;  ///< The choices that the losses count.
  Counts counts_E;
  std::int64_t valid_tokens = 0;
};

inline Batch route(const Matrix& logits_TE, const Rules& rules, const Mask& padding_T,
                   const gatepro::CompleteConfig& config) {
  Batch batch;
  Ids ids_TK;
  Matrix weights_TK;
  const std::size_t tokens = logits_TE.size(), experts = logits_TE[0].size();
  const gatepro::Index top_k = rules.selection.top_k;
  const auto exact = [](double v) { return v; };
  for (std::size_t t = 0; t < tokens; ++t) {
    batch.tokens_T.push_back(route(logits_TE[t], rules.rivals, rules.selection, rules.bias_E,
                                   masked(padding_T, t), exact));
    ids_TK.push_back(batch.tokens_T.back().ids);
    weights_TK.push_back(batch.tokens_T.back().weights);
    const bool unpenalised = config.losses.counts == gatepro::CountSource::unpenalised;
    batch.counted_TK.push_back(
        unpenalised ? route(logits_TE[t], {}, gatepro::Competition::off(), top_k, exact).ids
                    : ids_TK.back());
  }
  batch.counts_E = count(ids_TK, experts, padding_T, 0, tokens);
  const double valid = valid_tokens(padding_T, 0, tokens);
  batch.valid_tokens = static_cast<std::int64_t>(valid);
  double capacity = valid;
  if (config.capacity) {
    capacity = std::ceil(config.capacity->factor * valid * static_cast<double>(top_k) /
                         static_cast<double>(experts));
  }
  batch.kept_TK = kept(ids_TK, weights_TK, padding_T, static_cast<int>(experts),
                       static_cast<std::size_t>(std::min(capacity, valid)),
                       config.capacity ? config.capacity->policy : gatepro::DropPolicy::position);
  return batch;
}

/// The final weights of token t, if its logits were `logits`.
inline Row final_weights(const Row& logits, std::size_t t, const Batch& batch, const Rules& rules,
                         const Mask& padding_T, const gatepro::CompleteConfig& config) {
  const Token& token = batch.tokens_T[t];
  const Contest moved = contest(logits, token.contest.loses, rules.selection, rules.bias_E,
                                [](double v) { return v; });
  const bool renormalise = config.capacity && config.capacity->renormalise;
  return after_drop(weigh(moved, token.ids, rules.selection, masked(padding_T, t)).weights,
                    batch.kept_TK[t], renormalise);
}

/// Each loss of the batch, which is the whole step.
struct BatchLosses {
  Loss batch, sequence, global, z;
};
inline BatchLosses batch_losses(const Matrix& logits_TE, const Batch& batch, const Mask& padding_T,
                                const Counts& sequence_begin_S1,
                                const gatepro::CompleteConfig& config) {
  const gatepro::LossRule& rule = config.losses;
  const ScoreFunction function = config.scores.function;
  const double tokens = static_cast<double>(batch.valid_tokens);
  const Counts counts_E =
      count(batch.counted_TK, logits_TE[0].size(), padding_T, 0, logits_TE.size());
  const auto balance = [&](double coefficient) {
    return balance_loss(logits_TE, function, coefficient, static_cast<double>(config.top_k),
                        counts_E, tokens, tokens, padding_T);
  };
  return {balance(rule.batch),
          sequence_balance_loss(logits_TE, batch.counted_TK, sequence_begin_S1, function,
                                rule.sequence, padding_T),
          balance(rule.global), z_loss(logits_TE, rule.z, tokens, padding_T)};
}

}  // namespace reference

#endif  // GATEPRO_TESTS_SUPPORT_REFERENCE_COMPLETE_HPP
