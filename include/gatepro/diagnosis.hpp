// SPDX-License-Identifier: MIT
// Diagnosis: what went wrong in a run, by its metrics over time.
//
//   metrics of each step ──► RunHistory ──► diagnose ──► findings with evidence and remedy
//
// A page of its own, that no other includes: a trainer needs it in one place.
#ifndef GATEPRO_DIAGNOSIS_HPP
#define GATEPRO_DIAGNOSIS_HPP

#include "gatepro/metrics/diagnosis.hpp"

#endif  // GATEPRO_DIAGNOSIS_HPP
