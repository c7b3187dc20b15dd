// SPDX-License-Identifier: MIT
// The operator library torch.ops.gatepro: schemas, and which code runs for which tensors.
//
//   CPU                         gatepro
//   AutogradCPU                 the same, with its closed form as backward
//   CompositeImplicitAutograd   plain ATen, for all else; autograd sees through it
#include "ops.hpp"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <string>
#include <tuple>

#include "autograd.hpp"
#include "cpu.hpp"
#include "diagnosis.hpp"
#include "fallback.hpp"
#include "options.hpp"

namespace gatepro_torch {
namespace {

using at::Tensor;

RouteOptions options(std::int64_t top_k, double penalty, bool eliminate, c10::string_view score,
                     bool renormalise, const OptionalTensor& expert_bias,
                     const OptionalTensor& is_padding) {
  return {top_k,
          penalty,
          eliminate,
          std::string(score.begin(), score.end()),
          renormalise,
          expert_bias.value_or(Tensor()),
          is_padding.value_or(Tensor())};
}

Routing route_cpu(const Tensor& x, const Tensor& w, const Options& options) {
  return cpu::route(x, w, options).out;
}
Routing route_logits_cpu(const Tensor& logits, const Options& options) {
  return cpu::route_logits(logits, options).out;
}

/// What the dispatcher calls: checks, then `run`.
template <Routing (*run)(const Tensor&, const Tensor&, const Options&)>
std::tuple<Tensor, Tensor, Tensor> route_with(const Tensor& x, const Tensor& w,
                                              const OptionalTensor& partners, std::int64_t top_k,
                                              double penalty, bool eliminate,
                                              c10::string_view score, bool renormalise,
                                              const OptionalTensor& expert_bias,
                                              const OptionalTensor& is_padding) {
  const Checks checks("route");
  checks.tokens(x, w);
  const Routing out = run(x, w,
                          checked_options(checks, partners.value_or(Tensor()),
                                          options(top_k, penalty, eliminate, score, renormalise,
                                                  expert_bias, is_padding),
                                          x, w.size(0)));
  return {out.weights, out.expert_ids, out.logits};
}

template <Routing (*run)(const Tensor&, const Options&)>
std::tuple<Tensor, Tensor> route_logits_with(const Tensor& logits, const OptionalTensor& partners,
                                             std::int64_t top_k, double penalty, bool eliminate,
                                             c10::string_view score, bool renormalise,
                                             const OptionalTensor& expert_bias,
                                             const OptionalTensor& is_padding) {
  const Checks checks("route_logits");
  checks.logits(logits);
  const Routing out = run(logits, checked_options(checks, partners.value_or(Tensor()),
                                                  options(top_k, penalty, eliminate, score,
                                                          renormalise, expert_bias, is_padding),
                                                  logits, logits.size(1)));
  return {out.weights, out.expert_ids};
}

Tensor find_partners_anywhere(const Tensor& w, std::int64_t partners_per_expert,
                              double min_similarity) {
  const Checks checks("find_partners");
  checks.weights(w);
  checks.need(partners_per_expert >= 1 && partners_per_expert < w.size(0),
              "1 <= partners_per_expert < num_experts", "partners_per_expert", partners_per_expert,
              ", num_experts=", w.size(0));
  checks.need(min_similarity >= -1 && min_similarity <= 1, "-1 <= min_similarity <= 1",
              "min_similarity", min_similarity);
  if (w.is_meta()) return at::empty({w.size(0), partners_per_expert}, w.options().dtype(at::kInt));
  gatepro::Pairing pairing;
  pairing.partners_per_expert = partners_per_expert;
  pairing.min_similarity = min_similarity;
  const at::NoGradGuard no_graph;
  return cpu::find_partners(w.cpu(), pairing).to(w.device());
}

Tensor layer_metrics_anywhere(const Tensor& logits, const Tensor& w, const OptionalTensor& partners,
                              std::int64_t top_k, double penalty, bool eliminate) {
  const Checks checks("layer_metrics");
  checks.logits(logits);
  checks.weights(w);
  checks.need(w.size(0) == logits.size(1) && w.size(0) >= 2, "w with a row per expert, 2 or more",
              "rows", w.size(0), ", num_experts=", logits.size(1));
  RouteOptions o;
  o.top_k = top_k;
  o.penalty = penalty;
  o.eliminate = eliminate;
  const at::NoGradGuard no_graph;
  return diagnosis::layer_metrics(
      logits, w, checked_options(checks, partners.value_or(Tensor()), o, logits, w.size(0)));
}

std::string diagnose_anywhere(const Tensor& metrics, const Tensor& losses,
                              const Tensor& validation_losses, const OptionalTensor& steps,
                              double penalty, bool eliminate,
                              const OptionalTensor& baseline_metrics,
                              const OptionalTensor& baseline_losses,
                              const OptionalTensor& baseline_validation_losses,
                              const OptionalTensor& baseline_steps) {
  Checks("diagnose")
      .need(baseline_metrics || !(baseline_losses || baseline_validation_losses || baseline_steps),
            "baseline_metrics with losses of a baseline", "baseline_metrics", "none");
  const auto given = [](const OptionalTensor& tensor) { return tensor.value_or(Tensor()); };
  RouteOptions o;
  o.penalty = penalty;
  o.eliminate = eliminate;
  const RunTensors baseline{given(baseline_metrics), given(baseline_losses),
                            given(baseline_validation_losses), given(baseline_steps)};
  return diagnose({metrics, losses, validation_losses, given(steps)}, o,
                  baseline_metrics ? &baseline : nullptr);
}

/// The operator `name`, whose kernels have the type of `Kernel`.
template <class Kernel>
auto operator_of(const char* name, Kernel&) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Kernel>();
}

}  // namespace

