// SPDX-License-Identifier: MIT
// The gate: logits from tokens and router weights, and the way back (GatePro eq. 1).
//
//   X (T x H) ─► jitter ─┐
//                        ├─► logits = X W^T, + c ─► noise ─► cap ─► (T x E)
//   W (E x H) ─► packed ─┘
//
//   dlogits, or the gradients of the K selected ─► dX += dlogits W,  dW += dlogits^T X,  dc
//
// W is packed into panels, X is taken in tiles of tokens, and each logit is one chain of products
// over H, so that its bits do not depend on how the batch is cut. The gradient has a sparse form,
// where only selected logits have one, and a dense form, where all do.
#ifndef GATEPRO_GATE_HPP
#define GATEPRO_GATE_HPP

#include "gatepro/gate/arithmetic.hpp"
#include "gatepro/gate/bias_gradient.hpp"
#include "gatepro/gate/biased_weights.hpp"
#include "gatepro/gate/gradient.hpp"
#include "gatepro/gate/logit_gradients.hpp"
#include "gatepro/gate/logits.hpp"
#include "gatepro/gate/noise.hpp"
#include "gatepro/gate/pairs.hpp"
#include "gatepro/gate/soft_cap.hpp"

#endif  // GATEPRO_GATE_HPP
