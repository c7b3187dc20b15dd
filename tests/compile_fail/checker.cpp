// SPDX-License-Identifier: MIT
// Faults that show that the check itself works.
#if defined(FAULT_static_assertion) || defined(FAULT_other_message)
static_assert(sizeof(char) == 2, "the fault is on");
#endif
