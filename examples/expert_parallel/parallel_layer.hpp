// SPDX-License-Identifier: MIT
// One residual mixture-of-experts layer whose experts are spread over ranks.
#ifndef EXPERT_PARALLEL_PARALLEL_LAYER_HPP
#define EXPERT_PARALLEL_PARALLEL_LAYER_HPP

#include <cstdint>
#include <gatepro/gatepro.hpp>
#include <string>
#include <utility>
#include <vector>

#include "exchange.hpp"
#include "moe_layer.hpp"

namespace expert_parallel {

using train_moe::ExpertNetworks;
using train_moe::Parameter;

/// The experts [first, first + count) of `all`.
template <class A>
ExpertNetworks<A> some_experts(ExpertNetworks<A> all, Index first, Index count) {
  const auto cut = [&](Parameter<A>& whole) {
    const Index rows = whole.value.rows() / all.count();  // of an expert
    Parameter<A> part = whole;
    part.value = whole.value.middleRows(first * rows, count * rows);
    part.gradient = whole.gradient.middleRows(first * rows, count * rows);
    return part;
  };
  return {cut(all.in()), cut(all.out())};
}

/// A train_moe::MoeLayer with E / R experts on each of R ranks. The router's weights are on all.
template <class A>
class ParallelLayer {
 public:
  /// What the model hands on to each layer.
  struct Options {
    train_moe::Routing routing;
    const Communicator& comm;
    Ledger& ledger;
  };

  /// sizes.tokens: the most that this rank routes at a time. Starts with the parameters that a
  /// MoeLayer of the same number and seed has.
  ParallelLayer(const train_moe::Sizes& sizes, const Options& options, Index number,
                std::uint64_t seed, const Executor& executor)
      : comm_(options.comm),
        ledger_(options.ledger),
        owner_(static_cast<int>(number % comm_.size())),
        name_("layer" + std::to_string(number) + "."),
        gate_(name_ + "router", sizes.experts, sizes.hidden, sizes.router_deviation,
              train_moe::layer_random(seed, number, 0)),
        experts_(some_experts(train_moe::expert_networks<A>(sizes, name_, number, seed),
                              comm_.rank() * (sizes.experts / comm_.size()),
                              sizes.experts / comm_.size())),
        router_(train_moe::router_config(sizes, options.routing)),
        routed_(router_, sizes.tokens, executor.workers()),
        exchange_(comm_, ledger_, sizes.experts, sizes.hidden) {
    refresh(0, executor);
  }

  /// One rank finds the partners, another one for each layer, and tells the others. True if it was
  /// due.
  bool refresh(std::int64_t step, const Executor& executor) {
    if (!router_.similarity_cache().is_due(step)) return false;
    ledger_.time(Part::partners, [&] {
      std::vector<std::int32_t> partner_E(static_cast<std::size_t>(gate_.value.rows()));
      if (comm_.rank() == owner_) {
        router_.refresh_now(gate_.value, step, executor);
        const auto found_EM = router_.similarity_cache().partners();
        partner_E.assign(found_EM.data, found_EM.data + found_EM.rows);
      }
      comm_.broadcast(partner_E, owner_);
      if (comm_.rank() != owner_) {
        router_.set_partners({partner_E.data(), gate_.value.rows(), 1}, step);
      }
    });
    return true;
  }

  void forward(RowMatrix<A>& x_TH, const std::vector<std::int64_t>&, gatepro::Pass pass,
               const Executor& executor) {
    norm_.forward(x_TH, executor);
    in_.pass = pass;
    ledger_.time(Part::route, [&] { route(executor); });
    exchange_.plan(routed_.expert_ids_TK());
    ledger_.time(Part::permute, [&] {
      rows_SH_.resize(exchange_.token_of_row_S().size, x_TH.cols());
      gatepro::permute(exchange_.token_of_row_S(), norm_.normed_TH, gatepro::view(rows_SH_),
                       executor);
    });
    exchange_.to_experts(rows_SH_, in_NH_, executor);
    ledger_.time(Part::experts,
                 [&] { experts_.forward(in_NH_, exchange_.begin_E1(), out_NH_, executor); });
    exchange_.from_experts(out_NH_, result_SH_, executor);
    ledger_.time(Part::permute, [&] {
      gatepro::combine(exchange_.row_TK(), routed_.weights_TK(), gatepro::view(result_SH_),
                       gatepro::view(x_TH), executor);
    });
  }

