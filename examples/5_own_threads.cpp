// SPDX-License-Identifier: MIT
// How does it run on my threads? On an executor: any type with workers() and run().
#include <gatepro/gatepro.hpp>
#include <iostream>
#include <thread>
#include <vector>

struct ThreadExecutor {
  int count;
  int workers() const { return count; }
  template <class Body>
  void run(int bodies, Body body) const {
    std::vector<std::thread> threads;
    threads.reserve(static_cast<std::size_t>(bodies));
    for (int w = 0; w < bodies; ++w) threads.emplace_back(body, w);
    for (std::thread& thread : threads) thread.join();
  }
};

int main() {
  constexpr gatepro::Index tokens = 1000, hidden = 64, experts = 16, top_k = 4;
  const gatepro::RowMatrix<float> x_TH = gatepro::RowMatrix<float>::Random(tokens, hidden);
  const gatepro::RowMatrix<float> w_EH = gatepro::RowMatrix<float>::Random(experts, hidden);
  const ThreadExecutor executor{3};

  gatepro::Router<float> router({hidden, experts, top_k});
  router.refresh(w_EH, /*step=*/0, executor);
  gatepro::RoutingBuffers serial(router, tokens);
  gatepro::RoutingBuffers threaded(router, tokens, executor);
  router.forward(x_TH, w_EH, serial);
  router.forward(x_TH, w_EH, threaded, executor);

  for (gatepro::Index t = 0; t < tokens; ++t) {
    for (gatepro::Index j = 0; j < top_k; ++j) {
      const bool same = serial.expert_ids_TK()(t, j) == threaded.expert_ids_TK()(t, j) &&
                        serial.weights_TK()(t, j) == threaded.weights_TK()(t, j);
      if (!same) {
        std::cout << "token " << t << " differs\n";
        return 1;
      }
    }
  }
  std::cout << "3 threads and 1 give the same bits for " << tokens << " tokens\n";
}
