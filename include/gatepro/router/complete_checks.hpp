// SPDX-License-Identifier: MIT
// The checks of a complete router, all before any write.
#ifndef GATEPRO_ROUTER_COMPLETE_CHECKS_HPP
#define GATEPRO_ROUTER_COMPLETE_CHECKS_HPP

#include <cstdint>
#include <type_traits>
#include <vector>

#include "gatepro/balance/quantile_bias.hpp"
#include "gatepro/core/overlap.hpp"
#include "gatepro/gate/soft_cap.hpp"
#include "gatepro/router/complete_losses.hpp"
#include "gatepro/router/complete_routing.hpp"
#include "gatepro/router/router_state.hpp"
#include "gatepro/routing/competition.hpp"
#include "gatepro/routing/selection_checks.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// True if the choices of a pass are made up.
inline bool is_forced(const CompleteConfig& config, Pass pass) {
  return config.noise.forced != ForcedRouting::none && pass != Pass::evaluation;
}

/// True if a hash table makes the choices of a pass.
template <class Id>
bool is_hashed(const CompleteConfig& config, const ForwardInputs<Id>& in) {
  return in.hash != nullptr && in.replay == nullptr && !is_forced(config, in.pass);
}

/// True if a pass chooses experts by its logits, random ones included.
template <class Id>
bool chooses(const CompleteConfig& config, const ForwardInputs<Id>& in) {
  const bool round_robin = config.noise.forced == ForcedRouting::round_robin;
  return in.replay == nullptr && !is_hashed(config, in) &&
         !(round_robin && is_forced(config, in.pass));
}

/// The most choices of a token: those of the call, or of its record, or of the settings.
template <class Id>
Index most_choices(const CompleteConfig& config, const ForwardInputs<Id>& in) {
  const Index wanted = in.replay != nullptr ? in.replay->most_choices : in.top_k;
  return wanted != 0 ? wanted : config.top_k;
}

/// `rule` with fewer choices. Which groups are best stays as it was.
inline SelectionRule with_top_k(SelectionRule rule, Index top_k) {
  if (rule.groups.active()) {
    rule.groups.best = experts_per_group_score(rule);
    rule.groups.score = GroupScore::best_n;
  }
  rule.top_k = top_k;
  return rule;
}

/// True if a pass tells the estimate of lambda what its logits are like: if it learns, and the
/// penalty has a part in its choices.
template <class Id>
bool informs_lambda(const CompleteConfig& config, const ForwardInputs<Id>& in) {
  return config.adaptive_lambda.share > 0 && in.pass == Pass::training && in.replay == nullptr &&
         config.competition.mode == CompetitionMode::penalty && !is_hashed(config, in) &&
         !is_forced(config, in.pass);
}

/// The rule that a pass chooses and weighs by.
template <class Id>
SelectionRule selection_in(const CompleteConfig& config, const ForwardInputs<Id>& in) {
  SelectionRule rule = config.selection();
  if (is_forced(config, in.pass) || is_hashed(config, in)) {
    rule.competition = Competition::off();
    rule.choice.step = 0;
  }
  if (in.pass == Pass::recompute && in.replay->competition) {
    rule.competition = *in.replay->competition;
  }
  const bool fewer = in.replay == nullptr && most_choices(config, in) < config.top_k;
  return fewer ? with_top_k(rule, in.top_k) : rule;
}

inline void check_loss_rule(const Checks& checks, const LossRule& rule) {
  for (const double coefficient : {rule.batch, rule.sequence, rule.global, rule.z}) {
    checks.need(is_finite(coefficient) && coefficient >= 0, "loss coefficients finite and >= 0",
                {{"coefficient", coefficient}});
  }
}

inline void check_noise_rule(const Checks& checks, const NoiseRule& rule) {
  checks.need(rule.jitter >= 0 && rule.jitter < 1, "0 <= jitter < 1", {{"jitter", rule.jitter}});
  checks.need(is_finite(rule.logit_sigma) && rule.logit_sigma >= 0, "logit_sigma finite and >= 0",
              {{"logit_sigma", rule.logit_sigma}});
}

