// SPDX-License-Identifier: MIT
// One residual mixture-of-experts layer, routed by gatepro.
#ifndef TRAIN_MOE_MOE_LAYER_HPP
#define TRAIN_MOE_MOE_LAYER_HPP

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <gatepro/gatepro.hpp>
#include <gatepro/setup.hpp>
#include <optional>
#include <string>
#include <vector>

#include "experts.hpp"
#include "linear.hpp"
#include "output_similarity.hpp"
#include "rms_norm.hpp"
#include "routing.hpp"

namespace train_moe {

/// Sizes of the model, by the names of the options.
struct Sizes {
  Index tokens = 512;              // T, per step
  Index context = 16;              // C, bytes that predict the next one
  Index embedding = 16;            // M, per byte
  Index hidden = 64;               // H
  Index layers = 2;                // L
  Index experts = 64;              // E
  Index top_k = 6;                 // K
  Index expert_hidden = 32;        // F, per expert
  Index window = 1;                // consecutive tokens that attention spans; 1: no attention
  Index heads = 4;                 // of attention
  double weight_scale = 1;         // see initial_deviation
  double router_deviation = 0.02;  // of the router's initial weights
};

/// The deviation of a linear map's initial weights. At scale 1 it is that of PyTorch's default,
/// which is uniform between -1 / sqrt(fan_in) and 1 / sqrt(fan_in).
inline double initial_deviation(const Sizes& sizes, Index fan_in) {
  return sizes.weight_scale / std::sqrt(3 * static_cast<double>(fan_in));
}

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

/// Weights as the Switch Transformer has them: the score of the selected expert among all experts.
/// A weight that is divided by the sum of the selected ones is always 1 if there is one, and the
/// router would learn nothing from it.
inline void weigh_single_expert(gatepro::ScoreRule& scores) {
  using gatepro::ScoreFunction;
  if (scores.function == ScoreFunction::softmax_after_top_k) {
    scores.function = ScoreFunction::softmax_before_top_k;
  }
  scores.renormalise = false;
}

/// The settings of a layer's router.
inline gatepro::CompleteConfig router_config(const Sizes& sizes, const Routing& routing) {
  gatepro::CompleteConfig config = routing.config;
  config.hidden_size = sizes.hidden;
  config.num_experts = sizes.experts;
  config.top_k = sizes.top_k;
  if (sizes.top_k == 1) weigh_single_expert(config.scores);
  return config;
}

/// The router's weights as they start.
template <class A>
Parameter<A> router_weights(const Sizes& sizes, const Routing& routing, const std::string& name,
                            Index number, std::uint64_t seed) {
  Parameter<A> gate(name, sizes.experts, sizes.hidden, sizes.router_deviation,
                    layer_random(seed, number, 0));
  if (!routing.orthogonal_start) return gate;
  const double length = sizes.router_deviation * std::sqrt(static_cast<double>(sizes.hidden));
  std::vector<std::byte> memory(
      gatepro::orthogonal_weights_workspace_bytes(sizes.experts, sizes.hidden));
  gatepro::orthogonal_weights(seed + static_cast<std::uint64_t>(number) * 1000003, length,
                              gatepro::view(gate.value), memory);
  return gate;
}

/// The table of a hashed layer, whose vocabulary is all bytes.
inline std::optional<gatepro::HashTable> hash_table(const Sizes& sizes, const Routing& routing,
                                                    Index number, std::uint64_t seed) {
  if (!routing.hash) return std::nullopt;
  return gatepro::random_hash_table(256, sizes.experts, sizes.top_k,
                                    seed + static_cast<std::uint64_t>(number) * 1000003);
}

/// Tokens of a sequence, for losses per sequence: those of a window, or 64 where there are none.
inline Index sequence_tokens(const Sizes& sizes) { return sizes.window > 1 ? sizes.window : 64; }

/// Where the sequences of a batch begin, and its end. The last one may be shorter.
inline std::vector<std::int64_t> sequence_begins(const Sizes& sizes, Index tokens) {
  std::vector<std::int64_t> begin_S1;
  for (Index t = 0; t < tokens; t += sequence_tokens(sizes)) begin_S1.push_back(t);
  begin_S1.push_back(tokens);
  return begin_S1;
}

/// x += sum over the selected experts of weight * expert(norm(x)).
template <class A>
class MoeLayer {
 public:
  /// What the model hands on to each layer.
  using Options = Routing;

