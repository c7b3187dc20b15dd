// SPDX-License-Identifier: MIT
// Compiled by the host compiler and by nvcc; the build names the function through ROUTE.
#include <cstdint>
#include <gatepro/gatepro.hpp>
#include <vector>

#include "support/checksums.hpp"

std::uint64_t ROUTE();

namespace {

using gatepro::Index;
using gatepro::MatrixView;

constexpr Index tokens = 37, hidden = 24, experts = 16, top_k = 4;

template <class Buffers>
void hash_outputs(Buffers& buffers, data::Hash& hash) {
  const auto out = buffers.view();
  hash.add(out.expert_ids_TK.data, tokens * top_k);
  hash.add(out.weights_TK.data, tokens * top_k);
  hash.add(out.tokens_per_expert_E.data, experts);
}

struct Gradients {
  std::vector<float> dweights = data::numbers<float>(tokens * top_k, 3);
  std::vector<float> dx = std::vector<float>(tokens * hidden);
  std::vector<float> dw = std::vector<float>(experts * hidden);
  MatrixView<const float> dweights_TK{dweights.data(), tokens, top_k};
  MatrixView<float> dx_TH{dx.data(), tokens, hidden};
  MatrixView<float> dw_EH{dw.data(), experts, hidden};
};

void hash_gradients(const Gradients& gradients, data::Hash& hash) {
  hash.add(gradients.dx.data(), tokens * hidden);
  hash.add(gradients.dw.data(), experts * hidden);
}

void route_plain(MatrixView<const float> x_TH, MatrixView<const float> w_EH, data::Hash& hash) {
  gatepro::RouterConfig config{hidden, experts, top_k};
  config.competition = gatepro::Competition::penalty(0.1);
  gatepro::Router<float> router(config);
  gatepro::RoutingBuffers<gatepro::Router<float>> buffers(router, tokens);
  router.refresh(w_EH, 0);
  router.forward(x_TH, w_EH, buffers);
  Gradients gradients;
  router.backward(x_TH, w_EH, buffers, {gradients.dweights_TK}, {gradients.dx_TH, gradients.dw_EH});
  hash_outputs(buffers, hash);
  hash_gradients(gradients, hash);
}

void route_completely(MatrixView<const float> x_TH, MatrixView<const float> w_EH,
                      data::Hash& hash) {
  gatepro::CompleteConfig config{{hidden, experts, top_k}};
  config.competition = gatepro::Competition::eliminate();
  config.scores.function = gatepro::ScoreFunction::sigmoid;
  config.scores.renormalise = true;
  config.losses.batch = 1e-2;
  config.losses.z = 1e-3;
  config.capacity = gatepro::CapacityRule{};
  config.noise.logit_sigma = 0.1;
  gatepro::CompleteRouter<float> router(config);
  gatepro::RoutingBuffers<gatepro::CompleteRouter<float>> buffers(router, tokens);
  router.refresh(w_EH, 0);
  router.forward(x_TH, w_EH, {}, buffers);
  Gradients gradients;
  router.backward(x_TH, w_EH, {}, buffers, {gradients.dweights_TK},
                  {gradients.dx_TH, gradients.dw_EH});
  hash_outputs(buffers, hash);
  hash_gradients(gradients, hash);
}

}  // namespace

/// A hash of a forward and a backward of both routers.
std::uint64_t ROUTE() {
  const std::vector<float> x = data::numbers<float>(tokens * hidden, 1),
                           w = data::numbers<float>(experts * hidden, 2);
  const MatrixView<const float> x_TH(x.data(), tokens, hidden), w_EH(w.data(), experts, hidden);
  data::Hash hash;
  route_plain(x_TH, w_EH, hash);
  route_completely(x_TH, w_EH, hash);
  return hash.value();
}
