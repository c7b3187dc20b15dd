// SPDX-License-Identifier: MIT
// The model: context bytes -> embedding -> linear -> MoE layers -> scores of the next byte. With
// windows, a layer of attention comes before each MoE layer.
#ifndef TRAIN_MOE_MODEL_HPP
#define TRAIN_MOE_MODEL_HPP

#include <cstdint>
#include <numeric>
#include <vector>

#include "attention.hpp"
#include "cross_entropy.hpp"
#include "linear.hpp"
#include "moe_layer.hpp"
#include "text.hpp"

namespace train_moe {

/// `A`: float to train, double to check gradients. `Layer`: a MoeLayer, or one with its interface.
template <class A, class Layer = MoeLayer<A>>
class Model {
 public:
  Model(const Sizes& sizes, const typename Layer::Options& options, std::uint64_t seed,
        const Executor& executor)
      : executor_(executor),
        embedding_("embedding", bytes, sizes.embedding, 1, random(seed, 0)),
        input_("input", sizes.hidden, sizes.context * sizes.embedding,
               initial_deviation(sizes, sizes.context * sizes.embedding), random(seed, 1)),
        output_("output", bytes, sizes.hidden, initial_deviation(sizes, sizes.hidden),
                random(seed, 2)) {
    layers_.reserve(static_cast<std::size_t>(sizes.layers));
    for (Index l = 0; l < sizes.layers; ++l) {
      if (sizes.window > 1) attention_.emplace_back(sizes, l, seed);
      layers_.emplace_back(sizes, options, l, seed, executor);
    }
  }

  /// The loss of a batch, without auxiliary losses: mean nats per byte.
  double forward(const Batch& batch, gatepro::Pass pass = gatepro::Pass::training) {
    embed(batch.context_TC);
    const auto last_T = batch.context_TC.rightCols<1>();
    last_byte_T_.assign(last_T.begin(), last_T.end());
    linear(embedded_TI_, input_.value, x_TH_, executor_);
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      if (!attention_.empty()) attention_[l].forward(x_TH_, executor_);
      layers_[l].forward(x_TH_, last_byte_T_, pass, executor_);
    }
    linear(x_TH_, output_.value, scores_TV_, executor_);
    cross_entropy(scores_TV_, batch.target_T, loss_T_, executor_);
    return std::accumulate(loss_T_.begin(), loss_T_.end(), 0.0) /
           static_cast<double>(loss_T_.size());
  }
  /// The loss of each token in the last forward.
  const std::vector<double>& loss_T() const { return loss_T_; }

  /// Adds the gradients of the last forward, of this batch, auxiliary losses included unless it was
  /// an evaluation.
  void backward(const Batch& batch) { backward(batch, batch.context_TC.rows()); }
  /// The same where the mean is over more tokens than these.
  void backward(const Batch& batch, Index tokens_in_mean) {
    cross_entropy_backward(scores_TV_, batch.target_T, tokens_in_mean);
    linear_backward(x_TH_, output_.value, scores_TV_, dx_TH_, output_.gradient, executor_);
    for (std::size_t l = layers_.size(); l-- > 0;) {
      layers_[l].backward(dx_TH_, executor_);
      if (!attention_.empty()) attention_[l].backward(dx_TH_, executor_);
    }
    linear_backward(embedded_TI_, input_.value, dx_TH_, dembedded_TI_, input_.gradient, executor_);
    embed_backward(batch.context_TC);
  }

  /// The sum of the layers' auxiliary losses in the last forward.
  double auxiliary_loss() const {
    double sum = 0;
    for (const Layer& layer : layers_) sum += layer.auxiliary_loss();
    return sum;
  }

  void set_competition(const gatepro::Competition& competition) {
    for (Layer& layer : layers_) layer.router().set_competition(competition);
  }

  std::vector<Layer>& layers() { return layers_; }

  /// All parameters but the experts'.
  std::vector<Parameter<A>*> shared_parameters() {
    std::vector<Parameter<A>*> shared{&embedding_, &input_, &output_};
    for (Attention<A>& attention : attention_) {
      for (Parameter<A>* parameter : attention.parameters()) shared.push_back(parameter);
    }
    for (Layer& layer : layers_) {
      for (Parameter<A>* parameter : layer.router_parameters()) shared.push_back(parameter);
    }
    return shared;
  }
  std::vector<Parameter<A>*> parameters() {
    std::vector<Parameter<A>*> all = shared_parameters();
    for (Layer& layer : layers_) {
      all.insert(all.end(), {&layer.experts().in(), &layer.experts().out()});
    }
    return all;
  }

 private:
  static constexpr Index bytes = 256;

  static Random random(std::uint64_t seed, std::uint64_t which) {
    return Random(seed, Stream::parameters, which);
  }

  /// Row t: the embeddings of the C context bytes, one after the other.
  void embed(const RowMatrix<std::uint8_t>& context_TC) {
    const Index width = embedding_.value.cols();
    embedded_TI_.resize(context_TC.rows(), context_TC.cols() * width);
    for (Index t = 0; t < context_TC.rows(); ++t) {
      for (Index c = 0; c < context_TC.cols(); ++c) {
        embedded_TI_.block(t, c * width, 1, width) = embedding_.value.row(context_TC(t, c));
      }
    }
  }

  void embed_backward(const RowMatrix<std::uint8_t>& context_TC) {
    const Index width = embedding_.value.cols();
    for (Index t = 0; t < context_TC.rows(); ++t) {
      for (Index c = 0; c < context_TC.cols(); ++c) {
        embedding_.gradient.row(context_TC(t, c)) += dembedded_TI_.block(t, c * width, 1, width);
      }
    }
  }

  Executor executor_;
  Parameter<A> embedding_;
  Parameter<A> input_;
  Parameter<A> output_;
  std::vector<Attention<A>> attention_;  // none, or one per layer
  std::vector<Layer> layers_;
  RowMatrix<A> embedded_TI_, x_TH_, scores_TV_;
  RowMatrix<A> dembedded_TI_, dx_TH_;
  std::vector<double> loss_T_;
  std::vector<std::int64_t> last_byte_T_;
};

}  // namespace train_moe

#endif  // TRAIN_MOE_MODEL_HPP
