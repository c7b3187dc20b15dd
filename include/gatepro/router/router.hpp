// SPDX-License-Identifier: MIT
// The router: joins the stages, owns the partners and the settings.
#ifndef GATEPRO_ROUTER_ROUTER_HPP
#define GATEPRO_ROUTER_ROUTER_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/core/overlap.hpp"
#include "gatepro/gate/bias_gradient.hpp"
#include "gatepro/gate/gradient.hpp"
#include "gatepro/gate/logit_gradients.hpp"
#include "gatepro/router/buffers.hpp"
#include "gatepro/router/forward_pass.hpp"
#include "gatepro/router/gradients.hpp"
#include "gatepro/router/partnered_router.hpp"
#include "gatepro/routing/plain_selection.hpp"
#include "gatepro/routing/softmax.hpp"

namespace gatepro {
inline namespace GATEPRO_ABI {

/// A GatePro router (Zheng et al. 2025, arXiv 2510.13079).
///
/// `X`, `W`: scalars of tokens and router weights: float, double, bfloat16, half. `Id`: type of
/// expert ids. Results are in `Accumulator`, double if X or W is, else float.
///
/// The weights stay the trainer's: each call gets them. The router keeps the settings and the
/// partners. forward and backward are const, allocate nothing, start no thread unless the executor
/// does, and may run concurrently with workspaces of their own; what PartneredRouter has writes.
///
/// All calls make top_k choices. For another k, make a second router and give it the partners of
/// the first (set_partners), or take CompleteRouter, where each call may have a k of its own.
template <class X = float, class W = X, class Id = std::int32_t>
class Router : public PartneredRouter<accumulator_t<X, W>, W, RouterConfig> {
  using Base = PartneredRouter<accumulator_t<X, W>, W, RouterConfig>;

 public:
  /// The type of the settings.
  using Config = RouterConfig;
  /// The type of logits, weights, similarities and gradients.
  using Accumulator = accumulator_t<X, W>;
  /// The type of expert ids.
  using ExpertId = Id;
  /// Views of the results of a forward.
  using Routing = RoutingView<Accumulator, Id>;
  /// What a forward tells about its tokens.
  using Report = RoutingReport;

  /// Throws Error for settings that do not fit together. Allocates nothing yet.
  explicit Router(const RouterConfig& settings) : Base(checked(settings)) {}

  using Base::config;
  using Base::set_competition;

  /// Bytes of the outputs of shape.tokens tokens, as RoutingBuffers has them.
  std::size_t outputs_bytes(const BufferShape& shape) const {
    return detail::outputs_bytes<Routing>(config(), shape);
  }
  /// The outputs of shape.tokens tokens in memory of the caller: what RoutingBuffers does with its
  /// own. `memory` may hold anything; it is not written here. The same shape and memory give the
  /// same views, so that a backward may ask again. Throws Error for negative sizes or a memory
  /// below outputs_bytes(shape). No allocation.
  Routing outputs(const BufferShape& shape, Workspace memory) const {
    return detail::outputs_in<Routing>(config(), shape, memory);
  }
  /// Bytes of workspace for forward and backward.
  std::size_t workspace_bytes(const BufferShape& shape) const {
    detail::check_buffer_shape("RoutingBuffers", shape);
    return (std::max)(forward_workspace_bytes(shape.workers),
                      backward_workspace_bytes(shape.tokens, shape.workers));
  }
  /// Bytes of workspace for any forward with up to `workers` workers. It does not depend on T.
  std::size_t forward_workspace_bytes(Workers workers = 1) const {
    return detail::measure([&](detail::Arena& arena) { layout(arena, workers); });
  }

  /// Routes tokens: logits = X W^T, competition, top-k, softmax (GatePro eq. 1-8), tile by tile.
  ///
  /// x_TH: T x H. weights: W itself (E x H), packed into the workspace, or packed before. `out`
  /// says what is written; see RoutingView. Returns the counts of tokens that need attention. A
  /// token's results do not depend on T, its position, the executor or which outputs are wanted.
  ///
  /// Throws Error for shapes, strides, nulls, outputs that overlap other memory, a workspace below
  /// forward_workspace_bytes(executor.workers()), or competition without partners, before any
  /// write.
  template <class Executor = SerialExecutor>
  RoutingReport forward(MatrixView<const X> x_TH, MatrixView<const W> w_EH, const Routing& out,
                        Workspace workspace, const Executor& executor = {}) const {
    return forward_with(x_TH, w_EH, out, workspace, executor, detail::input("w_EH", w_EH));
  }

  /// The same with a learned bias of the logits, X W^T + c: `weights` is {w_EH, bias_E}.
  template <class Executor = SerialExecutor>
  RoutingReport forward(MatrixView<const X> x_TH, const BiasedWeights<W, Accumulator>& weights,
                        const Routing& out, Workspace workspace,
                        const Executor& executor = {}) const {
    return forward_with(x_TH, weights, out, workspace, executor,
                        detail::input("w_EH", weights.w_EH),
                        detail::input("bias_E", weights.bias_E));
  }

  /// The same with weights packed before, which must be those of this router.
  template <class Executor = SerialExecutor>
  RoutingReport forward(MatrixView<const X> x_TH, const PackedWeights<Accumulator>& weights,
                        const Routing& out, Workspace workspace,
                        const Executor& executor = {}) const {
    return forward_with(x_TH, weights, out, workspace, executor);
  }

  /// The same, into buffers that own the results.
  template <class Weights, class Executor = SerialExecutor>
  RoutingReport forward(MatrixView<const X> x_TH, const Weights& weights,
                        RoutingBuffers<Router>& buffers, const Executor& executor = {}) const {
    buffers.set_report(
        forward(x_TH, weights, buffers.view(x_TH.rows), buffers.workspace(), executor));
    return buffers.report();
  }

  /// Routes logits_TE (T x E) that the trainer computed itself: competition, top-k, softmax. The
  /// same bits as forward, for the same logits. out.logits_TE must not be given.
  template <class Executor = SerialExecutor>
  RoutingReport forward_logits(MatrixView<const Accumulator> logits_TE, const Routing& out,
                               Workspace workspace, const Executor& executor = {}) const {
    const detail::Checks checks("Router::forward_logits");
    checks.need(!out.logits_TE.given(), "no logits_TE among the outputs: it is the input");
    checks.matrix("logits_TE", logits_TE, logits_TE.rows, config().num_experts);
    const Layout plan = checked_layout(checks, out, logits_TE.rows, workspace, executor,
                                       detail::input("logits_TE", logits_TE));
    const Pass pass = pass_over(plan, out);
    pass.route_all(logits_TE, executor, detail::Untouched{});
    return pass.finish();
  }

  /// Bytes of workspace for backward of T tokens with up to `workers` workers.
  std::size_t backward_workspace_bytes(Index num_tokens, Workers workers = 1) const {
    return dselected_bytes(num_tokens) + stage_bytes(num_tokens, workers);
  }

  /// Gradients of a forward: dx_TH += dlogits W, dw_EH += dlogits^T X, and that of a bias.
  ///
  /// x_TH, w_EH: as in forward. routed: what forward wrote. incoming: the gradients of weights and,
  /// if given, logits. gradients: added to; either may be not given; dX is of Accumulator or, where
  /// that is float, of X (GateGradients<Accumulator, X>). The penalty is piecewise
  /// constant, so no gradient reaches the similarity. A token with NaN weights gives NaN gradients.
  ///
  /// Throws Error for shapes, ids that are neither in [0, E) nor -1, outputs that overlap other
  /// memory, a workspace below backward_workspace_bytes(T, executor.workers()), or top_k = 1
  /// without dlogits_TE (see RouterConfig::allow_zero_gradient), before any write.
  template <class Executor = SerialExecutor, class D = Accumulator>
  void backward(MatrixView<const X> x_TH, MatrixView<const W> w_EH,
                const RoutedChoices<Accumulator, Id>& routed,
                const WeightGradients<Accumulator>& incoming,
                const GateGradients<Accumulator, D>& gradients, Workspace workspace,
                const Executor& executor = {}) const {
    detail::check_token_gradient<X, Accumulator, D>();
    const detail::Checks checks("Router::backward");
    const Index tokens = x_TH.rows;
    const Choices<const Id> choices{routed.expert_ids_TK};
    check_weights(checks, w_EH);
    checks.matrix("x_TH", x_TH, tokens, config().hidden_size);
    check_routed(checks, tokens, routed, incoming);
    checks.optional_matrix("dx_TH", gradients.dx_TH, tokens, config().hidden_size);
    checks.optional_matrix("dw_EH", gradients.dw_EH, config().num_experts, config().hidden_size);
    checks.optional_vector("dbias_E", gradients.dbias_E, config().num_experts);
    checks.overlaps(
        detail::output("dx_TH", gradients.dx_TH), detail::output("dw_EH", gradients.dw_EH),
        detail::output("dbias_E", gradients.dbias_E), detail::output("workspace", workspace),
        detail::input("x_TH", x_TH), detail::input("w_EH", w_EH),
        detail::input("expert_ids_TK", routed.expert_ids_TK),
        detail::input("weights_TK", routed.weights_TK),
        detail::input("dweights_TK", incoming.dweights_TK),
        detail::input("dlogits_TE", incoming.dlogits_TE));
    const int workers = checks.workers(executor);
    detail::Arena arena(checks.where(), workspace, backward_workspace_bytes(tokens, workers));
    const StridedView<Accumulator> dselected_TK(arena.take<A>(tokens * config().top_k), tokens,
                                                config().top_k);
    const Workspace stages(arena.take<std::byte>(static_cast<Index>(stage_bytes(tokens, workers))),
                           stage_bytes(tokens, workers));

    softmax_backward(routed.weights_TK, incoming.dweights_TK, dselected_TK);
    const LogitGradients<A> dlogits{dselected_TK, incoming.dlogits_TE};
    if (gradients.dx_TH.given()) {
      gate_backward_tokens(choices, dlogits, w_EH, gradients.dx_TH, stages, executor,
                           gradients.dx_mode);
    }
    if (gradients.dw_EH.given()) {
      gate_backward_weights(choices, dlogits, x_TH, gradients.dw_EH, stages, executor);
    }
    if (gradients.dbias_E.given()) {
      gate_backward_bias(choices, dlogits, gradients.dbias_E, executor);
    }
  }

  /// Bytes of workspace for backward_logits of T tokens.
  std::size_t backward_logits_workspace_bytes(Index num_tokens) const {
    return dselected_bytes(num_tokens);
  }

  /// The gradient of the raw logits alone, for trainers with a GEMM of their own: dlogits_TE
  /// (T x E) is added to; it is other memory than incoming.dlogits_TE. The rest as in backward.
  /// Throws Error for a workspace below backward_logits_workspace_bytes(T), too.
  template <class Executor = SerialExecutor>
  void backward_logits(const RoutedChoices<Accumulator, Id>& routed,
                       const WeightGradients<Accumulator>& incoming,
                       MatrixView<Accumulator> dlogits_TE, Workspace workspace,
                       const Executor& executor = {}) const {
    const detail::Checks checks("Router::backward_logits");
    const Index tokens = dlogits_TE.rows;
    check_routed(checks, tokens, routed, incoming);
    checks.matrix("dlogits_TE", dlogits_TE, tokens, config().num_experts);
    checks.overlaps(detail::output("dlogits_TE", dlogits_TE),
                    detail::output("workspace", workspace),
                    detail::input("expert_ids_TK", routed.expert_ids_TK),
                    detail::input("weights_TK", routed.weights_TK),
                    detail::input("dweights_TK", incoming.dweights_TK),
                    detail::input("incoming.dlogits_TE", incoming.dlogits_TE));
    const int workers = checks.workers(executor);
    detail::Arena arena(checks.where(), workspace, dselected_bytes(tokens));
    const StridedView<A> dselected_TK(arena.take<A>(tokens * config().top_k), tokens,
                                      config().top_k);
    softmax_backward(routed.weights_TK, incoming.dweights_TK, dselected_TK);
    detail::add_logit_gradients<const Id, A>(Choices<const Id>{routed.expert_ids_TK},
                                             {dselected_TK, incoming.dlogits_TE}, dlogits_TE,
                                             executor, workers);
  }

  /// The same with ids, weights and workspace of the buffers that the forward wrote.
  template <class Executor = SerialExecutor, class D = Accumulator>
  void backward(MatrixView<const X> x_TH, MatrixView<const W> w_EH, RoutingBuffers<Router>& buffers,
                const WeightGradients<Accumulator>& incoming,
                const GateGradients<Accumulator, D>& gradients,
                const Executor& executor = {}) const {
    backward(x_TH, w_EH, {buffers.expert_ids_TK(), buffers.weights_TK()}, incoming, gradients,
             buffers.workspace(), executor);
  }

 private:
  using A = Accumulator;
  using Selection = detail::PlainSelection<A>;
  using Layout = detail::ForwardLayout<X, A, Selection>;
  using Pass = detail::RoutingPass<A, Id, Selection>;
  using Base::check_weights;

  static const RouterConfig& checked(const RouterConfig& config) {
    const detail::Checks checks("Router");
    detail::check_input_scalars<X, W>();
    detail::check_id_type<Id>();
    detail::check_router_config<A>(checks, config);
    detail::check_gate_arithmetic<X, W>(checks, config.gate_arithmetic);
    return config;
  }

  Layout layout(detail::Arena& arena, int workers) const {
    SelectionRule rule;
    rule.top_k = config().top_k;
    return Layout(arena, config(), rule, workers);
  }

  /// All checks of a forward but those of its inputs' shapes, then the division of the workspace.
  template <class Executor, class... Inputs>
  Layout checked_layout(const detail::Checks& checks, const Routing& out, Index tokens,
                        Workspace workspace, const Executor& executor,
                        const Inputs&... inputs) const {
    detail::check_routing_view(checks, out, tokens, config().num_experts, config().top_k);
    checks.need(!out.choice_values_TK.given(), "no choice_values_TK: they are its logits");
    checks.overlaps(detail::output("expert_ids_TK", out.expert_ids_TK),
                    detail::output("weights_TK", out.weights_TK),
                    detail::output("tokens_per_expert_E", out.tokens_per_expert_E),
                    detail::output("logits_TE", out.logits_TE),
                    detail::output("scores_TK", out.scores_TK),
                    detail::output("penalised_TK", out.penalised_TK),
                    detail::output("statistics", out.statistics),
                    detail::output("workspace", workspace), inputs...);
    competition(checks);
    const int workers = checks.workers(executor);
    detail::Arena arena(checks.where(), workspace, forward_workspace_bytes(workers));
    return layout(arena, workers);
  }

  template <class Weights, class Executor, class... Inputs>
  RoutingReport forward_with(const MatrixView<const X>& x_TH, const Weights& weights,
                             const Routing& out, Workspace workspace, const Executor& executor,
                             const Inputs&... more) const {
    const detail::Checks checks("Router::forward");
    check_weights(checks, weights);
    checks.matrix("x_TH", x_TH, x_TH.rows, config().hidden_size);
    const Layout plan = checked_layout(checks, out, x_TH.rows, workspace, executor,
                                       detail::input("x_TH", x_TH), more...);
    const Pass pass = pass_over(plan, out);
    detail::gate_and_route(x_TH, weights, plan, pass, out.logits_TE, detail::Untouched{}, executor);
    return pass.finish();
  }

  /// What comes in from the forward and from behind it.
  void check_routed(const detail::Checks& checks, Index tokens, const RoutedChoices<A, Id>& routed,
                    const WeightGradients<A>& incoming) const {
    const Index experts = config().num_experts;
    const Index top_k = config().top_k;
    // An empty dlogits_TE may look like none.
    detail::need(
        top_k > 1 || incoming.dlogits_TE.given() || config().allow_zero_gradient || tokens == 0,
        checks.where(),
        "top_k > 1, a dlogits_TE, or allow_zero_gradient: softmax over one expert is constant, the "
        "router would learn nothing",
        {{"top_k", top_k}});
    checks.strided("weights_TK", routed.weights_TK, tokens, top_k);
    checks.strided("dweights_TK", incoming.dweights_TK, tokens, top_k);
    checks.strided("expert_ids_TK", routed.expert_ids_TK, tokens, top_k);
    detail::check_choices(checks, "expert_ids_TK", Choices<const Id>{routed.expert_ids_TK},
                          experts);
    checks.optional_matrix("dlogits_TE", incoming.dlogits_TE, tokens, experts);
  }

  detail::ActiveCompetition<A> competition(const detail::Checks& checks) const {
    return detail::checked_competition<A>(checks, config().competition,
                                          Base::similarity_cache().rivals(), config().num_experts);
  }

  Pass pass_over(const Layout& plan, const Routing& out) const {
    return Pass(plan.pass, Selection{config().top_k, competition("Router")}, out,
                Base::similarity_cache().partners());
  }

  std::size_t dselected_bytes(Index tokens) const {
    return detail::measure([&](detail::Arena& arena) {
      arena.take<A>(detail::checked_product("Router::backward", "T * K within the address space",
                                            tokens, config().top_k));
    });
  }

  std::size_t stage_bytes(Index tokens, int workers) const {
    using D = detail::smallest_gradient_t<X, A>;
    return (std::max)(gate_backward_tokens_workspace_bytes<D>(config().num_experts, workers),
                      gate_backward_weights_workspace_bytes<A>(tokens, config().num_experts,
                                                               config().top_k, workers));
  }
};

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_ROUTER_ROUTER_HPP
