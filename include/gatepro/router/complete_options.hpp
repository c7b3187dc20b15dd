// SPDX-License-Identifier: MIT
// The settings of the complete router: plain data, every feature off by default.
#ifndef GATEPRO_ROUTER_COMPLETE_OPTIONS_HPP
#define GATEPRO_ROUTER_COMPLETE_OPTIONS_HPP

#include <cstdint>
#include <optional>

#include "gatepro/balance/balance_counts.hpp"
#include "gatepro/balance/quantile_bias.hpp"
#include "gatepro/dispatch/capacity.hpp"
#include "gatepro/metrics/lambda_estimate.hpp"
#include "gatepro/router/config.hpp"
#include "gatepro/routing/fewer_choices.hpp"
#include "gatepro/routing/hash_routing.hpp"
#include "gatepro/routing/routing_record.hpp"

namespace gatepro {

/// Balancing without a loss: a bias per expert, added for the choice only, moved against the load
/// (Wang et al. 2024, arXiv 2408.15664). Only loads that it had a say in move it: choices that are
/// replayed or forced would push it on without end, since they never answer.
struct BiasRule {
  bool enabled = false;       ///< Whether there is a bias.
  double update_rate = 1e-3;  ///< u: b_i += u sign(mean load - load_i) at each end_step.
  bool centre = false;        ///< Subtract the mean of the change, as torchtitan does.
};

/// Coefficients of the losses, in Megatron's scaling: balanced routing gives exactly the
/// coefficient. 0 for a loss that is not wanted; several may be on.
struct LossRule {
  double batch = 0;     ///< Load balancing over the tokens of a forward, of all ranks.
  double sequence = 0;  ///< Load balancing within each sequence, mean over those of all ranks.
  double global = 0;    ///< Load balancing with the counts of all forwards since end_step.
  double z = 0;         ///< c mean(logsumexp(logits)^2).
  /// Which map the losses count: the one that is routed, bias, groups and competition included
  /// (drops left aside), or plain top-k of the raw logits.
  CountSource counts = CountSource::dispatched;

  /// True if any is on.
  GATEPRO_ALWAYS_INLINE constexpr bool any() const {
    return batch > 0 || sequence > 0 || global > 0 || z > 0;
  }
};

/// A routing that is made up, to measure a balanced system before the router is. Expert biases,
/// rounding and competition have no say in it, nor does it move the bias. Padding and capacity act
/// as always.
enum class ForcedRouting {
  none,  ///< The router decides.
  /// Experts take turns, K per token, whatever the groups are. Ranks take turns, too: the first
  /// token of a forward of T tokens is number seed T plus the tokens routed before it. So with
  /// consecutive seeds and equal T the loads of all ranks together differ by one at most.
  round_robin,
  /// The logits are replaced by random numbers, of which the group limit takes the best groups:
  /// loads are even but for sampling noise.
  random,
};

/// Noise of training passes. Every number is a function of seed, token and column, so that it does
/// not depend on threads or on how a batch is cut. Ranks need different seeds.
struct NoiseRule {
  double jitter = 0;       ///< eps: the router sees x U(1 - eps, 1 + eps); in [0, 1).
  double logit_sigma = 0;  ///< The logits get N(0, sigma^2); finite, >= 0.
  std::uint64_t seed = 0;  ///< The stream of this rank and layer.
  ForcedRouting forced = ForcedRouting::none;  ///< For benchmarks.
};

/// Everything that defines a CompleteRouter. With the defaults it routes bit for bit like a Router
/// with the same RouterConfig.
struct CompleteConfig : RouterConfig {
  ScoreRule scores{};       ///< How logits become weights.
  GroupLimit groups{};      ///< Which experts a token may use.
  BiasRule bias{};          ///< Balancing by bias, in steps.
  QuantileRule quantile{};  ///< Balancing by bias, set to quantiles.
  LossRule losses{};        ///< Balancing by losses, and the z-loss.
  /// Tokens that make fewer than top_k choices; none: all make top_k.
  std::optional<FewerChoices> fewer{};
  std::optional<CapacityRule> capacity{};  ///< Drops; none: dropless.
  NoiseRule noise{};                       ///< Jitter, logit noise, forced routing.
  ChoiceRule choice{};                     ///< Rounded scores, and the order of the choices.
  /// Lambda by the share of the choices that it changes, in CompetitionMode::penalty. Training
  /// forwards look at their logits, and end_step sets the lambda of the next step, which
  /// set_competition then leaves as it is; `competition.lambda` is that of the first step. The
  /// share is that of plain top-k: a bias that balances, a group limit or a grid of scores may
  /// shift it.
  AdaptiveLambda adaptive_lambda{};
  /// c > 0: the logits, noise included, become c tanh(l / c) before anything looks at them, so that
  /// these are the raw logits of all that follows. 0: they stay. See soft_cap_logits.
  double logit_soft_cap = 0;

