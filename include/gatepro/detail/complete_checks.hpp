// SPDX-License-Identifier: MIT
// The checks of a complete router, all before any write.
#ifndef GATEPRO_DETAIL_COMPLETE_CHECKS_HPP
#define GATEPRO_DETAIL_COMPLETE_CHECKS_HPP

#include <cstdint>

#include "gatepro/competition.hpp"
#include "gatepro/complete_routing.hpp"
#include "gatepro/detail/complete_losses.hpp"
#include "gatepro/detail/overlap.hpp"
#include "gatepro/detail/selection_checks.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

inline void check_loss_rule(const char* where, const LossRule& rule) {
  for (const double coefficient : {rule.batch, rule.sequence, rule.global, rule.z}) {
    need(is_finite(coefficient) && coefficient >= 0, where, "loss coefficients finite and >= 0",
         {{"coefficient", coefficient}});
  }
}

inline void check_noise_rule(const char* where, const NoiseRule& rule) {
  need(rule.jitter >= 0 && rule.jitter < 1, where, "0 <= jitter < 1", {{"jitter", rule.jitter}});
  need(is_finite(rule.logit_sigma) && rule.logit_sigma >= 0, where, "logit_sigma finite and >= 0",
       {{"logit_sigma", rule.logit_sigma}});
}

/// What Router does not check.
template <class A>
const CompleteConfig& checked_complete(const CompleteConfig& config) {
  const char* where = "CompleteRouter";
  check_selection<A>(where, config.selection(), config.router.num_experts);
  check_loss_rule(where, config.losses);
  check_noise_rule(where, config.noise);
  const double rate = config.bias.update_rate;
  need(is_finite(rate) && rate >= 0, where, "update_rate finite and >= 0", {{"update_rate", rate}});
  if (config.capacity) check_capacity_rule(where, *config.capacity);
  return config;
}

template <class X, class W>
void check_complete_tokens(const char* where, const CompleteConfig& config,
                           const MatrixView<const X>& x_TH, const MatrixView<const W>& w_EH) {
  check_matrix(where, "x_TH", x_TH, x_TH.rows, config.router.hidden_size);
  check_matrix(where, "w_EH", w_EH, config.router.num_experts, config.router.hidden_size);
}

/// Vectors as long as they say, ids in range and distinct, and what a recomputation needs.
template <class Id>
void check_replay(const char* where, const CompleteConfig& config, const ForwardInputs<Id>& in,
                  Index tokens) {
  need(in.replay != nullptr || in.pass != Pass::recompute, where,
       "a record to replay in Pass::recompute");
  if (in.replay == nullptr) return;
  const RoutingRecord<Id>& record = *in.replay;
  const auto size = static_cast<std::size_t>(tokens * config.router.top_k);
  need(record.tokens == tokens && record.top_k == config.router.top_k &&
           record.expert_ids_TK.size() == size && record.penalised_TK.size() == size,
       where, "a record of as many tokens and choices",
       {{"tokens", record.tokens},
        {"top_k", record.top_k},
        {"ids", record.expert_ids_TK.size()},
        {"tokens needed", tokens},
        {"top_k needed", config.router.top_k}});
  const auto ids_TK = record.expert_ids();
  check_ids(where, "recorded ids", ids_TK, config.router.num_experts);
  for (Index t = 0; t < tokens; ++t) {
    for (Index j = 1; j < ids_TK.cols; ++j) {
      for (Index i = 0; i < j; ++i) {
        need(ids_TK(t, i) != ids_TK(t, j), where, "recorded ids that are distinct in each token",
             {{"id", ids_TK(t, j)}, {"token", t}});
      }
    }
  }
  const bool recompute = in.pass == Pass::recompute;
  if (config.capacity && (recompute || !record.kept_TK.empty())) {
    need(record.kept_TK.size() == size && record.capacity >= 0, where,
         "a record that a forward with a capacity has filled",
         {{"kept_TK", record.kept_TK.size()},
          {"kept_TK needed", size},
          {"capacity", record.capacity}});
  }
  if (!recompute || !config.losses.any()) return;
  const auto totals = static_cast<std::size_t>(totals_size(config.router.num_experts));
  need(record.totals.size() == totals, where,
       "a record that a training forward with losses has filled",
       {{"totals", record.totals.size()}, {"totals needed", totals}});
  const VectorView<const std::int64_t> loads = record.totals;
  for (const BalanceCounts& load : {latest_load(loads), accumulated_load(loads)}) {
    check_balance_counts("CompleteRouter::forward, totals of the record", load,
                         config.router.num_experts);
  }
}

/// True if a forward drops what its record dropped.
template <class Id>
bool follows_drops(const CompleteConfig& config, const ForwardInputs<Id>& in) {
  return config.capacity && in.replay != nullptr && !in.replay->kept_TK.empty();
}

