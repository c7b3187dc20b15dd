// SPDX-License-Identifier: MIT
// How do tokens get to their experts and back? Capacity, tokens sorted by expert, one matrix
// product per expert, and the results combined.
#include <cstdint>
#include <gatepro/gatepro.hpp>
#include <iostream>
#include <vector>

using gatepro::Index;
using Matrix = gatepro::RowMatrix<float>;

int main() {
  constexpr Index tokens = 64, hidden = 32, experts = 8, top_k = 2;
  const Matrix x_TH = Matrix::Random(tokens, hidden);
  const Matrix w_EH = Matrix::Random(experts, hidden);
  const std::vector<Matrix> expert_HH(experts, Matrix::Identity(hidden, hidden));

  gatepro::Router<float> router({hidden, experts, top_k});
  gatepro::RoutingBuffers routing(router, tokens);
  router.refresh(w_EH, /*step=*/0);
  router.forward(x_TH, w_EH, routing);

  // At most the mean load per expert; the rest weighs nothing and is not computed.
  gatepro::CapacityRule rule;
  rule.factor = 1.0;
  gatepro::RowMatrix<std::uint8_t> kept_TK(tokens, top_k);
  std::vector<std::int64_t> counts_E(experts), offsets_E1(experts + 1);
  std::vector<std::byte> scratch(
      gatepro::drop_over_capacity_workspace_bytes<float>(tokens, experts, top_k, rule.policy) +
      gatepro::plan_dispatch_workspace_bytes(experts));
  const Index capacity = gatepro::expert_capacity(tokens, experts, top_k, rule);
  gatepro::Choices choices{routing.expert_ids_TK()};
  gatepro::KeptRouting<float> kept;
  kept.weights_TK = routing.view().weights_TK;
  kept.kept_TK = kept_TK;
  kept.tokens_per_expert_E = counts_E;
  const auto dropped = gatepro::drop_over_capacity(choices, {capacity, rule.policy}, kept, scratch);

  // Where each (token, choice) stands once the rows are sorted by expert.
  std::vector<std::int32_t> token_of_row(tokens * top_k);
  gatepro::RowMatrix<std::int32_t> row_TK(tokens, top_k);
  gatepro::DispatchPlan<> plan;
  plan.offsets_E1 = offsets_E1;
  plan.token_of_row_N = token_of_row;
  plan.row_TK = row_TK;
  choices.kept_TK = kept_TK;
  const Index rows =
      gatepro::plan_dispatch(choices, experts, gatepro::DispatchRule{}, plan, scratch);

  Matrix in_NH(rows, hidden), out_NH(rows, hidden);
  gatepro::permute(gatepro::VectorView(token_of_row.data(), rows), gatepro::view(x_TH),
                   gatepro::view(in_NH));
  for (std::size_t e = 0; e < expert_HH.size(); ++e) {
    const Index first = offsets_E1[e], count = offsets_E1[e + 1] - offsets_E1[e];
    out_NH.middleRows(first, count) = in_NH.middleRows(first, count) * expert_HH[e];
  }
  Matrix y_TH = Matrix::Zero(tokens, hidden);
  gatepro::combine(gatepro::strided_view(row_TK), routing.view().weights_TK, gatepro::view(out_NH),
                   gatepro::view(y_TH));

  std::cout << dropped.dropped_choices << " of " << tokens * top_k << " choices dropped, " << rows
            << " rows computed\n";
  // The experts do nothing, so a token that kept both choices is what it was.
  for (Index t = 0; t < tokens; ++t) {
    const bool kept_all = (kept_TK.row(t).array() != 0).all();
    if (kept_all && !y_TH.row(t).isApprox(x_TH.row(t), 1e-5F)) return 1;
  }
}