/// What Router does not check.
template <class A>
const CompleteConfig& checked_complete(const CompleteConfig& config) {
  const Checks checks("CompleteRouter");
  check_selection<A>(checks, config.selection(), config.num_experts);
  check_loss_rule(checks, config.losses);
  check_noise_rule(checks, config.noise);
  if (key_of(config.logit_soft_cap) != 0) check_soft_cap<A>(checks, config.logit_soft_cap);
  const double rate = config.bias.update_rate;
  checks.need(is_finite_as<A>(rate) && rate >= 0,
              "update_rate finite, also in the router's precision, and >= 0",
              {{"update_rate", rate}});
  if (config.fewer) check_fewer_choices(checks, *config.fewer, config.top_k);
  check_quantile_rule<A>(checks, config.quantile);
  if (config.quantile.enabled) {
    checks.need(!config.bias.enabled, "one expert bias: BiasRule or QuantileRule, not both");
    check_quantile_top_k(checks, config.top_k, config.num_experts);
  }
  if (config.capacity) check_capacity_rule(checks, *config.capacity);
  checks.need(!config.capacity || config.capacity->policy != DropPolicy::choice_major ||
                  config.choice.order == ChoiceOrder::best_first,
              "choices best first, not by id, for DropPolicy::choice_major",
              {{"order", static_cast<int>(config.choice.order)}});
  check_adaptive_lambda(checks, config.adaptive_lambda);
  return config;
}

template <class X, class W>
void check_complete_tokens(const Checks& checks, const CompleteConfig& config,
                           const MatrixView<const X>& x_TH, const MatrixView<const W>& w_EH) {
  checks.matrix("x_TH", x_TH, x_TH.rows, config.hidden_size);
  checks.matrix("w_EH", w_EH, config.num_experts, config.hidden_size);
}

/// Vectors as long as they say, and what a recomputation needs.
template <class Id>
void check_replay(const Checks& checks, const CompleteConfig& config, const ForwardInputs<Id>& in,
                  Index tokens) {
  checks.need(in.replay != nullptr || in.pass != Pass::recompute,
              "a record to replay in Pass::recompute");
  if (in.replay == nullptr) return;
  const RoutingRecord<Id>& record = *in.replay;
  const auto size = static_cast<std::size_t>(tokens * config.top_k);
  need(record.tokens == tokens && record.top_k == config.top_k &&
           record.expert_ids_TK.size() == size && record.penalised_TK.size() == size,
       checks.where(), "a record of as many tokens and choices",
       {{"tokens", record.tokens},
        {"top_k", record.top_k},
        {"ids", record.expert_ids_TK.size()},
        {"tokens needed", tokens},
        {"top_k needed", config.top_k}});
  need(record.most_choices >= 0 && record.most_choices <= config.top_k, checks.where(),
       "a record with 0 <= most_choices <= top_k",
       {{"most_choices", record.most_choices}, {"top_k", config.top_k}});
  const bool recompute = in.pass == Pass::recompute;
  if (config.capacity) {
    const std::size_t kept_size = record.capacity ? size : 0;
    checks.need((record.capacity || !recompute) && record.capacity.value_or(0) >= 0 &&
                    record.kept_TK.size() == kept_size,
                "a record that a forward with a capacity has filled",
                {{"kept_TK", record.kept_TK.size()},
                 {"kept_TK needed", kept_size},
                 {"capacity", record.capacity.value_or(-1)}});
  }
  if (!recompute || !config.losses.any()) return;
  const auto totals = static_cast<std::size_t>(totals_size(config.num_experts));
  checks.need(record.totals.size() == totals,
              "a record that a training forward with losses has filled",
              {{"totals", record.totals.size()}, {"totals needed", totals}});
  const VectorView<const std::int64_t> loads = record.totals;
  for (const BalanceCounts& load : {latest_load(loads), accumulated_load(loads)}) {
    const char* totals_of = "CompleteRouter::forward, totals of the record";
    check_balance_counts(totals_of, load, config.num_experts);
    check_choices_per_token(totals_of, load, config.top_k);
  }
}

