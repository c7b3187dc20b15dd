// SPDX-License-Identifier: MIT
// One residual layer of causal attention.
#ifndef TRAIN_MOE_ATTENTION_HPP
#define TRAIN_MOE_ATTENTION_HPP

#include <cmath>
#include <string>

#include "linear.hpp"
#include "moe_layer.hpp"
#include "rms_norm.hpp"

namespace train_moe {

/// x += output(softmax(q k^T / sqrt(D) + bias) v), where q, k and v are linear in norm(x).
///
/// Tokens come in windows of consecutive ones. Each attends to itself and to those before it in its
/// window. The bias, one number per head and distance, tells near from far.
template <class A>
class Attention {
 public:
  Attention(const Sizes& sizes, Index number, std::uint64_t seed)
      : window_(sizes.window),
        heads_(sizes.heads),
        width_(sizes.hidden / sizes.heads),
        projection_(name(number, "projection"), 3 * sizes.hidden, sizes.hidden,
                    initial_deviation(sizes, sizes.hidden), layer_random(seed, number, 3)),
        output_(name(number, "output"), sizes.hidden, sizes.hidden,
                initial_deviation(sizes, sizes.hidden), layer_random(seed, number, 4)),
        bias_(name(number, "bias"), sizes.heads, sizes.window, bias_deviation,
              layer_random(seed, number, 5)) {}

  /// x_TH: whole windows.
  void forward(RowMatrix<A>& x_TH, const Executor& executor) {
    norm_.forward(x_TH, executor);
    linear(norm_.normed_TH, projection_.value, projected_TQ_, executor);
    attention_SW_.resize(x_TH.rows() * heads_, window_);
    mixed_TH_.resize(x_TH.rows(), x_TH.cols());
    for_each_head(executor, [&](Index first, Index head) {
      auto attention_WW = attention(first, head);
      attention_WW.noalias() = scale() * part(projected_TQ_, query, first, head) *
                               part(projected_TQ_, key, first, head).transpose();
      causal_softmax(attention_WW, head);
      part(mixed_TH_, 0, first, head).noalias() =
          attention_WW * part(projected_TQ_, value, first, head);
    });
    linear(mixed_TH_, output_.value, added_TH_, executor);
    x_TH += added_TH_;
  }

  /// dx_TH: the gradient after the layer; becomes the gradient before it.
  void backward(RowMatrix<A>& dx_TH, const Executor& executor) {
    linear_backward(mixed_TH_, output_.value, dx_TH, dmixed_TH_, output_.gradient, executor);
    dprojected_TQ_.resize(projected_TQ_.rows(), projected_TQ_.cols());
    for_each_head(executor, [&](Index first, Index head) {
      auto attention_WW = attention(first, head);
      const auto dmixed_WD = part(dmixed_TH_, 0, first, head);
      part(dprojected_TQ_, value, first, head).noalias() = attention_WW.transpose() * dmixed_WD;
      softmax_backward(attention_WW,
                       dmixed_WD * part(projected_TQ_, value, first, head).transpose());
      part(dprojected_TQ_, query, first, head).noalias() =
          scale() * attention_WW * part(projected_TQ_, key, first, head);
      part(dprojected_TQ_, key, first, head).noalias() =
          scale() * attention_WW.transpose() * part(projected_TQ_, query, first, head);
    });
    parallel_for(executor, heads_, [&](Index head) { bias_backward(head); });
    linear_backward(norm_.normed_TH, projection_.value, dprojected_TQ_, dnormed_TH_,
                    projection_.gradient, executor);
    norm_.backward(dnormed_TH_, dx_TH, executor);
  }

  std::vector<Parameter<A>*> parameters() { return {&projection_, &output_, &bias_}; }

 private:
  /// The thirds of a projected token.
  enum Third : Index { query, key, value };

  static constexpr double bias_deviation = 0.02;

  static std::string name(Index number, const char* parameter) {
    return "attention" + std::to_string(number) + "." + parameter;
  }

  A scale() const { return 1 / std::sqrt(static_cast<A>(width_)); }

  /// Calls body(first token, head) for each head of each window.
  template <class Body>
  void for_each_head(const Executor& executor, const Body& body) const {
    parallel_for(executor, projected_TQ_.rows() / window_, [&](Index window) {
      for (Index head = 0; head < heads_; ++head) body(window * window_, head);
    });
  }

  /// What a head has of a window's rows.
  template <class Matrix>
  auto part(Matrix& matrix, Index third, Index first, Index head) const {
    return matrix.block(first, (third * heads_ + head) * width_, window_, width_);
  }

  auto attention(Index first, Index head) {
    return attention_SW_.middleRows(first * heads_ + head * window_, window_);
  }

  /// Row i: softmax over the columns 0 to i, else 0.
  template <class Block>
  void causal_softmax(Block attention_WW, Index head) const {
    for (Index i = 0; i < window_; ++i) {
      auto row = attention_WW.row(i).array();
      auto seen = row.head(i + 1);
      seen +=
          bias_.value.row(head).head(i + 1).array().reverse();  // column j has the distance i - j
      seen = (seen - seen.maxCoeff()).exp();
      seen /= seen.sum();
      row.tail(window_ - i - 1).setZero();
    }
  }

  /// Probabilities become the gradient of the scores, given that of the probabilities.
  template <class Block>
  static void softmax_backward(Block attention_WW, const RowMatrix<A>& dattention_WW) {
    for (Index i = 0; i < attention_WW.rows(); ++i) {
      const A mean = attention_WW.row(i).dot(dattention_WW.row(i));
      attention_WW.row(i).array() *= dattention_WW.row(i).array() - mean;
    }
  }

  /// After softmax_backward. Sums over all windows, in their order.
  void bias_backward(Index head) {
    for (Index first = 0; first < projected_TQ_.rows(); first += window_) {
      const auto dscores_WW = attention(first, head);
      for (Index i = 0; i < window_; ++i) {
        bias_.gradient.row(head).head(i + 1) += dscores_WW.row(i).head(i + 1).reverse();
      }
    }
  }

  Index window_;
  Index heads_;
  Index width_;              // D, of a head
  Parameter<A> projection_;  // 3 H x H: queries, keys, values
  Parameter<A> output_;
  Parameter<A> bias_;
  RmsNorm<A> norm_;
  RowMatrix<A> projected_TQ_, mixed_TH_, added_TH_;
  RowMatrix<A> dprojected_TQ_, dmixed_TH_, dnormed_TH_;
  // A window x window matrix per head and window; backward turns it into the scores' gradient.
  RowMatrix<A> attention_SW_;
};

}  // namespace train_moe

#endif  // TRAIN_MOE_ATTENTION_HPP
