// SPDX-License-Identifier: MIT
// A complete router's forward: what it hands to RoutingPass, and what follows for all tokens.
#ifndef GATEPRO_ROUTER_COMPLETE_FORWARD_HPP
#define GATEPRO_ROUTER_COMPLETE_FORWARD_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "gatepro/gate/noise.hpp"
#include "gatepro/gate/soft_cap.hpp"
#include "gatepro/router/complete_checks.hpp"
#include "gatepro/router/complete_losses.hpp"
#include "gatepro/router/forward_pass.hpp"
#include "gatepro/router/tile_losses.hpp"
#include "gatepro/routing/fewer_choices.hpp"
#include "gatepro/routing/forced_routing.hpp"
#include "gatepro/routing/recorded_selection.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// Scratch for the counts of quantile balancing, none without it.
template <class A>
NeededBias<A> needed_bias(Arena& arena, const CompleteConfig& config, int workers) {
  return {arena, config.quantile.enabled ? config.num_experts : 0, config.quantile.bins, workers};
}

/// Bytes of workspace for all steps of a forward, which use it one after the other.
template <class X, class W>
std::size_t forward_bytes(const CompleteConfig& config, const BufferShape& shape) {
  using A = accumulator_t<X, W>;
  const std::size_t pass = measure([&](Arena& arena) {
    ForwardLayout<X, A, RuledSelection<A>>(arena, config, config.selection(), shape.workers);
    TileLosses<A>(arena, config, shape.workers);
    needed_bias<A>(arena, config, shape.workers);
  });
  const std::size_t drop =
      config.capacity ? drop_over_capacity_workspace_bytes<A>(shape.tokens, config.num_experts,
                                                              config.top_k, config.capacity->policy)
                      : 0;
  const std::size_t fewer =
      config.fewer ? keep_fewer_choices_workspace_bytes<A>(config.top_k, shape.workers) : 0;
  const std::size_t margins =
      config.adaptive_lambda.share > 0
          ? count_margins_workspace_bytes<A>(config.num_experts, config.top_k, shape.workers)
          : 0;
  return (std::max)(
      {pass, fewer, complete_losses_workspace_bytes<A>(config, shape), drop, margins});
}

/// True if a forward from tokens jitters them.
inline bool draws_jitter(const NoiseRule& rule, Pass pass) {
  return rule.jitter > 0 && pass != Pass::evaluation;
}

/// The tokens as the router sees them: x_TH itself, or jittered_TH filled from it.
template <class X, class Executor>
MatrixView<const X> jitter(const NoiseRule& rule, Pass pass, std::int64_t position,
                           const MatrixView<const X>& x_TH, const MatrixView<X>& jittered_TH,
                           const Executor& executor) {
  if (!draws_jitter(rule, pass)) return x_TH;
  jitter_tokens(x_TH, rule.jitter, NoiseKey{rule.seed, 0, index_of(position)}, jittered_TH,
                executor);
  return jittered_TH;
}

/// Noise on the logits, or made-up logits in their place, where a pass wants them; then their cap.
template <class A>
struct LogitChange {
  const NoiseRule& rule;
  double cap;  ///< 0 for none.
  Pass pass;
  std::int64_t position;  ///< Of token 0.
  MatrixView<A> logits_TE;

  bool draws() const {
    return pass != Pass::evaluation &&
           (rule.forced == ForcedRouting::random || rule.logit_sigma > 0);
  }
  bool active() const { return cap > 0 || draws(); }
  void operator()(const TokenRange& tile) const {
    const MatrixView<A> tile_TE = logits_TE.middle_rows(tile.first, tile.count);
    if (draws()) {
      const NoiseKey noise{rule.seed, 0, index_of(position) + tile.first};
      if (rule.forced == ForcedRouting::random) {
        random_logits(noise, tile_TE);
      } else {
        add_logit_noise(rule.logit_sigma, noise, tile_TE);
      }
    }
    if (cap > 0) soft_cap_logits(cap, tile_TE);
  }
};

/// Room in the record, so that what throws throws before anything is written.
template <class X, class A, class Id>
void prepare_record(const CompleteConfig& config, const ForwardInputs<Id>& in,
                    const CompleteRoutingView<X, A, Id>& out) {
  if (in.record == nullptr) return;
  const auto size = static_cast<std::size_t>(out.expert_ids_TK.rows * out.expert_ids_TK.cols);
  in.record->expert_ids_TK.reserve(size);
  in.record->penalised_TK.reserve(size);
  if (config.capacity) in.record->kept_TK.reserve(size);
  if (config.losses.any()) in.record->totals.reserve(static_cast<std::size_t>(out.totals.size));
}

