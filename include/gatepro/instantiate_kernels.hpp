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

#define GATEPRO_INSTANTIATE_TABLE(...) template const __VA_ARGS__& kernels_for<__VA_ARGS__>(Isa);
GATEPRO_TABLES(GATEPRO_INSTANTIATE_TABLE)
#undef GATEPRO_INSTANTIATE_TABLE

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_INSTANTIATE_KERNELS_HPP
