// SPDX-License-Identifier: MIT
// A shared library with a router of its own; PLUGIN names its only function.
#include <gatepro/gatepro.hpp>

extern "C" const void* PLUGIN();

/// Where this library finds its kernels.
extern "C" const void* PLUGIN() { return &gatepro::detail::kernels<float>(); }
