// SPDX-License-Identifier: MIT
// What the operators take, checked on every device alike, before anything is computed.
#ifndef GATEPRO_EXAMPLES_TORCH_OPTIONS_HPP
#define GATEPRO_EXAMPLES_TORCH_OPTIONS_HPP

#include <ATen/ATen.h>

#include <cmath>
#include <cstdint>
#include <gatepro/routing.hpp>
#include <sstream>
#include <string>

#include "ops.hpp"

namespace gatepro_torch {

using OptionalTensor = c10::optional<at::Tensor>;

/// The dispatcher's form of a tensor that may be undefined.
inline OptionalTensor optional(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : c10::nullopt;
}

/// Checked settings of a routing. Tensors are undefined where they are not given.
struct Options {
  gatepro::SelectionRule rule;
  at::Tensor partners;
  at::Tensor expert_bias;
  at::Tensor is_padding;
};

/// The dtype of logits, weights and gradients.
inline at::ScalarType accumulator(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

/// The checks of one operator, whose name leads the messages.
class Checks {
 public:
  explicit Checks(const char* where) : where_(where) {}

  template <class... Got>
  void need(bool ok, const char* rule, const char* name, const Got&... got) const {
    if (ok) return;
    std::ostringstream text;
    text << "gatepro::" << where_ << ": need " << rule << " (got " << name << "=";
    (text << ... << got) << ")";
    throw gatepro::Error(text.str());
  }

  /// A negative size stands for any.
  void tensor(const char* name, const at::Tensor& tensor, at::ScalarType dtype, at::Device device,
              at::IntArrayRef shape) const {
    if (is(tensor, dtype, device, shape)) return;
    std::ostringstream text;
    text << "gatepro::" << where_ << ": need " << name << " of dtype " << dtype << " and shape "
         << shape << " on " << device << " (got ";
    if (tensor.defined()) {
      text << "dtype " << tensor.scalar_type() << ", shape " << tensor.sizes() << ", on "
           << tensor.device() << ")";
    } else {
      text << "none)";
    }
    throw gatepro::Error(text.str());
  }

  void tokens(const at::Tensor& x, const at::Tensor& w) const {
    matrix("x", x, "x of shape [T, H] and dtype Float, Double, BFloat16 or Half");
    const bool mixed = w.scalar_type() == at::kFloat && accumulator(x) == at::kFloat;
    tensor("w", w, mixed ? at::kFloat : x.scalar_type(), x.device(), {-1, x.size(1)});
  }

  void weights(const at::Tensor& w) const {
    matrix("w", w, "w of shape [E, H] and dtype Float, Double, BFloat16 or Half");
  }

  void logits(const at::Tensor& logits) const {
    need(logits.dim() == 2 && logits.scalar_type() == accumulator(logits),
         "logits of shape [T, E] and dtype Float or Double", "logits", logits.scalar_type(),
         logits.sizes());
  }

  void penalty(double penalty) const {
    need(penalty >= 0 && std::isfinite(penalty), "penalty finite and >= 0", "penalty", penalty);
  }

 private:
  /// A matrix of numbers that the CPU's path reads.
  void matrix(const char* name, const at::Tensor& m, const char* rule) const {
    const at::ScalarType dtype = m.scalar_type();
    const bool is_read =
        dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf;
    need(m.dim() == 2 && is_read, rule, name, dtype, m.sizes());
  }

  static bool is(const at::Tensor& tensor, at::ScalarType dtype, at::Device device,
                 at::IntArrayRef shape) {
    if (!tensor.defined() || tensor.scalar_type() != dtype || tensor.device() != device ||
        tensor.dim() != static_cast<std::int64_t>(shape.size())) {
      return false;
    }
    for (std::size_t i = 0; i < shape.size(); ++i) {
      if (shape[i] >= 0 && shape[i] != tensor.sizes()[i]) return false;
    }
    return true;
  }

  const char* where_;
};

inline gatepro::ScoreFunction score_function(const Checks& checks, const std::string& name) {
  using gatepro::ScoreFunction;
  if (name == "softmax_after_top_k") return ScoreFunction::softmax_after_top_k;
  if (name == "softmax_before_top_k") return ScoreFunction::softmax_before_top_k;
  if (name == "sigmoid") return ScoreFunction::sigmoid;
  checks.need(name == "sqrt_softplus",
              "score softmax_after_top_k, softmax_before_top_k, sigmoid or sqrt_softplus", "score",
              name);
  return ScoreFunction::sqrt_softplus;
}

/// The settings for `tokens` rows that are like `like` in device, and in dtype but for its width.
inline Options checked_options(const Checks& checks, const at::Tensor& partners,
                               const RouteOptions& given, const at::Tensor& like,
                               std::int64_t experts) {
  Options options{{}, {}, given.expert_bias, given.is_padding};
  gatepro::SelectionRule& rule = options.rule;
  checks.need(given.top_k >= 1 && given.top_k <= experts, "1 <= top_k <= num_experts", "top_k",
              given.top_k, ", num_experts=", experts);
  checks.penalty(given.penalty);
  rule.top_k = given.top_k;
  rule.scores.function = score_function(checks, given.score);
  rule.scores.renormalise = given.renormalise;
  rule.competition = given.eliminate ? gatepro::Competition::eliminate()
                                     : gatepro::Competition::penalty(given.penalty);
  if (rule.competition.active()) {
    checks.tensor("partners", partners, at::kInt, like.device(), {experts, -1});
    checks.need(partners.size(1) >= 1, "partners of one column or more", "partners",
                partners.sizes());
    options.partners = partners;
  }
  if (given.expert_bias.defined()) {
    checks.tensor("expert_bias", given.expert_bias, accumulator(like), like.device(), {experts});
  }
  if (given.is_padding.defined()) {
    checks.tensor("is_padding", given.is_padding, at::kBool, like.device(), {like.size(0)});
  }
  return options;
}

}  // namespace gatepro_torch

#endif  // GATEPRO_EXAMPLES_TORCH_OPTIONS_HPP
