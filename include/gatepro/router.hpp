// SPDX-License-Identifier: MIT
// The routers: all floors below, joined into one call per step.
//
//   refresh(W, step)     W ─► partners
//   forward(X, W)        X ─► gate ─► routing ─► ids, weights, counts
//   backward(dweights)   ─► dlogits ─► dX, dW
//
// Router is the paper's: competition, top-k, softmax. CompleteRouter adds what training stacks have
// around it, each off by default: other scores, bias, groups, losses, padding, capacity, noise,
// replay, checkpoints. What is local to a token is done tile by tile; what needs all tokens
// follows.
#ifndef GATEPRO_ROUTER_HPP
#define GATEPRO_ROUTER_HPP

#include "gatepro/router/buffers.hpp"
#include "gatepro/router/complete_options.hpp"
#include "gatepro/router/complete_router.hpp"
#include "gatepro/router/complete_routing.hpp"
#include "gatepro/router/config.hpp"
#include "gatepro/router/router.hpp"
#include "gatepro/router/router_state.hpp"

#endif  // GATEPRO_ROUTER_HPP
