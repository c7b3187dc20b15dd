// SPDX-License-Identifier: MIT
// The kernels of the instruction set in use.
//
// Kernels are code of every unit that uses them, unless GATEPRO_EXTERN_KERNELS is defined: then
// they are only declared, and one unit of the program includes gatepro/instantiate_kernels.hpp.
#ifndef GATEPRO_KERNELS_DISPATCH_HPP
#define GATEPRO_KERNELS_DISPATCH_HPP

#include "gatepro/core/isa.hpp"
#include "gatepro/kernels/table.hpp"
#if !defined(GATEPRO_EXTERN_KERNELS)
#include "gatepro/kernels/targets.hpp"
#endif

namespace gatepro {
namespace detail {

inline namespace GATEPRO_ABI {

/// The kernels in use.
template <class A>
const Kernels<A>& kernels() {
  return kernels_for<Kernels<A>>(chosen_isa());
}

/// Likewise.
template <class A>
const ScoreKernels<A>& score_kernels() {
  return kernels_for<ScoreKernels<A>>(chosen_isa());
}

/// Likewise.
template <class A>
const QuantileKernels<A>& quantile_kernels() {
  return kernels_for<QuantileKernels<A>>(chosen_isa());
}

/// Likewise.
template <class A>
const PenaltyKernels<A>& penalty_kernels() {
  return kernels_for<PenaltyKernels<A>>(chosen_isa());
}

/// Likewise.
template <class A>
const CapKernels<A>& cap_kernels() {
  return kernels_for<CapKernels<A>>(chosen_isa());
}

/// Likewise.
template <class A, class Source>
const GateKernels<A, Source>& gate_kernels() {
  return kernels_for<GateKernels<A, Source>>(chosen_isa());
}

/// Likewise.
template <class A>
const PairKernels<A>& pair_kernels() {
  return kernels_for<PairKernels<A>>(chosen_isa());
}

/// Likewise.
template <class Target>
const NarrowKernels<Target>& narrow_kernels() {
  return kernels_for<NarrowKernels<Target>>(chosen_isa());
}

/// Likewise.
template <class A, class Source>
const GradientKernels<A, Source>& gradient_kernels() {
  return kernels_for<GradientKernels<A, Source>>(chosen_isa());
}

}  // namespace GATEPRO_ABI
}  // namespace detail

}  // namespace gatepro

#endif  // GATEPRO_KERNELS_DISPATCH_HPP