/// Fills the record, whose room prepare_record has made.
template <class X, class A, class Id>
void fill_record(const CompleteConfig& config, const ForwardInputs<Id>& in,
                 const CompleteRoutingView<X, A, Id>& out, const CompleteReport& report) {
  if (in.record == nullptr) return;
  RoutingRecord<Id>& record = *in.record;
  record.tokens = report.tokens;
  record.top_k = out.expert_ids_TK.cols;
  record.most_choices = report.top_k;
  record.noise_position = report.noise_position;
  record.capacity.reset();
  if (config.capacity) record.capacity = report.capacity;
  record.competition = report.competition;
  record.partners = report.partners;
  record.expert_ids_TK.clear();
  record.penalised_TK.clear();
  record.kept_TK.clear();
  for (Index t = 0; t < record.tokens; ++t) {
    for (Index j = 0; j < record.top_k; ++j) {
      record.expert_ids_TK.push_back(out.expert_ids_TK(t, j));
      record.penalised_TK.push_back(out.penalised_TK(t, j));
      if (config.capacity) record.kept_TK.push_back(out.kept_TK(t, j));
    }
  }
  record.totals.clear();
  if (!counts_for_losses(config.losses, in.pass)) return;
  record.totals.assign(out.totals.data, out.totals.data + out.totals.size);
}

/// The outputs take the record's choices.
template <class X, class A, class Id>
void load_record(const RoutingRecord<Id>& record, const CompleteRoutingView<X, A, Id>& out) {
  const auto ids_TK = record.expert_ids();
  const auto penalised_TK = record.penalised();
  for (Index t = 0; t < record.tokens; ++t) {
    for (Index j = 0; j < record.top_k; ++j) {
      out.expert_ids_TK(t, j) = ids_TK(t, j);
      if (out.penalised_TK.given()) out.penalised_TK(t, j) = penalised_TK(t, j);
    }
  }
}

/// The token that a round robin starts with: each seed has a share of its own. Modulo E.
inline Index round_robin_start(const CompleteConfig& config, std::int64_t position, Index tokens) {
  const Index experts = config.num_experts;
  const auto share = static_cast<Index>(config.noise.seed % static_cast<std::uint64_t>(experts)) *
                     (tokens % experts);
  return (index_of(position % experts) + share % experts) % experts;
}

/// Who had lost among choices that are replayed; nobody among those that are made up.
template <class Id>
StridedView<const std::uint8_t> recorded_losers(const ForwardInputs<Id>& in) {
  return in.replay != nullptr ? in.replay->penalised() : StridedView<const std::uint8_t>();
}

/// The outputs take choices that the logits had no part in. False if the router is to choose.
template <class X, class A, class Id>
bool load_choices(const CompleteConfig& config, std::int64_t position, const ForwardInputs<Id>& in,
                  const CompleteRoutingView<X, A, Id>& out) {
  if (in.replay != nullptr) {
    load_record(*in.replay, out);
    return true;
  }
  if (chooses(config, in)) return false;
  if (is_hashed(config, in)) {
    load_hash_ids(*in.hash, in.token_ids_T, in.is_padding_T, out.expert_ids_TK);
  } else {
    round_robin_ids(round_robin_start(config, position, out.expert_ids_TK.rows), config.num_experts,
                    out.expert_ids_TK);
  }
  for (Index t = 0; t < out.penalised_TK.rows; ++t) {
    for (Index j = 0; j < out.penalised_TK.cols; ++j) out.penalised_TK(t, j) = 0;
  }
  return true;
}

/// Where what choices need is counted.
template <class A>
struct NeededCounts {
  VectorView<const A> bias_E;  ///< The bias that is to move.
  MatrixView<std::int64_t> counts_EB;
  std::int64_t* choices = nullptr;  ///< Set to what those tokens made together.
};

/// What a forward routes by, and where to.
template <class X, class A, class Id>
struct CompleteRoute {
  const CompleteConfig& config;
  const RivalTable& rivals;
  FirstPartners partners;
  VectorView<const A> bias_E;  ///< Where it has a say.
  NeededCounts<A> needed;      ///< Where the choices count for quantiles.
  std::int64_t position;       ///< Where the noise of token 0 is drawn.
  const ForwardInputs<Id>& in;
  const CompleteRoutingView<X, A, Id>& out;
};