/// No expert keeps more recorded choices than it had slots. `taken_E` is scratch.
template <class Id>
void check_recorded_slots(const char* where, const ForwardInputs<Id>& in, Index experts,
                          Index* taken_E) {
  const RoutingRecord<Id>& record = *in.replay;
  count_choices(Choices<const Id>{record.expert_ids(), in.is_padding_T, record.kept()}, experts,
                taken_E);
  for (Index e = 0; e < experts; ++e) {
    need(taken_E[e] <= record.capacity, where,
         "a record that keeps no more choices of an expert than its capacity",
         {{"kept", taken_E[e]}, {"expert", e}, {"capacity", record.capacity}});
  }
}

template <class Id>
void check_complete_inputs(const char* where, const CompleteConfig& config,
                           const ForwardInputs<Id>& in, Index tokens) {
  check_optional_vector(where, "is_padding_T", in.is_padding_T, tokens);
  need(in.tokens_in_mean >= 0 && in.sequences_in_mean >= 0, where,
       "tokens_in_mean and sequences_in_mean >= 0",
       {{"tokens_in_mean", in.tokens_in_mean}, {"sequences_in_mean", in.sequences_in_mean}});
  if (config.losses.sequence > 0 && in.pass != Pass::evaluation) {
    check_sequences(where, in.sequence_begin_S1, tokens);
  }
}

template <class X, class A, class Id>
void check_complete_outputs(const char* where, const CompleteConfig& config,
                            const CompleteRoutingView<X, A, Id>& out, Index tokens, bool jittered) {
  const Index experts = config.router.num_experts;
  const Index top_k = config.router.top_k;
  check_matrix(where, "logits_TE", out.logits_TE, tokens, experts);
  check_strided(where, "expert_ids_TK", out.expert_ids_TK, tokens, top_k);
  check_strided(where, "weights_TK", out.weights_TK, tokens, top_k);
  check_strided(where, "scores_TK", out.scores_TK, tokens, top_k);
  check_strided(where, "penalised_TK", out.penalised_TK, tokens, top_k);
  check_vector(where, "tokens_per_expert_E", out.tokens_per_expert_E, experts);
  check_vector(where, "forward_id", out.forward_id, 1);
  if (config.losses.any()) {
    check_vector(where, "totals", out.totals, totals_size(experts));
    if (counts_unpenalised_ids(config.losses)) {
      check_strided(where, "counted_ids_TK", out.counted_ids_TK, tokens, top_k);
    }
  }
  if (config.capacity) {
    check_strided(where, "kept_TK", out.kept_TK, tokens, top_k);
    check_vector(where, "kept_per_expert_E", out.kept_per_expert_E, experts);
    if (config.capacity->renormalise) {
      check_vector(where, "weight_totals_T", out.weight_totals_T, tokens);
      check_vector(where, "kept_sums_T", out.kept_sums_T, tokens);
    }
  }
  if (jittered) {
    check_matrix(where, "jittered_TH", out.jittered_TH, tokens, config.router.hidden_size);
  }
}

/// What a forward writes, or a backward reads, of `out` overlaps neither itself nor `more`, the
/// other arguments.
template <class X, class A, class Id, class... More>
void check_complete_overlaps(const char* where, Access access, const ForwardInputs<Id>& in,
                             const CompleteRoutingView<X, A, Id>& out, const More&... more) {
  const auto of_out = [access](const char* name, const auto& view) {
    return Argument{name, access, region_of(view)};
  };
  check_overlaps(where, of_out("logits_TE", out.logits_TE),
                 of_out("expert_ids_TK", out.expert_ids_TK), of_out("weights_TK", out.weights_TK),
                 of_out("scores_TK", out.scores_TK), of_out("penalised_TK", out.penalised_TK),
                 of_out("tokens_per_expert_E", out.tokens_per_expert_E),
                 of_out("totals", out.totals), of_out("counted_ids_TK", out.counted_ids_TK),
                 of_out("kept_TK", out.kept_TK), of_out("kept_per_expert_E", out.kept_per_expert_E),
                 of_out("weight_totals_T", out.weight_totals_T),
                 of_out("kept_sums_T", out.kept_sums_T), of_out("jittered_TH", out.jittered_TH),
                 of_out("forward_id", out.forward_id), input("is_padding_T", in.is_padding_T),
                 input("sequence_begin_S1", in.sequence_begin_S1), more...);
}

/// Everything that a forward of `tokens` logits rows takes.
template <class X, class A, class Id>
void check_complete_forward(const CompleteConfig& config, const RivalTable& rivals,
                            const ForwardInputs<Id>& in, const CompleteRoutingView<X, A, Id>& out,
                            Index tokens, bool jittered) {
  const char* where = "CompleteRouter::forward";
  check_complete_inputs(where, config, in, tokens);
  check_complete_outputs(where, config, out, tokens, jittered);
  check_replay(where, config, in, tokens);
  checked_competition<A>(where, config.router.competition, rivals, config.router.num_experts);
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_DETAIL_COMPLETE_CHECKS_HPP
