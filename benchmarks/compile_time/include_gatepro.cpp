// SPDX-License-Identifier: MIT
#include <gatepro/gatepro.hpp>
