// SPDX-License-Identifier: MIT
// The inner loops, written once on a small vector type and compiled for each instruction set.
//
//   vec, loads ─► gate, keys, compete, top_k, softmax, scores, ... (.inl)   one subject a file
//                      └─► targets   the .inl files once per set, each in a namespace of its own
//                              └─► table   what a set offers, as functions
//                                      └─► dispatch   the best set that the machine has
//
// Stages get a table and know nothing of vectors: a lane is a token in routing, an expert in the
// gate. instruction_set() tells the choice, GATEPRO_ISA lowers it. A program of many files may
// compile the kernels once; see gatepro/instantiate_kernels.hpp.
#ifndef GATEPRO_KERNELS_HPP
#define GATEPRO_KERNELS_HPP

#include "gatepro/kernels/dispatch.hpp"

#endif  // GATEPRO_KERNELS_HPP
