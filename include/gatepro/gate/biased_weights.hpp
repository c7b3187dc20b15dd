// SPDX-License-Identifier: MIT
// A learned bias of the logits (GPT-OSS and others), packed and added as one more column of W.
#ifndef GATEPRO_GATE_BIASED_WEIGHTS_HPP
#define GATEPRO_GATE_BIASED_WEIGHTS_HPP

#include <type_traits>

#include "gatepro/core/executor.hpp"
#include "gatepro/core/scalar.hpp"
#include "gatepro/gate/packing.hpp"

namespace gatepro {

/// The parameters of a gate whose logits have a learned bias: logits = X W^T + c, for what takes W
/// alone otherwise. Both stay the trainer's; neither similarities nor partners depend on c.
///
/// `A`: the type of the logits; a bias of 16 bits is widened by whoever has it, exactly. Each logit
/// is the one without bias, plus c_e, rounded once: the bits of adding c to the logits afterwards.
/// So NaN and -inf in c act as in logits: an expert with c_e = -inf is chosen last, and weighs 0; a
/// CompleteConfig::logit_soft_cap makes that logit -cap, which is one like others.
template <class W, class A = accumulator_t<W>>
struct BiasedWeights {
  MatrixView<const W> w_EH;      ///< E x H: the router weights.
  VectorView<const A> bias_E{};  ///< E: c, or not given.
};
/// `BiasedWeights{w_EH, bias_E}` of views knows the types.
template <class W, class A>
BiasedWeights(MatrixView<W>, VectorView<A>)
    -> BiasedWeights<std::remove_const_t<W>, std::remove_const_t<A>>;

namespace detail {
inline namespace GATEPRO_ABI {

template <class W, class A>
void check_biased_weights(const Checks& checks, const BiasedWeights<W, A>& weights, Index experts,
                          Index hidden) {
  checks.matrix("w_EH", weights.w_EH, experts, hidden);
  checks.optional_vector("bias_E", weights.bias_E, experts);
}

/// Elements of a packed bias.
template <class A>
Index packed_bias_size(Index experts) {
  const Index lanes = kernels<A>().lanes;
  return are_few<A>(experts) ? lanes / 2 * lanes : padded_experts<A>(experts);
}

/// Packs a bias as weights of one column; null if it is not given.
template <class A>
const A* pack_bias(const VectorView<const A>& bias_E, A* packed) {
  if (!bias_E.given()) return nullptr;
  pack(MatrixView<const A>(bias_E.data, bias_E.size, 1, 1), packed, SerialExecutor{}, 1);
  return packed;
}

/// logits += bias, for a tile: the product of a column of ones with that of the bias, which rounds
/// each sum once.
template <class A>
void add_packed_bias(const PackedView<A>& w, Index count, A* logits_TE, Index row_stride) {
  const A one = 1;
  if (are_few<A>(w.experts)) {
    gate_kernels<A, A>().gate_few(&one, 0, count, w.bias, 1, logits_TE, row_stride, false);
  } else {
    gate_kernels<A, A>().gate(&one, 0, count, w.bias, 1, expert_vectors<A>(w.experts), logits_TE,
                              row_stride, false, NextRows{});
  }
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_GATE_BIASED_WEIGHTS_HPP
