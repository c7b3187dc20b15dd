// SPDX-License-Identifier: MIT
// What if my trainer dispatches by dense probabilities and a routing map? Then these, and the rows
// sorted by expert, are written into its own tensors. InfiniTrain's are shown, without its code.
#include <cstddef>
#include <cstdint>
#include <gatepro/gatepro.hpp>
#include <iostream>
#include <memory>
#include <vector>

using Matrix = gatepro::RowMatrix<float>;
using Index = gatepro::Index;

/// What the dispatcher reads: the memory of the trainer's tensors.
struct DenseRouting {
  std::vector<float> probs;                          // [T, E]
  std::unique_ptr<bool[]> routing_map;               // [T, E]
  std::vector<std::int64_t> tokens_per_expert;       // [E]
  std::vector<std::int64_t> sorted_indices;          // [T K]: tokens, expert after expert
  std::vector<std::int64_t> selected_probs_indices;  // [T K]: where these stand in probs
};

class DenseRouter {
 public:
  DenseRouter(Index tokens, Index hidden, Index experts, Index top_k)
      : router_({hidden, experts, top_k}),
        buffers_(router_, tokens),
        dweights_TK_(tokens, top_k),
        scratch_(gatepro::plan_dispatch_workspace_bytes(experts)) {}

  void forward(const Matrix& x_TH, const Matrix& w_EH, std::int64_t step, DenseRouting& out) {
    router_.refresh(w_EH, step);
    router_.forward(x_TH, w_EH, buffers_);
    const Index tokens = x_TH.rows(), experts = w_EH.rows();
    // A bool is a byte of 0 or 1.
    auto* map = reinterpret_cast<std::uint8_t*>(out.routing_map.get());
    gatepro::dense_routing<const std::int64_t, float>(
        choices(), experts, buffers_.weights_TK(),
        {{out.probs.data(), tokens, experts}, {map, tokens, experts}});
    gatepro::DispatchPlan<std::int64_t> plan;
    plan.tokens_per_expert_E = out.tokens_per_expert;
    plan.token_of_row_N = out.sorted_indices;
    plan.flat_index_of_row_N = out.selected_probs_indices;
    gatepro::plan_dispatch(choices(), experts, {}, plan, scratch_);
  }

  /// dprobs_TE: what the trainer's combine hands back, zeros where nothing was selected.
  void backward(const Matrix& x_TH, const Matrix& w_EH, const Matrix& dprobs_TE, Matrix& dx_TH,
                Matrix& dw_EH) {
    dweights_TK_.setZero();
    gatepro::dense_routing_backward(choices(), gatepro::view(dprobs_TE),
                                    gatepro::strided_view(dweights_TK_));
    router_.backward(x_TH, w_EH, buffers_, {dweights_TK_}, {dx_TH, dw_EH});
  }

 private:
  gatepro::Choices<const std::int64_t> choices() const { return {buffers_.expert_ids_TK()}; }

  gatepro::Router<float, float, std::int64_t> router_;
  gatepro::RoutingBuffers<gatepro::Router<float, float, std::int64_t>> buffers_;
  Matrix dweights_TK_;
  std::vector<std::byte> scratch_;
};

int main() {
  constexpr std::size_t tokens = 16, hidden = 32, experts = 8, top_k = 2;
  const Matrix x_TH = Matrix::Random(tokens, hidden), w_EH = Matrix::Random(experts, hidden);
  DenseRouting routing{
      std::vector<float>(tokens * experts), std::make_unique<bool[]>(tokens * experts),
      std::vector<std::int64_t>(experts), std::vector<std::int64_t>(tokens * top_k),
      std::vector<std::int64_t>(tokens * top_k)};
  DenseRouter router(tokens, hidden, experts, top_k);
  router.forward(x_TH, w_EH, /*step=*/0, routing);

  std::size_t row = 0;
  for (std::size_t e = 0; e < experts; ++e) {
    std::cout << "expert " << e << ":";
    for (std::int64_t i = 0; i < routing.tokens_per_expert[e]; ++i, ++row) {
      const auto prob = static_cast<std::size_t>(routing.selected_probs_indices[row]);
      std::cout << "  token " << routing.sorted_indices[row] << " (" << routing.probs[prob] << ")";
    }
    std::cout << '\n';
  }
  const Matrix dprobs_TE = Matrix::Random(tokens, experts);
  Matrix dx_TH = Matrix::Zero(tokens, hidden), dw_EH = Matrix::Zero(experts, hidden);
  router.backward(x_TH, w_EH, dprobs_TE, dx_TH, dw_EH);
  std::cout << "largest gradient of a router weight: " << dw_EH.cwiseAbs().maxCoeff() << '\n';
}
