// SPDX-License-Identifier: MIT
static_assert(sizeof(char) == 2, "the fault is on");
