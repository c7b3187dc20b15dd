// SPDX-License-Identifier: MIT
// The kernels as versions of clang read them that have a function for vectors of any size.
#define GATEPRO_ELEMENTWISE_FMA 1
#define __builtin_elementwise_fma(a, b, c) ((a) * (b) + (c))
#include "gatepro/instantiate_kernels.hpp"