  /// dx_TH: the gradient after the layer; becomes the gradient before it.
  void backward(RowMatrix<A>& dx_TH, const Executor& executor) {
    dweights_TK_.setZero(dx_TH.rows(), router_.config().top_k);
    rows_SH_.setZero(result_SH_.rows(), result_SH_.cols());
    ledger_.time(Part::permute, [&] {
      gatepro::combine_backward_weights(exchange_.row_TK(), gatepro::view(result_SH_), dx_TH,
                                        gatepro::strided_view(dweights_TK_), executor);
      gatepro::combine_backward_rows(exchange_.choice_of_row_S(), routed_.weights_TK(), dx_TH,
                                     gatepro::view(rows_SH_), executor);
    });
    exchange_.to_experts(rows_SH_, dout_NH_, executor);
    ledger_.time(Part::experts, [&] {
      experts_.backward(in_NH_, exchange_.begin_E1(), dout_NH_, din_NH_, executor);
    });
    exchange_.from_experts(din_NH_, rows_SH_, executor);
    dnormed_TH_.setZero(dx_TH.rows(), dx_TH.cols());
    ledger_.time(Part::permute, [&] {
      gatepro::permute_backward(exchange_.row_TK(), rows_SH_, gatepro::view(dnormed_TH_), executor);
    });
    ledger_.time(Part::route, [&] {
      router_.backward(norm_.normed_TH, gate_.value, in_, routed_, {dweights_TK_},
                       {dnormed_TH_, gate_.gradient}, executor);
    });
    norm_.backward(dnormed_TH_, dx_TH, executor);
  }

  /// Ends an optimizer step: moves the bias.
  void end_step() {
    ledger_.time(Part::route, [&] { router_.end_step(comm_.sum()); });
  }

  gatepro::CompleteRouter<A>& router() { return router_; }
  /// E x H: the weights of the router.
  Parameter<A>& gate() { return gate_; }
  /// All that the router learns.
  std::vector<Parameter<A>*> router_parameters() { return {&gate_}; }
  /// Those of this rank.
  ExpertNetworks<A>& experts() { return experts_; }
  /// Results of the last forward.
  const gatepro::RoutingBuffers<gatepro::CompleteRouter<A>>& routed() const { return routed_; }
  /// With a balance loss: how much of this rank's tokens' scores each expert had in the last
  /// forward.
  gatepro::VectorView<const double> share_sums_E() { return routed_.view().share_sums_E; }
  /// The balance loss of the last forward, from the shares of all ranks. 0 if there is none.
  double balance_loss(const std::vector<double>& share_sums_E) const {
    const gatepro::LossWeight weight{router_.config().losses.batch,
                                     router_.balance().latest().tokens};
    if (weight.coefficient == 0) return 0;
    return gatepro::load_balancing_loss_value(share_sums_E, router_.balance().latest(),
                                              router_.config().top_k, weight);
  }
  /// Rows that came to this rank's experts in the last forward.
  Index rows() const { return in_NH_.rows(); }

 private:
  void route(const Executor& executor) {
    routed_.resize(norm_.normed_TH.rows());
    router_.forward(norm_.normed_TH, gate_.value, in_, routed_, comm_.sum(), executor);
  }

  const Communicator& comm_;
  Ledger& ledger_;
  int owner_;  // the rank that finds this layer's partners
  std::string name_;
  Parameter<A> gate_;
  ExpertNetworks<A> experts_;
  train_moe::RmsNorm<A> norm_;
  gatepro::CompleteRouter<A> router_;
  gatepro::RoutingBuffers<gatepro::CompleteRouter<A>> routed_;
  gatepro::ForwardInputs<> in_;  // of the last forward
  Exchange<A> exchange_;
  RowMatrix<A> rows_SH_, result_SH_;                // of this rank's choices
  RowMatrix<A> in_NH_, out_NH_, din_NH_, dout_NH_;  // of this rank's experts
  RowMatrix<A> dnormed_TH_, dweights_TK_;
};

}  // namespace expert_parallel

#endif  // EXPERT_PARALLEL_PARALLEL_LAYER_HPP
