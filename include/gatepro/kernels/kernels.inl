// SPDX-License-Identifier: MIT
// The kernels of one instruction set: inner loops written once on Vec. Included once per set,
// inside its namespace; each file uses those before it.

#include "gatepro/kernels/vec.inl"

#include "gatepro/kernels/mul_add.inl"

#include "gatepro/kernels/loads.inl"

#include "gatepro/kernels/narrow.inl"

#include "gatepro/kernels/gate.inl"

#include "gatepro/kernels/keys.inl"

#include "gatepro/kernels/compete.inl"

#include "gatepro/kernels/top_k.inl"

#include "gatepro/kernels/losers.inl"

#include "gatepro/kernels/softmax.inl"

#include "gatepro/kernels/soft_cap.inl"

#include "gatepro/kernels/logarithm.inl"

#include "gatepro/kernels/score_functions.inl"

#include "gatepro/kernels/scores.inl"

#include "gatepro/kernels/weights.inl"

#include "gatepro/kernels/prices.inl"

#include "gatepro/kernels/group_limit.inl"

#include "gatepro/kernels/sort_ids.inl"

#include "gatepro/kernels/needed_bias.inl"

#include "gatepro/kernels/gradient.inl"

#include "gatepro/kernels/similarity.inl"

/// The table of this set.
template <class Table>
inline constexpr Table table{};

template <class A>
inline constexpr Kernels<A> table<Kernels<A>>{
    lanes_v<A>,      GATEPRO_PANEL_VECTORS, load_keys<A>, store_lanes<A>, count_ids<A>,
    compete<A>,      mark_losers<A>,        top_k<A>,     refill<A>,      top_k_with_losers<A>,
    softmax<A>,      largest_magnitude<A>,  scale<A>,     normalise<A>,   row_products<A>,
    pair_products<A>};

template <class A>
inline constexpr ScoreKernels<A> table<ScoreKernels<A>>{
    scores<A>,         slopes<A>,         shares<A>,
    add_shares<A>,     choice_keys<A>,    separate_choice_keys<A>,
    weigh_scores<A>,   finish_weights<A>, mean_prices<A>,
    price_gradient<A>, limit_groups<A>,   sort_ids<A>};

template <class A>
inline constexpr QuantileKernels<A> table<QuantileKernels<A>>{count_needed_bias<A>};

template <class A>
inline constexpr PenaltyKernels<A> table<PenaltyKernels<A>>{store_penalised<A>};

template <class A>
inline constexpr CapKernels<A> table<CapKernels<A>>{soft_cap<A>, soft_cap_slopes<A>};

template <class A, class Source>
constexpr GateKernels<A, Source> gate_table() {
  GateKernels<A, Source> table{widen<A, Source>, pack<A, Source>};
  if constexpr (std::is_same_v<Source, A>) table.gate = gate<Products<A>>;
  if constexpr (reads_directly_v<Source, A>) table.gate_few = gate_few<A, Source>;
  return table;
}

template <class A, class Source>
inline constexpr GateKernels<A, Source> table<GateKernels<A, Source>> = gate_table<A, Source>();

#if GATEPRO_VECTOR_EXTENSIONS && GATEPRO_BYTES == 64
template <class A>
inline constexpr PairKernels<A> table<PairKernels<A>>{gate<PairProducts<Vdpbf16ps>>};
#endif

template <class Target>
inline constexpr NarrowKernels<Target> table<NarrowKernels<Target>>{narrow<Target>};

template <class A, class Source>
inline constexpr GradientKernels<A, Source> table<GradientKernels<A, Source>>{add_rows<A, Source>,
                                                                              dot<A, Source>};
