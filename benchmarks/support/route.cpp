// SPDX-License-Identifier: MIT
// The whole router, alone in its unit: it is built twice, the second time with the compiler's best
// flags and ROUTE set to another name.
#include <cstddef>
#include <memory>

#include "gatepro/router/router.hpp"
#include "support/executors.hpp"
#include "support/ours.hpp"

#ifndef ROUTE
#define ROUTE route
#endif

namespace bench {
namespace ours {

Run ROUTE(const RouteJob& job, const gatepro::Competition& competition, int threads) {
  struct State {
    gatepro::Router<float> router;
    std::vector<std::int64_t> tokens_per_expert;
    std::vector<std::byte> workspace;
  };
  const Shape& s = job.shape;
  gatepro::RouterConfig config{s.hidden, s.experts, s.top_k};
  config.competition = competition;
  const auto state = std::make_shared<State>(State{gatepro::Router<float>(config), {}, {}});
  state->tokens_per_expert.resize(static_cast<std::size_t>(s.experts));
  state->workspace.resize(state->router.forward_workspace_bytes(threads));
  const gatepro::MatrixView<const float> x_TH(job.x_TH, s.tokens, s.hidden);
  const gatepro::MatrixView<const float> w_EH(job.w_EH, s.experts, s.hidden);
  state->router.refresh_now(w_EH, 0);
  return [job, state, x_TH, w_EH, threads] {
    gatepro::RoutingView<float> out;
    out.expert_ids_TK = {job.ids_TK, job.shape.tokens, job.shape.top_k};
    out.weights_TK = {job.weights_TK, job.shape.tokens, job.shape.top_k};
    out.tokens_per_expert_E = state->tokens_per_expert;
    with_executor(threads, [&](const auto& executor) {
      state->router.forward(x_TH, w_EH, out, state->workspace, executor);
    });
  };
}

}  // namespace ours
}  // namespace bench