/// Ready for the pass of a forward.
template <class X, class A, class Id>
TileLosses<A> tile_losses(const CompleteRoute<X, A, Id>& to, Arena& arena, int workers) {
  TileLosses<A> losses(arena, to.config, workers);
  const LossRule& rule = to.config.losses;
  if (counts_for_losses(rule, to.in.pass)) {
    losses.start(weighs_shares(rule) ? to.out.share_sums_E : VectorView<double>(),
                 rule.z > 0 ? to.out.log_sum_exp_T : VectorView<A>(), to.in.is_padding_T);
  }
  return losses;
}

/// Logits to ids, weights and counts. `run(layout, pass)` takes the tokens through the pass of one
/// selection: the recorded one, the plain one if the settings ask for no more, else by all rules.
template <class X, class A, class Id, class Run>
RoutingReport route_tokens(const CompleteRoute<X, A, Id>& to, Arena& arena, int workers,
                           const Run& run) {
  SelectionRule rule = selection_in(to.config, to.in);
  if (to.config.fewer) rule.choice.order = ChoiceOrder::best_first;  // until some are taken away
  RuledSelection<A> ruled =
      checked_selection<A>("CompleteRouter::forward", rule, to.rivals, to.config.num_experts);
  ruled.bias_E = to.bias_E.data;
  NeededBias<A> needed = needed_bias<A>(arena, to.config, workers);
  if (to.needed.counts_EB.given()) {
    needed.start(to.needed.bias_E, to.config.quantile.reach, to.in.is_padding_T);
    ruled.needed = &needed;
  }
  const auto run_as = [&](const auto& selection) {
    using Selection = std::decay_t<decltype(selection)>;
    const ForwardLayout<X, A, Selection> layout(arena, to.config, rule, workers);
    const TileLosses<A> losses = tile_losses(to, arena, workers);
    const RoutingPass<A, Id, Selection, TileLosses<A>> pass(
        layout.pass, selection, to.out, to.partners, to.in.is_padding_T, losses);
    run(layout, pass);
    losses.finish();
    if (ruled.needed != nullptr) {
      *to.needed.choices = needed.finish(to.needed.counts_EB) * rule.top_k;
    }
    return pass.finish();
  };
  if (load_choices(to.config, to.position, to.in, to.out)) {
    clear_columns(to.out.choice_values_TK, 0, value_of<A>(-Order<A>::infinity));
    return run_as(RecordedSelection<A, Id>{rule, rule.top_k, ruled.competition,
                                           choices_of(to.in, to.out), recorded_losers(to.in)});
  }
  if (is_plain(rule) && !to.bias_E.given() && !to.out.choice_values_TK.given()) {
    return run_as(PlainSelection<A>{rule.top_k, ruled.competition});
  }
  return run_as(ruled);
}

/// The outputs that a forward fills of which a token makes up to `count` choices.
template <class X, class A, class Id>
CompleteRoutingView<X, A, Id> first_choices(CompleteRoutingView<X, A, Id> out, Index count) {
  out.expert_ids_TK = first_columns(out.expert_ids_TK, count);
  out.weights_TK = first_columns(out.weights_TK, count);
  out.scores_TK = first_columns(out.scores_TK, count);
  out.penalised_TK = first_columns(out.penalised_TK, count);
  out.choice_values_TK = first_columns(out.choice_values_TK, count);
  return out;
}

/// The other outputs: no choice.
template <class X, class A, class Id>
void clear_choices(const CompleteRoutingView<X, A, Id>& out, Index first) {
  clear_columns(out.expert_ids_TK, first, static_cast<Id>(-1));
  clear_columns(out.weights_TK, first, A(0));
  clear_columns(out.scores_TK, first, A(0));
  clear_columns(out.penalised_TK, first, std::uint8_t{0});
  clear_columns(out.choice_values_TK, first, value_of<A>(-Order<A>::infinity));
}

/// Choices that FewerChoices takes away again. Those that are replayed or made up stay.
template <class X, class A, class Id, class Executor>
RoutingReport keep_fewer(const CompleteRoute<X, A, Id>& to, const RoutingReport& found,
                         Workspace workspace, const Executor& executor) {
  if (!to.config.fewer || !chooses(to.config, to.in)) return found;
  const SelectionRule rule = selection_in(to.config, to.in);
  FewerChoices fewer = *to.config.fewer;
  const auto most = static_cast<double>(rule.top_k);
  fewer.least = (std::min)(fewer.least, rule.top_k);
  fewer.budget = (std::min)(fewer.budget, most);
  return keep_fewer_choices(RoutingInputs<A>{to.out.logits_TE, {}, to.in.is_padding_T}, rule, fewer,
                            to.in.sequence_begin_S1, static_cast<const RoutingView<A, Id>&>(to.out),
                            workspace, executor);
}

