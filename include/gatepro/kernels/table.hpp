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

/// Who each expert competes against: expert e has rivals ids[begin[e]] to ids[begin[e + 1] - 1].
struct RivalView {
  const std::int32_t* begin = nullptr;
  const std::int32_t* ids = nullptr;
  /// The same, if no expert has several: its rival, or the expert itself for none. Else null.
  const std::int32_t* only = nullptr;
};

/// Who loses, and what it pays.
template <class A>
struct CompetitionRule {
  RivalView rivals;
  bool eliminate = false;
  bool ties_lose = false;  ///< The higher id loses where logits are equal.
  A lambda = 0;
};

/// Keys and ids of K experts for each lane.
template <class Key>
struct SelectedKeys {
  Key* keys_KL;
  Key* ids_KL;
};

/// Experts stand in `groups` groups of one size, ranked by the sum of their `count` best.
struct GroupsRule {
  Index groups = 0;
  Index allowed = 0;
  Index count = 0;
};
template <class Key>
struct GroupsScratch {
  SelectedKeys<Key> best{};  ///< Of `count` experts.
  Key* ranks_G2L = nullptr;
  Key* places_GL = nullptr;
};

/// What shares of experts cost: the same for all lanes, or of each lane.
template <class A>
struct Prices {
  const A* price_E;
  const A* prices_EL;  ///< Or null.
};

/// Equal bins of biases: a bias b of expert e falls in bin (b - bias_E[e] + offset_E[e]) *
/// per_unit.
template <class A>
struct BiasBins {
  A per_unit;
  Index count;
  const A* offset_E;  ///< The bias that the expert has, less the lower edge of the first bin.
};

/// Totals of shares are whole numbers of 2^-share_bits_v. As many groups may add up in one total.
template <class A>
inline constexpr int share_bits_v = sizeof(A) == 4 ? 26 : 52;
inline constexpr Index most_groups_per_total = 31;

/// True if the gate kernel for few experts takes tokens of X as they are, which it reads once, a
/// vector at a time. Others, and those of the kernel for many, are widened into a buffer first.
template <class X, class A>
inline constexpr bool reads_directly_v = std::is_same_v<X, A> ||
                                         (sizeof(X) == 2 && std::is_same_v<A, float>);

/// Rows of X that a gate kernel fetches into the cache, because it is given them next.
struct NextRows {
  const char* data = nullptr;  ///< Null for none.
  Index stride = 0;            ///< Bytes from row to row.
  Index column_bytes = 0;

  GATEPRO_ALWAYS_INLINE NextRows from_row(Index row) const {
    return {data == nullptr ? nullptr : data + row * stride, stride, column_bytes};
  }
  GATEPRO_ALWAYS_INLINE NextRows after(Index columns) const {
    return {data == nullptr ? nullptr : data + columns * column_bytes, stride, column_bytes};
  }
};

/// Products of two rows a and b.
struct RowProducts {
  double aa;
  double ab;
  double bb;
};

/// What every router needs, whatever its scalars are.
template <class A>
struct Kernels {
  using Key = typename Order<A>::Key;

  int lanes;          ///< Tokens of a routing group; experts of a packed vector.
  int panel_vectors;  ///< Vectors of experts that the gate kernel takes at once.
  void (*load_keys)(const A* logits, Index row_stride, Index row_room, Index tokens, Index experts,
                    Key* keys_EL);
  void (*store_lanes)(const void* values_CL, Index cols, Index tokens, void* to, Index row_stride);
  void (*count_ids)(const Key* ids_KL, Index k, Index tokens, std::int64_t* tokens_per_expert_E);
  void (*compete)(const Key* keys_EL, Index experts, const CompetitionRule<A>& rule,
                  Key* ranked_EL);
  void (*mark_losers)(const Key* keys_EL, const Key* ids_KL, Index k, const RivalView& rivals,
                      bool ties_lose, Index tokens, std::uint8_t* lost_TK, Index row_stride,
                      Index col_stride);
  void (*top_k)(const Key* keys_EL, Index experts, Index k, const SelectedKeys<Key>& top);
  void (*refill)(const Key* order_EL, Index experts, Index k, Key* ranked_EL,
                 const SelectedKeys<Key>& scratch, const SelectedKeys<Key>& top);
  bool (*top_k_with_losers)(const Key* keys_EL, Index experts, Index k, Key* ranked_EL,
                            const SelectedKeys<Key>& top);
  void (*softmax)(const Key* keys_KL, Index k, A* weights_KL, Key* nonfinite_L);
  Key (*largest_magnitude)(const A* row, Index count);
  A (*scale)(A* row, Index count, A first, A second);
  void (*normalise)(A* cosines, Index count, A own_inverse, const A* inverse_norms);
  RowProducts (*row_products)(const A* a, const A* b, Index count);
  void (*pair_products)(const A* const* left, const A* const* right, Index depth, A* products);
};