/// A table for this router, and the ids that it is read by.
template <class Id>
void check_hash(const Checks& checks, const CompleteConfig& config, const ForwardInputs<Id>& in,
                Index tokens) {
  if (in.hash == nullptr) {
    checks.need(!in.token_ids_T.given(), "a hash table for token_ids_T");
    return;
  }
  const HashTable& table = *in.hash;
  need(table.num_experts() == config.num_experts && table.top_k() == config.top_k, checks.where(),
       "a hash table of the router's experts and top_k",
       {{"num_experts", config.num_experts},
        {"top_k", config.top_k},
        {"num_experts of the table", table.num_experts()},
        {"top_k of the table", table.top_k()}});
  check_token_ids(checks, table, in.token_ids_T, in.is_padding_T, tokens);
}

/// True if a forward drops what its record dropped. All ranks agree on it, also those without
/// tokens, whose kept_TK is always empty: it decides whether the reduce hook is called.
template <class Id>
bool follows_drops(const CompleteConfig& config, const ForwardInputs<Id>& in) {
  return config.capacity && in.replay != nullptr && in.replay->capacity;
}

/// No expert keeps more recorded choices than it had slots. `taken_E` is scratch.
template <class Id>
void check_recorded_slots(const Checks& checks, const ForwardInputs<Id>& in, Index experts,
                          Index* taken_E) {
  const RoutingRecord<Id>& record = *in.replay;
  count_choices(Choices<const Id>{record.expert_ids(), in.is_padding_T, record.kept()}, experts,
                taken_E);
  for (Index e = 0; e < experts; ++e) {
    checks.need(taken_E[e] <= *record.capacity,
                "a record that keeps no more choices of an expert than its capacity",
                {{"kept", taken_E[e]}, {"expert", e}, {"capacity", *record.capacity}});
  }
}

template <class Id>
void check_complete_inputs(const Checks& checks, const CompleteConfig& config,
                           const ForwardInputs<Id>& in, Index tokens) {
  checks.optional_vector("is_padding_T", in.is_padding_T, tokens);
  need(in.tokens_in_mean >= 0 && in.sequences_in_mean >= 0, checks.where(),
       "tokens_in_mean and sequences_in_mean >= 0",
       {{"tokens_in_mean", in.tokens_in_mean}, {"sequences_in_mean", in.sequences_in_mean}});
  need(in.top_k >= 0 && in.top_k <= config.top_k, checks.where(),
       "ForwardInputs::top_k from 1 to top_k, or 0 for all",
       {{"ForwardInputs::top_k", in.top_k}, {"top_k", config.top_k}});
  const bool per_sequence = config.losses.sequence > 0 && in.pass != Pass::evaluation;
  if (per_sequence || (shares_choices(config) && chooses(config, in))) {
    check_sequences(checks, in.sequence_begin_S1, tokens);
  }
}

