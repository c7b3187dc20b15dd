// SPDX-License-Identifier: MIT
// The complete router: joins all stages, owns what training changes.
#ifndef GATEPRO_ROUTER_COMPLETE_ROUTER_HPP
#define GATEPRO_ROUTER_COMPLETE_ROUTER_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "gatepro/balance/expert_bias.hpp"
#include "gatepro/balance/quantile_bias.hpp"
#include "gatepro/gate/bias_gradient.hpp"
#include "gatepro/router/complete_backward.hpp"
#include "gatepro/router/complete_checks.hpp"
#include "gatepro/router/complete_forward.hpp"
#include "gatepro/router/complete_routing.hpp"
#include "gatepro/router/correction_bias.hpp"
#include "gatepro/router/forward_ids.hpp"
#include "gatepro/router/partnered_router.hpp"
#include "gatepro/router/router_state.hpp"

namespace gatepro {
inline namespace GATEPRO_ABI {

/// A router with all that training stacks have around it: score functions, expert bias, groups,
/// losses, padding, capacity, noise, record and replay, checkpoints; with GatePro's competition on
/// the raw logits in front. docs/features.md draws the order of the steps.
///
/// `X`, `W`, `Id` as in Router. A feature that is not switched on in CompleteConfig takes no time;
/// docs/performance.md has a table of what each takes. With the defaults results are Router's, bit
/// for bit, forward and backward. What is local to a token is done tile by tile, what needs all
/// tokens once after that; each step is also a stage function of its own.
///
/// One optimizer step is: forwards and backwards, `end_step(reduce)`, `refresh(w, step)`. Forward
/// advances counters in Pass::training only. Forward, end_step, refresh, restore and the setters
/// write and must be alone; backward and the other const calls may run beside each other. No per
/// batch call allocates, apart from a RoutingRecord that has to grow.
template <class X = float, class W = X, class Id = std::int32_t>
class CompleteRouter : public PartneredRouter<accumulator_t<X, W>, W, CompleteConfig> {
  using Base = PartneredRouter<accumulator_t<X, W>, W, CompleteConfig>;

 public:
  /// The type of the settings.
  using Config = CompleteConfig;
  /// The type of logits, weights, biases and gradients: double if X or W is, else float.
  using Accumulator = accumulator_t<X, W>;
  /// The type of expert ids.
  using ExpertId = Id;
  /// Views of the results of a forward.
  using Routing = CompleteRoutingView<X, Accumulator, Id>;
  /// What a forward found out.
  using Report = CompleteReport;
  /// What a forward needs besides tokens and weights.
  using Inputs = ForwardInputs<Id>;
  /// A forward, as its backward takes it.
  using Forward = RoutedForward<X, Accumulator, Id>;

  /// Throws Error for settings that do not fit together.
  explicit CompleteRouter(const CompleteConfig& settings)
      : Base(checked(settings)), bias_(settings.num_experts), balance_(settings.num_experts) {
    if (settings.quantile.enabled) {
      quantiles_ = QuantileCounts<A>(settings.num_experts, settings.quantile);
    }
    if (settings.adaptive_lambda.share > 0) lambda_.emplace(settings.adaptive_lambda);
    given_lambda_ = settings.competition.lambda;
  }

  using Base::config;
  using Base::similarity_cache;

  /// The expert bias; zeros if BiasRule and QuantileRule are off.
  const ExpertBias<Accumulator>& bias() const {
    Base::check_not_moved_from();
    return bias_;
  }
  /// The fixed bias; not given if there is none.
  VectorView<const Accumulator> correction_bias() const {
    Base::check_not_moved_from();
    return correction_.values();
  }
  /// Sets a fixed bias per expert, in units of the scores, such as the `e_score_correction_bias` of
  /// a checkpoint that is trained on: it is added for the choice only, to the moving bias if there
  /// is one, whose steps and centring do not touch it. Replayed and forced choices ignore both.
  ///
  /// bias_E: E, finite, copied; not given for none. It is part of the state. Throws Error for size
  /// and values, before any change. Allocates.
  void set_correction_bias(VectorView<const Accumulator> bias_E) {
    Base::check_not_moved_from();
    correction_.set("CompleteRouter::set_correction_bias", bias_E, bias_.values());
  }
  /// The loads that losses count: of the last training forward, and of all since end_step.
  const BalanceAccumulator& balance() const {
    Base::check_not_moved_from();
    return balance_;
  }

  /// Changes the competition for all later forwards, as Router::set_competition does, but
  /// for the lambda of a penalty once CompleteConfig::adaptive_lambda has found one.
  void set_competition(const Competition& competition) {
    Base::set_competition(competition);
    given_lambda_ = competition.lambda;
    adapt_lambda();
  }

  /// Bytes of the outputs of shape.tokens tokens.
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
    return (std::max)(detail::forward_bytes<X, W>(config(), shape),
                      detail::backward_bytes<X, W>(config(), shape));
  }

  /// Routes T tokens.
  ///
  /// x_TH: T x H. w_EH: E x H. `in`: mask, sequences, pass, record. `out`: T rows, from
  /// `outputs`, `RoutingBuffers::view` or with members of one's own. `reduce` sums int64 counts
  /// over ranks, see NoReduce; a forward calls it once or not at all: for losses in Pass::training,
  /// for CapacityRule::over_ranks in all passes but Pass::recompute, unless it follows the drops of
  /// a record. Returns what backward must know.
  ///
  /// A token's results do not depend on T, padding or the executor, nor, without noise, on its
  /// position; through a bias, a capacity or losses tokens meet in integers only. Throws Error for
  /// shapes, settings, a record that does not fit, a workspace below workspace_bytes, or
  /// competition without partners, before any write. What `reduce` or the executor throws leaves
  /// counters and record as they were, and outputs that no backward takes: the forward may be
  /// repeated, and calls `reduce` again.
  template <class Reduce = NoReduce, class Executor = SerialExecutor>
  CompleteReport forward(MatrixView<const X> x_TH, MatrixView<const W> w_EH, const Inputs& in,
                         const Routing& out, Workspace workspace, const Reduce& reduce = {},
                         const Executor& executor = {}) {
    return forward_with(x_TH, w_EH, in, out, workspace, reduce, executor,
                        detail::input("w_EH", w_EH));
  }

  /// The same with a learned bias of the logits, X W^T + c: `weights` is {w_EH, bias_E}.
  template <class Reduce = NoReduce, class Executor = SerialExecutor>
  CompleteReport forward(MatrixView<const X> x_TH, const BiasedWeights<W, Accumulator>& weights,
                         const Inputs& in, const Routing& out, Workspace workspace,
                         const Reduce& reduce = {}, const Executor& executor = {}) {
    return forward_with(x_TH, weights, in, out, workspace, reduce, executor,
                        detail::input("w_EH", weights.w_EH),
                        detail::input("bias_E", weights.bias_E));
  }

  /// The same with weights packed before, which must be those of this router.
  template <class Reduce = NoReduce, class Executor = SerialExecutor>
  CompleteReport forward(MatrixView<const X> x_TH, const PackedWeights<Accumulator>& weights,
                         const Inputs& in, const Routing& out, Workspace workspace,
                         const Reduce& reduce = {}, const Executor& executor = {}) {
    return forward_with(x_TH, weights, in, out, workspace, reduce, executor);
  }

  /// The same for logits that the trainer computed: they stand in out.logits_TE, where noise is
  /// added to them, and where they are capped: write them again to repeat a call that threw. Jitter
  /// is then the trainer's: backward takes the tokens that made the logits.
  template <class Reduce = NoReduce, class Executor = SerialExecutor>
  CompleteReport forward_logits(const Inputs& in, const Routing& out, Workspace workspace,
                                const Reduce& reduce = {}, const Executor& executor = {}) {
    begin_forward(in, out, out.logits_TE.rows, /*jittered=*/false, workspace, executor);
    const auto change = logit_change(in, out);
    return route(
        in, out, /*jittered=*/false, workspace, reduce, executor,
        [&](const auto&, const auto& pass) { pass.route_all(out.logits_TE, executor, change); });
  }

  /// The same as forward, into buffers that own the results.
  template <class Reduce = NoReduce, class Executor = SerialExecutor>
  const CompleteReport& forward(MatrixView<const X> x_TH, MatrixView<const W> w_EH,
                                const Inputs& in, RoutingBuffers<CompleteRouter>& buffers,
                                const Reduce& reduce = {}, const Executor& executor = {}) {
    buffers.set_report(
        forward(x_TH, w_EH, in, buffers.view(x_TH.rows), buffers.workspace(), reduce, executor));
    return buffers.report();
  }
  /// The same with a learned bias of the logits.
  template <class Reduce = NoReduce, class Executor = SerialExecutor>
  const CompleteReport& forward(MatrixView<const X> x_TH,
                                const BiasedWeights<W, Accumulator>& weights, const Inputs& in,
                                RoutingBuffers<CompleteRouter>& buffers, const Reduce& reduce = {},
                                const Executor& executor = {}) {
    buffers.set_report(
        forward(x_TH, weights, in, buffers.view(x_TH.rows), buffers.workspace(), reduce, executor));
    return buffers.report();
  }

  /// Gradients of a forward: dx_TH += dlogits W, dw_EH += dlogits^T X, and that of a bias, losses
  /// included unless the forward was an evaluation.
  ///
  /// x_TH, w_EH: as in the forward. forward: its inputs and outputs, and what it returned;
  /// backwards may follow in any order, each with those of its own forward. Settings that changed
  /// since play no part; but with softmax_before_top_k that is not renormalised the gradient of all
  /// experts depends on who competes, so a backward after partners changed is refused there.
  /// incoming: the gradients that come in, and the loss scale; what dweights_TK holds for padding
  /// and dropped choices does not matter. gradients: added to; either may be not given; dX is of
  /// Accumulator or, where that is float, of X (GateGradients<Accumulator, X>).
  ///
  /// Throws Error for shapes, ids that are neither in [0, E) nor -1, a workspace below
  /// workspace_bytes(...), a report that no forward of this router returned, inputs or outputs of
  /// another forward than the report's, or weights that are constant where nothing else has a
  /// gradient (see RouterConfig::allow_zero_gradient), before any write.
  template <class Executor = SerialExecutor, class D = Accumulator>
  void backward(MatrixView<const X> x_TH, MatrixView<const W> w_EH, const Forward& forward,
                const BackwardInputs<Accumulator>& incoming,
                const GateGradients<Accumulator, D>& gradients, Workspace workspace,
                const Executor& executor = {}) const {
    detail::check_token_gradient<X, Accumulator, D>();
    const auto& [in, out, report] = forward;
    const auto& [dx_TH, dw_EH, dx_mode, dbias_E] = gradients;
    const detail::Checks checks("CompleteRouter::backward");
    detail::check_complete_tokens(checks, config(), x_TH, w_EH);
    checks.matrix("logits_TE", out.logits_TE, x_TH.rows, config().num_experts);
    checks.optional_matrix("dx_TH", dx_TH, x_TH.rows, x_TH.cols);
    checks.optional_matrix("dw_EH", dw_EH, w_EH.rows, w_EH.cols);
    checks.optional_vector("dbias_E", dbias_E, w_EH.rows);
    const auto scratch =
        checked_gradients(forward, incoming, workspace, executor, detail::output("dx_TH", dx_TH),
                          detail::output("dw_EH", dw_EH), detail::output("dbias_E", dbias_E),
                          detail::input("x_TH", x_TH), detail::input("w_EH", w_EH));

    const auto dlogits_TE = detail::logit_gradients(config(), similarity_cache().rivals(), in, out,
                                                    report, incoming, scratch, executor);
    if (dx_TH.given()) {
      detail::backward_to_tokens(config(), in, report, out, dlogits_TE, w_EH, dx_TH, dx_mode,
                                 scratch, executor);
    }
    if (dw_EH.given()) {
      const auto seen_TH = report.jittered ? MatrixView<const X>(out.jittered_TH) : x_TH;
      gate_backward_weights(detail::choices_of(in, out), {scratch.dselected_TK, dlogits_TE},
                            seen_TH, dw_EH, scratch.stages, executor);
    }
    if (dbias_E.given()) {
      gate_backward_bias(detail::choices_of(in, out), {scratch.dselected_TK, dlogits_TE}, dbias_E,
                         executor);
    }
  }

  /// The gradient of the logits alone, for trainers with a GEMM of their own: dlogits_TE (T x E) is
  /// added to; it is other memory than incoming.dlogits_TE. With a soft cap, it is the gradient of
  /// the logits before it. The rest as in backward.
  template <class Executor = SerialExecutor>
  void backward_logits(const Forward& forward, const BackwardInputs<Accumulator>& incoming,
                       MatrixView<Accumulator> dlogits_TE, Workspace workspace,
                       const Executor& executor = {}) const {
    const auto& [in, out, report] = forward;
    detail::Checks("CompleteRouter::backward_logits")
        .matrix("dlogits_TE", dlogits_TE, out.logits_TE.rows, config().num_experts);
    const auto scratch = checked_gradients(forward, incoming, workspace, executor,
                                           detail::output("dlogits_TE", dlogits_TE));
    const auto dense_TE = detail::logit_gradients(config(), similarity_cache().rivals(), in, out,
                                                  report, incoming, scratch, executor);
    detail::add_logit_gradients<Id, A>(detail::choices_of(in, out),
                                       {scratch.dselected_TK, dense_TE}, dlogits_TE, executor,
                                       executor.workers());
  }

  /// The same with outputs, report and workspace of the buffers that the forward wrote.
  template <class Executor = SerialExecutor, class D = Accumulator>
  void backward(MatrixView<const X> x_TH, MatrixView<const W> w_EH, const Inputs& in,
                RoutingBuffers<CompleteRouter>& buffers,
                const BackwardInputs<Accumulator>& incoming,
                const GateGradients<Accumulator, D>& gradients,
                const Executor& executor = {}) const {
    backward(x_TH, w_EH, {in, buffers.view(), buffers.report()}, incoming, gradients,
             buffers.workspace(), executor);
  }

  /// Ends an optimizer step: moves the bias by the load of all ranks, sets a lambda that adapts,
  /// and forgets the loads that losses accumulated. `reduce` is called once if there is a bias, and
  /// once if lambda adapts. Throws what it throws, and Error for a bias that would not stay finite;
  /// nothing has changed then.
  template <class Reduce = NoReduce>
  void end_step(const Reduce& reduce = {}) {
    Base::check_not_moved_from();
    if (lambda_) lambda_->prepare_step(reduce);
    if (config().bias.enabled) bias_.step(reduce, config().bias.update_rate, config().bias.centre);
    if (config().quantile.enabled) quantiles_.step(reduce, bias_);
    correction_.follow(bias_.values());
    balance_.reset();
    if (!lambda_) return;
    lambda_->commit_step();
    adapt_lambda();
  }

  /// What a checkpoint needs. Allocates.
  RouterState state() const;
  /// Takes a checkpoint of a router with the same settings; reports of earlier forwards are then
  /// refused. What is empty in the state the router has none of afterwards: RouterState{} makes it
  /// new. Throws Error that names the member that does not fit, and nothing has changed then.
  /// Allocates.
  void restore(const RouterState& state);

 private:
  using A = Accumulator;

  static const CompleteConfig& checked(const CompleteConfig& settings) {
    detail::check_input_scalars<X, W>();
    detail::check_id_type<Id>();
    detail::check_router_config<A>("Router", settings);
    detail::check_gate_arithmetic<X, W>("Router", settings.gate_arithmetic);
    return detail::checked_complete<A>(settings);
  }

  /// All checks of a forward but those of the shapes of `more`, then the first write.
  template <class Executor, class... More>
  void begin_forward(const Inputs& in, const Routing& out, Index tokens, bool jittered,
                     Workspace scratch, const Executor& executor, const More&... more) const {
    const detail::Checks checks("CompleteRouter::forward");
    const Index experts = config().num_experts;
    detail::check_complete_forward(config(), similarity_cache().rivals(), in, out, tokens,
                                   jittered);
    detail::check_forward_overlaps(checks, in, out, detail::output("workspace", scratch), more...);
    detail::Arena arena(checks.where(), scratch,
                        detail::forward_bytes<X, W>(config(), shape_of(in, tokens, executor)));
    if (in.replay != nullptr) {
      Index* scratch_E = arena.template take<Index>(experts);
      const Choices<const Id> recorded{in.replay->expert_ids(), in.is_padding_T};
      detail::check_distinct_choices(checks, "recorded ids", recorded, experts, scratch_E);
      if (detail::follows_drops(config(), in)) {
        detail::check_recorded_slots(checks, in, experts, scratch_E);
      }
    }
    const std::int64_t position = noise_position(in);
    checks.need(position >= 0 && tokens <= (std::numeric_limits<std::int64_t>::max)() - position,
                "noise_position >= 0, and noise_position + T within int64",
                {{"noise_position", position}, {"tokens", tokens}});
    detail::prepare_record(config(), in, out);
    out.forward_id[0] = 0;
  }

  /// All checks of a backward but those of the shapes of `others`, then the division of the
  /// workspace.
  template <class Executor, class... Others>
  detail::CompleteGradients<A> checked_gradients(const Forward& forward,
                                                 const BackwardInputs<A>& incoming,
                                                 Workspace scratch, const Executor& executor,
                                                 const Others&... others) const {
    const auto& [in, out, report] = forward;
    const detail::Checks checks("CompleteRouter::backward");
    const std::uint64_t forward_id = report.forward_id;
    Base::check_not_moved_from();
    checks.need(ids_.knows(forward_id),
                "a report that a forward of this router has returned: a copy or a restored router "
                "is another one",
                {{"forward_id", forward_id}});
    detail::check_complete_backward(config(), similarity_cache().rivals(), in, out, report,
                                    incoming);
    detail::check_complete_overlaps(checks, detail::Access::read, in, out,
                                    detail::output("workspace", scratch), others...,
                                    detail::input("dweights_TK", incoming.dweights_TK),
                                    detail::input("incoming.dlogits_TE", incoming.dlogits_TE));
    const BufferShape shape = shape_of(in, out.logits_TE.rows, executor);
    detail::Arena arena(checks.where(), scratch, detail::backward_bytes<X, W>(config(), shape));
    return detail::carve_gradients<X, A>(arena, config(), shape);
  }

  template <class Executor>
  BufferShape shape_of(const Inputs& in, Index tokens, const Executor& executor) const {
    return {tokens, detail::Checks("CompleteRouter").workers(executor),
            std::max<Index>(1, in.sequence_begin_S1.size - 1)};
  }

  Index most_choices(const Inputs& in) const { return detail::most_choices(config(), in); }

  /// The lambda of a penalty follows the estimate, if there is one.
  void adapt_lambda() {
    if (!lambda_ || config().competition.mode != CompetitionMode::penalty) return;
    Competition competition = config().competition;
    competition.lambda = lambda_->lambda() > 0 ? lambda_->lambda() : given_lambda_;
    Base::set_competition(competition);
  }

  std::int64_t noise_position(const Inputs& in) const {
    return in.pass == Pass::recompute ? in.replay->noise_position : noise_position_;
  }

  /// True where biases have a say in the choices.
  bool biases_decide(const Inputs& in) const {
    return in.replay == nullptr && in.hash == nullptr && !detail::is_forced(config(), in.pass);
  }

  /// The bias, where it has a say in the choices.
  VectorView<const A> choice_bias(const Inputs& in) const {
    if (!biases_decide(in)) return {};
    if (correction_.given()) return correction_.sums();
    return config().has_bias() ? bias_.values() : VectorView<const A>();
  }

  /// Where the choices of a forward count for quantiles, if they do.
  detail::NeededCounts<A> needed_counts(const Inputs& in, std::int64_t& choices) {
    if (!moves_bias(config().quantile, in)) return {};
    return {bias_.values(), quantiles_.next(), &choices};
  }

  /// True if the choices of a forward move the bias of a rule.
  template <class Rule>
  bool moves_bias(const Rule& rule, const Inputs& in) const {
    return rule.enabled && in.pass == Pass::training && biases_decide(in);
  }

  detail::LogitChange<A> logit_change(const Inputs& in, const Routing& out) const {
    return {config().noise, config().logit_soft_cap, in.pass, noise_position(in), out.logits_TE};
  }

  template <class Weights, class Reduce, class Executor, class... More>
  CompleteReport forward_with(const MatrixView<const X>& x_TH, const Weights& weights,
                              const Inputs& in, const Routing& out, Workspace workspace,
                              const Reduce& reduce, const Executor& executor, const More&... more) {
    const detail::Checks checks("CompleteRouter::forward");
    checks.matrix("x_TH", x_TH, x_TH.rows, config().hidden_size);
    Base::check_weights(checks, weights);
    const bool jittered = detail::draws_jitter(config().noise, in.pass);
    begin_forward(in, out, x_TH.rows, jittered, workspace, executor, detail::input("x_TH", x_TH),
                  more...);
    const auto seen_TH = detail::jitter(config().noise, in.pass, noise_position(in), x_TH,
                                        out.jittered_TH, executor);
    const auto change = logit_change(in, out);
    return route(
        in, out, jittered, workspace, reduce, executor, [&](const auto& layout, const auto& pass) {
          detail::gate_and_route(seen_TH, weights, layout, pass, out.logits_TE, change, executor);
        });
  }

  /// Takes the tokens through `run`, tile by tile; then follows what needs all of them, and the
  /// counters.
  template <class Reduce, class Executor, class Run>
  CompleteReport route(const Inputs& in, const Routing& out, bool jittered, Workspace workspace,
                       const Reduce& reduce, const Executor& executor, const Run& run) {
    const auto& cache = similarity_cache();
    const Index columns = in.replay != nullptr ? config().top_k : most_choices(in);
    const Routing chosen = detail::first_choices(out, columns);
    std::int64_t needed_choices = 0;
    const detail::CompleteRoute<X, A, Id> to{config(),
                                             cache.rivals(),
                                             cache.partners(),
                                             choice_bias(in),
                                             needed_counts(in, needed_choices),
                                             noise_position(in),
                                             in,
                                             chosen};
    detail::Arena arena("CompleteRouter::forward", workspace, 0);
    const int workers = detail::Checks("CompleteRouter").workers(executor);
    const RoutingReport made = detail::route_tokens(to, arena, workers, run);
    CompleteReport report =
        detail::report_of(to, detail::keep_fewer(to, made, workspace, executor));
    detail::clear_choices(out, columns);
    report.top_k = most_choices(in);
    report.jittered = jittered;
    report.forward_id = ids_.draw();
    if (detail::counts_for_losses(config().losses, in.pass)) {
      count_for_losses(in, out, report.valid_tokens, workspace, reduce, executor);
      report.losses = detail::loss_values(config(), in, out, workspace, executor);
    }
    if (config().capacity) {
      report.capacity = capacity(in, report, reduce);
      detail::drop(config(), in, out, workspace, executor, report);
    }
    if (detail::informs_lambda(config(), in)) {
      lambda_->prepare(MatrixView<const A>(out.logits_TE), cache.rivals(),
                       {most_choices(in), config().competition.ties}, in.is_padding_T, workspace,
                       executor);
    }
    commit(in, out, report, needed_choices);
    return report;
  }

  /// That of the record, or by the rule. Tokens of all ranks came with the counts of the losses, if
  /// there are any.
  template <class Reduce>
  Index capacity(const Inputs& in, const CompleteReport& report, const Reduce& reduce) const {
    if (detail::follows_drops(config(), in)) return *in.replay->capacity;
    BalanceCounts valid;
    valid.tokens = report.valid_tokens;
    if (config().capacity->over_ranks) {
      const bool counted = detail::counts_for_losses(config().losses, in.pass);
      valid = counted ? balance_.next_latest() : detail::reduced_tokens(valid, reduce);
    }
    return detail::capacity_of(config(), in.pass, report.top_k, valid);
  }

  /// Moves the counters and hands out the results. What can throw throws before anything changes.
  void commit(const Inputs& in, const Routing& out, const CompleteReport& report,
              std::int64_t needed_choices) {
    if (in.pass == Pass::training) {
      if (moves_bias(config().bias, in)) bias_.accumulate(out.tokens_per_expert_E);
      if (moves_bias(config().quantile, in)) quantiles_.commit(needed_choices);
      if (config().losses.any()) balance_.commit();
      noise_position_ += report.tokens;
    }
    if (detail::informs_lambda(config(), in)) lambda_->commit();
    detail::fill_record(config(), in, out, report);
    out.forward_id[0] = report.forward_id;
  }

  /// Sets out.totals: the loads that the losses compare with, those of the record if there is one.
  template <class Reduce, class Executor>
  void count_for_losses(const Inputs& in, const Routing& out, std::int64_t tokens,
                        Workspace workspace, const Reduce& reduce, const Executor& executor) {
    const VectorView<std::int64_t> counts_E(out.totals.data, config().num_experts);
    detail::count_for_losses(config(), in.is_padding_T, most_choices(in), out, counts_E, workspace,
                             executor);
    if (in.pass == Pass::recompute) {
      std::copy(in.replay->totals.begin(), in.replay->totals.end(), out.totals.data);
      return;
    }
    const bool per_sequence = config().losses.sequence > 0;
    const std::int64_t sequences =
        per_sequence ? detail::count_sequences(in.is_padding_T, in.sequence_begin_S1) : 0;
    balance_.prepare({counts_E, tokens, sequences}, reduce);
    detail::store_totals(balance_.next_latest(), balance_.next_total(), out.totals);
  }

  ExpertBias<Accumulator> bias_;
  detail::CorrectionBias<Accumulator> correction_;
  QuantileCounts<Accumulator> quantiles_;
  BalanceAccumulator balance_;
  std::optional<LambdaEstimate> lambda_;
  double given_lambda_ = 0;  // while there is no estimate
  std::int64_t noise_position_ = 0;
  detail::ForwardIds ids_;
};

template <class X, class W, class Id>
RouterState CompleteRouter<X, W, Id>::state() const {
  RouterState state;
  const auto& cache = similarity_cache();
  const auto partners_EM = cache.partners();
  state.partners_EM.assign(partners_EM.data,
                           partners_EM.data + partners_EM.rows * partners_EM.cols);
  if (cache.has_partners()) state.partners_step = cache.last_refresh_step();
  if (config().has_bias()) {
    const auto values = bias_.values();
    state.expert_bias_E.assign(values.data, values.data + values.size);
  }
  if (config().bias.enabled) {
    const auto counts = bias_.counts();
    state.bias_counts_E.assign(counts.data, counts.data + counts.size);
  }
  if (quantiles_.choices() > 0) {
    const auto counts = quantiles_.counts();
    state.quantile_counts_EB.assign(counts.data, counts.data + counts.rows * counts.cols);
    state.quantile_choices = quantiles_.choices();
  }
  const auto correction = correction_.values();
  state.correction_bias_E.assign(correction.data, correction.data + correction.size);
  const BalanceCounts total = balance_.total();
  state.balance_counts_E.assign(total.tokens_per_expert_E.data,
                                total.tokens_per_expert_E.data + total.tokens_per_expert_E.size);
  state.balance_tokens = total.tokens;
  state.noise_position = noise_position_;
  if (lambda_) {
    const auto estimate = lambda_->estimate();
    const auto counts = lambda_->counts();
    state.lambda_estimate.assign(estimate.data, estimate.data + estimate.size);
    state.lambda_counts.assign(counts.data, counts.data + counts.size);
  }
  return state;
}

template <class X, class W, class Id>
void CompleteRouter<X, W, Id>::restore(const RouterState& state) {
  detail::check_state<A>("CompleteRouter::restore", config(), state);
  CompleteRouter fresh(config());  // so that a failure changes nothing
  const Index experts = config().num_experts;
  if (!state.partners_EM.empty()) {
    const Index m = config().pairing.partners_per_expert;
    fresh.set_partners({state.partners_EM.data(), experts, m, m, 1}, state.partners_step);
  }
  if (!state.expert_bias_E.empty()) {
    const std::vector<A> bias_E(state.expert_bias_E.begin(), state.expert_bias_E.end());
    std::vector<std::int64_t> counts_E = state.bias_counts_E;
    counts_E.resize(bias_E.size());
    fresh.bias_.restore(bias_E, counts_E);
  }
  if (!state.quantile_counts_EB.empty()) {
    fresh.quantiles_.restore({state.quantile_counts_EB.data(), experts, 1 + config().quantile.bins},
                             state.quantile_choices);
  }
  if (!state.correction_bias_E.empty()) {
    const std::vector<A> bias_E(state.correction_bias_E.begin(), state.correction_bias_E.end());
    fresh.set_correction_bias(bias_E);
  }
  if (!state.balance_counts_E.empty()) {
    fresh.balance_.restore({state.balance_counts_E, state.balance_tokens});
  }
  if (!state.lambda_estimate.empty()) {
    fresh.lambda_->restore(state.lambda_estimate, state.lambda_counts);
  }
  fresh.given_lambda_ = given_lambda_;
  fresh.adapt_lambda();
  fresh.noise_position_ = state.noise_position;
  fresh.ids_ = std::move(ids_);
  fresh.ids_.forget();
  *this = std::move(fresh);
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_ROUTER_COMPLETE_ROUTER_HPP
