// SPDX-License-Identifier: MIT
// What the backward of a router reads besides tokens and router weights.
#ifndef GATEPRO_ROUTER_GRADIENTS_HPP
#define GATEPRO_ROUTER_GRADIENTS_HPP

#include <cstdint>

#include "gatepro/core/views.hpp"

namespace gatepro {

/// What a forward of Router wrote, as its backward reads it.
template <class A, class Id = std::int32_t>
struct RoutedChoices {
  StridedView<const Id> expert_ids_TK;  ///< T x K.
  StridedView<const A> weights_TK;      ///< T x K.
};

/// The gradients that come in.
template <class A>
struct WeightGradients {
  StridedView<const A> dweights_TK;  ///< T x K: of the loss with respect to the routing weights.
  /// T x E, optional: what the trainer's own losses add to the gradient of the raw logits.
  MatrixView<const A> dlogits_TE{};
};

}  // namespace gatepro

#endif  // GATEPRO_ROUTER_GRADIENTS_HPP
