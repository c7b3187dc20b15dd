// SPDX-License-Identifier: MIT
// How much an auxiliary loss counts.
#ifndef GATEPRO_BALANCE_LOSS_WEIGHT_HPP
#define GATEPRO_BALANCE_LOSS_WEIGHT_HPP

#include <cstdint>

#include "gatepro/core/checks.hpp"
#include "gatepro/core/order.hpp"

namespace gatepro {

/// The weight of an auxiliary loss, and what its mean divides by.
struct LossWeight {
  /// c, finite and >= 0. 0 turns the loss off: nothing is read or added.
  double coefficient = 0;
  /// Tokens (for a loss per sequence: sequences) of the whole batch, padding not among them, over
  /// all ranks and micro-batches whose losses are summed. 0: those of this call.
  std::int64_t mean_over = 0;
  /// Multiplies the gradient, but not the value: the loss scale of mixed precision. Finite.
  double gradient_scale = 1;
};

namespace detail {
inline namespace GATEPRO_ABI {

inline void check_loss_weight(const Checks& checks, const LossWeight& weight) {
  checks.need(is_finite(weight.coefficient) && weight.coefficient >= 0,
              "coefficient finite and >= 0", {{"coefficient", weight.coefficient}});
  checks.need(weight.mean_over >= 0, "mean_over >= 0", {{"mean_over", weight.mean_over}});
  checks.need(is_finite(weight.gradient_scale), "gradient_scale finite",
              {{"gradient_scale", weight.gradient_scale}});
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_BALANCE_LOSS_WEIGHT_HPP
