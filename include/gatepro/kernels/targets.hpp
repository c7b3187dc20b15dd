// SPDX-License-Identifier: MIT
// Instantiates the kernels once per instruction set.
//
// Every function of the .inl files carries the target attribute of its set, so that a plain
// -O2 build holds all of them. A helper that forgets the attribute does not compile.
#ifndef GATEPRO_KERNELS_TARGETS_HPP
#define GATEPRO_KERNELS_TARGETS_HPP

#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <type_traits>
#include <utility>

#include "gatepro/core/config.hpp"
#include "gatepro/core/order.hpp"
#include "gatepro/core/product.hpp"
#include "gatepro/core/scalar.hpp"
#include "gatepro/kernels/table.hpp"

#if GATEPRO_NEON
#include <arm_neon.h>
#endif

// Newer clang has this instead of a function per instruction set. Tests give it to other compilers.
#if defined(GATEPRO_ELEMENTWISE_FMA)
#elif defined(__has_builtin)
#define GATEPRO_ELEMENTWISE_FMA __has_builtin(__builtin_elementwise_fma)
#else
#define GATEPRO_ELEMENTWISE_FMA 0
#endif

// Sanitizers instrument each access, which in kernels takes compilers minutes if they inline and
// unroll first.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define GATEPRO_SANITIZED 1
#elif defined(__clang__)
#define GATEPRO_SANITIZED                                                 \
  (__has_feature(address_sanitizer) || __has_feature(memory_sanitizer) || \
   __has_feature(thread_sanitizer) || __has_feature(undefined_behavior_sanitizer))
#else
#define GATEPRO_SANITIZED 0
#endif

// Without optimisation, what is inlined leaves every temporary of its own on the stack: more than
// 160 KB for a kernel, and a thread may have 128 KB.
// GATEPRO_SHARED: part of several kernels, at the end of which a call costs nothing.
#define GATEPRO_SHARED GATEPRO_TARGET GATEPRO_NOINLINE inline
#if GATEPRO_VECTOR_EXTENSIONS && defined(__OPTIMIZE__) && !GATEPRO_SANITIZED
#define GATEPRO_FN GATEPRO_TARGET __attribute__((always_inline)) inline
#define GATEPRO_KERNEL GATEPRO_TARGET inline
#elif GATEPRO_VECTOR_EXTENSIONS
#define GATEPRO_FN GATEPRO_TARGET inline
#define GATEPRO_KERNEL GATEPRO_TARGET inline
#else
#define GATEPRO_FN inline
#define GATEPRO_KERNEL inline
#endif
#if !GATEPRO_VECTOR_EXTENSIONS || GATEPRO_SANITIZED
#define GATEPRO_UNROLL
#define GATEPRO_UNROLL_2
#elif defined(__clang__)
#define GATEPRO_UNROLL _Pragma("clang loop unroll(full)")
#define GATEPRO_UNROLL_2 _Pragma("clang loop unroll_count(2)")
#else
#define GATEPRO_UNROLL _Pragma("GCC unroll 16")
#define GATEPRO_UNROLL_2 _Pragma("GCC unroll 2")
#endif

// nvcc passes the host compiler's pragmas on, but warns of each.
#if defined(__NVCC__)
#pragma nv_diagnostic push
#pragma nv_diag_suppress 1675
#endif

#if GATEPRO_X86_TARGETS

#define GATEPRO_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#define GATEPRO_BYTES 64
#define GATEPRO_PANEL_VECTORS 4
namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {
namespace avx512 {
#include "gatepro/kernels/kernels.inl"
}  // namespace avx512
}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro
#undef GATEPRO_TARGET
#undef GATEPRO_BYTES
#undef GATEPRO_PANEL_VECTORS

#define GATEPRO_TARGET __attribute__((target("avx2,fma,f16c")))
#define GATEPRO_BYTES 32
#define GATEPRO_PANEL_VECTORS 2
namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {
namespace avx2 {
#include "gatepro/kernels/kernels.inl"
}  // namespace avx2
}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro
#undef GATEPRO_TARGET
#undef GATEPRO_BYTES
#undef GATEPRO_PANEL_VECTORS

#endif

#define GATEPRO_TARGET
#define GATEPRO_BYTES 16
#if GATEPRO_NEON  // has 32 registers, as AVX-512 has
#define GATEPRO_PANEL_VECTORS 4
#else
#define GATEPRO_PANEL_VECTORS 2
#endif
namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {
namespace portable {
#include "gatepro/kernels/kernels.inl"
}  // namespace portable
}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro
#undef GATEPRO_TARGET
#undef GATEPRO_BYTES
#undef GATEPRO_PANEL_VECTORS
#undef GATEPRO_FN
#undef GATEPRO_KERNEL
#undef GATEPRO_SHARED
#undef GATEPRO_UNROLL
#undef GATEPRO_UNROLL_2
#undef GATEPRO_SANITIZED
#undef GATEPRO_ELEMENTWISE_FMA

#if defined(__NVCC__)
#pragma nv_diagnostic pop
#endif

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

template <class Table>
const Table& kernels_for([[maybe_unused]] Isa isa) {
#if GATEPRO_X86_TARGETS
  if (isa == Isa::avx512) return avx512::table<Table>;
  if (isa == Isa::avx2) return avx2::table<Table>;
#endif
  return portable::table<Table>;
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_KERNELS_TARGETS_HPP
