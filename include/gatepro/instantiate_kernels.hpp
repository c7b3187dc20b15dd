// SPDX-License-Identifier: MIT
// Defines the kernels for the units that only declare them.
//
// Kernels take most of the time of compiling a router. A program of many units may compile them
// once: define GATEPRO_EXTERN_KERNELS in all units, and include this header in one, which is
// compiled with the same flags. Units whose flags differ in what config.hpp lists need a copy of
// their own; without it, the linker names kernels_for as undefined.
#ifndef GATEPRO_INSTANTIATE_KERNELS_HPP
#define GATEPRO_INSTANTIATE_KERNELS_HPP

#include "gatepro/kernels/targets.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

template const Kernels<float>& kernels_for(Isa);
template const Kernels<double>& kernels_for(Isa);
template const ScoreKernels<float>& score_kernels_for(Isa);
template const ScoreKernels<double>& score_kernels_for(Isa);
template const GradientKernels<float>& gradient_kernels_for(Isa);
template const GradientKernels<double>& gradient_kernels_for(Isa);

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_INSTANTIATE_KERNELS_HPP
