// SPDX-License-Identifier: MIT
// The operators on the CPU: gatepro's stages on views of tensors. Arguments were checked.
#ifndef GATEPRO_EXAMPLES_TORCH_CPU_HPP
#define GATEPRO_EXAMPLES_TORCH_CPU_HPP

#include <cstdint>
#include <gatepro/gatepro.hpp>
#include <gatepro/torch.hpp>

#include "options.hpp"

namespace gatepro_torch {
namespace cpu {

using at::Tensor;
using gatepro::ATenExecutor;
using Id = std::int64_t;

/// A routing and what its gradient needs besides.
struct Routed {
  Routing out;
  Tensor scores;  ///< T x K: before renormalisation.
};

/// The gradients of the logits: of the selected ones, and, unless undefined, of all.
struct LogitGradients {
  Tensor selected;  ///< T x K.
  Tensor all;       ///< T x E.

  template <class A>
  gatepro::LogitGradients<A> view() const {
    gatepro::LogitGradients<A> views{gatepro::strided_view<const A>(selected, "dselected"), {}};
    if (all.defined()) views.dlogits_TE = gatepro::view<const A>(all, "dlogits");
    return views;
  }
};

/// The tensor itself if it holds its numbers, in contiguous rows that stand apart or are all one,
/// else a copy.
inline Tensor with_rows(const Tensor& lazy) {
  const Tensor tensor = lazy.resolve_neg();
  const bool contiguous = tensor.size(1) <= 1 || tensor.stride(1) == 1;
  const bool apart =
      tensor.size(0) <= 1 || tensor.stride(0) == 0 || tensor.stride(0) >= tensor.size(1);
  return contiguous && apart ? tensor : tensor.contiguous();
}

inline Tensor contiguous(const Tensor& tensor) {
  return tensor.defined() ? tensor.resolve_neg().contiguous() : tensor;
}

/// Calls `call(X(), W())`.
template <class Call>
auto with_scalars(const Tensor& x, const Tensor& w, const Call& call) {
  return gatepro::with_scalar(x, "x", [&](auto token) {
    if constexpr (sizeof(token) == 2) {
      if (w.scalar_type() == at::kFloat) return call(token, float());
    }
    return call(token, token);
  });
}

inline gatepro::RivalTable rivals(const Options& options) {
  if (!options.rule.competition.active()) return {};
  return {gatepro::strided_view<const std::int32_t>(options.partners, "partners"),
          /*both_sides=*/false};
}

/// x w^T.
inline Tensor gate(const Tensor& x, const Tensor& w) {
  const ATenExecutor executor;
  const Tensor x_TH = with_rows(x), w_EH = with_rows(w);
  const Tensor logits_TE = at::empty({x.size(0), w.size(0)}, x.options().dtype(accumulator(x)));
  with_scalars(x, w, [&](auto token, auto weight) {
    using X = decltype(token);
    using W = decltype(weight);
    const Tensor workspace = gatepro::empty_workspace(
        gatepro::gate_logits_workspace_bytes<X, W>(w.size(0), w.size(1), executor));
    gatepro::gate_logits(gatepro::view<const X>(x_TH, "x"), gatepro::view<const W>(w_EH, "w"),
                         gatepro::view<gatepro::accumulator_t<X, W>>(logits_TE, "logits"),
                         gatepro::workspace_view(workspace), executor);
  });
  return logits_TE;
}

template <class A>
gatepro::RoutingInputs<A> inputs(const Tensor& logits_TE, const Tensor& bias_E,
                                 const Tensor& is_padding_T) {
  gatepro::RoutingInputs<A> in;
  in.logits_TE = gatepro::view<const A>(logits_TE, "logits");
  if (bias_E.defined()) in.expert_bias_E = gatepro::vector_view<const A>(bias_E, "expert_bias");
  if (is_padding_T.defined()) in.is_padding_T = gatepro::padding_view(is_padding_T, "is_padding");
  return in;
}

inline Routed route_logits(const Tensor& logits, const Options& options) {
  const ATenExecutor executor;
  const gatepro::SelectionRule& rule = options.rule;
  const Tensor logits_TE = with_rows(logits);
  const Tensor bias_E = contiguous(options.expert_bias);
  const Tensor is_padding_T = contiguous(options.is_padding);
  const auto table = rivals(options);
  Routed routed;
  routed.out.logits = logits;
  routed.out.weights = at::empty({logits.size(0), rule.top_k}, logits.options());
  routed.out.expert_ids = at::empty_like(routed.out.weights, at::kLong);
  routed.scores = rule.scores.renormalise ? at::empty_like(routed.out.weights) : routed.out.weights;
  gatepro::with_accumulator(logits, "logits", [&](auto zero) {
    using A = decltype(zero);
    gatepro::RoutingView<A, Id> out;
    out.expert_ids_TK = gatepro::strided_view<Id>(routed.out.expert_ids, "expert_ids");
    out.weights_TK = gatepro::strided_view<A>(routed.out.weights, "weights");
    if (rule.scores.renormalise) out.scores_TK = gatepro::strided_view<A>(routed.scores, "scores");
    const Tensor workspace = gatepro::empty_workspace(
        gatepro::route_logits_workspace_bytes<A>(logits.size(1), rule, executor));
    gatepro::route_logits(inputs<A>(logits_TE, bias_E, is_padding_T), table, rule, out,
                          gatepro::workspace_view(workspace), executor);
  });
  return routed;
}

inline Routed route(const Tensor& x, const Tensor& w, const Options& options) {
  return route_logits(gate(x, w), options);
}

/// True if the weights' gradient follows from the scores, without logits and partners.
inline bool scores_suffice(const gatepro::SelectionRule& rule) {
  return rule.scores.function == gatepro::ScoreFunction::softmax_after_top_k;
}

/// True if experts that were not selected share in the gradient.
inline bool reaches_all(const gatepro::SelectionRule& rule) {
  return rule.scores.function == gatepro::ScoreFunction::softmax_before_top_k &&
         !rule.scores.renormalise;
}

/// The gradients of the logits from those of weights and logits, which may be undefined.
inline LogitGradients route_logits_backward(const Routed& routed, Options options,
                                            const Tensor& dweights, const Tensor& dlogits) {
  const ATenExecutor executor;
  if (scores_suffice(options.rule)) options.rule.competition = gatepro::Competition::off();
  const Tensor& logits = routed.out.logits;
  const Tensor logits_TE = with_rows(logits);
  const Tensor is_padding_T = contiguous(options.is_padding);
  const Tensor dweights_TK = dweights.defined()
                                 ? dweights.contiguous()
                                 : at::zeros({}, logits.options()).expand(routed.scores.sizes());
  LogitGradients result{at::empty(routed.scores.sizes(), logits.options()), {}};
  if (reaches_all(options.rule)) {  // added to
    result.all = dlogits.defined() ? dlogits.clone(at::MemoryFormat::Contiguous)
                                   : at::zeros(logits.sizes(), logits.options());
  } else if (dlogits.defined()) {
    result.all = with_rows(dlogits);
  }
  const auto table = rivals(options);
  gatepro::with_accumulator(logits, "logits", [&](auto zero) {
    using A = decltype(zero);
    gatepro::RecordedChoices<Id> chosen;
    chosen.expert_ids_TK = gatepro::strided_view<const Id>(routed.out.expert_ids, "expert_ids");
    gatepro::RoutingGradients<A> gradients;
    gradients.scores_TK = gatepro::strided_view<const A>(routed.scores, "scores");
    gradients.dweights_TK = gatepro::strided_view<const A>(dweights_TK, "dweights");
    gradients.dselected_logits_TK = gatepro::strided_view<A>(result.selected, "dselected");
    if (reaches_all(options.rule)) gradients.dlogits_TE = gatepro::view<A>(result.all, "dlogits");
    const Tensor workspace = gatepro::empty_workspace(
        gatepro::route_logits_backward_workspace_bytes<A>(logits.size(1), options.rule, executor));
    gatepro::route_logits_backward(inputs<A>(logits_TE, {}, is_padding_T), table, options.rule,
                                   chosen, gradients, gatepro::workspace_view(workspace), executor);
  });
  return result;
}

inline gatepro::Choices<const Id> choices(const Tensor& expert_ids) {
  return {gatepro::strided_view<const Id>(expert_ids, "expert_ids")};
}

/// The gradient of all logits, in one matrix.
inline Tensor merged(const LogitGradients& dlogits, const Routed& routed) {
  const Tensor merged_TE = at::zeros_like(routed.out.logits, at::MemoryFormat::Contiguous);
  gatepro::with_accumulator(merged_TE, "dlogits", [&](auto zero) {
    using A = decltype(zero);
    gatepro::merge_logit_gradients(choices(routed.out.expert_ids), dlogits.view<A>(),
                                   gatepro::view<A>(merged_TE, "dlogits"), ATenExecutor());
  });
  return merged_TE;
}

/// dlogits w, in the dtype of x.
inline Tensor tokens_gradient(const LogitGradients& dlogits, const Routed& routed, const Tensor& x,
                              const Tensor& w) {
  const ATenExecutor executor;
  const Tensor w_EH = with_rows(w);
  const Tensor dx_TH = at::empty(x.sizes(), x.options());
  with_scalars(x, w, [&](auto token, auto weight) {
    using X = decltype(token);
    using W = decltype(weight);
    using A = gatepro::accumulator_t<X, W>;
    const Tensor workspace = gatepro::empty_workspace(
        gatepro::gate_backward_tokens_workspace_bytes<X>(w.size(0), executor));
    gatepro::gate_backward_tokens(choices(routed.out.expert_ids), dlogits.view<A>(),
                                  gatepro::view<const W>(w_EH, "w"), gatepro::view<X>(dx_TH, "dx"),
                                  gatepro::workspace_view(workspace), executor,
                                  gatepro::GradientMode::set);
  });
  return dx_TH;
}

/// The transpose of dlogits times x, in the dtype of w.
inline Tensor weights_gradient(const LogitGradients& dlogits, const Routed& routed, const Tensor& x,
                               const Tensor& w) {
  const ATenExecutor executor;
  const Tensor x_TH = with_rows(x);
  const Tensor dw_EH = at::zeros(w.sizes(), dlogits.selected.options());
  with_scalars(x, w, [&](auto token, auto weight) {
    using X = decltype(token);
    using A = gatepro::accumulator_t<X, decltype(weight)>;
    const Tensor workspace =
        gatepro::empty_workspace(gatepro::gate_backward_weights_workspace_bytes<A>(
            x.size(0), w.size(0), dlogits.selected.size(1), executor));
    gatepro::gate_backward_weights(choices(routed.out.expert_ids), dlogits.view<A>(),
                                   gatepro::view<const X>(x_TH, "x"), gatepro::view<A>(dw_EH, "dw"),
                                   gatepro::workspace_view(workspace), executor);
  });
  return dw_EH.to(w.scalar_type());
}

/// The partners of w.
inline Tensor find_partners(const Tensor& w, const gatepro::Pairing& pairing) {
  const ATenExecutor executor;
  const Tensor w_EH = with_rows(w);
  const gatepro::Index m = pairing.partners_per_expert;
  const Tensor partners_EM = at::empty({w.size(0), m}, w.options().dtype(at::kInt));
  gatepro::with_scalar(w, "w", [&](auto weight) {
    using W = decltype(weight);
    const Tensor workspace = gatepro::empty_workspace(
        gatepro::find_partners_workspace_bytes<W>(w.size(0), w.size(1), m, executor));
    gatepro::PartnerTables<gatepro::accumulator_t<W>> out;
    out.partners_EM = gatepro::view<std::int32_t>(partners_EM, "partners");
    gatepro::find_partners(gatepro::view<const W>(w_EH, "w"), pairing, out,
                           gatepro::workspace_view(workspace), executor);
  });
  return partners_EM;
}

}  // namespace cpu
}  // namespace gatepro_torch

#endif  // GATEPRO_EXAMPLES_TORCH_CPU_HPP
