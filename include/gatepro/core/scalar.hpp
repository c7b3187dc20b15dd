// SPDX-License-Identifier: MIT
// The scalars a router reads, and the one it computes in.
#ifndef GATEPRO_CORE_SCALAR_HPP
#define GATEPRO_CORE_SCALAR_HPP

#include <Eigen/Core>
#include <cstdint>
#include <type_traits>

#include "gatepro/core/config.hpp"

namespace gatepro {

/// 16-bit brain float: for input, widened to float exactly, and gradients of tokens.
using bfloat16 = Eigen::bfloat16;
/// 16-bit IEEE half: likewise.
using half = Eigen::half;

/// True for the types that tokens and router weights may have: float, double, bfloat16, half.
template <class T>
inline constexpr bool is_input_scalar_v = std::is_same_v<T, float> || std::is_same_v<T, double> ||
                                          std::is_same_v<T, bfloat16> || std::is_same_v<T, half>;

/// True for the types that results and sums have: float, double.
template <class T>
inline constexpr bool is_accumulator_v = std::is_same_v<T, float> || std::is_same_v<T, double>;

/// The type in which products of an X and a W are summed, and in which all results are given:
/// double if either is double, else float.
template <class X, class W = X>
using accumulator_t =
    std::conditional_t<std::is_same_v<X, double> || std::is_same_v<W, double>, double, float>;

/// True for the types that expert ids may be written in.
template <class T>
inline constexpr bool is_expert_id_v =
    std::is_same_v<T, std::int32_t> || std::is_same_v<T, std::int64_t> ||
    std::is_same_v<T, std::uint64_t>;

}  // namespace gatepro

#endif  // GATEPRO_CORE_SCALAR_HPP
