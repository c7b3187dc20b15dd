// SPDX-License-Identifier: MIT
// How many selections a lambda would change, had it been applied to the same logits.
#ifndef TRAIN_MOE_WHAT_IF_HPP
#define TRAIN_MOE_WHAT_IF_HPP

#include <cmath>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "training.hpp"

namespace train_moe {

struct WhatIf {
  std::string network;  // initial or trained
  Index layer = 0;
  double lambda = 0;  // infinite for elimination
  double changed = 0;
};

/// 1e-5 to 10 in ten steps per decade, then elimination.
inline std::vector<double> what_if_lambdas() {
  std::vector<double> lambdas;
  for (int i = -50; i <= 10; ++i) lambdas.push_back(std::pow(10, i / 10.0));
  lambdas.push_back(std::numeric_limits<double>::infinity());
  return lambdas;
}

/// Routes the logits of a layer's last forward again, once per lambda.
template <class A>
void sweep_layer(const std::string& network, Index number, MoeLayer<A>& layer,
                 const Executor& executor, std::vector<WhatIf>& results) {
  const auto& cache = layer.router().similarity_cache();
  gatepro::Router<A> router(layer.router().config());
  router.set_partners(cache.partners(), cache.last_refresh_step());
  const gatepro::MatrixView<const A> logits_TE = layer.routed().logits_TE();
  gatepro::RoutingBuffers<gatepro::Router<A>> routed(router, logits_TE.rows, executor.workers());
  for (const double lambda : what_if_lambdas()) {
    router.set_competition(std::isinf(lambda) ? gatepro::Competition::eliminate()
                                              : gatepro::Competition::penalty(lambda));
    gatepro::PenaltyStatistics statistics;
    auto out = routed.view();
    out.statistics = &statistics;
    router.forward_logits(logits_TE, out, routed.workspace(), executor);
    results.push_back({network, number, lambda, statistics.changed_rate()});
  }
}

/// Sweeps all layers on one batch.
template <class A>
void sweep(const std::string& network, Training<A>& training, const Batch& batch,
           std::vector<WhatIf>& results) {
  training.model().forward(batch, gatepro::Pass::evaluation);
  Index number = 0;
  for (MoeLayer<A>& layer : training.model().layers()) {
    sweep_layer(network, number++, layer, training.executor(), results);
  }
}

inline std::string what_if_csv(const std::vector<WhatIf>& results) {
  std::ostringstream rows;
  rows.precision(9);
  rows << "network,layer,lambda,changed\n";
  for (const WhatIf& row : results) {
    rows << row.network << ',' << row.layer << ',' << row.lambda << ',' << row.changed << '\n';
  }
  return rows.str();
}

}  // namespace train_moe

#endif  // TRAIN_MOE_WHAT_IF_HPP
