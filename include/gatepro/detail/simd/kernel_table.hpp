// SPDX-License-Identifier: MIT
// The kernels of one instruction set, as a table of functions. The .inl files say what each does.
#ifndef GATEPRO_DETAIL_SIMD_KERNEL_TABLE_HPP
#define GATEPRO_DETAIL_SIMD_KERNEL_TABLE_HPP

#include <cstdint>

#include "gatepro/detail/order.hpp"
#include "gatepro/options.hpp"
#include "gatepro/scalar.hpp"
#include "gatepro/views.hpp"

namespace gatepro {
namespace detail {

/// Positions in the tables that have one entry per storage type.
template <class Source>
constexpr int source_index() {
  if constexpr (std::is_same_v<Source, float>) return 0;
  if constexpr (std::is_same_v<Source, double>) return 1;
  if constexpr (std::is_same_v<Source, bfloat16>) return 2;
  if constexpr (std::is_same_v<Source, half>) return 3;
}

template <class A>
struct Kernels {
  using Key = typename Order<A>::Key;
  using Widen = void(const void* from, Index count, A* to);
  using AddRows = void(const A* coefficients, const Index* rows, Index count, const void* base,
                       Index stride, Index width, A* out);

  int lanes;          ///< Tokens of a routing group; experts of a packed vector.
  int panel_vectors;  ///< Vectors of experts that the gate kernel takes at once.
  Widen* widen[4];
  void (*gate)(const A* x, Index x_stride, Index tokens, const A* packed, Index depth,
               Index expert_vectors, A* out, Index out_stride, bool first);
  void (*gate_few)(const A* x, Index x_stride, Index tokens, const A* packed, Index depth, A* out,
                   Index out_stride, bool first);
  void (*load_keys)(const A* logits, Index row_stride, Index tokens, Index experts, Key* keys_EL);
  void (*compete)(const Key* keys_EL, Index experts, const std::int32_t* rival_begin,
                  const std::int32_t* rivals, bool eliminate, A lambda, Key* ranked_EL);
  void (*top_k)(const Key* keys_EL, Index experts, Index k, Key* top_keys_KL, Key* top_ids_KL);
  void (*softmax)(const Key* keys_KL, Index k, A* weights_KL, Key* nonfinite_L);
  void (*scores)(const Key* keys_EL, Index experts, ScoreFunction function, A* scores_EL, A* sum_L,
                 A* log_sum_exp_L);
  AddRows* add_rows[4];
};

}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_DETAIL_SIMD_KERNEL_TABLE_HPP
