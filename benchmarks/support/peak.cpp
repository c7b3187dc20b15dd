// SPDX-License-Identifier: MIT
// Built with the compiler's best flags, whatever gatepro is built with.
#include <memory>
#include <string>

#include "support/machine.hpp"
#include "support/ours.hpp"

namespace bench {
namespace {

constexpr int chains = 12;  // more than latency times throughput of any FMA unit, and no spills
constexpr int steps = 200000;

template <int vector_bytes>
struct Register;
template <>
struct Register<16> {
  typedef float Vector __attribute__((vector_size(16)));
};
template <>
struct Register<32> {
  typedef float Vector __attribute__((vector_size(32)));
};
template <>
struct Register<64> {
  typedef float Vector __attribute__((vector_size(64)));
};

/// `chains` independent chains of `steps` multiply-adds on vectors of that size.
template <int vector_bytes>
float multiply_and_add(float factor, float summand) {
  using Vector = typename Register<vector_bytes>::Vector;
  const Vector a = Vector{} + factor;
  const Vector b = Vector{} + summand;
  Vector sum[chains];
  for (int i = 0; i < chains; ++i) sum[i] = Vector{} + static_cast<float>(i);
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
  return total[0];
}

/// Bytes of the vectors that gatepro uses.
int vector_bytes() {
  const std::string set = ours::instruction_set();
  return set == "avx512" ? 64 : set == "avx2" ? 32 : 16;
}

}  // namespace

Run fma_peak() {
  struct State {
    volatile float factor = 0.5f;  // volatile: nothing to compute at compile time
    volatile float result = 0;
  };
  const auto state = std::make_shared<State>();
  const auto run = vector_bytes() == 64   ? multiply_and_add<64>
                   : vector_bytes() == 32 ? multiply_and_add<32>
                                          : multiply_and_add<16>;
  return [state, run] { state->result = run(state->factor, state->factor); };
}

double fma_peak_operations() {
  const int lanes = vector_bytes() / static_cast<int>(sizeof(float));
  return 2.0 * lanes * chains * steps;
}

}  // namespace bench
