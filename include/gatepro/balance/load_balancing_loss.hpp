// SPDX-License-Identifier: MIT
// The Switch load-balancing loss in Megatron-LM's scaling: of a batch, of several, per sequence.
#ifndef GATEPRO_BALANCE_LOAD_BALANCING_LOSS_HPP
#define GATEPRO_BALANCE_LOAD_BALANCING_LOSS_HPP

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "gatepro/balance/balance_counts.hpp"
#include "gatepro/balance/loss_pass.hpp"
#include "gatepro/balance/loss_weight.hpp"
#include "gatepro/core/product.hpp"
#include "gatepro/core/sequences.hpp"

namespace gatepro {

/// What load_balancing_loss must know of the routing that made the counts. Plain data.
struct BalanceRule {
  ScoreFunction function = ScoreFunction::softmax_before_top_k;  ///< From logits to probabilities.
  Index top_k = 0;  ///< K: choices per token, 1 <= K <= E.
  /// Whether tokens made different numbers of choices, K at most: their mean then stands for K.
  bool k_varies = false;
};

/// The choices of packed sequences.
template <class Id>
struct SequenceChoices {
  /// T x K ids that are counted, any strides, -1 for none: those dispatched, or for unpenalised
  /// counts those of select_top_k on the original logits.
  StridedView<Id> expert_ids_TK{};
  /// S + 1 offsets, ascending from 0 to T: sequence s is the tokens [begin[s], begin[s + 1]),
  /// packed without gaps; it may be empty.
  VectorView<const std::int64_t> sequence_begin_S1{};
  bool k_varies = false;  ///< As in BalanceRule, in each sequence.
};
/// `SequenceChoices{ids, begin}` knows the type of the ids.
template <class Id>
SequenceChoices(StridedView<Id>, VectorView<const std::int64_t>, bool = false)
    -> SequenceChoices<Id>;
/// The same for a row-major view.
template <class Id>
SequenceChoices(MatrixView<Id>, VectorView<const std::int64_t>, bool = false)
    -> SequenceChoices<Id>;

namespace detail {
inline namespace GATEPRO_ABI {

/// The mean price of each lane's token, and its gradient: factor * (price - mean price) * share *
/// d log(score) / d logit.
template <class A>
void balance_group(const LossGroup<A>& group, Index experts, ScoreFunction function,
                   const Prices<A>& prices, A factor, bool gradient) {
  const ScoreKernels<A>& kernel = score_kernels<A>();
  kernel.shares(group.keys_EL, experts, function, group.scores_EL,
                gradient ? group.slopes_EL : nullptr, nullptr);
  kernel.mean_prices(group.scores_EL, experts, prices, group.mean_L);
  if (gradient) {
    const A* slopes_EL = is_softmax(function) ? group.scores_EL : group.slopes_EL;
    kernel.price_gradient(slopes_EL, experts, prices, group.mean_L, factor, group.gradient_EL);
  }
  for (Index lane = 0; lane < kernels<A>().lanes; ++lane) {
    group.value_L[lane] = static_cast<double>(group.mean_L[lane]);
  }
}

/// The choices that a loss divides by: K N, or those that were made. No choice at all has no price,
/// and counts as one.
template <class Count>
double divided_choices(const Count* tokens_per_expert_E, Index experts, Index top_k, double tokens,
                       bool k_varies) {
  if (!k_varies) return static_cast<double>(top_k) * tokens;
  const Count made = std::accumulate(tokens_per_expert_E, tokens_per_expert_E + experts, Count{0});
  return static_cast<double>((std::max)(made, Count{1}));
}

/// E / (C M): what a unit of probability costs for each of an expert's choices, of C in all, in a
/// mean over M.
inline double price_scale(Index experts, double choices, double mean_over) {
  return static_cast<double>(experts) / (choices * mean_over);
}

/// What a unit of probability of each expert costs, for its choices n_e.
template <class A, class Count>
void set_prices(const Count* tokens_per_expert_E, Index experts, double choices, double mean_over,
                A* price_E) {
  const double scale = price_scale(experts, choices, mean_over);
  for (Index e = 0; e < experts; ++e) {
    price_E[e] = static_cast<A>(scale * static_cast<double>(tokens_per_expert_E[e]));
  }
}

/// group.prices_EL: of each lane's token; lanes past them repeat the last.
template <class A, class PriceOf>
void load_prices(const LossGroup<A>& group, Index experts, Index first, Index count,
                 const PriceOf& price_of) {
  const Index lanes = kernels<A>().lanes;
  for (Index lane = 0; lane < lanes; ++lane) {
    const A* price_E = price_of(first + (std::min)(lane, count - 1));
    for (Index e = 0; e < experts; ++e) group.prices_EL[e * lanes + lane] = price_E[e];
  }
}

/// c * sum over tokens of the mean price, and its gradient. `price_of(t)` gives the prices for
/// token t: the same for all that stand between two that have the same.
template <class A, class Executor, class PriceOf>
double balance_pass(LossLogits<A> logits, ScoreFunction function, const LossWeight& weight,
                    const LossLayout<A>& layout, const Executor& executor,
                    const PriceOf& price_of) {
  const Index experts = logits.logits_TE.cols;
  const A factor = static_cast<A>(weight.coefficient * weight.gradient_scale);
  const bool gradient = logits.dlogits_TE.given() && key_of(factor) != 0;
  if (!gradient) logits.dlogits_TE = {};
  const auto body = [&](const LossGroup<A>& group, Index first, Index count) {
    const A* price_E = price_of(first);
    if (price_E == price_of(first + count - 1)) {
      balance_group(group, experts, function, {price_E, nullptr}, factor, gradient);
    } else {
      load_prices(group, experts, first, count, price_of);
      balance_group(group, experts, function, {nullptr, group.prices_EL}, factor, gradient);
    }
  };
  return product(weight.coefficient, layout.run(logits, executor, body));
}

template <class A>
struct BatchLossScratch {
  BatchLossScratch(Arena& arena, Index tokens, Index experts, int workers)
      : layout(arena, tokens, experts, workers), price_E(arena.take<A>(experts)) {}
  LossLayout<A> layout;
  A* price_E;
};

template <class A>
struct SequenceLossScratch {
  struct Carve {
    Index experts;
    Index* operator()(Arena& arena) const { return arena.take<Index>(experts); }
  };
  SequenceLossScratch(Arena& arena, Index tokens, Index experts, Index sequences, int workers)
      : layout(arena, tokens, experts, workers),
        counts(arena, workers, Carve{experts}),
        price_SE(arena.take<A>(
            checked_product("workspace", "sizes within the address space", experts, sequences))) {}
  LossLayout<A> layout;
  PerWorker<Carve> counts;
  A* price_SE;
};

/// What it takes to count a choice, in multiply-adds of the gate.
inline constexpr Index count_work = 256;

/// The prices of sequence s, by the choices of its own tokens; zeros if it has none.
template <class A, class Id>
void price_sequence(const Choices<Id>& choices, const VectorView<const std::int64_t>& begin_S1,
                    bool k_varies, Index s, Index experts, double mean_over, Index* counts_E,
                    const SequenceLossScratch<A>& scratch) {
  A* price_E = scratch.price_SE + s * experts;
  std::fill_n(price_E, experts, A(0));
  const std::int64_t valid = valid_in_sequence(choices.is_padding_T, begin_S1, s);
  if (valid == 0) return;
  const Index first = static_cast<Index>(begin_S1[s]);
  const Index count = static_cast<Index>(begin_S1[s + 1]) - first;
  count_choices(middle_choices(choices, first, count), experts, counts_E);
  const auto tokens = static_cast<double>(valid);
  const double divided =
      divided_choices(counts_E, experts, choices.expert_ids_TK.cols, tokens, k_varies);
  set_prices(counts_E, experts, divided, tokens * mean_over, price_E);
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Bytes of workspace for load_balancing_loss.
template <class A>
std::size_t load_balancing_loss_workspace_bytes(Index num_tokens, Index num_experts,
                                                Workers workers = 1) {
  detail::Checks("load_balancing_loss").query_experts(num_experts);
  return detail::measure([&](detail::Arena& arena) {
    detail::BatchLossScratch<A>(arena, num_tokens, num_experts, workers);
  });
}

/// The load-balancing loss of the Switch Transformer (Fedus et al. 2021, arXiv 2101.03961, eq. 4)
/// in Megatron-LM's scaling: L = c E / (K N M) * sum over e of n_e * sum over tokens of s_te.
///
/// c = weight.coefficient, M = weight.mean_over, K = rule.top_k; n and N are `counts`, and
/// constants: no gradient flows through the choice. With rule.k_varies K N is the number of choices
/// that were made, the sum of n. s is rule.function of the original logits, over
/// all experts, divided by its sum, for any finite logits: for either softmax the softmax.
/// (Megatron-LM adds 1e-20 to the sum, which shows where all scores are that small only.) Equal
/// loads give c, all tokens on the same K experts c E / K.
///
/// Returns this call's part of L, and adds the gradient to dlogits_TE:
/// gradient_scale * c E / (K N M) * s_te g_te (n_e - sum over j of s_tj n_j), with g the slope of
/// the logarithm of the unnormalised score: 1 for softmax, 1 - sigmoid(l) for sigmoid, and
/// sigmoid(l) / (2 log(1 + exp(l))) for sqrt_softplus.
///
/// What `counts` and weight.mean_over are for each kind of loss:
///
/// - of this batch: its own counts, and 0
/// - of a batch on several ranks: BalanceAccumulator::latest, and latest().tokens
/// - of an optimizer step: BalanceAccumulator::total after each `add`, and the tokens of the step
///
/// The parts of all ranks and micro-batches add up to L. Where the tokens of the step are not known
/// beforehand, latest().tokens times the number of micro-batches stands for them. Megatron-LM's
/// global loss divides the accumulated counts by the tokens of the current micro-batch, this one by
/// the accumulated tokens: the same for equal micro-batches, and right for others.
///
/// logits: see LossLogits; a masked token adds nothing and gets no gradient, whatever it holds. A
/// token that holds a NaN or +inf, or only -inf, makes the value NaN, and its own gradients NaN.
///
/// Throws Error for shapes, top_k, the weight, counts that are negative or do not belong to N
/// tokens, or a workspace below load_balancing_loss_workspace_bytes(T, E, executor.workers()),
/// before any write. No allocation. Thread-safe. Gradients have the same bits however the batch is
/// cut; the value is summed in double.
template <class A, class Executor = SerialExecutor>
double load_balancing_loss(const LossLogits<A>& logits, const BalanceCounts& counts,
                           const BalanceRule& rule, const LossWeight& weight, Workspace workspace,
                           const Executor& executor = {}) {
  detail::check_accumulator<A>();
  const detail::Checks checks("load_balancing_loss");
  const Index tokens = logits.logits_TE.rows;
  const Index experts = logits.logits_TE.cols;
  detail::check_balance_counts(checks, counts, experts);
  detail::check_loss_logits(checks, logits, workspace,
                            detail::input("tokens_per_expert_E", counts.tokens_per_expert_E));
  checks.top_k(rule.top_k, experts);
  detail::check_choices_per_token(checks, counts, rule.top_k);
  detail::check_loss_weight(checks, weight);
  const int workers = checks.workers(executor);
  detail::Arena arena(checks.where(), workspace,
                      load_balancing_loss_workspace_bytes<A>(tokens, experts, workers));
  const std::int64_t mean_over = weight.mean_over != 0
                                     ? weight.mean_over
                                     : detail::count_valid(logits.is_padding_T, 0, tokens);
  if (!(weight.coefficient > 0) || mean_over == 0 || counts.tokens == 0) return 0;

  const detail::BatchLossScratch<A> scratch(arena, tokens, experts, workers);
  const double choices =
      detail::divided_choices(counts.tokens_per_expert_E.data, experts, rule.top_k,
                              static_cast<double>(counts.tokens), rule.k_varies);
  detail::set_prices(counts.tokens_per_expert_E.data, experts, choices,
                     static_cast<double>(mean_over), scratch.price_E);
  return detail::balance_pass(logits, rule.function, weight, scratch.layout, executor,
                              [&](Index) { return scratch.price_E; });
}

/// The value of load_balancing_loss alone, from share_sums_E (E): the sums over this call's tokens,
/// padding not among them, of each expert's share s_te, as a forward of CompleteRouter writes them.
/// weight.mean_over: 0 for the tokens that made `counts`. top_k, k_varies: as in BalanceRule.
///
/// Throws Error for shapes, top_k, the weight, or counts that are negative or do not belong to N
/// tokens. The error is that of the sums: those of a forward are rounded to 2^-26 of a token's
/// share (float; double: 2^-52), which shifts the value by E 2^-27 of the coefficient at most, and
/// far less where roundings cancel. Cost: E multiplications. No allocation. Thread-safe.
inline double load_balancing_loss_value(VectorView<const double> share_sums_E,
                                        const BalanceCounts& counts, Index top_k,
                                        const LossWeight& weight, bool k_varies = false) {
  const detail::Checks checks("load_balancing_loss_value");
  const Index experts = share_sums_E.size;
  checks.num_experts(experts);
  checks.vector("share_sums_E", share_sums_E, experts);
  detail::check_balance_counts(checks, counts, experts);
  checks.top_k(top_k, experts);
  detail::check_choices_per_token(checks, counts, top_k);
  detail::check_loss_weight(checks, weight);
  if (!(weight.coefficient > 0) || counts.tokens == 0) return 0;
  const std::int64_t mean_over = weight.mean_over != 0 ? weight.mean_over : counts.tokens;
  const double choices = detail::divided_choices(counts.tokens_per_expert_E.data, experts, top_k,
                                                 static_cast<double>(counts.tokens), k_varies);
  const double scale = detail::price_scale(experts, choices, static_cast<double>(mean_over));
  double sum = 0;
  for (Index e = 0; e < experts; ++e) {
    sum += detail::product(static_cast<double>(counts.tokens_per_expert_E[e]), share_sums_E[e]);
  }
  return detail::product(weight.coefficient, detail::product(scale, sum));
}

/// Bytes of workspace for sequence_load_balancing_loss.
template <class A>
std::size_t sequence_load_balancing_loss_workspace_bytes(Index num_tokens, Index num_experts,
                                                         Index num_sequences, Workers workers = 1) {
  detail::Checks("sequence_load_balancing_loss").query_experts(num_experts);
  return detail::measure([&](detail::Arena& arena) {
    detail::SequenceLossScratch<A>(arena, num_tokens, num_experts, num_sequences, workers);
  });
}

/// The mean over sequences of load_balancing_loss, each with the choices and the number of tokens
/// of its own: L = c / M * sum over sequences of E / (K T_s^2) * sum over e of n_se * sum over its
/// tokens of s_te. Equal loads within each sequence give c, however long the sequences are.
///
/// choices: see SequenceChoices. weight.mean_over: M sequences; 0: those of this call that have a
/// token which is not padding, which on several ranks is too few: give
/// BalanceAccumulator::latest().sequences. The rest as in load_balancing_loss; with one sequence
/// both give the same bits.
///
/// A sequence must be whole. If ranks share it, call load_balancing_loss for each sequence with its
/// reduced counts and mean_over = tokens of the sequence * sequences.
///
/// Throws Error as load_balancing_loss does, and for ids that are neither in [0, E) nor -1, or
/// offsets, before any write. Cost: one pass over ids and logits, and one over dlogits_TE; S x E
/// values of workspace. No allocation. Thread-safe.
template <class A, class Id, class Executor = SerialExecutor>
double sequence_load_balancing_loss(const LossLogits<A>& logits, const SequenceChoices<Id>& choices,
                                    ScoreFunction function, const LossWeight& weight,
                                    Workspace workspace, const Executor& executor = {}) {
  detail::check_accumulator<A>();
  detail::check_id_type<detail::value_t<Id>>();
  const detail::Checks checks("sequence_load_balancing_loss");
  const Index tokens = logits.logits_TE.rows;
  const Index experts = logits.logits_TE.cols;
  const Choices<Id> counted{choices.expert_ids_TK, logits.is_padding_T};
  const VectorView<const std::int64_t>& begin_S1 = choices.sequence_begin_S1;
  checks.top_k(counted.expert_ids_TK.cols, experts);
  checks.strided("expert_ids_TK", counted.expert_ids_TK, tokens, counted.expert_ids_TK.cols);
  detail::check_choices(checks, "expert_ids_TK", counted, experts);
  detail::check_sequences(checks, begin_S1, tokens);
  detail::check_loss_logits(checks, logits, workspace,
                            detail::input("expert_ids_TK", counted.expert_ids_TK),
                            detail::input("sequence_begin_S1", begin_S1));
  detail::check_loss_weight(checks, weight);
  const int workers = checks.workers(executor);
  const Index sequences = begin_S1.size - 1;
  detail::Arena arena(
      checks.where(), workspace,
      sequence_load_balancing_loss_workspace_bytes<A>(tokens, experts, sequences, workers));
  if (!(weight.coefficient > 0)) return 0;

  const detail::SequenceLossScratch<A> scratch(arena, tokens, experts, sequences, workers);
  const std::int64_t sequences_here = detail::count_sequences(logits.is_padding_T, begin_S1);
  if (sequences_here == 0) return 0;
  const auto mean_over =
      static_cast<double>(weight.mean_over != 0 ? weight.mean_over : sequences_here);
  const int busy = detail::useful_workers(executor, workers,
                                          {detail::count_work, tokens, counted.expert_ids_TK.cols});
  detail::for_each_block(executor, busy, sequences, [&](int worker, Index s) {
    detail::price_sequence(counted, begin_S1, choices.k_varies, s, experts, mean_over,
                           scratch.counts(worker), scratch);
  });
  const std::int64_t* begin = begin_S1.data;
  const auto price_of = [&](Index t) {
    const auto s = std::upper_bound(begin, begin + sequences + 1, std::int64_t{t}) - begin - 1;
    return scratch.price_SE + s * experts;
  };
  return detail::balance_pass(logits, function, weight, scratch.layout, executor, price_of);
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_BALANCE_LOAD_BALANCING_LOSS_HPP
