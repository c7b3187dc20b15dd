// SPDX-License-Identifier: MIT
// A forward of either router, tile by tile: tokens to logits, and on into a RoutingPass.
#ifndef GATEPRO_ROUTER_FORWARD_PASS_HPP
#define GATEPRO_ROUTER_FORWARD_PASS_HPP

#include "gatepro/gate/logits.hpp"
#include "gatepro/router/config.hpp"
#include "gatepro/routing/routing_pass.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// The layout of a worker's gate.
template <class X, class A>
struct CarveGate {
  Index experts;
  GateScratch<A> operator()(Arena& arena) const { return carve_gate<X, A>(arena, experts); }
};

/// The scratch of a forward, divided among workers.
template <class X, class A, class Selection>
struct ForwardLayout {
  ForwardLayout(Arena& arena, const RouterConfig& config, const SelectionRule& rule, int workers)
      : arithmetic(config.gate_arithmetic),
        packed(arena.take<A>(packed_size<A>(config.num_experts, config.hidden_size))),
        packed_bias(arena.take<A>(packed_bias_size<A>(config.num_experts))),
        gates(arena, workers, CarveGate<X, A>{config.num_experts}),
        pass(arena, config.num_experts, rule, workers) {}

  GateArithmetic arithmetic;  ///< The one wanted.
  A* packed;                  ///< Room for W.
  A* packed_bias;             ///< Room for the bias of BiasedWeights.
  PerWorker<CarveGate<X, A>> gates;
  PassLayout<Selection> pass;
};

/// The weights as the gate of tokens of X reads them, packed into the layout's room unless they
/// are.
template <class X, class A, class Layout, class W, class Executor>
PackedView<A> packed_weights(const MatrixView<const W>& w_EH, const Layout& layout,
                             const Executor& executor, int workers) {
  return pack_for<X>(layout.arithmetic, w_EH, layout.packed, executor, workers);
}
template <class X, class A, class Layout, class W, class Executor>
PackedView<A> packed_weights(const BiasedWeights<W, A>& weights, const Layout& layout,
                             const Executor& executor, int workers) {
  auto packed = packed_weights<X, A>(weights.w_EH, layout, executor, workers);
  packed.bias = pack_bias(weights.bias_E, layout.packed_bias);
  return packed;
}
template <class X, class A, class Layout, class Executor>
PackedView<A> packed_weights(const PackedWeights<A>& weights, const Layout&, const Executor&, int) {
  return weights.packed();
}

/// Gates x_TH with `weights` and routes it. Logits are stored where logits_TE is given; if
/// change.active(), `change(tile)` may then change those of a tile before they are routed.
template <class X, class A, class Weights, class Layout, class Pass, class Change, class Executor>
void gate_and_route(const MatrixView<const X>& x_TH, const Weights& weights, const Layout& layout,
                    const Pass& pass, const MatrixView<A>& logits_TE, const Change& change,
                    const Executor& executor) {
  const Index experts = layout.pass.experts;
  const int busy = gate_workers(executor, layout.pass.workers, x_TH.rows, experts, x_TH.cols);
  const PackedView<A> packed = packed_weights<X, A>(weights, layout, executor, busy);
  const Index stride = padded_experts<A>(experts);
  for_each_gated_tile(x_TH, packed, layout.gates, executor, busy,
                      [&](int worker, Index first, Index count, const A* tile_TE) {
                        const TokenRange tile{first, count};
                        if (logits_TE.given()) {
                          store_logits(tile_TE, logits_TE.middle_rows(first, count));
                        }
                        if (change.active()) {
                          change(tile);
                          pass.route(worker, tile, logit_rows<A>(logits_TE, tile, true));
                        } else {
                          pass.route(worker, tile, {tile_TE, stride, stride});
                        }
                      });
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTER_FORWARD_PASS_HPP
