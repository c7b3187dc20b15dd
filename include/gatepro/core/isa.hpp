// SPDX-License-Identifier: MIT
// Chooses the instruction set, once per process.
#ifndef GATEPRO_CORE_ISA_HPP
#define GATEPRO_CORE_ISA_HPP

#include <cstdlib>
#include <string>

#include "gatepro/core/error.hpp"

#if GATEPRO_X86_TARGETS
#include <cpuid.h>
#endif

namespace gatepro {
namespace detail {

/// The instruction sets, each with all that those before it have. The first is what a compiler may
/// use unasked: on 64-bit ARM, Neon.
enum class Isa { portable, avx2, avx512 };

inline namespace GATEPRO_ABI {

inline const char* name_of(Isa isa) {
  if (isa == Isa::avx512) return "avx512";
  if (isa == Isa::avx2) return "avx2";
  return GATEPRO_NEON ? "neon" : "portable";
}

#if GATEPRO_X86_TARGETS
/// True if the CPU converts half to float. Not all compilers know the name f16c.
inline bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

/// The best set that this CPU and its operating system offer.
inline Isa best_isa() {
#if GATEPRO_X86_TARGETS
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Isa::avx512;
  }
  if (avx2) return Isa::avx2;
#endif
  return Isa::portable;
}

/// `best`, lowered by the environment variable GATEPRO_ISA to a set that `best` includes.
inline Isa isa_from_environment(Isa best) {
  const char* wanted = std::getenv("GATEPRO_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  const std::string name = wanted;
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (name == name_of(isa)) return isa < best ? isa : best;
  }
  if (name == "portable") return Isa::portable;  // the first, whatever it is called here
  fail("GATEPRO_ISA",
       std::string("one of portable, avx2, avx512") + (GATEPRO_NEON ? ", neon" : "") +
           " in the environment variable; it is \"" + name + "\"",
       {});
}

/// The set in use. Throws an Error if GATEPRO_ISA names none.
inline Isa chosen_isa() {
  static const Isa isa = isa_from_environment(best_isa());
  return isa;
}

/// True if the set in use has products of bfloat16 pairs besides: AVX512_BF16.
inline bool has_bf16_dot() {
#if GATEPRO_X86_TARGETS
  return chosen_isa() == Isa::avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// The instruction set that this process uses: "avx512", "avx2" or "portable"; on 64-bit ARM
/// "neon". It is the best one that the machine has, lowered by the environment variable
/// GATEPRO_ISA, and chosen at first use; an Error if that variable names none of them. "portable"
/// asks for the lowest on any machine. Results are the same bits for a given set, whatever the
/// number of threads or the way the work is cut.
inline const char* instruction_set() { return detail::name_of(detail::chosen_isa()); }

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_CORE_ISA_HPP
