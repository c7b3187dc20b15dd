// SPDX-License-Identifier: MIT
// Stage: the gradient of a scored routing's weights, in closed form.
#ifndef GATEPRO_ROUTING_ROUTE_LOGITS_BACKWARD_HPP
#define GATEPRO_ROUTING_ROUTE_LOGITS_BACKWARD_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/core/overlap.hpp"
#include "gatepro/core/product.hpp"
#include "gatepro/routing/recorded_selection.hpp"
#include "gatepro/routing/route_logits.hpp"
#include "gatepro/routing/softmax.hpp"
#include "gatepro/routing/weigh_choices.hpp"

namespace gatepro {

/// What the gradient of a routing of T tokens reads and writes.
template <class A>
struct RoutingGradients {
  StridedView<const A> scores_TK;    ///< T x K: what the routing wrote.
  StridedView<const A> dweights_TK;  ///< T x K: the gradient of the loss by the weights.
  /// T x K, overwritten: by the selected logits, for gate_backward_tokens and
  /// gate_backward_weights. May be dweights_TK.
  StridedView<A> dselected_logits_TK;
  /// T x E, added to: by all logits. Required for softmax_before_top_k without renormalisation, and
  /// otherwise not touched.
  MatrixView<A> dlogits_TE{};
};

namespace detail {

/// The forward's results of T tokens, and the gradient that comes in.
template <class A>
struct ScoreGradientInput {
  StridedView<const A> scores_TK;
  StridedView<const A> dweights_TK;
};

inline namespace GATEPRO_ABI {

/// True if experts that were not selected get a gradient, too: they share in the softmax.
inline bool has_dense_gradient(const SelectionRule& rule) {
  return rule.scores.function == ScoreFunction::softmax_before_top_k && !rule.scores.renormalise;
}

/// True if scores alone do not tell the gradient.
inline bool gradient_needs_logits(const SelectionRule& rule) {
  return has_dense_gradient(rule) || weighs_by_share(rule.scores) ||
         !is_softmax(rule.scores.function);
}

/// Gradients of the selected logits of one token whose weights are shares w of the scores:
/// scale (g_j - sum of w g) times the slope of w_j. Exactly 0 where w is, and g is not looked at
/// there. NaNs where the scores are: an expert that was not selected may have spoilt them.
template <class A>
void shares_backward_row(const RuledGroup<A>& group, const ScoreRule& rule,
                         const ScoreGradientInput<A>& in, Index t, Index lane,
                         const StridedView<A>& dselected_TK) {
  const Index lanes = kernels<A>().lanes;
  const A* shares_K = group.weights_KL + lane;
  const A* slopes_K = is_softmax(rule.function) ? shares_K : group.scores_KL + lane;
  const A score = in.scores_TK(t, 0);
  const bool nonfinite = key_of(score) == Order<A>::nan;
  A mean = nonfinite ? score : A(0);
  for (Index j = 0; j < in.scores_TK.cols; ++j) {
    const A share = shares_K[j * lanes];
    if (key_of(share) != 0) mean += product(share, in.dweights_TK(t, j));
  }
  const A scale = static_cast<A>(rule.scale);
  for (Index j = 0; j < in.scores_TK.cols; ++j) {
    const bool zero = !nonfinite && key_of(shares_K[j * lanes]) == 0;
    dselected_TK(t, j) =
        zero ? A(0) : scale * (slopes_K[j * lanes] * (in.dweights_TK(t, j) - mean));
  }
}

/// dscores = scale (g_j - sum of w g) / q, with w = s / q and q = sum of s + 1e-20, if weights are
/// renormalised as published; else scale g_j. Exactly 0 where the score is, and g is not looked at
/// there.
template <class A>
void dscores_row(const ScoreGradientInput<A>& in, const ScoreRule& rule, Index t,
                 const StridedView<A>& dscores_TK) {
  const Index top_k = in.scores_TK.cols;
  A quotient = 1, mean = 0;
  if (rule.renormalise) {
    quotient = 0;
    for (Index j = 0; j < top_k; ++j) quotient += in.scores_TK(t, j);
    quotient += A(1e-20);
    for (Index j = 0; j < top_k; ++j) {
      const A s = in.scores_TK(t, j);
      if (key_of(s) != 0) mean += product(s / quotient, in.dweights_TK(t, j));
    }
  }
  const A scale = static_cast<A>(rule.scale);
  for (Index j = 0; j < top_k; ++j) {
    const bool zero = key_of(in.scores_TK(t, j)) == 0;
    dscores_TK(t, j) = zero ? A(0) : product(scale, (in.dweights_TK(t, j) - mean) / quotient);
  }
}

/// From dscores to dlogits for one token, where each score follows from one logit. 0 stays 0, and
/// NaN NaN.
template <class A>
void separate_scores_backward_row(const RuledGroup<A>& group, const ScoreGradientInput<A>& in,
                                  Index t, Index lane, const StridedView<A>& dselected_TK) {
  for (Index j = 0; j < in.scores_TK.cols; ++j) {
    const A score = in.scores_TK(t, j);
    if (key_of(score) == 0) continue;
    const bool nonfinite = key_of(score) == Order<A>::nan;
    const A slope = nonfinite ? score : group.scores_KL[j * kernels<A>().lanes + lane];
    dselected_TK(t, j) = product(dselected_TK(t, j), slope);
  }
}

/// From dscores to dlogits for one token, where scores are a softmax over all: s_j dscores_j for
/// the selected and, unless the quotient takes it away, -s_i sum of s dscores for all experts.
template <class A>
void full_softmax_backward_row(const RuledGroup<A>& group, const typename Order<A>::Key* ranked_EL,
                               const ScoreGradientInput<A>& in, Index t, Index lane,
                               const StridedView<A>& dselected_TK,
                               const MatrixView<A>& dlogits_TE) {
  A sum = 0;
  for (Index j = 0; j < in.scores_TK.cols; ++j) {
    A& dselected = dselected_TK(t, j);
    if (key_of(in.scores_TK(t, j)) != 0) dselected = product(dselected, in.scores_TK(t, j));
    sum += dselected;
  }
  const Index lanes = kernels<A>().lanes;
  for (Index e = 0; e < dlogits_TE.cols; ++e) {
    const Index i = e * lanes + lane;
    if (ranked_EL[i] > -Order<A>::infinity) dlogits_TE(t, e) -= product(group.scores_EL[i], sum);
  }
}

/// The gradient of one token.
template <class A>
void scores_backward_row(const RuledGroup<A>& group, const typename Order<A>::Key* ranked_EL,
                         const SelectionRule& rule, const ScoreGradientInput<A>& in, Index t,
                         Index lane, const StridedView<A>& dselected_TK,
                         const MatrixView<A>& dlogits_TE) {
  const ScoreFunction function = rule.scores.function;
  if (weighs_by_share(rule.scores)) {
    shares_backward_row(group, rule.scores, in, t, lane, dselected_TK);
  } else if (function == ScoreFunction::softmax_after_top_k) {
    softmax_backward_row<A>(in.scores_TK, in.dweights_TK, t, &dselected_TK(t, 0),
                            dselected_TK.col_stride);
    for (Index j = 0; j < rule.top_k; ++j) {
      A& dselected = dselected_TK(t, j);
      dselected = product(dselected, static_cast<A>(rule.scores.scale));
    }
  } else {
    dscores_row(in, rule.scores, t, dselected_TK);
    if (function == ScoreFunction::softmax_before_top_k) {
      full_softmax_backward_row(group, ranked_EL, in, t, lane, dselected_TK,
                                has_dense_gradient(rule) ? dlogits_TE : MatrixView<A>());
    } else {
      separate_scores_backward_row(group, in, t, lane, dselected_TK);
    }
  }
}

/// The gradient of a group, after prepare_scores_backward. Exactly 0 for choices that do not count.
template <class A, class Id>
void scores_backward_group(const RuledGroup<A>& group, const typename Order<A>::Key* ranked_EL,
                           const SelectionRule& rule, const ScoreGradientInput<A>& in,
                           const Choices<Id>& choices, const TokenRange& tokens,
                           const StridedView<A>& dselected_TK, const MatrixView<A>& dlogits_TE) {
  for (Index lane = 0; lane < tokens.count; ++lane) {
    const Index t = tokens.first + lane;
    if (!is_masked(choices.is_padding_T, t)) {
      scores_backward_row(group, ranked_EL, rule, in, t, lane, dselected_TK, dlogits_TE);
    }
    for (Index j = 0; j < rule.top_k; ++j) {
      if (!counts(choices, t, j)) dselected_TK(t, j) = 0;
    }
  }
}

/// What the gradient of a group needs to know of its logits: scores of all experts, or of the
/// selected the slopes in scores_KL, and the shares in routing.weights_KL. Returns the ranked keys,
/// null if nothing is needed.
template <class A, class Id>
const typename Order<A>::Key* prepare_scores_backward(
    const RuledGroup<A>& group, const SelectionRule& rule, const ActiveCompetition<A>& competition,
    const MatrixView<const A>& logits_TE, const Choices<Id>& choices,
    const StridedView<const std::uint8_t>& penalised_TK, const TokenRange& tokens) {
  if (!gradient_needs_logits(rule)) return nullptr;
  const Index experts = logits_TE.cols;
  load_keys(logit_rows(logits_TE, tokens), tokens.count, experts, group.keys_EL);
  const auto* ranked_EL =
      rank_by_record(group, experts, competition, choices, penalised_TK, tokens);
  if (has_dense_gradient(rule)) {
    score_all<A>(ranked_EL, experts, rule, group.scores_EL);
    return ranked_EL;
  }
  gather_selected(group, rule.top_k, ranked_EL, group.selected_KL);
  lower_missing(group, choices, tokens);
  if (weighs_by_share(rule.scores)) {
    score_kernels<A>().shares(group.selected_KL, rule.top_k, rule.scores.function, group.weights_KL,
                              group.scores_KL, nullptr);
  } else {
    score_kernels<A>().slopes(group.selected_KL, rule.top_k, rule.scores.function, group.scores_KL);
  }
  return ranked_EL;
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Bytes of workspace for route_logits_backward, whatever T is.
template <class A>
std::size_t route_logits_backward_workspace_bytes(Index num_experts, const SelectionRule& rule,
                                                  Workers workers = 1) {
  detail::check_selection<A>("route_logits_backward", rule, num_experts);
  return detail::pass_bytes<detail::RuledSelection<A>>(num_experts, rule, workers);
}

/// The gradient of route_logits and weigh_choices with respect to the logits. With g the gradient
/// of the weights times rule.scores.scale, s the scores, w the weights before the scale, and sums
/// over the selected:
///
///   softmax_after_top_k    s_j (g_j - sum of s g)
///   softmax_before_top_k   s_j g_j, and -s_i sum of s g for every expert i
///   sigmoid                g_j s_j (1 - s_j)
///   sqrt_softplus          g_j sigmoid(l_j) / (2 s_j)
/// renormalised
///   softmax_before_top_k   w_j (g_j - sum of w g)
///   sigmoid                the same times 1 - s_j
///   sqrt_softplus          the same times sigmoid(l_j) / (2 s_j^2)
///   as published           with q = sum of s + 1e-20: that without the quotient, with
///                          (g_j - sum of w g) / q for g_j
///
/// l are the penalised logits: the penalty is piecewise constant, so their gradient is that of the
/// logits, and none reaches the similarity, the bias or the groups. Products and quotients are
/// taken so that none underflows before the gradient does. With softmax_before_top_k the effect of
/// the 1e-20 on experts that were not selected is left out.
///
/// in, rivals, rule: as in the forward; the bias is not looked at. chosen: what it chose; as in
/// weigh_choices penalised_TK is optional. A score of
/// exactly 0 (renormalised: a weight of exactly 0) gets a gradient of exactly 0, as does padding,
/// whatever dweights_TK holds there. A token with NaN scores gives NaN gradients.
///
/// Throws Error for shapes, settings, missing partners, ids that are neither in [0, E) nor -1,
/// outputs that overlap other memory or a workspace that is too small, before any write. No
/// allocation. Thread-safe. A token's bits depend on nothing but its own row. Closed forms as in
/// NVIDIA's TransformerEngine.
template <class A, class Id, class Executor = SerialExecutor>
void route_logits_backward(const RoutingInputs<A>& in, const RivalTable& rivals,
                           const SelectionRule& rule, const RecordedChoices<Id>& chosen,
                           const RoutingGradients<A>& gradients, Workspace workspace,
                           const Executor& executor = {}) {
  detail::check_accumulator<A>();
  detail::check_id_type<Id>();
  const detail::Checks checks("route_logits_backward");
  const Index tokens = in.logits_TE.rows;
  const Index experts = in.logits_TE.cols;
  const Index top_k = rule.top_k;
  detail::check_selection<A>(checks, rule, experts);
  checks.need(!detail::has_dense_gradient(rule) || gradients.dlogits_TE.given() || tokens == 0,
              "a dlogits_TE: softmax_before_top_k reaches all experts");
  checks.matrix("logits_TE", in.logits_TE, tokens, experts);
  checks.strided("expert_ids_TK", chosen.expert_ids_TK, tokens, top_k);
  checks.optional_strided("penalised_TK", chosen.penalised_TK, tokens, top_k);
  checks.strided("scores_TK", gradients.scores_TK, tokens, top_k);
  checks.optional_vector("is_padding_T", in.is_padding_T, tokens);
  checks.strided("dweights_TK", gradients.dweights_TK, tokens, top_k);
  checks.strided("dselected_logits_TK", gradients.dselected_logits_TK, tokens, top_k);
  checks.optional_matrix("dlogits_TE", gradients.dlogits_TE, tokens, experts);
  checks.overlaps(detail::output("dselected_logits_TK", gradients.dselected_logits_TK),
                  detail::output("dlogits_TE", gradients.dlogits_TE),
                  detail::output("workspace", workspace), detail::input("logits_TE", in.logits_TE),
                  detail::input("expert_ids_TK", chosen.expert_ids_TK),
                  detail::input("penalised_TK", chosen.penalised_TK),
                  detail::input("scores_TK", gradients.scores_TK),
                  detail::input("is_padding_T", in.is_padding_T),
                  detail::in_place("dweights_TK", gradients.dweights_TK));
  const auto selection = detail::checked_selection<A>(checks, rule, rivals, experts);
  const int workers = checks.workers(executor);
  detail::Arena arena(checks.where(), workspace,
                      route_logits_backward_workspace_bytes<A>(experts, rule, workers));
  const Choices<const Id> choices{chosen.expert_ids_TK, in.is_padding_T};
  detail::check_choices(checks, "expert_ids_TK", choices, experts);

  const detail::PassLayout<detail::RuledSelection<A>> layout(arena, experts, rule, workers);
  const detail::ScoreGradientInput<A> scored{gradients.scores_TK, gradients.dweights_TK};
  const int busy =
      detail::gradient_needs_logits(rule)
          ? detail::useful_workers(executor, workers, {detail::routing_work, tokens, experts})
          : detail::useful_workers(executor, workers, {detail::softmax_work, tokens, top_k});
  detail::for_each_group<A>(tokens, executor, busy, [&](int worker, const auto& range) {
    const detail::RuledGroup<A> group = layout.scratch(worker).group;
    detail::load_recorded_ids(group, choices, range);
    const auto* ranked_EL = detail::prepare_scores_backward<A>(
        group, rule, selection.competition, in.logits_TE, choices, chosen.penalised_TK, range);
    detail::scores_backward_group(group, ranked_EL, rule, scored, choices, range,
                                  gradients.dselected_logits_TK, gradients.dlogits_TE);
  });
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_ROUTING_ROUTE_LOGITS_BACKWARD_HPP
