// SPDX-License-Identifier: MIT
// The kernels of a flavour's tests.
#include <gatepro/instantiate_kernels.hpp>
