// SPDX-License-Identifier: MIT
// A byte-level transformer whose feed-forward layers are mixtures of experts.
#ifndef GATEPRO_EXAMPLES_TORCH_MODEL_HPP
#define GATEPRO_EXAMPLES_TORCH_MODEL_HPP

#include <torch/torch.h>

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "ops.hpp"

namespace train_torch {

using torch::Tensor;

/// B sequences of C bytes, L layers of width D, with E experts of F hidden units, K per token.
struct Sizes {
  std::int64_t batch = 16, context = 64;
  std::int64_t layers = 2, width = 64, heads = 4;
  std::int64_t experts = 16, top_k = 2, expert_hidden = 64;
};

constexpr std::int64_t bytes = 256;  // V

/// What a mixture of experts did to the tokens of a forward.
struct RoutedTokens {
  Tensor tokens_per_expert;  ///< E.
  double together = 0;       ///< The share of choices whose partner the token chose, too.
};

/// A router and its experts, in the place of a feed-forward layer.
class MixtureOfExperts : public torch::nn::Module {
 public:
  explicit MixtureOfExperts(const Sizes& s) : sizes_(s) {
    router_ = register_parameter("router", scaled({s.experts, s.width}));
    up_ = register_parameter("up", scaled({s.experts, s.width, s.expert_hidden}));
    down_ = register_parameter("down", scaled({s.experts, s.expert_hidden, s.width}));
    partners_ = register_buffer("partners", gatepro_torch::find_partners(router_));
    options_.top_k = s.top_k;
  }

  /// May change between any two forwards.
  void set_competition(double penalty, bool eliminate) {
    options_.penalty = penalty;
    options_.eliminate = eliminate;
  }
  /// After an optimizer step. The partners are a buffer, so that checkpoints have them.
  void refresh() { partners_.copy_(gatepro_torch::find_partners(router_)); }

  /// x: T x D. Adds the balance loss of the layer to `balance_loss`.
  Tensor forward(const Tensor& x, Tensor& balance_loss) {
    const auto routing = gatepro_torch::route(x, router_, partners_, options_);
    const Tensor expert_ids = routing.expert_ids.flatten();
    routed_.tokens_per_expert = expert_ids.bincount({}, sizes_.experts);
    routed_.together = together(routing.expert_ids);
    balance_loss = balance_loss + load_balance(routing.logits);

    // Rows sorted by expert, the experts, and back.
    const Tensor order = expert_ids.argsort();
    const Tensor token = order.floor_divide(sizes_.top_k);
    const Tensor weights = routing.weights.flatten().index_select(0, order).unsqueeze(1);
    return torch::zeros_like(x).index_add(0, token, experts(x.index_select(0, token)) * weights);
  }

  /// What the last forward did.
  const RoutedTokens& routed() const { return routed_; }

 private:
  static Tensor scaled(at::IntArrayRef shape) {
    return torch::randn(shape) / std::sqrt(static_cast<double>(shape[shape.size() - 2]));
  }

  Tensor experts(const Tensor& rows) const {
    std::vector<Tensor> out;
    std::int64_t first = 0;
    for (std::int64_t e = 0; e < sizes_.experts; ++e) {
      const auto count = routed_.tokens_per_expert[e].item<std::int64_t>();
      const Tensor hidden = torch::gelu(rows.narrow(0, first, count).matmul(up_[e]));
      out.push_back(hidden.matmul(down_[e]));
      first += count;
    }
    return torch::cat(out);
  }

  /// Switch Transformer's: 1 if all experts have equal loads. Its gradient takes the logits' way.
  Tensor load_balance(const Tensor& logits) const {
    const Tensor load = routed_.tokens_per_expert.to(logits.scalar_type());
    return sizes_.experts * (load / load.sum() * logits.softmax(1).mean(0)).sum();
  }

  double together(const Tensor& expert_ids) const {
    const Tensor partners = partners_.select(1, 0).to(torch::kLong).take(expert_ids);
    const Tensor meets = (partners.unsqueeze(2) == expert_ids.unsqueeze(1)).any(2);
    return meets.to(torch::kDouble).mean().item<double>();
  }