template <class X, class A, class Id>
void check_complete_outputs(const Checks& checks, const CompleteConfig& config,
                            const CompleteRoutingView<X, A, Id>& out, Index tokens, bool jittered,
                            bool recorded) {
  const Index experts = config.num_experts;
  const Index top_k = config.top_k;
  checks.matrix("logits_TE", out.logits_TE, tokens, experts);
  checks.strided("expert_ids_TK", out.expert_ids_TK, tokens, top_k);
  checks.strided("weights_TK", out.weights_TK, tokens, top_k);
  checks.strided("scores_TK", out.scores_TK, tokens, top_k);
  if (recorded || needs_penalised(config)) {
    checks.strided("penalised_TK", out.penalised_TK, tokens, top_k);
  } else {
    checks.optional_strided("penalised_TK", out.penalised_TK, tokens, top_k);
  }
  checks.need(!out.choice_values_TK.given() || config.fewer ||
                  config.choice.order == ChoiceOrder::best_first,
              "choices best first, not by id, for choice_values_TK");
  if (shares_choices(config)) {
    checks.strided("choice_values_TK", out.choice_values_TK, tokens, top_k);
  } else {
    checks.optional_strided("choice_values_TK", out.choice_values_TK, tokens, top_k);
  }
  checks.vector("tokens_per_expert_E", out.tokens_per_expert_E, experts);
  checks.vector("forward_id", out.forward_id, 1);
  if (config.losses.any()) {
    checks.vector("totals", out.totals, totals_size(experts));
    if (weighs_shares(config.losses)) checks.vector("share_sums_E", out.share_sums_E, experts);
    if (config.losses.z > 0) checks.vector("log_sum_exp_T", out.log_sum_exp_T, tokens);
    if (counts_unpenalised_ids(config.losses)) {
      checks.strided("counted_ids_TK", out.counted_ids_TK, tokens, top_k);
    }
  }
  if (config.capacity) {
    checks.strided("kept_TK", out.kept_TK, tokens, top_k);
    checks.vector("kept_per_expert_E", out.kept_per_expert_E, experts);
    if (config.capacity->renormalise) {
      checks.vector("weight_totals_T", out.weight_totals_T, tokens);
      checks.vector("kept_sums_T", out.kept_sums_T, tokens);
    }
  }
  if (jittered) {
    checks.matrix("jittered_TH", out.jittered_TH, tokens, config.hidden_size);
  }
}

/// What a forward writes, or a backward reads, of `out` overlaps neither itself nor `more`, the
/// other arguments.
template <class X, class A, class Id, class... More>
void check_complete_overlaps(const Checks& checks, Access access, const ForwardInputs<Id>& in,
                             const CompleteRoutingView<X, A, Id>& out, const More&... more) {
  const auto of_out = [access](const char* name, const auto& view) {
    return argument(name, access, region_of(view));
  };
  checks.overlaps(
      of_out("logits_TE", out.logits_TE), of_out("expert_ids_TK", out.expert_ids_TK),
      of_out("weights_TK", out.weights_TK), of_out("scores_TK", out.scores_TK),
      of_out("penalised_TK", out.penalised_TK), of_out("choice_values_TK", out.choice_values_TK),
      of_out("tokens_per_expert_E", out.tokens_per_expert_E), of_out("totals", out.totals),
      of_out("share_sums_E", out.share_sums_E), of_out("log_sum_exp_T", out.log_sum_exp_T),
      of_out("counted_ids_TK", out.counted_ids_TK), of_out("kept_TK", out.kept_TK),
      of_out("kept_per_expert_E", out.kept_per_expert_E),
      of_out("weight_totals_T", out.weight_totals_T), of_out("kept_sums_T", out.kept_sums_T),
      of_out("jittered_TH", out.jittered_TH), of_out("forward_id", out.forward_id),
      of_out("statistics", out.statistics), input("is_padding_T", in.is_padding_T),
      input("sequence_begin_S1", in.sequence_begin_S1), input("token_ids_T", in.token_ids_T),
      more...);
}