  MoeLayer(const Sizes& sizes, const Routing& routing, Index number, std::uint64_t seed,
           const Executor& executor)
      : sizes_(sizes),
        bf16_logits_(routing.bf16_logits),
        output_partners_(routing.output_partners),
        name_("layer" + std::to_string(number) + "."),
        apart_(routing.apart),
        hash_(hash_table(sizes, routing, number, seed)),
        gate_(router_weights<A>(sizes, routing, name_ + "router", number, seed)),
        gate_bias_(name_ + "router_bias", 1, routing.gate_bias ? sizes.experts : 0, 0,
                   layer_random(seed, number, 0)),
        experts_(expert_networks<A>(sizes, name_, number, seed)),
        router_(router_config(sizes, routing)),
        routed_(router_, gatepro::BufferShape{sizes.tokens, executor.workers(),
                                              1 + sizes.tokens / sequence_tokens(sizes)}) {
    in_.top_k = routing.choices;
    refresh(0, executor);
  }

  /// After each optimizer step: partners follow the router weights. True if it was due.
  bool refresh(std::int64_t step, const Executor& executor) {
    if (!output_partners_ || input().rows() == 0) {
      return router_.refresh(gate_.value, step, executor);
    }
    if (!router_.similarity_cache().is_due(step)) return false;
    const Index sample = std::min<Index>(128, input().rows());
    const auto partners_E1 =
        most_similar(output_similarity<A>(experts_.networks(), input().topRows(sample), executor));
    router_.set_partners(gatepro::MatrixView<const std::int32_t>(partners_E1), step);
    return true;
  }

  /// Ends an optimizer step: what balances without a loss moves.
  void end_step() { router_.end_step(); }

  /// bytes_T: the last byte that each token knows.
  void forward(RowMatrix<A>& x_TH, const std::vector<std::int64_t>& bytes_T, gatepro::Pass pass,
               const Executor& executor) {
    norm_.forward(x_TH, executor);
    begin_S1_ = sequence_begins(sizes_, x_TH.rows());
    in_.pass = pass;
    in_.sequence_begin_S1 = begin_S1_;
    statistics_ = {};
    auto out = routed_.view(x_TH.rows());
    if (hash_) {
      bytes_T_ = bytes_T;
      in_.hash = &*hash_;
      in_.token_ids_T = bytes_T_;
    } else {
      out.statistics = &statistics_;
    }
    apart_loss_ = pass == gatepro::Pass::evaluation ? 0 : keep_apart({}, executor);
    routed_.set_report(bf16_logits_
                           ? route_rounded(out, executor)
                           : router_.forward(norm_.normed_TH,
                                             {gate_.value, bias_of(gate_bias_.value)}, in_, out,
                                             routed_.workspace(), gatepro::NoReduce(), executor));
    experts_.forward(norm_.normed_TH, routed_.expert_ids_TK(), routed_.weights_TK(), x_TH,
                     executor);
  }

  /// dx_TH: the gradient after the layer; becomes the gradient before it.
  void backward(RowMatrix<A>& dx_TH, const Executor& executor) {
    experts_.backward(dx_TH, routed_.weights_TK(), dnormed_TH_, dweights_TK_, executor);
    gatepro::GateGradients<A> gradients{dnormed_TH_, gate_.gradient};
    gradients.dbias_E = bias_of(gate_bias_.gradient);
    router_.backward(norm_.normed_TH, gate_.value, in_, routed_, {dweights_TK_}, gradients,
                     executor);
    if (in_.pass != gatepro::Pass::evaluation) {
      keep_apart(gatepro::view(gate_.gradient), executor);
    }
    norm_.backward(dnormed_TH_, dx_TH, executor);
  }

