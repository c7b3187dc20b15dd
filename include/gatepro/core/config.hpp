// SPDX-License-Identifier: MIT
// Language check and the inline namespace that keeps differently compiled copies apart.
//
// A header-only library is compiled by its user's flags. Two translation units built with, say,
// -mavx2 and without would otherwise merge their inline functions, and the linker's choice could
// run AVX2 code on a machine without it; likewise two plugins with different versions of gatepro.
// Everything with a body that flags or versions can change therefore lives in an inline namespace
// whose name tells them apart; views, options and the exception type stand outside it, so they may
// cross between such units.
#ifndef GATEPRO_CORE_CONFIG_HPP
#define GATEPRO_CORE_CONFIG_HPP

#include "gatepro/core/version.hpp"

#if !defined(_MSVC_LANG) && __cplusplus < 201703L
#error "gatepro needs C++17: compile with -std=c++17 or later"
#endif

// GATEPRO_IS_ON(macro): 1 if the compiler defines that macro as 1, else 0; either to be pasted.
#define GATEPRO_SECOND(first, second, ...) second
#define GATEPRO_COMMA_IF_1 ~, 1
#define GATEPRO_SECOND_OF(...) GATEPRO_SECOND(__VA_ARGS__, ~)
#define GATEPRO_IS_ON_(value) GATEPRO_SECOND_OF(GATEPRO_COMMA_IF_##value, 0)
#define GATEPRO_IS_ON(macro) GATEPRO_IS_ON_(macro)

#define GATEPRO_PASTE_(a, b, c, d, e, f, g, h) a##b##c##d##e##f##g##h
#define GATEPRO_PASTE(a, b, c, d, e, f, g, h) GATEPRO_PASTE_(a, b, c, d, e, f, g, h)
#define GATEPRO_ARE_ON(a, b, c, d, e, f, g, h)                                          \
  GATEPRO_PASTE(GATEPRO_IS_ON(a), GATEPRO_IS_ON(b), GATEPRO_IS_ON(c), GATEPRO_IS_ON(d), \
                GATEPRO_IS_ON(e), GATEPRO_IS_ON(f), GATEPRO_IS_ON(g), GATEPRO_IS_ON(h))

#if defined(__cpp_exceptions)
#define GATEPRO_ABI_EXCEPTIONS throws
#else
#define GATEPRO_ABI_EXCEPTIONS aborts
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

#if GATEPRO_VECTOR_EXTENSIONS && defined(__aarch64__)
#define GATEPRO_NEON 1
#else
#define GATEPRO_NEON 0
#endif

// For functions that are called from many places, none of them in a hurry: inlined, each place
// would cost compile time.
#if defined(__GNUC__)
#define GATEPRO_NOINLINE __attribute__((noinline))
#else
#define GATEPRO_NOINLINE
#endif

// For functions outside that namespace: they leave no symbol behind that a linker could merge.
#if defined(__GNUC__)
#define GATEPRO_ALWAYS_INLINE __attribute__((always_inline))
#else
#define GATEPRO_ALWAYS_INLINE
#endif

// The instructions that a compiler may use unasked, and the liberties that it may take with
// numbers, as far as it tells.
#if defined(__aarch64__)
#define GATEPRO_ABI_ISA                                                                           \
  GATEPRO_ARE_ON(__ARM_FEATURE_SVE, __ARM_FEATURE_SVE2, __ARM_FEATURE_ATOMICS,                    \
                 __ARM_FEATURE_FP16_VECTOR_ARITHMETIC, __ARM_FEATURE_BF16, __ARM_FEATURE_DOTPROD, \
                 __ARM_FEATURE_SME, __ARM_FEATURE_MOPS)
#else
#define GATEPRO_ABI_ISA                                                                        \
  GATEPRO_PASTE(                                                                               \
      GATEPRO_ARE_ON(__SSE3__, __SSSE3__, __SSE4_1__, __SSE4_2__, __AVX__, __AVX2__, __F16C__, \
                     __FMA__),                                                                 \
      GATEPRO_ARE_ON(__POPCNT__, __LZCNT__, __BMI__, __BMI2__, __MOVBE__, __GFNI__, __FMA4__,  \
                     __XOP__),                                                                 \
      _,                                                                                       \
      GATEPRO_ARE_ON(__AVX512F__, __AVX512CD__, __AVX512BW__, __AVX512DQ__, __AVX512VL__,      \
                     __AVX512IFMA__, __AVX512VBMI__, __AVX512VBMI2__),                         \
      GATEPRO_ARE_ON(__AVX512BITALG__, __AVX512VPOPCNTDQ__, __AVX512VNNI__, __AVX512BF16__,    \
                     __AVX512FP16__, __AVXVNNI__, __AVX10_1__, __APX_F__),                     \
      _,                                                                                       \
      GATEPRO_ARE_ON(__SSE__, __SSE2__, __SSE4A__, __TBM__, __SSE_MATH__, __SSE2_MATH__,       \
                     __3dNOW__, __LWP__), )
#endif
#define GATEPRO_ABI_MATH                                                                 \
  GATEPRO_PASTE(GATEPRO_IS_ON(__FAST_MATH__), GATEPRO_IS_ON(__FINITE_MATH_ONLY__),       \
                GATEPRO_IS_ON(__ASSOCIATIVE_MATH__), GATEPRO_IS_ON(__RECIPROCAL_MATH__), \
                GATEPRO_IS_ON(__NO_SIGNED_ZEROS__), , , )

#define GATEPRO_ABI_JOIN_(major, minor, patch, isa, vectors, math, exceptions) \
  v##major##_##minor##_##patch##_##isa##_##vectors##_##math##_##exceptions
#define GATEPRO_ABI_JOIN(major, minor, patch, isa, vectors, math, exceptions) \
  GATEPRO_ABI_JOIN_(major, minor, patch, isa, vectors, math, exceptions)
#define GATEPRO_ABI                                                                     \
  GATEPRO_ABI_JOIN(GATEPRO_VERSION_MAJOR, GATEPRO_VERSION_MINOR, GATEPRO_VERSION_PATCH, \
                   GATEPRO_ABI_ISA, GATEPRO_ABI_VECTORS, GATEPRO_ABI_MATH, GATEPRO_ABI_EXCEPTIONS)

#endif  // GATEPRO_CORE_CONFIG_HPP
