// SPDX-License-Identifier: MIT
// The backward of a complete router: from gradients of weights to those of tokens and weights.
#ifndef GATEPRO_ROUTER_COMPLETE_BACKWARD_HPP
#define GATEPRO_ROUTER_COMPLETE_BACKWARD_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "gatepro/gate/gradient.hpp"
#include "gatepro/gate/logit_gradients.hpp"
#include "gatepro/router/complete_checks.hpp"
#include "gatepro/router/complete_forward.hpp"
#include "gatepro/routing/route_logits_backward.hpp"

namespace gatepro {
namespace detail {

/// Scratch of a backward.
template <class A>
struct CompleteGradients {
  StridedView<A> dkept_TK;      ///< With a capacity: gradients of the weights before the drop.
  StridedView<A> dselected_TK;  ///< Gradients of the selected logits.
  MatrixView<A> dlogits_TE;     ///< What reaches all logits; not given if nothing does.
  MatrixView<A> djittered_TH;   ///< With jitter: gradients of what the router saw.
  Workspace stages;             ///< For each stage, one after the other.
};

inline namespace GATEPRO_ABI {

/// True if gradients reach logits that were not selected.
inline bool has_dense_gradients(const CompleteConfig& config) {
  return config.losses.any() || has_dense_gradient(config.selection());
}

/// Bytes of workspace for any stage of a backward.
template <class X, class A>
std::size_t backward_stage_bytes(const CompleteConfig& config, const BufferShape& shape) {
  using D = smallest_gradient_t<X, A>;
  return (std::max)({gate_backward_tokens_workspace_bytes<D>(config.num_experts, shape.workers),
                     gate_backward_weights_workspace_bytes<A>(shape.tokens, config.num_experts,
                                                              config.top_k, shape.workers),
                     route_logits_backward_workspace_bytes<A>(config.num_experts,
                                                              config.selection(), shape.workers),
                     complete_losses_workspace_bytes<A>(config, shape)});
}

template <class X, class A>
CompleteGradients<A> carve_gradients(Arena& arena, const CompleteConfig& config,
                                     const BufferShape& shape) {
  const auto matrix = [&](Index cols) {
    const Index size = checked_product("CompleteRouter::backward", "T within the address space",
                                       shape.tokens, cols);
    return MatrixView<A>(arena.take<A>(size), shape.tokens, cols);
  };
  CompleteGradients<A> gradients;
  gradients.dselected_TK = matrix(config.top_k);
  if (config.capacity) gradients.dkept_TK = matrix(config.top_k);
  if (has_dense_gradients(config) || config.logit_soft_cap > 0) {
    gradients.dlogits_TE = matrix(config.num_experts);
  }
  if (config.noise.jitter > 0) gradients.djittered_TH = matrix(config.hidden_size);
  const std::size_t bytes = backward_stage_bytes<X, A>(config, shape);
  gradients.stages = {arena.take<std::byte>(static_cast<Index>(bytes)), bytes};
  return gradients;
}

template <class X, class W>
std::size_t backward_bytes(const CompleteConfig& config, const BufferShape& shape) {
  return measure(
      [&](Arena& arena) { carve_gradients<X, accumulator_t<X, W>>(arena, config, shape); });
}

/// The rule that the forward of the report chose and weighed by.
inline SelectionRule selection_of(const CompleteConfig& config, const CompleteReport& report) {
  SelectionRule rule = config.selection();
  rule.competition = report.competition;
  return rule;
}

/// Inputs, outputs and report are of one forward, and what its gradient needs has not changed.
template <class X, class A, class Id>
void check_report(const Checks& checks, const CompleteConfig& config, const RivalTable& rivals,
                  const ForwardInputs<Id>& in, const CompleteRoutingView<X, A, Id>& out,
                  const CompleteReport& report) {
  need(report.tokens == out.logits_TE.rows, checks.where(),
       "outputs with the tokens of the report: a view from before a resize shows other rows",
       {{"tokens of the outputs", out.logits_TE.rows}, {"tokens of the report", report.tokens}});
  checks.need(
      report.forward_id == out.forward_id[0],
      "outputs and report of the same forward: run backward before another forward writes there, "
      "or give each forward outputs of its own",
      {{"forward_id of the outputs", out.forward_id[0]},
       {"forward_id of the report", report.forward_id}});
  checks.need(report.pass == in.pass, "the inputs and the report of the same forward",
              {{"pass of the inputs", static_cast<int>(in.pass)},
               {"pass of the report", static_cast<int>(report.pass)}});
  const std::int64_t valid = count_valid(in.is_padding_T, 0, report.tokens);
  checks.need(report.valid_tokens == valid, "the is_padding_T of the forward",
              {{"tokens that are not padding", valid},
               {"valid_tokens of the report", report.valid_tokens}});
  // Elsewhere the outputs say who had lost.
  const SelectionRule rule = selection_of(config, report);
  checks.need(
      !rule.competition.active() || !has_dense_gradient(rule) ||
          report.partners == rivals.fingerprint(),
      "the partners of the forward: with softmax_before_top_k the gradient of all experts depends "
      "on them, so run backward before refresh or set_partners change them",
      {{"fingerprint", rivals.fingerprint()}, {"fingerprint in the report", report.partners}});
}

template <class X, class A, class Id>
void check_complete_backward(const CompleteConfig& config, const RivalTable& rivals,
                             const ForwardInputs<Id>& in, const CompleteRoutingView<X, A, Id>& out,
                             const CompleteReport& report, const BackwardInputs<A>& more) {
  const Checks checks("CompleteRouter::backward");
  const Index tokens = out.logits_TE.rows;
  const Index experts = config.num_experts;
  check_complete_inputs(checks, config, in, tokens);
  check_complete_outputs(checks, config, out, tokens, report.jittered, /*recorded=*/false);
  check_report(checks, config, rivals, in, out, report);
  const bool losses = counts_for_losses(config.losses, in.pass);
  SelectionRule chosen = config.selection();
  chosen.top_k = report.top_k;
  checks.need(
      !chosen.constant_weights() || losses || more.dlogits_TE.given() ||
          config.allow_zero_gradient || tokens == 0,
      "top_k > 1, a loss, a dlogits_TE, or allow_zero_gradient: the weight of one normalised "
      "expert is constant, the router would learn nothing",
      {{"top_k", chosen.top_k}});
  checks.strided("dweights_TK", more.dweights_TK, tokens, config.top_k);
  check_choices(checks, "expert_ids_TK", choices_of(in, out), experts);
  checks.optional_matrix("dlogits_TE", more.dlogits_TE, tokens, experts);
  need(is_finite(more.gradient_scale), checks.where(), "gradient_scale finite",
       {{"gradient_scale", more.gradient_scale}});
  if (more.global_load.tokens_per_expert_E.given()) {
    check_balance_counts(checks, more.global_load, experts);
    check_choices_per_token(checks, more.global_load, config.top_k);
  }
}

/// Drops and their renormalisation, backwards. Returns the gradient of the weights before them.
template <class X, class A, class Id>
StridedView<const A> undrop(const CompleteConfig& config, const CompleteRoutingView<X, A, Id>& out,
                            const StridedView<const A>& dweights_TK,
                            const StridedView<A>& dkept_TK) {
  if (!config.capacity) return dweights_TK;
  if (config.capacity->renormalise) {
    renormalise_kept_backward<A>(Choices<Id>{out.expert_ids_TK, {}, out.kept_TK},
                                 out.weight_totals_T, out.weights_TK, out.kept_sums_T, dweights_TK,
                                 dkept_TK);
  } else {
    drop_backward<A>(out.kept_TK, dweights_TK, dkept_TK);
  }
  return dkept_TK;
}

/// From gradients of the weights to those of the logits before their cap: gradients.dselected_TK
/// for the selected, and the result, which may be not given, for all.
template <class X, class A, class Id, class Executor>
MatrixView<const A> logit_gradients(const CompleteConfig& config, const RivalTable& rivals,
                                    const ForwardInputs<Id>& in,
                                    const CompleteRoutingView<X, A, Id>& out,
                                    const CompleteReport& report, const BackwardInputs<A>& more,
                                    const CompleteGradients<A>& gradients,
                                    const Executor& executor) {
  // Gradients that come from the trainer alone are copied to be multiplied by the cap's slope.
  const bool capped = config.logit_soft_cap > 0;
  const bool dense = has_dense_gradients(config) || (capped && more.dlogits_TE.given());
  const MatrixView<A> dense_TE = dense ? gradients.dlogits_TE : MatrixView<A>();
  for (Index t = 0; t < dense_TE.rows; ++t) {
    if (more.dlogits_TE.given()) {
      std::copy_n(more.dlogits_TE.row(t), dense_TE.cols, dense_TE.row(t));
    } else {
      std::fill_n(dense_TE.row(t), dense_TE.cols, A(0));
    }
  }
  if (counts_for_losses(config.losses, in.pass)) {
    const bool given = more.global_load.tokens_per_expert_E.given();
    const BalanceCounts global = given ? more.global_load : accumulated_load(out.totals);
    add_loss_gradients(config, in, out, global, more.gradient_scale, dense_TE, gradients.stages,
                       executor);
  }
  const auto drouted_TK = undrop(config, out, more.dweights_TK, gradients.dkept_TK);
  route_logits_backward<A>(
      {out.logits_TE, {}, in.is_padding_T}, rivals, selection_of(config, report),
      RecordedChoices<Id>{out.expert_ids_TK, out.penalised_TK},
      {out.scores_TK, drouted_TK, gradients.dselected_TK, dense_TE}, gradients.stages, executor);
  if (capped) {
    soft_cap_backward<Id, A>(config.logit_soft_cap, out.logits_TE, choices_of(in, out),
                             gradients.dselected_TK, executor);
    if (dense) soft_cap_backward(config.logit_soft_cap, out.logits_TE, dense_TE, executor);
  }
  return dense_TE.given() ? MatrixView<const A>(dense_TE) : more.dlogits_TE;
}

/// dx_TH += the gradient of the tokens, or in its place. Of jittered tokens: jittered again.
template <class X, class A, class Id, class W, class D, class Executor>
void backward_to_tokens(const CompleteConfig& config, const ForwardInputs<Id>& in,
                        const CompleteReport& report, const CompleteRoutingView<X, A, Id>& out,
                        const MatrixView<const A>& dlogits_TE, const MatrixView<const W>& w_EH,
                        const MatrixView<D>& dx_TH, GradientMode mode,
                        const CompleteGradients<A>& gradients, const Executor& executor) {
  const auto to = [&](const auto& seen_TH, GradientMode seen_mode) {
    gate_backward_tokens(choices_of(in, out), {gradients.dselected_TK, dlogits_TE}, w_EH, seen_TH,
                         gradients.stages, executor, seen_mode);
  };
  if (!report.jittered) {
    to(dx_TH, mode);
    return;
  }
  to(gradients.djittered_TH, GradientMode::set);
  for (Index t = 0; mode == GradientMode::set && t < dx_TH.rows; ++t) {
    std::fill_n(dx_TH.row(t), dx_TH.cols, D(0));
  }
  jitter_backward(gradients.djittered_TH, config.noise.jitter,
                  NoiseKey{config.noise.seed, 0, index_of(report.noise_position)}, dx_TH, executor);
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTER_COMPLETE_BACKWARD_HPP
