// SPDX-License-Identifier: MIT
// Gradients of the operators on the CPU, by the closed form. They cannot be differentiated again:
// that throws.
#ifndef GATEPRO_EXAMPLES_TORCH_AUTOGRAD_HPP
#define GATEPRO_EXAMPLES_TORCH_AUTOGRAD_HPP

#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "cpu.hpp"

namespace gatepro_torch {
namespace autograd {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Passes a gradient on, and refuses to be differentiated by whatever it was made of.
struct Once : torch::autograd::Function<Once> {
  static Tensor forward(AutogradContext*, const Tensor& gradient, const OptionalTensor&,
                        const OptionalTensor&, const OptionalTensor&, const OptionalTensor&) {
    return gradient;
  }
  [[noreturn]] static variable_list backward(AutogradContext*, const variable_list&) {
    throw gatepro::Error(
        "gatepro::route: need gradients of first order (got a gradient of its gradient)");
  }
};
/// Nothing changes unless gradients are recorded. Tensors may be undefined.
inline Tensor once(const Tensor& gradient, const Tensor& input, const Tensor& other_input,
                   const variable_list& incoming) {
  if (!gradient.defined() || !at::GradMode::is_enabled()) return gradient;
  return Once::apply(gradient, optional(input), optional(other_input), optional(incoming.front()),
                     optional(incoming.back()));
}

struct Rule : torch::CustomClassHolder {
  explicit Rule(const gatepro::SelectionRule& wanted) : rule(wanted) {}
  gatepro::SelectionRule rule;
};

/// A forward as its backward finds it.
struct Saved {
  cpu::Routed routed;
  Options options;
  Tensor x, w;  ///< Undefined if the logits came from outside.
};

/// Partners are kept only if they matter: then they must not change in place before the backward.
inline void save(AutogradContext* context, const Saved& s) {
  const Tensor partners = cpu::scores_suffice(s.options.rule) ? Tensor() : s.options.partners;
  context->save_for_backward({s.routed.out.logits, s.routed.out.expert_ids, s.routed.scores,
                              s.options.is_padding, partners, s.x, s.w});
  context->saved_data["rule"] =
      c10::IValue::make_capsule(c10::make_intrusive<Rule>(s.options.rule));
  context->mark_non_differentiable({s.routed.out.expert_ids});
  context->set_materialize_grads(false);
}

inline Saved saved(AutogradContext* context) {
  const variable_list kept = context->get_saved_variables();
  const auto rule = context->saved_data["rule"].toCapsule();
  return {{{{}, kept[1], kept[0]}, kept[2]},
          {static_cast<const Rule&>(*rule).rule, kept[4], {}, kept[3]},
          kept[5],
          kept[6]};
}

struct Route : torch::autograd::Function<Route> {
  static variable_list forward(AutogradContext* context, const Tensor& x, const Tensor& w,
                               const Options& options) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const cpu::Routed routed = cpu::route(x, w, options);
    save(context, {routed, options, x, w});
    return {routed.out.weights, routed.out.expert_ids, routed.out.logits};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto [routed, options, x, w] = saved(context);
    Tensor dx, dw;
    {
      const at::AutoDispatchBelowADInplaceOrView below;
      const auto dlogits = cpu::route_logits_backward(routed, options, gradients[0], gradients[2]);
      if (context->needs_input_grad(0)) {
        dx = cpu::tokens_gradient(dlogits, routed, x, w);
      }
      if (context->needs_input_grad(1)) {
        dw = cpu::weights_gradient(dlogits, routed, x, w);
      }
    }
    return {once(dx, x, w, gradients), once(dw, x, w, gradients), {}};
  }
};

struct RouteLogits : torch::autograd::Function<RouteLogits> {
  static variable_list forward(AutogradContext* context, const Tensor& logits,
                               const Options& options) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const cpu::Routed routed = cpu::route_logits(logits, options);
    save(context, {routed, options, {}, {}});
    return {routed.out.weights, routed.out.expert_ids};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const Saved s = saved(context);
    Tensor dlogits;
    {
      const at::AutoDispatchBelowADInplaceOrView below;
      dlogits =
          cpu::merged(cpu::route_logits_backward(s.routed, s.options, gradients[0], {}), s.routed);
    }
    return {once(dlogits, s.routed.out.logits, {}, gradients), {}};
  }
};

inline Routing route(const Tensor& x, const Tensor& w, const Options& options) {
  const variable_list out = Route::apply(x, w, options);
  return {out[0], out[1], out[2]};
}

inline Routing route_logits(const Tensor& logits, const Options& options) {
  const variable_list out = RouteLogits::apply(logits, options);
  return {out[0], out[1], logits};
}

}  // namespace autograd
}  // namespace gatepro_torch

#endif  // GATEPRO_EXAMPLES_TORCH_AUTOGRAD_HPP
