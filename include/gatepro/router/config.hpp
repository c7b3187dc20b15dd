// SPDX-License-Identifier: MIT
// The settings of a router: plain data, checked by its constructor.
#ifndef GATEPRO_ROUTER_CONFIG_HPP
#define GATEPRO_ROUTER_CONFIG_HPP

#include "gatepro/core/views.hpp"
#include "gatepro/gate/arithmetic.hpp"
#include "gatepro/partners/settings.hpp"
#include "gatepro/routing/rules.hpp"

namespace gatepro {

/// Everything that defines a Router.
struct RouterConfig {
  Index hidden_size = 0;      ///< H: columns of X and of W.
  Index num_experts = 0;      ///< E: rows of W.
  Index top_k = 0;            ///< K: experts per token, 1 <= K <= E.
  Competition competition{};  ///< The rule for losers.
  Pairing pairing{};          ///< The choice of rivals.
  RefreshSchedule refresh{};  ///< When partners are recomputed.
  /// Softmax over one selected expert is the constant 1, so with top_k = 1 the router learns
  /// nothing from the weights. Router::backward without a gradient on the logits refuses that,
  /// unless this says it is meant.
  bool allow_zero_gradient = false;
  /// How forwards multiply X with W; gradients and similarities are always `widened`.
  GateArithmetic gate_arithmetic = GateArithmetic::widened;
};

}  // namespace gatepro

#endif  // GATEPRO_ROUTER_CONFIG_HPP