Routing route(const Tensor& x, const Tensor& w, const Tensor& partners, const RouteOptions& o) {
  static const auto call = operator_of("gatepro::route", route_with<route_cpu>);
  const auto [weights, expert_ids, logits] =
      call.call(x, w, optional(partners), o.top_k, o.penalty, o.eliminate, o.score, o.renormalise,
                optional(o.expert_bias), optional(o.is_padding));
  return {weights, expert_ids, logits};
}

Routing route_logits(const Tensor& logits, const Tensor& partners, const RouteOptions& o) {
  static const auto call =
      operator_of("gatepro::route_logits", route_logits_with<route_logits_cpu>);
  const auto [weights, expert_ids] =
      call.call(logits, optional(partners), o.top_k, o.penalty, o.eliminate, o.score, o.renormalise,
                optional(o.expert_bias), optional(o.is_padding));
  return {weights, expert_ids, logits};
}

Tensor find_partners(const Tensor& w, std::int64_t partners_per_expert, double min_similarity) {
  static const auto call = operator_of("gatepro::find_partners", find_partners_anywhere);
  return call.call(w, partners_per_expert, min_similarity);
}

Tensor layer_metrics(const Tensor& logits, const Tensor& w, const Tensor& partners,
                     const RouteOptions& o) {
  return layer_metrics_anywhere(logits, w, optional(partners), o.top_k, o.penalty, o.eliminate);
}

std::string diagnose(const RunTensors& run, const RouteOptions& o, const RunTensors* baseline) {
  using gatepro::Competition;
  const Checks checks("diagnose");
  checks.penalty(o.penalty);
  gatepro::RunHistory history = diagnosis::history_of(checks, run), plain;
  history.competition = o.eliminate     ? Competition::eliminate()
                        : o.penalty > 0 ? Competition::penalty(o.penalty)
                                        : Competition::off();
  if (baseline != nullptr) plain = diagnosis::history_of(checks, *baseline);
  return gatepro::describe(gatepro::diagnose(history, &plain));
}

TORCH_LIBRARY(gatepro, library) {
  const std::string settings =
      "Tensor? partners, int top_k, *, float penalty=1e-4, bool eliminate=False, "
      "str score='softmax_after_top_k', bool renormalise=False, Tensor? expert_bias=None, "
      "Tensor? is_padding=None";
  const auto define = [&](const std::string& schema) { library.def(schema.c_str()); };
  define("route(Tensor x, Tensor w, " + settings +
         ") -> (Tensor weights, Tensor expert_ids, Tensor logits)");
  define("route_logits(Tensor logits, " + settings + ") -> (Tensor weights, Tensor expert_ids)");
  library.def(
      "find_partners(Tensor w, int partners_per_expert=1, float min_similarity=-1.0) -> Tensor",
      find_partners_anywhere);
  library.def(
      "layer_metrics(Tensor logits, Tensor w, Tensor? partners, int top_k, *, float penalty=1e-4, "
      "bool eliminate=False) -> Tensor",
      layer_metrics_anywhere);
  library.def(
      "diagnose(Tensor metrics, Tensor losses, Tensor validation_losses, Tensor? steps=None, *, "
      "float penalty=1e-4, bool eliminate=False, Tensor? baseline_metrics=None, Tensor? "
      "baseline_losses=None, Tensor? baseline_validation_losses=None, Tensor? "
      "baseline_steps=None) -> str",
      diagnose_anywhere);
}

TORCH_LIBRARY_IMPL(gatepro, CPU, library) {
  library.impl("route", route_with<route_cpu>);
  library.impl("route_logits", route_logits_with<route_logits_cpu>);
}

TORCH_LIBRARY_IMPL(gatepro, AutogradCPU, library) {
  library.impl("route", route_with<autograd::route>);
  library.impl("route_logits", route_logits_with<autograd::route_logits>);
}

TORCH_LIBRARY_IMPL(gatepro, CompositeImplicitAutograd, library) {
  library.impl("route", route_with<fallback::route>);
  library.impl("route_logits", route_logits_with<fallback::route_logits>);
}

}  // namespace gatepro_torch
