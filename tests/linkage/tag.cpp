// SPDX-License-Identifier: MIT
// Only preprocessed: its last line is the name of the namespace that functions stand in.
#include <gatepro/core/config.hpp>
GATEPRO_ABI