  /// True if there is an expert bias.
  GATEPRO_ALWAYS_INLINE constexpr bool has_bias() const { return bias.enabled || quantile.enabled; }
  /// The part that chooses experts and weighs them.
  GATEPRO_ALWAYS_INLINE constexpr SelectionRule selection() const {
    return {top_k, scores, groups, competition, choice};
  }
};

/// What a forward is for.
enum class Pass {
  training,    ///< Counters advance, noise is new, losses are computed.
  recompute,   ///< Repeats a recorded training pass, bit for bit. No counter advances.
  evaluation,  ///< No counter advances, no noise, no losses.
};

/// What a forward needs besides tokens and weights. All optional.
template <class Id = std::int32_t>
struct ForwardInputs {
  Pass pass = Pass::training;  ///< What the forward is for.
  /// T: nonzero marks padding, as in Megatron. Such a token influences nothing: weight 0, no
  /// count, no place in an expert, gradient 0.
  VectorView<const std::uint8_t> is_padding_T{};
  /// S + 1 ascending offsets from 0 to T: sequence s is tokens [begin_s, begin_s+1), of any length.
  /// Required for a sequence loss and for a budget of choices.
  VectorView<const std::int64_t> sequence_begin_S1{};
  /// k of this forward, 1 to top_k; 0: top_k. The best k choices are made, weighed as if there were
  /// no others; the outputs keep top_k columns, of which the last hold ids of -1 and weights of 0.
  /// On several ranks it is the same on all. What is replayed has the k of its record.
  Index top_k = 0;
  RoutingRecord<Id>* record = nullptr;  ///< Filled if given.
  /// Followed if given; Pass::recompute needs it. In Pass::training its choices count for the
  /// losses, as any do, but not for the expert bias.
  const RoutingRecord<Id>* replay = nullptr;
  /// What means are over, where one optimizer step takes several forwards: the valid tokens of the
  /// whole step, over all ranks. 0: those of this forward.
  std::int64_t tokens_in_mean = 0;
  /// The same for the sequences that hold a valid token.
  std::int64_t sequences_in_mean = 0;
  /// If given, it chooses, by token_ids_T, and logits only weigh: competition, bias and groups have
  /// no say, nor does the bias move. A replay or forced routing goes before it: what is replayed,
  /// hashed or not, competes by the router's rule, in Pass::recompute by that of the record.
  const HashTable* hash = nullptr;
  /// T: ids of tokens in the vocabulary of `hash`, which needs them. Those of padding may be
  /// anything.
  VectorView<const std::int64_t> token_ids_T{};
};

/// What a backward needs besides what its forward had. Only the first is required.
template <class A>
struct BackwardInputs {
  StridedView<const A> dweights_TK;  ///< T x K: of the trainer's loss by the routing weights.
  /// T x E: what the trainer's own losses add to the gradient of the raw logits.
  MatrixView<const A> dlogits_TE{};
  /// Multiplies the gradients of the losses: the loss scale of mixed precision, or the share of
  /// this forward in an average.
  double gradient_scale = 1;
  /// The load that the global loss compares with, instead of the one at the time of the
  /// forward. With CompleteRouter::balance() after the last forward of a step, the gradient does
  /// not depend on how the step was cut into forwards.
  BalanceCounts global_load{};
};

}  // namespace gatepro

#endif  // GATEPRO_ROUTER_COMPLETE_OPTIONS_HPP
