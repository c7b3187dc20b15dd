// SPDX-License-Identifier: MIT
// gatepro: the contents, in the order of the data. Include this; openmp.hpp, torch.hpp, setup.hpp,
// diagnosis.hpp and spectral_entropy.hpp are extra.
#ifndef GATEPRO_GATEPRO_HPP
#define GATEPRO_GATEPRO_HPP

// clang-format off
#include "gatepro/core.hpp"      // views, executors, errors: what a caller passes
#include "gatepro/kernels.hpp"   // inner loops, per instruction set
#include "gatepro/gate.hpp"      // X, W -> logits, and back
#include "gatepro/partners.hpp"  // W -> similarity -> partners
#include "gatepro/routing.hpp"   // logits -> experts and weights
#include "gatepro/balance.hpp"   // counts -> losses, bias
#include "gatepro/dispatch.hpp"  // tokens -> experts -> tokens
#include "gatepro/metrics.hpp"   // what a routing did
#include "gatepro/router.hpp"    // all of it in one call
// clang-format on

#endif  // GATEPRO_GATEPRO_HPP
