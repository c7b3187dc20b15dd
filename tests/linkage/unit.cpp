// SPDX-License-Identifier: MIT
// Compiled once per set of flags; the build names the function through ROUTE.
#include <gatepro/gatepro.hpp>

double ROUTE();

double ROUTE() { return GATEPRO_VERSION_MAJOR + GATEPRO_VERSION_MINOR; }
