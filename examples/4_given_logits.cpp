// SPDX-License-Identifier: MIT
// What if the logits come from my own GEMM, or a GPU? They are routed as they are, and their
// gradient goes back to the GEMM. Results go where the consumer wants them: int64 ids, one plane of
// T elements per choice.
#include <cstdint>
#include <gatepro/gatepro.hpp>
#include <iostream>
#include <vector>

int main() {
  constexpr gatepro::Index tokens = 6, hidden = 32, experts = 8, top_k = 4;
  const gatepro::RowMatrix<float> x_TH = gatepro::RowMatrix<float>::Random(tokens, hidden);
  const gatepro::RowMatrix<float> w_EH = gatepro::RowMatrix<float>::Random(experts, hidden);
  const gatepro::RowMatrix<float> logits_TE = x_TH * w_EH.transpose();

  gatepro::RouterConfig config{hidden, experts, top_k};
  config.competition = gatepro::Competition::eliminate();
  gatepro::Router<float, float, std::int64_t> router(config);
  router.refresh(w_EH, /*step=*/0);  // partners still come from the weights

  std::vector<std::int64_t> ids(tokens * top_k);
  std::vector<float> weights(tokens * top_k);
  gatepro::RoutingView<float, std::int64_t> out;
  out.expert_ids_TK = {ids.data(), tokens, top_k, /*row_stride=*/1, /*col_stride=*/tokens};
  out.weights_TK = {weights.data(), tokens, top_k, 1, tokens};
  gatepro::PenaltyStatistics statistics;
  out.statistics = &statistics;

  std::vector<std::byte> scratch(router.forward_workspace_bytes());
  router.forward_logits(logits_TE, out, scratch);

  for (gatepro::Index t = 0; t < tokens; ++t) {
    std::cout << "token " << t << ":";
    for (gatepro::Index j = 0; j < top_k; ++j) {
      std::cout << "  expert " << out.expert_ids_TK(t, j) << " (" << out.weights_TK(t, j) << ")";
    }
    std::cout << '\n';
  }
  const std::vector<float> dweights = weights;  // of a loss: here half the sum of squares
  gatepro::RowMatrix<float> dlogits_TE = gatepro::RowMatrix<float>::Zero(tokens, experts);
  scratch.resize(router.backward_logits_workspace_bytes(tokens));
  router.backward_logits({out.expert_ids_TK, out.weights_TK},
                         {{dweights.data(), tokens, top_k, 1, tokens}}, dlogits_TE, scratch);
  const gatepro::RowMatrix<float> dw_EH = dlogits_TE.transpose() * x_TH;

  std::cout << "largest gradient of a router weight: " << dw_EH.cwiseAbs().maxCoeff() << '\n'
            << statistics.tokens_changed << " of " << statistics.tokens
            << " tokens are routed differently than without competition\n";
}
