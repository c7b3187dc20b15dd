// SPDX-License-Identifier: MIT
// The router: joins the stages, owns the partners and the settings.
#ifndef GATEPRO_ROUTER_ROUTER_HPP
#define GATEPRO_ROUTER_ROUTER_HPP

#include <algorithm>
#include <cstdint>
#include <limits>

#include "gatepro/core/overlap.hpp"
#include "gatepro/gate/gradient.hpp"
#include "gatepro/partners/similarity_cache.hpp"
#include "gatepro/router/buffers.hpp"
#include "gatepro/router/config.hpp"
#include "gatepro/router/forward_pass.hpp"
#include "gatepro/routing/softmax.hpp"

namespace gatepro {
inline namespace GATEPRO_ABI {

/// A GatePro router (Zheng et al. 2025, arXiv 2510.13079).
///
/// `X`, `W`: scalars of tokens and router weights: float, double, bfloat16, half. `Id`: type of
/// expert ids. Results are in `Accumulator`, double if X or W is, else float.
///
/// The weights stay the trainer's: each call gets them. The router keeps the settings and the
/// partners. `refresh`, `set_partners` and the setters write, and must not run beside other calls
/// on the same router; forward and backward are const, allocate nothing, start no thread unless
/// the executor does, and may run concurrently with workspaces of their own.
template <class X = float, class W = X, class Id = std::int32_t>
class Router {
 public:
  /// The type of logits, weights, similarities and gradients.
  using Accumulator = accumulator_t<X, W>;
  /// The type of expert ids.
  using ExpertId = Id;
  /// Views of the results of a forward.
  using Routing = RoutingView<Accumulator, Id>;

  /// Throws Error for settings that do not fit together. Allocates nothing yet.
  explicit Router(const RouterConfig& config)
      : config_(checked(config)), cache_(config.num_experts, config.pairing, config.refresh) {}

  /// The settings.
  const RouterConfig& config() const { return config_; }

  /// Changes the competition for all later forwards: on, off, lambda, elimination. Off, or lambda =
  /// 0, routes bit for bit like a router without partners. Throws Error for a lambda that is
  /// negative or not finite.
  void set_competition(const Competition& competition) {
    detail::check_competition<Accumulator>("Router", competition);
    config_.competition = competition;
  }

  /// Changes when partners are recomputed. Throws Error for an interval below 1.
  void set_refresh_schedule(const RefreshSchedule& schedule) {
    cache_.set_schedule(schedule);
    config_.refresh = schedule;
  }

  /// Recomputes partners from w_EH (E x H) if that is due at optimizer step `step`; true if it was.
  /// Call it after each optimizer step. Throws and allocates as SimilarityCache::refresh does.
  template <class Executor = SerialExecutor>
  bool refresh(MatrixView<const W> w_EH, std::int64_t step, const Executor& executor = {}) {
    check_weights(w_EH);
    return cache_.refresh(w_EH, step, executor);
  }

  /// Recomputes partners from w_EH (E x H) at once. Throws and allocates as
  /// SimilarityCache::refresh_now does.
  template <class Executor = SerialExecutor>
  void refresh_now(MatrixView<const W> w_EH, std::int64_t step, const Executor& executor = {}) {
    check_weights(w_EH);
    cache_.refresh_now(w_EH, step, executor);
  }

  /// Takes partners from outside; see SimilarityCache::set_partners.
  void set_partners(StridedView<const std::int32_t> partners_EM, std::int64_t step) {
    cache_.set_partners(partners_EM, step);
  }

  /// The similarities and partners.
  const SimilarityCache<accumulator_t<W>>& similarity_cache() const { return cache_; }

  /// Bytes of workspace for any forward with up to `workers` workers. It does not depend on T.
  std::size_t forward_workspace_bytes(int workers = 1) const {
    return detail::measure([&](detail::Arena& arena) { layout(arena, workers); });
  }

  /// Routes tokens: logits = X W^T, competition, top-k, softmax (GatePro eq. 1-8), tile by tile.
  ///
  /// x_TH: T x H. w_EH: E x H, packed into the workspace. `out` says what is written; see
  /// RoutingView. Returns the counts of tokens that need attention. A token's results do not depend
  /// on T, its position, the executor or which outputs are wanted.
  ///
  /// Throws Error for shapes, strides, nulls, outputs that overlap other memory, a workspace below
  /// forward_workspace_bytes(executor.workers()), or competition without partners, before any
  /// write.
  template <class Executor = SerialExecutor>
  RoutingReport forward(MatrixView<const X> x_TH, MatrixView<const W> w_EH, const Routing& out,
                        Workspace workspace, const Executor& executor = {}) const {
    check_weights(w_EH);
    const Layout plan = checked_layout("Router::forward", x_TH, out, workspace, executor,
                                       detail::input("w_EH", w_EH));
    const int busy = busy_workers(x_TH.rows, plan, executor);
    const auto packed = detail::pack<W>(w_EH, plan.packed, executor, busy);
    return gate_and_route(x_TH, packed, out, plan, executor);
  }

  /// The same with weights packed before, which must be those of this router.
  template <class Executor = SerialExecutor>
  RoutingReport forward(MatrixView<const X> x_TH, const PackedWeights<Accumulator>& weights,
                        const Routing& out, Workspace workspace,
                        const Executor& executor = {}) const {
    const char* where = "Router::forward";
    detail::need(weights.num_experts() == config_.num_experts &&
                     weights.hidden_size() == config_.hidden_size,
                 where, "packed weights of num_experts x hidden_size",
                 {{"rows", weights.num_experts()}, {"cols", weights.hidden_size()}});
    const Layout plan = checked_layout(where, x_TH, out, workspace, executor);
    return gate_and_route(x_TH, weights.packed(), out, plan, executor);
  }

  /// The same, into buffers that own the results.
  template <class Weights, class Executor = SerialExecutor>
  RoutingReport forward(MatrixView<const X> x_TH, const Weights& weights,
                        RoutingBuffers<Router>& buffers, const Executor& executor = {}) const {
    const auto out = buffers.view(x_TH.rows);
    const RoutingReport report = forward(x_TH, weights, out, buffers.workspace(), executor);
    buffers.resize(x_TH.rows);
    return report;
  }

  /// Routes logits_TE (T x E) that the trainer computed itself: competition, top-k, softmax. The
  /// same bits as forward, for the same logits. out.logits_TE must not be given.
  template <class Executor = SerialExecutor>
  RoutingReport forward_logits(MatrixView<const Accumulator> logits_TE, const Routing& out,
                               Workspace workspace, const Executor& executor = {}) const {
    const char* where = "Router::forward_logits";
    detail::need(!out.logits_TE.given(), where, "no logits_TE among the outputs: it is the input");
    detail::check_matrix(where, "logits_TE", logits_TE, logits_TE.rows, config_.num_experts);
    const Layout plan = checked_layout(where, out, logits_TE.rows, workspace, executor,
                                       detail::input("logits_TE", logits_TE));
    return with_pass(plan, out, [&](const auto& pass) {
      const Index tiles = (logits_TE.rows + detail::tile_tokens - 1) / detail::tile_tokens;
      constexpr Index work = 32;  // comparisons, mostly
      const int busy = detail::useful_workers(executor, plan.workers,
                                              {work, logits_TE.rows, config_.num_experts});
      detail::for_each_block(executor, busy, tiles, [&](int worker, Index tile) {
        const Index first = tile * detail::tile_tokens;
        const Index count = (std::min)(detail::tile_tokens, logits_TE.rows - first);
        pass.route(worker, first, count, logits_TE.row(first), logits_TE.row_stride,
                   detail::row_room(logits_TE, first, count));
      });
    });
  }

  /// Bytes of workspace for backward of T tokens with up to `workers` workers.
  std::size_t backward_workspace_bytes(Index num_tokens, int workers = 1) const {
    return dselected_bytes(num_tokens) + stage_bytes(num_tokens, workers);
  }

  /// Gradients of a forward: dx_TH += dlogits W, dw_EH += dlogits^T X.
  ///
  /// x_TH, w_EH: as in forward. expert_ids_TK, weights_TK: what forward wrote. dweights_TK: T x K,
  /// the gradient of the loss with respect to the weights. dlogits_TE: T x E or not given; what
  /// auxiliary losses add to the gradient of the logits. dx_TH (T x H), dw_EH (E x H): added to;
  /// either may be not given. The penalty is piecewise constant, so no gradient reaches the
  /// similarity. A token with NaN weights gives NaN gradients.
  ///
  /// Throws Error for shapes, ids outside [0, E), outputs that overlap other memory, a workspace
  /// below backward_workspace_bytes(T, executor.workers()), or top_k = 1 without dlogits_TE (see
  /// RouterConfig::allow_zero_gradient), before any write.
  template <class Executor = SerialExecutor>
  void backward(MatrixView<const X> x_TH, MatrixView<const W> w_EH,
                StridedView<const Id> expert_ids_TK, StridedView<const Accumulator> weights_TK,
                StridedView<const Accumulator> dweights_TK,
                MatrixView<const Accumulator> dlogits_TE, MatrixView<Accumulator> dx_TH,
                MatrixView<Accumulator> dw_EH, Workspace workspace,
                const Executor& executor = {}) const {
    const char* where = "Router::backward";
    detail::check_executor<Executor>();
    const Index tokens = x_TH.rows;
    const Index experts = config_.num_experts;
    const Index hidden = config_.hidden_size;
    detail::need(config_.top_k > 1 || dlogits_TE.given() || config_.allow_zero_gradient ||
                     tokens == 0,  // an empty dlogits_TE may look like none
                 where,
                 "top_k > 1, a dlogits_TE, or allow_zero_gradient: softmax over one expert is "
                 "constant, the router would learn nothing",
                 {{"top_k", config_.top_k}});
    check_weights(w_EH);
    detail::check_matrix(where, "x_TH", x_TH, tokens, hidden);
    detail::check_strided(where, "weights_TK", weights_TK, tokens, config_.top_k);
    detail::check_strided(where, "dweights_TK", dweights_TK, tokens, config_.top_k);
    detail::check_strided(where, "expert_ids_TK", expert_ids_TK, tokens, config_.top_k);
    const Choices<const Id> choices{expert_ids_TK};
    detail::check_choices(where, "expert_ids_TK", choices, experts);
    detail::check_optional_matrix(where, "dlogits_TE", dlogits_TE, tokens, experts);
    detail::check_optional_matrix(where, "dx_TH", dx_TH, tokens, hidden);
    detail::check_optional_matrix(where, "dw_EH", dw_EH, experts, hidden);
    detail::check_overlaps(
        where, detail::output("dx_TH", dx_TH), detail::output("dw_EH", dw_EH),
        detail::output("workspace", workspace), detail::input("x_TH", x_TH),
        detail::input("w_EH", w_EH), detail::input("expert_ids_TK", expert_ids_TK),
        detail::input("weights_TK", weights_TK), detail::input("dweights_TK", dweights_TK),
        detail::input("dlogits_TE", dlogits_TE));
    const int workers = detail::checked_workers(where, executor);
    detail::Arena arena(where, workspace, backward_workspace_bytes(tokens, workers));
    const StridedView<Accumulator> dselected_TK(arena.take<A>(tokens * config_.top_k), tokens,
                                                config_.top_k);
    const Workspace stages(arena.take<std::byte>(static_cast<Index>(stage_bytes(tokens, workers))),
                           stage_bytes(tokens, workers));

    softmax_backward(weights_TK, dweights_TK, dselected_TK);
    if (dx_TH.given()) {
      gate_backward_tokens(choices, {dselected_TK, dlogits_TE}, w_EH, dx_TH, stages, executor);
    }
    if (dw_EH.given()) {
      gate_backward_weights(choices, {dselected_TK, dlogits_TE}, x_TH, dw_EH, stages, executor);
    }
  }

  /// The same with ids, weights and workspace of the buffers that the forward wrote.
  template <class Executor = SerialExecutor>
  void backward(MatrixView<const X> x_TH, MatrixView<const W> w_EH, RoutingBuffers<Router>& buffers,
                StridedView<const Accumulator> dweights_TK,
                MatrixView<const Accumulator> dlogits_TE, MatrixView<Accumulator> dx_TH,
                MatrixView<Accumulator> dw_EH, const Executor& executor = {}) const {
    backward(x_TH, w_EH, buffers.expert_ids_TK(), buffers.weights_TK(), dweights_TK, dlogits_TE,
             dx_TH, dw_EH, buffers.workspace(), executor);
  }

 private:
  using A = Accumulator;
  using Layout = detail::ForwardLayout<X, A>;

  static const RouterConfig& checked(const RouterConfig& config) {
    const char* where = "Router";
    detail::check_input_scalars<X, W>();
    detail::check_id_type<Id>();
    detail::need(config.hidden_size >= 1, where, "hidden_size >= 1",
                 {{"hidden_size", config.hidden_size}});
    detail::check_num_experts(where, config.num_experts);
    detail::check_top_k(where, config.top_k, config.num_experts);
    detail::check_competition<A>(where, config.competition);
    detail::packed_size<A>(config.num_experts, config.hidden_size);
    return config;
  }

  void check_weights(const MatrixView<const W>& w_EH) const {
    detail::check_matrix("Router", "w_EH", w_EH, config_.num_experts, config_.hidden_size);
  }

  Layout layout(detail::Arena& arena, int workers) const {
    return Layout(arena, config_.num_experts, config_.hidden_size, config_.top_k, workers);
  }

  template <class Executor, class... Inputs>
  Layout checked_layout(const char* where, const MatrixView<const X>& x_TH, const Routing& out,
                        Workspace workspace, const Executor& executor,
                        const Inputs&... more) const {
    detail::check_matrix(where, "x_TH", x_TH, x_TH.rows, config_.hidden_size);
    return checked_layout(where, out, x_TH.rows, workspace, executor, detail::input("x_TH", x_TH),
                          more...);
  }

  /// All checks of a forward but those of its inputs' shapes, then the division of the workspace.
  template <class Executor, class... Inputs>
  Layout checked_layout(const char* where, const Routing& out, Index tokens, Workspace workspace,
                        const Executor& executor, const Inputs&... inputs) const {
    detail::check_executor<Executor>();
    const Index experts = config_.num_experts;
    detail::check_strided(where, "expert_ids_TK", out.expert_ids_TK, tokens, config_.top_k);
    detail::check_strided(where, "weights_TK", out.weights_TK, tokens, config_.top_k);
    detail::check_optional_vector(where, "tokens_per_expert_E", out.tokens_per_expert_E, experts);
    detail::check_optional_matrix(where, "logits_TE", out.logits_TE, tokens, experts);
    detail::check_overlaps(where, detail::output("expert_ids_TK", out.expert_ids_TK),
                           detail::output("weights_TK", out.weights_TK),
                           detail::output("tokens_per_expert_E", out.tokens_per_expert_E),
                           detail::output("logits_TE", out.logits_TE),
                           detail::output("statistics", out.statistics),
                           detail::output("workspace", workspace), inputs...);
    competition(where);
    const int workers = detail::checked_workers(where, executor);
    detail::Arena arena(where, workspace, forward_workspace_bytes(workers));
    return layout(arena, workers);
  }

  detail::ActiveCompetition<A> competition(const char* where) const {
    return detail::checked_competition<A>(where, config_.competition, cache_.rivals(),
                                          config_.num_experts);
  }

  /// Calls `run(pass)` with a pass that observes the penalty if `out` asks for it.
  template <class Run>
  RoutingReport with_pass(const Layout& plan, const Routing& out, const Run& run) const {
    const auto run_as = [&](auto observe) {
      const detail::ForwardPass<X, A, Id, observe.value> pass(
          plan, competition("Router"), cache_.partners(), out, config_.num_experts);
      run(pass);
      return pass.finish();
    };
    return out.statistics != nullptr ? run_as(std::true_type{}) : run_as(std::false_type{});
  }

  template <class Executor>
  int busy_workers(Index tokens, const Layout& plan, const Executor& executor) const {
    return detail::gate_workers(executor, plan.workers, tokens, config_.num_experts,
                                config_.hidden_size);
  }

  template <class Executor>
  RoutingReport gate_and_route(const MatrixView<const X>& x_TH, const detail::PackedView<A>& packed,
                               const Routing& out, const Layout& plan,
                               const Executor& executor) const {
    const Index stride = detail::padded_experts<A>(config_.num_experts);
    return with_pass(plan, out, [&](const auto& pass) {
      detail::for_each_gated_tile(
          x_TH, packed, [&](int worker) { return plan.gate(worker); }, executor,
          busy_workers(x_TH.rows, plan, executor),
          [&](int worker, Index first, Index count, const A* tile_TE) {
            if (out.logits_TE.given()) {
              detail::store_logits(tile_TE, out.logits_TE.middle_rows(first, count));
            }
            pass.route(worker, first, count, tile_TE, stride, stride);
          });
    });
  }

  std::size_t dselected_bytes(Index tokens) const {
    return detail::measure([&](detail::Arena& arena) {
      arena.take<A>(detail::checked_product("Router::backward", "T * K within the address space",
                                            tokens, config_.top_k));
    });
  }

  std::size_t stage_bytes(Index tokens, int workers) const {
    return (std::max)(gate_backward_tokens_workspace_bytes<A>(config_.num_experts, workers),
                      gate_backward_weights_workspace_bytes<A>(tokens, config_.num_experts,
                                                               config_.top_k, workers));
  }

  RouterConfig config_;
  SimilarityCache<accumulator_t<W>> cache_;
};

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_ROUTER_ROUTER_HPP
