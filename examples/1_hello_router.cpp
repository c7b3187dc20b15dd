#include <gatepro/gatepro.hpp>
#include <iostream>
int main() {
  using Matrix = gatepro::RowMatrix<float>;
  const Matrix x_TH = Matrix::Random(16, 64), w_EH = Matrix::Random(8, 64);  // tokens, router
  gatepro::Router<float> router({/*hidden_size=*/64, /*num_experts=*/8, /*top_k=*/2});
  router.refresh(w_EH, /*step=*/0);  // similarity and partners
  gatepro::RoutingBuffers routing(router, x_TH.rows());
  router.forward(x_TH, w_EH, routing);
  for (gatepro::Index t = 0; t < x_TH.rows(); ++t) {
    const auto ids = routing.expert_ids_TK().row(t);
    const auto weights = routing.weights_TK().row(t);
    std::cout << ids[0] << ": " << weights[0] << ", " << ids[1] << ": " << weights[1] << '\n';
  }
}
