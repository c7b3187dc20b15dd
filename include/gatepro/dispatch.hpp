// SPDX-License-Identifier: MIT
// Dispatch: tokens to experts and back, once the routing is known.
//
//   ids ─► capacity (who is dropped) ─► plan (slots, rows) ─► permute ─► experts ─► combine ─► Y
//
// A plan sorts the choices by expert; permute gathers the rows of X in that order, combine adds up
// what the experts returned, weighed. Both have their gradients. An id of -1 is nobody's choice.
// dense_routing gives a routing as T x E matrices; plan_regroup sorts rows that other ranks sent.
#ifndef GATEPRO_DISPATCH_HPP
#define GATEPRO_DISPATCH_HPP

#include "gatepro/dispatch/capacity.hpp"
#include "gatepro/dispatch/dense_routing.hpp"
#include "gatepro/dispatch/permute.hpp"
#include "gatepro/dispatch/plan.hpp"
#include "gatepro/dispatch/regroup.hpp"

#endif  // GATEPRO_DISPATCH_HPP
