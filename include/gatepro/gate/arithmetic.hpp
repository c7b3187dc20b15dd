// SPDX-License-Identifier: MIT
// How the gate multiplies: a setting.
#ifndef GATEPRO_GATE_ARITHMETIC_HPP
#define GATEPRO_GATE_ARITHMETIC_HPP

#include <type_traits>

#include "gatepro/core/checks.hpp"
#include "gatepro/core/scalar.hpp"

namespace gatepro {

/// How the gate multiplies tokens with router weights.
enum class GateArithmetic {
  /// In the accumulator's type, to which 16-bit input is widened exactly: a logit is one chain of
  /// multiply-adds over ascending columns. The default.
  widened,
  /// For bfloat16 tokens and weights: the dot products of pairs that AVX512_BF16 has (vdpbf16ps),
  /// nearly twice as fast. A logit is one chain of fused multiply-adds in float, rounded to nearest
  /// even, over columns 1, 0, 3, 2, ...; denormal inputs and sums count as zeros. So its bits are
  /// not those of the widened input, but depend as little on how the work is cut, and its error has
  /// the same bound, but for what is below 2^-126. On other machines, under a lower GATEPRO_ISA and
  /// for few experts the gate is `widened`: gate_arithmetic tells.
  bf16_dot,
};

namespace detail {

/// True if GateArithmetic::bf16_dot is for these scalars.
template <class X, class W>
inline constexpr bool has_pairs_v = std::is_same_v<X, bfloat16>&& std::is_same_v<W, bfloat16>;

inline namespace GATEPRO_ABI {

template <class X, class W>
void check_gate_arithmetic(const Checks& checks, GateArithmetic wanted) {
  if constexpr (!has_pairs_v<X, W>) {
    checks.need(wanted == GateArithmetic::widened,
                "bfloat16 tokens and router weights for GateArithmetic::bf16_dot");
  }
}

}  // namespace GATEPRO_ABI
}  // namespace detail

}  // namespace gatepro

#endif  // GATEPRO_GATE_ARITHMETIC_HPP
