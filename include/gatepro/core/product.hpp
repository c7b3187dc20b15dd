// SPDX-License-Identifier: MIT
// Products that are rounded before anything is added to them.
//
// Where a unit's flags allow fused multiply-adds, compilers fuse products with sums as tuning,
// optimisation level and the surrounding code suggest, and bits would follow all of these.
#ifndef GATEPRO_CORE_PRODUCT_HPP
#define GATEPRO_CORE_PRODUCT_HPP

#include "gatepro/core/config.hpp"

// Makes the compiler forget how `value`, in a register, was computed.
#if defined(__GNUC__) && defined(__SSE2__)
#define GATEPRO_OPAQUE(value) __asm__("" : "+v"(value))
#elif defined(__GNUC__) && defined(__aarch64__)
#define GATEPRO_OPAQUE(value) __asm__("" : "+w"(value))
#elif defined(__GNUC__)
#define GATEPRO_OPAQUE(value) __asm__("" : "+m"(value))
#else
#define GATEPRO_OPAQUE(value) static_cast<void>(value)
#endif

namespace gatepro {
namespace detail {

/// a * b, rounded. For each product that a sum or difference may follow, outside of kernels: x86
/// has nothing to fuse with there unless the unit's flags say so, and vectors of plain products are
/// faster.
template <class A>
GATEPRO_ALWAYS_INLINE inline A product(A a, A b) {
  A result = a * b;
#if !defined(__x86_64__) || defined(__FMA__) || defined(__FMA4__)
  GATEPRO_OPAQUE(result);
#endif
  return result;
}

}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_CORE_PRODUCT_HPP
