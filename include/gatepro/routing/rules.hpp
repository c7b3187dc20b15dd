// SPDX-License-Identifier: MIT
// How a token's experts and weights follow from its logits: plain data, checked where it is used.
#ifndef GATEPRO_ROUTING_RULES_HPP
#define GATEPRO_ROUTING_RULES_HPP

#include "gatepro/core/views.hpp"
#include "gatepro/kernels/score_function.hpp"

namespace gatepro {

/// What happens to an expert whose logit is strictly below its rival's, or that loses a tie.
enum class CompetitionMode {
  off,        ///< Nothing: plain top-k routing, bit for bit.
  penalty,    ///< It pays lambda before top-k and softmax (GatePro eq. 7-8).
  eliminate,  ///< It ranks after every survivor and weighs 0: the limit lambda -> infinity.
};

/// Who loses where an expert's logit equals its rival's, as those of exact copies always do.
enum class TieRule {
  nobody_loses,     ///< The comparison is strict, as the paper's: copies never compete.
  higher_id_loses,  ///< One of two copies loses, and the lower id survives.
};

/// The competition, applied per token to the original logits. May change between any two forwards.
///
/// The paper prints lambda = 1e-4, the default here, and describes losers as effectively
/// eliminated. Both hold only where logits differ by less than 1e-4: PenaltyStatistics tells what
/// a value does to your model, `eliminate()` is the described effect.
struct Competition {
  CompetitionMode mode = CompetitionMode::penalty;  ///< What a loser pays.
  double lambda =
      1e-4;  ///< The penalty, in units of the logits: finite, >= 0. Used in penalty mode.
  TieRule ties = TieRule::nobody_loses;  ///< Who loses among equals. NaN equals nobody.

  /// Plain top-k routing.
  GATEPRO_ALWAYS_INLINE static constexpr Competition off() { return {CompetitionMode::off, 0}; }
  /// Losers pay `lambda`.
  GATEPRO_ALWAYS_INLINE static constexpr Competition penalty(double lambda) {
    return {CompetitionMode::penalty, lambda};
  }
  /// Losers rank last and weigh exactly 0.
  GATEPRO_ALWAYS_INLINE static constexpr Competition eliminate() {
    return {CompetitionMode::eliminate, 0};
  }

  /// False if the routing equals plain top-k whatever the partners are.
  GATEPRO_ALWAYS_INLINE constexpr bool active() const {
    return mode == CompetitionMode::eliminate || (mode == CompetitionMode::penalty && lambda > 0);
  }
};

/// What renormalised weights are divided by.
enum class Renormalisation {
  exact,      ///< Their sum, for any finite logits: weights add up to the scale also where scores,
              ///< as numbers, underflow. A softmax over the logarithms of the scores.
  published,  ///< Their sum + 1e-20, as Megatron-LM and DeepSeek-V3 have it: the weights of a token
              ///< whose scores are that small fade out (eight logits of -50: a sum of 0.13).
};

/// How scores s of the selected become weights: scale * s / sum of the selected s, or scale * s
/// without the quotient. The default is the paper's softmax.
struct ScoreRule {
  ScoreFunction function = ScoreFunction::softmax_after_top_k;  ///< From logits to scores.
  bool renormalise = false;  ///< Divide by the sum; softmax_after_top_k has the sum 1 anyway.
  double scale = 1;          ///< Routed scaling factor: finite, > 0.
  Renormalisation renormalisation = Renormalisation::exact;  ///< If renormalised: by what.
};

/// Which sum of an expert group's best choice values ranks the group.
enum class GroupScore {
  share_of_top_k,  ///< The best top_k / groups_per_token, rounded down: Megatron-LM.
  top_1,           ///< The best one alone, their maximum: DeepSeek-V2.
  top_2,           ///< The best two: DeepSeek-V3.
  best_n,          ///< The best GroupLimit::best.
};

/// Restricts each token to experts of a few groups. Group g holds the experts from g * E /
/// num_groups on. Off by default.
struct GroupLimit {
  Index num_groups = 1;        ///< G: a divisor of E. 1 for no limit.
  Index groups_per_token = 1;  ///< M, 1 <= M <= G; top_k <= M * E / G.
  /// What ranks the groups. share_of_top_k needs M <= top_k, top_2 two experts in a group.
  GroupScore score = GroupScore::share_of_top_k;
  Index best = 1;  ///< n of GroupScore::best_n, 1 <= n <= E / G.

  /// False if every expert is open to every token.
  GATEPRO_ALWAYS_INLINE constexpr bool active() const { return num_groups > 1; }
};

/// How the choices of a token stand in the outputs.
enum class ChoiceOrder {
  best_first,     ///< By rank.
  ascending_ids,  ///< By id, for consumers that want them sorted.
};

/// What of a score decides the choice, and how choices stand. Weights come from the scores
/// themselves.
struct ChoiceRule {
  /// Scores, or with softmax_after_top_k penalised logits, are rounded to the nearest multiple of
  /// this before the bias is added, the one further from 0 if two are as near. 0 for no rounding,
  /// or a power of two from 2^-100 to 2^100, so that nothing else is rounded; OLMo-core has 2^-14.
  ///
  /// Scores that differ by the rounding noise of another kernel, or of a recomputation elsewhere,
  /// then choose the same experts, but for those within the noise of the middle between two
  /// multiples: a share of about noise / step. The price is that experts within a step of each
  /// other tie, which the lower id wins, unless their biases differ.
  ///
  /// The competition compares the logits as they are; its losers may change with the noise. With
  /// softmax_after_top_k a penalty far below the step seldom changes a choice.
  double step = 0;
  /// The same experts in either order; ids, weights, scores, penalised marks and record have the
  /// same one. Weights are sums in this order, so another one rounds them differently. By id nobody
  /// knows which choice was the first: CompleteRouter refuses it with DropPolicy::choice_major.
  /// Replayed, hashed and round-robin choices stand as they were made.
  ChoiceOrder order = ChoiceOrder::best_first;
};

/// How a token's experts and their weights follow from its logits. Experts rank by: in an allowed
/// group, not NaN, survivor before loser, larger choice value (score, rounded if wanted, plus
/// bias), lower id.
struct SelectionRule {
  Index top_k = 0;            ///< K: experts per token, 1 <= K <= E.
  ScoreRule scores{};         ///< From logits to weights.
  GroupLimit groups{};        ///< Which experts may be chosen together.
  Competition competition{};  ///< The rule for losers.
  ChoiceRule choice{};        ///< What of a score decides, and the order of the choices.

  /// True if each token's weights are constants, as for one expert whose weight is normalised: then
  /// no gradient reaches the logits through them.
  GATEPRO_ALWAYS_INLINE constexpr bool constant_weights() const {
    return top_k == 1 &&
           (scores.renormalise || scores.function == ScoreFunction::softmax_after_top_k);
  }
};

}  // namespace gatepro

#endif  // GATEPRO_ROUTING_RULES_HPP
