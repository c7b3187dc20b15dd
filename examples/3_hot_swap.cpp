// SPDX-License-Identifier: MIT
// Can GatePro be switched on and off in a running training, and go through a checkpoint? In one
// line each.
#include <gatepro/gatepro.hpp>
#include <iostream>
#include <vector>

int main() {
  constexpr gatepro::Index tokens = 512, hidden = 64, experts = 16, top_k = 4;
  const gatepro::RowMatrix<float> x_TH = gatepro::RowMatrix<float>::Random(tokens, hidden);
  gatepro::RowMatrix<float> w_EH = gatepro::RowMatrix<float>::Random(experts, hidden);

  gatepro::RouterConfig config{hidden, experts, top_k};
  config.competition = gatepro::Competition::off();
  config.refresh = gatepro::RefreshSchedule::every(2);
  gatepro::Router<float> router(config);
  gatepro::RoutingBuffers routing(router, tokens);

  for (int step = 0; step < 6; ++step) {
    if (step == 2) router.set_competition(gatepro::Competition::eliminate());
    if (step == 4) router.set_competition(gatepro::Competition::off());
    const bool refreshed = router.refresh(w_EH, step);
    gatepro::PenaltyStatistics statistics;
    auto out = routing.view();
    out.statistics = &statistics;
    router.forward(x_TH, w_EH, out, routing.workspace());
    std::cout << "step " << step << ": partners " << (refreshed ? "new" : "kept") << ", changed "
              << 100 * statistics.changed_rate() << " % of the tokens, partners co-activated "
              << 100 * statistics.coactivation_rate() << " %\n";
    w_EH += 0.01F * gatepro::RowMatrix<float>::Random(experts, hidden);  // an optimizer step
  }

  const auto& cache = router.similarity_cache();
  gatepro::Router<float> resumed(config);
  resumed.set_partners(cache.partners(), cache.last_refresh_step());
  std::cout << "resumed with partners of step " << resumed.similarity_cache().last_refresh_step()
            << '\n';
}
