// SPDX-License-Identifier: MIT
// The kernels of one instruction set: inner loops written once on Vec. Included once per set,
// inside its namespace; each file uses those before it.

#include "gatepro/kernels/vec.inl"

#include "gatepro/kernels/mul_add.inl"

#include "gatepro/kernels/loads.inl"

#include "gatepro/kernels/gate.inl"

#include "gatepro/kernels/keys.inl"

#include "gatepro/kernels/compete.inl"

#include "gatepro/kernels/top_k.inl"

#include "gatepro/kernels/softmax.inl"

#include "gatepro/kernels/scores.inl"

#include "gatepro/kernels/gradient.inl"

#include "gatepro/kernels/similarity.inl"

/// The 16-bit type that the gate reads directly.
template <class A>
using Direct16 = std::conditional_t<reads_directly_v<bfloat16, A>, bfloat16, A>;

template <class A>
inline constexpr Kernels<A> kernels{
    lanes_v<A>,
    GATEPRO_PANEL_VECTORS,
    {widen<A, float>, widen<A, double>, widen<A, bfloat16>, widen<A, half>},
    {pack<A, float>, pack<A, double>, pack<A, bfloat16>, pack<A, half>},
    {gate<A, A>, gate<A, Direct16<A>>},
    {gate_few<A, A>, gate_few<A, Direct16<A>>},
    load_keys<A>,
    store_lanes<A>,
    count_ids<A>,
    compete<A>,
    store_penalised<A>,
    top_k<A>,
    softmax<A>,
    largest_magnitude<A>,
    scale<A>,
    normalise<A>};

template <class A>
inline constexpr ScoreKernels<A> score_kernels{scores<A>, slopes<A>, shares<A>, choice_keys<A>};

template <class A>
inline constexpr GradientKernels<A> gradient_kernels{
    {add_rows<A, float>, add_rows<A, double>, add_rows<A, bfloat16>, add_rows<A, half>},
    {dot<A, float>, dot<A, double>, dot<A, bfloat16>, dot<A, half>}};