/// What a forward writes does not stand in a record either. The record that it fills may be the one
/// that it follows, so that both are read here.
template <class X, class A, class Id, class... More>
void check_forward_overlaps(const Checks& checks, const ForwardInputs<Id>& in,
                            const CompleteRoutingView<X, A, Id>& out, const More&... more) {
  const RoutingRecord<Id> none;
  const RoutingRecord<Id>& replay = in.replay != nullptr ? *in.replay : none;
  const RoutingRecord<Id>& record = in.record != nullptr ? *in.record : none;
  const auto input_in = [](const char* name, const auto& vector) {
    using T = std::remove_pointer_t<decltype(vector.data())>;
    return input(name, VectorView<T>(vector));
  };
  check_complete_overlaps(
      checks, Access::write, in, out, more...,
      input("hash table",
            in.hash != nullptr ? in.hash->expert_ids() : MatrixView<const std::int32_t>()),
      input_in("replay->expert_ids_TK", replay.expert_ids_TK),
      input_in("replay->penalised_TK", replay.penalised_TK),
      input_in("replay->kept_TK", replay.kept_TK), input_in("replay->totals", replay.totals),
      input_in("record->expert_ids_TK", record.expert_ids_TK),
      input_in("record->penalised_TK", record.penalised_TK),
      input_in("record->kept_TK", record.kept_TK), input_in("record->totals", record.totals));
}

/// Everything that a forward of `tokens` logits rows takes.
template <class X, class A, class Id>
void check_complete_forward(const CompleteConfig& config, const RivalTable& rivals,
                            const ForwardInputs<Id>& in, const CompleteRoutingView<X, A, Id>& out,
                            Index tokens, bool jittered) {
  const Checks checks("CompleteRouter::forward");
  if (config.quantile.enabled) check_quantile_tokens(checks, tokens);
  check_complete_inputs(checks, config, in, tokens);
  check_complete_outputs(checks, config, out, tokens, jittered, in.record != nullptr);
  check_replay(checks, config, in, tokens);
  check_hash(checks, config, in, tokens);
  checks.need(
      out.statistics == nullptr || chooses(config, in),
      "no statistics of choices that the penalty had no part in: replayed, forced or hashed ones");
  const SelectionRule rule = selection_in(config, in);
  checked_competition<A>(checks, rule.competition, rivals, config.num_experts);
  checks.need(in.pass != Pass::recompute || !in.replay->competition || !rule.competition.active() ||
                  rule.scores.function != ScoreFunction::softmax_before_top_k ||
                  in.replay->partners == rivals.fingerprint(),
              "the partners of the record: with softmax_before_top_k all scores depend on them, so "
              "recompute before refresh or set_partners change them",
              {{"fingerprint", rivals.fingerprint()}});
}

/// A member of a state is empty, for "has none", or as large as the settings make it.
template <class T>
void check_state_size(const Checks& checks, const char* name, const char* rule,
                      const std::vector<T>& values, Index size) {
  if (values.empty() || static_cast<Index>(values.size()) == size) return;
  checks.refuse(name, rule, {{"size", values.size()}, {"size needed", size}});
}

inline void check_state_sizes(const Checks& checks, const CompleteConfig& config,
                              const RouterState& state) {
  const Index experts = config.num_experts;
  const char* per_expert = "num_experts elements, or none";
  check_state_size(checks, "balance_counts_E", per_expert, state.balance_counts_E, experts);
  const auto only_if = [](bool enabled, const char* otherwise, const char* size) {
    return enabled ? size : otherwise;
  };
  const char* no_bias = "no elements: BiasRule::enabled is false";
  check_state_size(checks, "expert_bias_E", only_if(config.has_bias(), no_bias, per_expert),
                   state.expert_bias_E, config.has_bias() ? experts : 0);
  check_state_size(checks, "bias_counts_E", only_if(config.bias.enabled, no_bias, per_expert),
                   state.bias_counts_E, config.bias.enabled ? experts : 0);
  const Index quantiles = config.quantile.enabled ? experts * (1 + config.quantile.bins) : 0;
  check_state_size(checks, "quantile_counts_EB",
                   only_if(config.quantile.enabled, "no elements: QuantileRule::enabled is false",
                           "num_experts * (1 + bins) elements, or none"),
                   state.quantile_counts_EB, quantiles);
  checks.need(state.quantile_choices == 0 || !state.quantile_counts_EB.empty(),
              "quantile_counts_EB where there are quantile_choices",
              {{"quantile_choices", state.quantile_choices}});
  check_state_size(checks, "correction_bias_E", per_expert, state.correction_bias_E, experts);
  checks.need(!state.expert_bias_E.empty() || state.bias_counts_E.empty(),
              "expert_bias_E where there are bias_counts_E",
              {{"size of bias_counts_E", state.bias_counts_E.size()}});
  const bool adapts = config.adaptive_lambda.share > 0;
  const Index lambdas = adapts ? LambdaEstimate::size() : 0;
  const char* lambda_rule = adapts ? "LambdaEstimate::size() elements, or none"
                                   : "no elements: AdaptiveLambda::share is 0";
  check_state_size(checks, "lambda_estimate", lambda_rule, state.lambda_estimate, lambdas);
  check_state_size(checks, "lambda_counts", lambda_rule, state.lambda_counts, lambdas);
  checks.need(state.lambda_estimate.size() == state.lambda_counts.size(),
              "lambda_estimate and lambda_counts, or none of both",
              {{"size of lambda_estimate", state.lambda_estimate.size()},
               {"size of lambda_counts", state.lambda_counts.size()}});
  check_state_size(checks, "partners_EM", "num_experts * partners_per_expert elements, or none",
                   state.partners_EM, experts * config.pairing.partners_per_expert);
}

