// SPDX-License-Identifier: MIT
// Training of one model by all ranks: shared parameters are on all of them, experts on one each.
#ifndef EXPERT_PARALLEL_PARALLEL_TRAINING_HPP
#define EXPERT_PARALLEL_PARALLEL_TRAINING_HPP

#include <cmath>
#include <cstdint>

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

/// The losses of the last forward, through the hook that also sums counts: as whole units, whose
/// sums do not depend on their order.
///
/// A token's loss is rounded to units of 2^-32. A rank's part of the balance loss is a sum of
/// floats that double holds exactly, times the coefficient: no rounding at all if that is a power
/// of two.
template <class A>
Losses sum_losses(const ParallelModel<A>& model, Index tokens, const Communicator& comm) {
  constexpr double text_unit = 0x1p-32, balance_unit = 0x1p-56;
  std::int64_t text = 0, balance = 0, not_finite = 0;
  const auto add = [&](double value, double unit, std::int64_t& sum) {
    if (std::abs(value) < 1e18 * unit) {
      sum += std::llround(value / unit);
    } else {
      ++not_finite;
    }
  };
  for (const double loss : model.loss_T()) add(loss, text_unit, text);
  add(model.auxiliary_loss(), balance_unit, balance);
  std::int64_t sums[] = {text, balance, not_finite};
  comm.sum()(sums, 3);
  if (sums[2] > 0) comm.refuse("the loss is not finite: lower --learning-rate");
  return {static_cast<double>(sums[0]) * text_unit / static_cast<double>(tokens),
          static_cast<double>(sums[1]) * balance_unit};
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
