// SPDX-License-Identifier: MIT
// Setup: what is made once, before training: router weights to start from, tables of hash routing.
//
// A page of its own, that no other includes: a trainer needs it in one place.
#ifndef GATEPRO_SETUP_HPP
#define GATEPRO_SETUP_HPP

#include "gatepro/partners/orthogonal_weights.hpp"
#include "gatepro/routing/hash_tables.hpp"

#endif  // GATEPRO_SETUP_HPP