  gatepro::CompleteRouter<A>& router() { return router_; }
  /// E x H: the weights of the router.
  Parameter<A>& gate() { return gate_; }
  /// All that the router learns: its weights, and the bias of its logits if it has one.
  std::vector<Parameter<A>*> router_parameters() {
    if (gate_bias_.value.size() == 0) return {&gate_};
    return {&gate_, &gate_bias_};
  }
  Experts<A>& experts() { return experts_; }
  /// What the last forward routed: its tokens, normed.
  const RowMatrix<A>& input() const { return norm_.normed_TH; }
  /// True if partners are similar by what they put out, not by their router weights.
  bool has_output_partners() const { return output_partners_; }
  /// Results of the last forward.
  const gatepro::RoutingBuffers<gatepro::CompleteRouter<A>>& routed() const { return routed_; }
  /// What the penalty did in the last forward.
  const gatepro::PenaltyStatistics& statistics() const { return statistics_; }
  /// The auxiliary losses of the last forward; 0 after an evaluation.
  double auxiliary_loss() const { return routed_.report().losses.sum() + apart_loss_; }

 private:
  /// Not given if there is none.
  static gatepro::VectorView<A> bias_of(RowMatrix<A>& bias_1E) {
    if (bias_1E.size() == 0) return {};
    return {bias_1E.data(), bias_1E.size()};
  }

  /// The loss on the router's rows; its gradient is added to dw_EH, if that is given.
  double keep_apart(gatepro::MatrixView<A> dw_EH, const Executor& executor) {
    apart_memory_.resize(
        gatepro::orthogonality_loss_workspace_bytes<A>(sizes_.experts, sizes_.hidden, 0, executor));
    return gatepro::orthogonality_loss(gatepro::view(gate_.value), {}, apart_, dw_EH, apart_memory_,
                                       executor)
        .loss;
  }

  /// Routes with logits rounded to bfloat16. The gradient takes the rounding for the identity.
  template <class Out>
  gatepro::CompleteReport route_rounded(const Out& out, const Executor& executor) {
    linear(norm_.normed_TH, gate_.value, logits_TE_, executor);
    if (gate_bias_.value.size() != 0) logits_TE_.rowwise() += gate_bias_.value.row(0);
    for (Index t = 0; t < logits_TE_.rows(); ++t) {
      for (Index e = 0; e < logits_TE_.cols(); ++e) {
        out.logits_TE(t, e) = static_cast<A>(static_cast<Eigen::bfloat16>(logits_TE_(t, e)));
      }
    }
    return router_.forward_logits(in_, out, routed_.workspace(), gatepro::NoReduce(), executor);
  }

  Sizes sizes_;
  bool bf16_logits_, output_partners_;
  std::string name_;
  gatepro::OrthogonalityRule apart_;
  double apart_loss_ = 0;
  std::vector<std::byte> apart_memory_;
  std::optional<gatepro::HashTable> hash_;
  Parameter<A> gate_, gate_bias_;
  Experts<A> experts_;
  RmsNorm<A> norm_;
  gatepro::CompleteRouter<A> router_;
  gatepro::RoutingBuffers<gatepro::CompleteRouter<A>> routed_;
  std::vector<std::int64_t> begin_S1_, bytes_T_;
  gatepro::ForwardInputs<> in_;  // of the last forward
  gatepro::PenaltyStatistics statistics_;
  RowMatrix<A> logits_TE_, dnormed_TH_, dweights_TK_;
};

}  // namespace train_moe

#endif  // TRAIN_MOE_MOE_LAYER_HPP
