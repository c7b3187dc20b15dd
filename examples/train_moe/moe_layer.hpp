// SPDX-License-Identifier: MIT
// One residual mixture-of-experts layer, routed by gatepro.
#ifndef TRAIN_MOE_MOE_LAYER_HPP
#define TRAIN_MOE_MOE_LAYER_HPP

#include <cmath>
#include <cstddef>
#include <gatepro/gatepro.hpp>
#include <string>
#include <vector>

#include "experts.hpp"
#include "rms_norm.hpp"

namespace train_moe {

/// Sizes of the model, by the names of the options.
struct Sizes {
  Index tokens = 512;        // T, per step
  Index context = 16;        // C, bytes that predict the next one
  Index embedding = 16;      // M, per byte
  Index hidden = 64;         // H
  Index layers = 2;          // L
  Index experts = 64;        // E
  Index top_k = 6;           // K
  Index expert_hidden = 32;  // F, per expert
  Index window = 1;          // consecutive tokens that attention spans; 1: no attention
  Index heads = 4;           // of attention
  double weight_scale = 1;   // see initial_deviation
};

/// The deviation of a linear map's initial weights. At scale 1 it is that of PyTorch's default,
/// which is uniform between -1 / sqrt(fan_in) and 1 / sqrt(fan_in).
inline double initial_deviation(const Sizes& sizes, Index fan_in) {
  return sizes.weight_scale / std::sqrt(3 * static_cast<double>(fan_in));
}

/// The deviation of the router's initial weights.
inline constexpr double gate_deviation = 0.02;

/// The numbers that a parameter of a layer starts from: 0 for the router, 1 and 2 for the experts.
inline Random layer_random(std::uint64_t seed, Index layer, Index which) {
  return Random(seed, Stream::parameters, static_cast<std::uint64_t>(100 + 10 * layer + which));
}

/// The experts of a layer as they start.
template <class A>
ExpertNetworks<A> expert_networks(const Sizes& sizes, const std::string& layer_name, Index number,
                                  std::uint64_t seed) {
  return {
      Parameter<A>(layer_name + "expert_in", sizes.experts * sizes.expert_hidden, sizes.hidden,
                   initial_deviation(sizes, sizes.hidden), layer_random(seed, number, 1)),
      Parameter<A>(layer_name + "expert_out", sizes.experts * sizes.hidden, sizes.expert_hidden,
                   initial_deviation(sizes, sizes.expert_hidden), layer_random(seed, number, 2))};
}

/// What differs between the arms of a comparison.
struct Routing {
  gatepro::Competition competition = gatepro::Competition::off();
  gatepro::RefreshSchedule refresh{};
  double balance_coefficient = 0;  // 0 for no balance loss
};

/// x += sum over the selected experts of weight * expert(norm(x)).
template <class A>
class MoeLayer {
 public:
  /// What the model hands on to each layer.
  using Options = Routing;

  MoeLayer(const Sizes& sizes, const Routing& routing, Index number, std::uint64_t seed,
           const Executor& executor)
      : name_("layer" + std::to_string(number) + "."),
        balance_{routing.balance_coefficient},
        gate_(name_ + "router", sizes.experts, sizes.hidden, gate_deviation,
              layer_random(seed, number, 0)),
        experts_(expert_networks<A>(sizes, name_, number, seed)),
        router_(router_config(sizes, routing)),
        routed_(router_,
                gatepro::BufferShape{sizes.tokens, executor.workers(), 1, /*keep_logits=*/true}) {
    refresh(0, executor);
  }

  /// After each optimizer step: partners follow the router weights. True if it was due.
  bool refresh(std::int64_t step, const Executor& executor) {
    return router_.refresh(gate_.value, step, executor);
  }

  void forward(RowMatrix<A>& x_TH, const Executor& executor) {
    norm_.forward(x_TH, executor);
    routed_.resize(x_TH.rows());
    statistics_ = {};
    auto out = routed_.view();
    out.statistics = &statistics_;
    router_.forward(norm_.normed_TH, gate_.value, out, routed_.workspace(), executor);
    if (balance_.coefficient > 0) balance(executor);
    experts_.forward(norm_.normed_TH, routed_.expert_ids_TK(), routed_.weights_TK(), x_TH,
                     executor);
  }

  /// dx_TH: the gradient after the layer; becomes the gradient before it.
  void backward(RowMatrix<A>& dx_TH, const Executor& executor) {
    experts_.backward(dx_TH, routed_.weights_TK(), dnormed_TH_, dweights_TK_, executor);
    gatepro::MatrixView<const A> dlogits_TE;  // not given, unless there is an auxiliary loss
    if (balance_.coefficient > 0) dlogits_TE = dlogits_TE_;
    router_.backward(norm_.normed_TH, gate_.value, routed_, {dweights_TK_, dlogits_TE},
                     {dnormed_TH_, gate_.gradient}, executor);
    norm_.backward(dnormed_TH_, dx_TH, executor);
  }

  gatepro::Router<A>& router() { return router_; }
  /// E x H: the weights of the router.
  Parameter<A>& gate() { return gate_; }
  Experts<A>& experts() { return experts_; }
  /// Results of the last forward.
  const gatepro::RoutingBuffers<gatepro::Router<A>>& routed() const { return routed_; }
  /// What the penalty did in the last forward.
  const gatepro::PenaltyStatistics& statistics() const { return statistics_; }
  /// The auxiliary loss of the last forward.
  double auxiliary_loss() const { return balance_loss_; }

 private:
  static gatepro::RouterConfig router_config(const Sizes& sizes, const Routing& routing) {
    gatepro::RouterConfig config{sizes.hidden, sizes.experts, sizes.top_k};
    config.competition = routing.competition;
    config.refresh = routing.refresh;
    return config;
  }

  /// The load-balancing loss of the batch, as Megatron scales it, and its gradient.
  void balance(const Executor& executor) {
    const gatepro::MatrixView<const A> logits_TE = routed_.logits_TE();
    scratch_.resize(gatepro::load_balancing_loss_workspace_bytes<A>(logits_TE.rows, logits_TE.cols,
                                                                    executor.workers()));
    dlogits_TE_.setZero(logits_TE.rows, logits_TE.cols);
    balance_loss_ = gatepro::load_balancing_loss(
        gatepro::LossLogits{logits_TE, {}, dlogits_TE_},
        {routed_.tokens_per_expert_E(), logits_TE.rows},
        {gatepro::ScoreFunction::softmax_before_top_k, router_.config().top_k}, balance_, scratch_,
        executor);
  }

  std::string name_;
  gatepro::LossWeight balance_;
  double balance_loss_ = 0;
  Parameter<A> gate_;
  Experts<A> experts_;
  RmsNorm<A> norm_;
  gatepro::Router<A> router_;
  gatepro::RoutingBuffers<gatepro::Router<A>> routed_;
  gatepro::PenaltyStatistics statistics_;
  RowMatrix<A> dnormed_TH_, dweights_TK_, dlogits_TE_;
  std::vector<std::byte> scratch_;
};

}  // namespace train_moe

#endif  // TRAIN_MOE_MOE_LAYER_HPP
