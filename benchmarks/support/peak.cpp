// SPDX-License-Identifier: MIT
// Built with the compiler's best flags, whatever gatepro is built with.
#include <memory>

#include "support/machine.hpp"

namespace bench {
namespace {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif
typedef float Vector __attribute__((vector_size(vector_bytes)));

constexpr int chains = 12;  // more than latency times throughput of any FMA unit, and no spills
constexpr int steps = 200000;

Vector splat(float value) { return Vector{} + value; }

/// `chains` independent chains of `steps` multiply-adds.
Vector multiply_and_add(float factor, float summand) {
  const Vector a = splat(factor);
  const Vector b = splat(summand);
  Vector sum[chains];
  for (int i = 0; i < chains; ++i) sum[i] = splat(static_cast<float>(i));
  for (int step = 0; step < steps; ++step) {
#if defined(__clang__)
#pragma clang loop unroll(full)
#else
#pragma GCC unroll 16
#endif
    for (int i = 0; i < chains; ++i) sum[i] = sum[i] * a + b;
  }
  Vector total{};
  for (int i = 0; i < chains; ++i) total += sum[i];
  return total;
}

}  // namespace

Run fma_peak() {
  struct State {
    volatile float factor = 0.5f;  // volatile: nothing to compute at compile time
    volatile float result = 0;
  };
  const auto state = std::make_shared<State>();
  return [state] { state->result = multiply_and_add(state->factor, state->factor)[0]; };
}

double fma_peak_operations() {
  const int lanes = vector_bytes / static_cast<int>(sizeof(float));
  return 2.0 * lanes * chains * steps;
}

}  // namespace bench
