// SPDX-License-Identifier: MIT
// The kernels of one instruction set, as tables of functions. The .inl files say what each does.
#ifndef GATEPRO_KERNELS_TABLE_HPP
#define GATEPRO_KERNELS_TABLE_HPP

#include <cstdint>

#include "gatepro/core/isa.hpp"
#include "gatepro/core/order.hpp"
#include "gatepro/core/scalar.hpp"
#include "gatepro/core/views.hpp"
#include "gatepro/kernels/score_function.hpp"

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

/// Who each expert competes against: expert e has rivals ids[begin[e]] to ids[begin[e + 1] - 1].
struct RivalView {
  const std::int32_t* begin = nullptr;
  const std::int32_t* ids = nullptr;
  /// The same, if no expert has several: its rival, or the expert itself for none. Else null.
  const std::int32_t* only = nullptr;
};

/// True if the gate kernels take tokens of X as they are; others are widened into a buffer first.
template <class X, class A>
inline constexpr bool reads_directly_v = std::is_same_v<X, A> ||
                                         (std::is_same_v<X, bfloat16> && std::is_same_v<A, float>);

/// What every router needs.
template <class A>
struct Kernels {
  using Key = typename Order<A>::Key;
  using Widen = void(const void* from, Index count, A* to);
  using Pack = void(const void* from, Index row_stride, Index rows, Index depth, A* to,
                    Index to_stride);
  using Gate = void(const void* x, Index x_stride, Index tokens, const A* packed, Index depth,
                    Index expert_vectors, A* out, Index out_stride, bool first);
  using GateFew = void(const void* x, Index x_stride, Index tokens, const A* packed, Index depth,
                       A* out, Index out_stride, bool first);

  int lanes;          ///< Tokens of a routing group; experts of a packed vector.
  int panel_vectors;  ///< Vectors of experts that the gate kernel takes at once.
  Widen* widen[4];
  Pack* pack[4];
  Gate* gate[2];         ///< For tokens of A, and of bfloat16 if A is float.
  GateFew* gate_few[2];  ///< Likewise.
  void (*load_keys)(const A* logits, Index row_stride, Index row_room, Index tokens, Index experts,
                    Key* keys_EL);
  void (*store_lanes)(const void* values_CL, Index cols, Index tokens, void* to, Index row_stride);
  void (*count_ids)(const Key* ids_KL, Index k, Index tokens, std::int64_t* tokens_per_expert_E);
  void (*compete)(const Key* keys_EL, Index experts, const RivalView& rivals, bool eliminate,
                  bool ties_lose, A lambda, Key* ranked_EL);
  void (*store_penalised)(const Key* keys_EL, const Key* ranked_EL, Index experts, Index tokens,
                          const A* logits, Index logits_stride, A* out, Index out_stride);
  void (*top_k)(const Key* keys_EL, Index experts, Index k, Key* top_keys_KL, Key* top_ids_KL);
  void (*softmax)(const Key* keys_KL, Index k, A* weights_KL, Key* nonfinite_L);
  Key (*largest_magnitude)(const A* row, Index count);
  A (*scale)(A* row, Index count, A first, A second);
  void (*normalise)(A* cosines, Index count, A own_inverse, const A* inverse_norms);
};

/// True if scores are a softmax, whose shares are their own slopes: `shares` writes none then.
constexpr bool is_softmax(ScoreFunction function) {
  return function == ScoreFunction::softmax_after_top_k ||
         function == ScoreFunction::softmax_before_top_k;
}

/// Compiled only where scores or losses over all experts are used.
template <class A>
struct ScoreKernels {
  using Key = typename Order<A>::Key;
  void (*scores)(const Key* keys_EL, Index experts, ScoreFunction function, A* scores_EL, A* sum_L,
                 A* log_sum_exp_L);
  void (*slopes)(const Key* keys_KL, Index k, ScoreFunction function, A* slopes_KL);
  void (*shares)(const Key* keys_EL, Index experts, ScoreFunction function, A* shares_EL,
                 A* slopes_EL);
  void (*choice_keys)(const Key* ranked_EL, Index experts, const A* scores_EL, const A* bias_E,
                      Key* choice_EL);
};

/// Compiled only where gradients are used, or rows permuted.
template <class A>
struct GradientKernels {
  using AddRows = void(const A* coefficients, const Index* rows, Index count, const void* base,
                       Index stride, Index width, A* out);
  using Dot = A(const A* a, const void* b, Index width);
  AddRows* add_rows[4];
  Dot* dot[4];
};

inline namespace GATEPRO_ABI {

/// The kernels of one set, which the machine must have.
template <class A>
const Kernels<A>& kernels_for(Isa isa);

/// Likewise.
template <class A>
const ScoreKernels<A>& score_kernels_for(Isa isa);

/// Likewise.
template <class A>
const GradientKernels<A>& gradient_kernels_for(Isa isa);

#if defined(GATEPRO_EXTERN_KERNELS)
extern template const Kernels<float>& kernels_for(Isa);
extern template const Kernels<double>& kernels_for(Isa);
extern template const ScoreKernels<float>& score_kernels_for(Isa);
extern template const ScoreKernels<double>& score_kernels_for(Isa);
extern template const GradientKernels<float>& gradient_kernels_for(Isa);
extern template const GradientKernels<double>& gradient_kernels_for(Isa);
#endif

}  // namespace GATEPRO_ABI

}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_KERNELS_TABLE_HPP