/// Compiled only where scores or losses over all experts are used.
template <class A>
struct ScoreKernels {
  using Key = typename Order<A>::Key;
  void (*scores)(const Key* keys_EL, Index experts, ScoreFunction function, A* scores_EL);
  void (*slopes)(const Key* keys_KL, Index k, ScoreFunction function, A* slopes_KL);
  void (*shares)(const Key* keys_EL, Index experts, ScoreFunction function, A* shares_EL,
                 A* slopes_EL, A* log_sum_exp_L);
  bool (*add_shares)(const A* shares_EL, Index experts, const Key* counted_L, Key* totals_EL);
  void (*choice_keys)(const Key* ranked_EL, Index experts, const A* scores_EL, A step,
                      const A* bias_E, Key* choice_EL);
  void (*separate_choice_keys)(const Key* ranked_EL, Index experts, ScoreFunction function,
                               const A* bias_E, Key* choice_EL);
  void (*weigh_scores)(const Key* keys_KL, const A* scores_KL, Index k, bool divide, A* weights_KL,
                       Key* nonfinite_L);
  void (*finish_weights)(const Key* nonfinite_L, Index k, A scale, A* scores_KL, A* weights_KL);
  void (*mean_prices)(const A* shares_EL, Index experts, const Prices<A>& prices, A* mean_L);
  void (*price_gradient)(const A* slopes_EL, Index experts, const Prices<A>& prices,
                         const A* mean_L, A factor, A* gradient_EL);
  void (*limit_groups)(const Key* choice_EL, Index experts, const GroupsRule& rule,
                       const GroupsScratch<Key>& scratch, Key* limited_EL);
  void (*sort_ids)(Index k, Key* ids_KL, Key* keys_KL);
};

/// What quantile balancing needs.
template <class A>
struct QuantileKernels {
  using Key = typename Order<A>::Key;
  void (*count_needed_bias)(const Key* choice_EL, Index experts, Index k, const Key* last_keys_L,
                            const Key* counted_L, const BiasBins<A>& bins, std::int32_t* counts_EC);
};

/// What the gate does with tokens or router weights of Source.
template <class A, class Source>
struct GateKernels {
  void (*widen)(const void* from, Index count, A* to);
  void (*pack)(const void* from, Index row_stride, Index rows, Index depth, A* to, Index to_stride);
  /// Null unless Source is A.
  void (*gate)(const A* x, Index x_stride, Index tokens, const A* packed, Index depth,
               Index expert_vectors, A* out, Index out_stride, bool first,
               const NextRows& next) = nullptr;
  /// Null unless reads_directly_v.
  void (*gate_few)(const void* x, Index x_stride, Index tokens, const A* packed, Index depth,
                   A* out, Index out_stride, bool first) = nullptr;
};

/// A tile of bfloat16 tokens against packed pairs of columns; see gate/pairs.hpp.
template <class A>
using PairGate = void (*)(const bfloat16* x, Index x_stride, Index tokens, const A* packed,
                          Index pairs, Index expert_vectors, A* out, Index out_stride, bool first,
                          const NextRows& next);

/// What GateArithmetic::bf16_dot needs; null without has_bf16_dot.
template <class A>
struct PairKernels {
  PairGate<A> gate = nullptr;
};

/// What gradients and permuted rows of Source need.
template <class A, class Source>
struct GradientKernels {
  void (*add_rows)(const A* coefficients, const Index* rows, Index count, const void* base,
                   Index stride, Index width, A* out);
  A (*dot)(const A* a, const void* b, Index width);
};

/// What results of 16 bits need.
template <class Target>
struct NarrowKernels {
  void (*narrow)(const float* from, Index count, void* to);
};

/// What penalised logits need where they are written.
template <class A>
struct PenaltyKernels {
  using Key = typename Order<A>::Key;
  void (*store_penalised)(const Key* keys_EL, const Key* ranked_EL, Index experts, Index tokens,
                          const A* logits, Index logits_stride, A* out, Index out_stride);
};

/// What soft caps of logits need.
template <class A>
struct CapKernels {
  void (*soft_cap)(A* row, Index count, A cap);
  void (*soft_cap_slopes)(const A* capped, Index count, A cap, A* gradients);
};

inline namespace GATEPRO_ABI {

/// A table of one set, which the machine must have. A unit compiles the tables that it uses.
template <class Table>
const Table& kernels_for(Isa isa);

// Every table there is.
#define GATEPRO_SOURCE_TABLES(apply, A, Source) \
  apply(GateKernels<A, Source>) apply(GradientKernels<A, Source>)
#define GATEPRO_TABLES_OF(apply, A)                                                           \
  apply(Kernels<A>) apply(ScoreKernels<A>) apply(PenaltyKernels<A>) apply(QuantileKernels<A>) \
      apply(CapKernels<A>) GATEPRO_SOURCE_TABLES(apply, A, float)                             \
          GATEPRO_SOURCE_TABLES(apply, A, double) GATEPRO_SOURCE_TABLES(apply, A, bfloat16)   \
              GATEPRO_SOURCE_TABLES(apply, A, half)
#define GATEPRO_TABLES(apply)      \
  GATEPRO_TABLES_OF(apply, float)  \
  GATEPRO_TABLES_OF(apply, double) \
  apply(PairKernels<float>) apply(NarrowKernels<bfloat16>) apply(NarrowKernels<half>)

#if defined(GATEPRO_EXTERN_KERNELS)
#define GATEPRO_DECLARE_TABLE(...) extern template const __VA_ARGS__& kernels_for<__VA_ARGS__>(Isa);
GATEPRO_TABLES(GATEPRO_DECLARE_TABLE)
#undef GATEPRO_DECLARE_TABLE
#endif

}  // namespace GATEPRO_ABI

}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_KERNELS_TABLE_HPP
