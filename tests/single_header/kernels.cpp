// SPDX-License-Identifier: MIT
// The kernels of the units that only declare them.
#define GATEPRO_INSTANTIATE_KERNELS
#include "gatepro_single.hpp"