/// Values of a bias that a router of accumulator A can hold.
template <class A>
void check_state_bias(const Checks& checks, const char* name, const std::vector<double>& bias_E) {
  for (const double bias : bias_E) {
    if (is_finite_as<A>(bias)) continue;
    checks.refuse(name, "values that are finite, also in the router's precision",
                  {{"value", bias}});
  }
}

/// Everything that `restore` takes. `A` is the type of the bias.
template <class A>
void check_state(const Checks& checks, const CompleteConfig& config, const RouterState& state) {
  check_state_sizes(checks, config, state);
  const Index experts = config.num_experts;
  const auto size = [](const auto& values) { return static_cast<Index>(values.size()); };
  const StridedView<const std::int32_t> partners(state.partners_EM.data(), size(state.partners_EM),
                                                 1, 1, 1);
  checks.ids("partners_EM", partners, experts);
  check_state_bias<A>(checks, "expert_bias_E", state.expert_bias_E);
  check_state_bias<A>(checks, "correction_bias_E", state.correction_bias_E);
  if (config.quantile.enabled && !state.expert_bias_E.empty()) {
    const VectorView<const double> bias_E = state.expert_bias_E;
    checked_bias_range<A>(checks, bias_E, config.quantile.reach);
  }
  check_counts(checks, "bias_counts_E", state.bias_counts_E, size(state.bias_counts_E));
  if (!state.quantile_counts_EB.empty()) {
    check_needed_counts("CompleteRouter::restore, quantile_counts_EB",
                        {state.quantile_counts_EB.data(), experts, 1 + config.quantile.bins},
                        state.quantile_choices);
  }
  check_counts(checks, "balance_counts_E", state.balance_counts_E, size(state.balance_counts_E));
  checks.need(state.balance_tokens >= 0, "balance_tokens >= 0",
              {{"balance_tokens", state.balance_tokens}});
  for (const std::int64_t count : state.balance_counts_E) {
    checks.need(count <= state.balance_tokens,
                "balance_counts_E with no count above balance_tokens",
                {{"count", count}, {"balance_tokens", state.balance_tokens}});
  }
  check_choices_per_token("CompleteRouter::restore, balance_counts_E",
                          {state.balance_counts_E, state.balance_tokens}, config.top_k);
  checks.need(state.balance_tokens == 0 || !state.balance_counts_E.empty(),
              "balance_counts_E where there are balance_tokens",
              {{"balance_tokens", state.balance_tokens}});
  checks.need(state.noise_position >= 0, "noise_position >= 0",
              {{"noise_position", state.noise_position}});
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTER_COMPLETE_CHECKS_HPP
