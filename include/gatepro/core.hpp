// SPDX-License-Identifier: MIT
// What everything else stands on: what a caller passes, and what happens if it does not fit.
//
//   MatrixView, StridedView, VectorView   the caller's memory: pointer, extents, strides
//   Choices                               the experts of a routing's tokens, less what is masked
//   Workspace                             scratch that the caller owns; each stage tells its size
//   SerialExecutor                        how work is spread over threads: the contract
//   Error                                 the one exception, thrown before anything is written
//
// Views never own and never copy. Scalars of tokens and router weights are float, double, bfloat16
// or half; results are double if either is, else float. Below all of them lies one idea that is not
// for callers: logits are compared as integer keys (core/order.hpp), so that there is one total
// order for any bits, whatever the compiler's flags do to floating-point numbers.
#ifndef GATEPRO_CORE_HPP
#define GATEPRO_CORE_HPP

#include "gatepro/core/choices.hpp"
#include "gatepro/core/error.hpp"
#include "gatepro/core/executor.hpp"
#include "gatepro/core/scalar.hpp"
#include "gatepro/core/version.hpp"
#include "gatepro/core/views.hpp"
#include "gatepro/core/workspace.hpp"

#endif  // GATEPRO_CORE_HPP
