// SPDX-License-Identifier: MIT
// The router and the gradients of its gate, in a unit of their own, which is built several times.
// BUILD is the name of the build.
#include "support/build.hpp"

#include <algorithm>
#include <cstddef>
#include <memory>

#include "gatepro/gate/gradient.hpp"
#include "gatepro/router/router.hpp"
#include "support/executors.hpp"

namespace bench {
namespace builds {
namespace {

Run route(const RouteJob& job, const gatepro::Competition& competition, int threads) {
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

Run gate_backward(const GateBackwardJob& job, const Ids& ids, const Floats& dselected) {
  const Shape& s = job.shape;
  const gatepro::MatrixView<const float> x_TH(job.x_TH, s.tokens, s.hidden);
  const gatepro::MatrixView<const float> w_EH(job.w_EH, s.experts, s.hidden);
  const gatepro::StridedView<const std::int32_t> ids_TK(ids.data(), s.tokens, s.top_k);
  const gatepro::StridedView<const float> dselected_TK(dselected.data(), s.tokens, s.top_k);
  gatepro::MatrixView<const float> dlogits_TE;
  if (job.dlogits_TE != nullptr) dlogits_TE = {job.dlogits_TE, s.tokens, s.experts};
  const gatepro::MatrixView<float> dx_TH(job.dx_TH, s.tokens, s.hidden);
  const gatepro::MatrixView<float> dw_EH(job.dw_EH, s.experts, s.hidden);
  const auto scratch = std::make_shared<std::vector<std::byte>>(std::max(
      gatepro::gate_backward_tokens_workspace_bytes<float>(s.experts),
      gatepro::gate_backward_weights_workspace_bytes<float>(s.tokens, s.experts, s.top_k)));
  return [=] {
    gatepro::gate_backward_tokens(gatepro::Choices{ids_TK}, {dselected_TK, dlogits_TE}, w_EH, dx_TH,
                                  *scratch);
    gatepro::gate_backward_weights(gatepro::Choices{ids_TK}, {dselected_TK, dlogits_TE}, x_TH,
                                   dw_EH, *scratch);
  };
}

}  // namespace

#pragma GCC visibility push(default)
const Build BUILD{route, gate_backward};
#pragma GCC visibility pop

}  // namespace builds
}  // namespace bench