/// The report of a routing, before what needs all tokens.
template <class X, class A, class Id>
CompleteReport report_of(const CompleteRoute<X, A, Id>& to, const RoutingReport& found) {
  CompleteReport report;
  static_cast<RoutingReport&>(report) = found;
  report.pass = to.in.pass;
  report.competition = selection_in(to.config, to.in).competition;
  report.partners = to.rivals.fingerprint();
  report.valid_tokens = count_valid(to.in.is_padding_T, 0, found.tokens);
  report.noise_position = to.position;
  return report;
}

/// Where a drop writes.
template <class X, class A, class Id>
KeptRouting<A> kept_routing(const CompleteRoutingView<X, A, Id>& out) {
  return {out.weights_TK, out.kept_TK, out.kept_per_expert_E};
}

/// Drops what the record dropped.
template <class X, class A, class Id>
DropReport drop_as_recorded(const ForwardInputs<Id>& in, const CompleteRoutingView<X, A, Id>& out) {
  const Choices<Id> kept{out.expert_ids_TK, in.is_padding_T, in.replay->kept()};
  keep_all(kept, kept_routing(out));
  return report_drops(choices_of(in, out), kept_routing(out));
}

/// The tokens and ranks of `mine`, over all ranks.
template <class Reduce>
BalanceCounts reduced_tokens(const BalanceCounts& mine, const Reduce& reduce) {
  check_reduce<Reduce>();
  std::int64_t counts[] = {mine.tokens, mine.ranks};
  reduce(counts, Index{2});
  check_counts("CompleteRouter::forward", "counts from the reduce hook",
               VectorView<const std::int64_t>(counts, 2), 2);
  BalanceCounts all;
  all.tokens = counts[0];
  all.ranks = counts[1];
  return all;
}

/// The slots of an expert in a forward of so many valid tokens with up to top_k choices. A rank may
/// hold more than the mean, but not more than all of them.
inline Index capacity_of(const CompleteConfig& config, Pass pass, Index top_k,
                         const BalanceCounts& valid) {
  CapacityRule rule = *config.capacity;
  if (pass == Pass::evaluation && rule.evaluation_factor > 0) rule.factor = rule.evaluation_factor;
  need(valid.ranks >= 1, "CompleteRouter::forward", "a rank at least, from the reduce hook",
       {{"ranks", valid.ranks}});
  const std::int64_t mean = valid.tokens / valid.ranks + (valid.tokens % valid.ranks != 0 ? 1 : 0);
  return expert_capacity(index_of(mean), config.num_experts, top_k, rule, index_of(valid.tokens));
}

/// Drops by the rule, down to the report's capacity.
template <class X, class A, class Id, class Executor>
DropReport drop_by_rule(const CompleteConfig& config, const ForwardInputs<Id>& in,
                        const CompleteRoutingView<X, A, Id>& out, Workspace workspace,
                        const Executor& executor, const CompleteReport& report) {
  return drop_over_capacity(choices_of(in, out), DropRule{report.capacity, config.capacity->policy},
                            kept_routing(out), workspace, executor);
}

/// Takes choices over the report's capacity away, and gives their weights to what is left if asked.
template <class X, class A, class Id, class Executor>
void drop(const CompleteConfig& config, const ForwardInputs<Id>& in,
          const CompleteRoutingView<X, A, Id>& out, Workspace workspace, const Executor& executor,
          CompleteReport& report) {
  const bool renormalise = config.capacity->renormalise;
  if (renormalise) total_weights<A>(out.weights_TK, out.weight_totals_T);
  DropReport dropped;
  if (follows_drops(config, in)) {
    dropped = drop_as_recorded(in, out);
  } else {
    dropped = drop_by_rule(config, in, out, workspace, executor, report);
  }
  report.dropped_choices = dropped.dropped_choices;
  report.tokens_without_expert = dropped.tokens_without_expert;
  if (renormalise) {
    renormalise_kept<A>(Choices<Id>{out.expert_ids_TK, in.is_padding_T, out.kept_TK},
                        out.weight_totals_T, out.weights_TK, out.kept_sums_T);
  }
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTER_COMPLETE_FORWARD_HPP
