// SPDX-License-Identifier: MIT
// Language check and the inline namespace that keeps differently compiled copies apart.
//
// A header-only library is compiled by its user's flags. Two translation units built with, say,
// -mavx2 and without would otherwise merge their inline functions, and the linker's choice could
// run AVX2 code on a machine without it. Everything with a body that flags can change therefore
// lives in an inline namespace whose name carries those flags; views, options and the exception
// type stand outside it, so they may cross between such units.
#ifndef GATEPRO_DETAIL_CONFIG_HPP
#define GATEPRO_DETAIL_CONFIG_HPP

#if !defined(_MSVC_LANG) && __cplusplus < 201703L
#error "gatepro needs C++17: compile with -std=c++17 or later"
#endif

#if defined(__AVX512F__)
#define GATEPRO_ABI_ISA avx512
#elif defined(__AVX2__)
#define GATEPRO_ABI_ISA avx2
#elif defined(__AVX__)
#define GATEPRO_ABI_ISA avx
#else
#define GATEPRO_ABI_ISA base
#endif

#if defined(__cpp_exceptions)
#define GATEPRO_ABI_EXCEPTIONS throws
#else
#define GATEPRO_ABI_EXCEPTIONS aborts
#endif

#if defined(__FAST_MATH__)
#define GATEPRO_ABI_MATH fast
#else
#define GATEPRO_ABI_MATH ieee
#endif

#if defined(__GNUC__) && !defined(GATEPRO_NO_VECTOR_EXTENSIONS)
#define GATEPRO_VECTOR_EXTENSIONS 1
#define GATEPRO_ABI_VECTORS vector
#else
#define GATEPRO_VECTOR_EXTENSIONS 0
#define GATEPRO_ABI_VECTORS scalar
#endif

#if GATEPRO_VECTOR_EXTENSIONS && (defined(__x86_64__) || defined(__i386__))
#define GATEPRO_X86_TARGETS 1
#else
#define GATEPRO_X86_TARGETS 0
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define GATEPRO_LITTLE_ENDIAN 0
#else
#define GATEPRO_LITTLE_ENDIAN 1
#endif

// For functions outside that namespace: they leave no symbol behind that a linker could merge.
#if defined(__GNUC__)
#define GATEPRO_ALWAYS_INLINE __attribute__((always_inline))
#else
#define GATEPRO_ALWAYS_INLINE
#endif

#define GATEPRO_ABI_JOIN_(a, b, c, d) built_for_##a##_##b##_##c##_##d
#define GATEPRO_ABI_JOIN(a, b, c, d) GATEPRO_ABI_JOIN_(a, b, c, d)
#define GATEPRO_ABI \
  GATEPRO_ABI_JOIN(GATEPRO_ABI_ISA, GATEPRO_ABI_VECTORS, GATEPRO_ABI_MATH, GATEPRO_ABI_EXCEPTIONS)

#endif  // GATEPRO_DETAIL_CONFIG_HPP
