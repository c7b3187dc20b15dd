// SPDX-License-Identifier: MIT
// Training of one model by all ranks: shared parameters are on all of them, experts on one each.
#ifndef EXPERT_PARALLEL_PARALLEL_TRAINING_HPP
#define EXPERT_PARALLEL_PARALLEL_TRAINING_HPP

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "adam.hpp"
#include "model.hpp"
#include "parallel_layer.hpp"
#include "shares.hpp"

namespace expert_parallel {

template <class A>
using ParallelModel = train_moe::Model<A, ParallelLayer<A>>;

/// Over the tokens of all ranks, the same to the bit for any number of them.
struct Losses {
  double text = 0;     ///< Nats per byte.
  double balance = 0;  ///< The layers' auxiliary losses.
};

/// The losses of the last forward, through the hook that also sums counts.
///
/// Numbers are rounded to whole units, whose sums do not depend on their order: the loss of each
/// token, and the shares of the scores that experts have. The library sums shares of float in units
/// of 2^-26, so of them nothing is lost.
template <class A>
Losses sum_losses(ParallelModel<A>& model, Index tokens, const Communicator& comm) {
  constexpr double unit = 0x1p-32;
  std::vector<std::int64_t> sums(2);  // what is not finite, the text's loss, shares layer by layer
  const auto add = [&sums](double value, double most, std::size_t to) {
    const bool fits = std::abs(value) < most;
    sums[fits ? to : 0] += fits ? std::llround(value / unit) : 1;
  };
  constexpr double most = 0x1p30;  // of a sum
  for (const double loss : model.loss_T()) add(loss, most / static_cast<double>(tokens), 1);
  for (ParallelLayer<A>& layer : model.layers()) {
    const gatepro::VectorView<const double> shares_E = layer.share_sums_E();
    for (Index e = 0; e < shares_E.size; ++e) {
      sums.push_back(0);
      add(shares_E[e], most, sums.size() - 1);
    }
  }
  comm.sum()(sums.data(), static_cast<Index>(sums.size()));
  if (sums[0] > 0) comm.refuse("the loss is not finite: lower --learning-rate");
  Losses losses{static_cast<double>(sums[1]) * unit / static_cast<double>(tokens), 0};
  auto next = sums.begin() + 2;
  for (ParallelLayer<A>& layer : model.layers()) {
    std::vector<double> shares_E(static_cast<std::size_t>(layer.share_sums_E().size));
    for (double& share : shares_E) share = static_cast<double>(*next++) * unit;
    losses.balance += layer.balance_loss(shares_E);
  }
  return losses;
}

/// Gradients of the last forward, of all ranks' tokens. An expert has seen the rows of all ranks;
/// shared parameters are summed.
template <class A>
void backward(ParallelModel<A>& model, const train_moe::Batch& part, Index tokens,
              const Communicator& comm, Ledger& ledger) {
  model.backward(part, tokens);
  ledger.time(Part::reduce, [&] {
    for (Parameter<A>* parameter : model.shared_parameters()) comm.add_up(parameter->gradient);
  });
}

/// What follows the optimizer: the bias moves, partners follow the router weights.
template <class A>
void end_step(ParallelModel<A>& model, std::int64_t step, const Executor& executor) {
  for (ParallelLayer<A>& layer : model.layers()) {
    layer.end_step();
    layer.refresh(step, executor);
  }
}

}  // namespace expert_parallel

#endif  // EXPERT_PARALLEL_PARALLEL_TRAINING_HPP
