// SPDX-License-Identifier: MIT
// Balance: keeping experts busy alike, by losses or by a bias. Here tokens meet, in integers only.
//
//   ids ─► counts ─► reduce over ranks ─► loads ─┬─► losses ─► dlogits
//                                                └─► bias of the next step
//
// Counts are int64 and go through the trainer's reduce hook, so that a mean is over all ranks and
// the same bits come out however the batch was cut. Losses use Megatron's scaling: balanced routing
// gives exactly the coefficient.
#ifndef GATEPRO_BALANCE_HPP
#define GATEPRO_BALANCE_HPP

#include "gatepro/balance/balance_counts.hpp"
#include "gatepro/balance/expert_bias.hpp"
#include "gatepro/balance/load_balancing_loss.hpp"
#include "gatepro/balance/loss_weight.hpp"
#include "gatepro/balance/quantile_bias.hpp"
#include "gatepro/balance/z_loss.hpp"

#endif  // GATEPRO_BALANCE_HPP