  Sizes sizes_;
  gatepro_torch::RouteOptions options_;
  Tensor router_, up_, down_, partners_;
  RoutedTokens routed_;
};

/// Each byte looks at itself and those before it.
class CausalAttention : public torch::nn::Module {
 public:
  explicit CausalAttention(const Sizes& s) : heads_(s.heads) {
    qkv_ = register_module("qkv", torch::nn::Linear(s.width, 3 * s.width));
    out_ = register_module("out", torch::nn::Linear(s.width, s.width));
  }

  Tensor forward(const Tensor& x) {
    const std::int64_t batch = x.size(0), context = x.size(1), width = x.size(2);
    const auto parts = qkv_->forward(x)
                           .view({batch, context, 3, heads_, width / heads_})
                           .permute({2, 0, 3, 1, 4})
                           .unbind(0);
    const double scale = 1 / std::sqrt(static_cast<double>(width / heads_));
    const Tensor later = torch::ones({context, context}, torch::kBool).triu(1);
    const Tensor scores = parts[0].matmul(parts[1].transpose(-2, -1)) * scale;
    const Tensor seen = scores.masked_fill(later, -INFINITY).softmax(-1).matmul(parts[2]);
    return out_->forward(seen.transpose(1, 2).reshape({batch, context, width}));
  }

 private:
  std::int64_t heads_;
  torch::nn::Linear qkv_ = nullptr, out_ = nullptr;
};

class Block : public torch::nn::Module {
 public:
  explicit Block(const Sizes& s) {
    const torch::nn::LayerNormOptions of_width({s.width});
    attention_norm_ = register_module("attention_norm", torch::nn::LayerNorm(of_width));
    attention_ = register_module("attention", std::make_shared<CausalAttention>(s));
    moe_norm_ = register_module("moe_norm", torch::nn::LayerNorm(of_width));
    moe_ = register_module("moe", std::make_shared<MixtureOfExperts>(s));
  }

  Tensor forward(Tensor x, Tensor& balance_loss) {
    x = x + attention_->forward(attention_norm_->forward(x));
    const Tensor tokens = moe_norm_->forward(x).flatten(0, 1);
    return x + moe_->forward(tokens, balance_loss).view_as(x);
  }

  MixtureOfExperts& moe() { return *moe_; }

 private:
  torch::nn::LayerNorm attention_norm_ = nullptr, moe_norm_ = nullptr;
  std::shared_ptr<CausalAttention> attention_;
  std::shared_ptr<MixtureOfExperts> moe_;
};

/// What a forward returns.
struct Prediction {
  Tensor logits;        ///< B x C x V: of the next byte.
  Tensor balance_loss;  ///< The mean over layers.
};

class Model : public torch::nn::Module {
 public:
  explicit Model(const Sizes& s) {
    embedding_ = register_module("embedding", torch::nn::Embedding(bytes, s.width));
    position_ = register_parameter("position", torch::randn({s.context, s.width}) * 0.02);
    for (std::int64_t l = 0; l < s.layers; ++l) {
      blocks_.push_back(register_module("block" + std::to_string(l), std::make_shared<Block>(s)));
    }
    norm_ = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({s.width})));
    head_ = register_module("head", torch::nn::Linear(s.width, bytes));
  }

  /// context: B x C, int64.
  Prediction forward(const Tensor& context) {
    Tensor x = embedding_->forward(context) + position_;
    Tensor balance_loss = torch::zeros({});
    for (const auto& block : blocks_) x = block->forward(x, balance_loss);
    return {head_->forward(norm_->forward(x)), balance_loss / static_cast<double>(blocks_.size())};
  }

  /// Calls `call(moe)` for the mixture of each layer.
  template <class Call>
  void for_each_moe(const Call& call) {
    for (const auto& block : blocks_) call(block->moe());
  }

 private:
  torch::nn::Embedding embedding_ = nullptr;
  Tensor position_;
  std::vector<std::shared_ptr<Block>> blocks_;
  torch::nn::LayerNorm norm_ = nullptr;
  torch::nn::Linear head_ = nullptr;
};

}  // namespace train_torch

#endif  // GATEPRO_EXAMPLES_TORCH_MODEL_HPP
