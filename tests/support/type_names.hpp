// SPDX-License-Identifier: MIT
// Types for typed tests, and readable names for them: GateLogitsTest/bfloat16 instead of
// GateLogitsTest/2. clang would also warn, in -Wpedantic, about a TYPED_TEST_SUITE without names.
#ifndef GATEPRO_TESTS_SUPPORT_TYPE_NAMES_HPP
#define GATEPRO_TESTS_SUPPORT_TYPE_NAMES_HPP

#include <cstdint>
#include <gatepro/core/scalar.hpp>
#include <string>
#include <type_traits>

/// For TYPED_TEST_SUITE(Suite, Types, TypeNames).
struct TypeNames {
  template <class T>
  static std::string GetName(int) {
    if (std::is_same_v<T, float>) return "float";
    if (std::is_same_v<T, double>) return "double";
    if (std::is_same_v<T, gatepro::bfloat16>) return "bfloat16";
    if (std::is_same_v<T, gatepro::half>) return "half";
    if (std::is_same_v<T, std::int32_t>) return "int32";
    if (std::is_same_v<T, std::int64_t>) return "int64";
    if (std::is_same_v<T, std::uint64_t>) return "uint64";
    return "unnamed";
  }
};

/// The scalars of X and W, and the one that they give.
template <class Tokens, class Weights>
struct Inputs {
  using X = Tokens;
  using W = Weights;
  using A = gatepro::accumulator_t<X, W>;
};

/// The same for Inputs.
struct InputNames {
  template <class T>
  static std::string GetName(int) {
    return TypeNames::GetName<typename T::X>(0) + "_" + TypeNames::GetName<typename T::W>(0);
  }
};

#endif  // GATEPRO_TESTS_SUPPORT_TYPE_NAMES_HPP
