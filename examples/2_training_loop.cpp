// SPDX-License-Identifier: MIT
// What does one optimizer step look like? Trains router weights so that each token mixes the
// outputs of its experts to a target. Here an expert is one number; what matters is the order of
// the calls.
#include <gatepro/gatepro.hpp>
#include <iostream>

int main() {
  using Matrix = gatepro::RowMatrix<float>;
  constexpr gatepro::Index tokens = 512, hidden = 16, experts = 8, top_k = 2;
  const Matrix x_TH = Matrix::Random(tokens, hidden);
  const Eigen::VectorXf target_T = x_TH.leftCols(4).rowwise().sum();
  const Eigen::VectorXf output_E = Eigen::VectorXf::LinSpaced(experts, -2, 2);
  Matrix w_EH = 0.1F * Matrix::Random(experts, hidden);
  Matrix dw_EH(experts, hidden), dweights_TK(tokens, top_k);

  gatepro::Router<float> router({hidden, experts, top_k});  // competes from the first refresh on
  gatepro::RoutingBuffers routing(router, tokens);          // allocates once

  for (int step = 0; step <= 200; ++step) {
    router.refresh(w_EH, step);  // partners of the weights of this step
    router.forward(x_TH, w_EH, routing);

    float loss = 0;
    for (gatepro::Index t = 0; t < tokens; ++t) {
      const auto ids = routing.expert_ids_TK().row(t);
      const auto weights = routing.weights_TK().row(t);
      float error = -target_T[t];
      for (gatepro::Index j = 0; j < top_k; ++j) error += weights[j] * output_E[ids[j]];
      loss += error * error / tokens;
      for (gatepro::Index j = 0; j < top_k; ++j) {
        dweights_TK(t, j) = 2 * error * output_E[ids[j]] / tokens;  // d loss / d weights
      }
    }
    if (step % 50 == 0) std::cout << "step " << step << ": loss " << loss << '\n';

    dw_EH.setZero();  // gradients are added; tokens get none here
    router.backward(x_TH, w_EH, routing, {dweights_TK}, {{}, dw_EH});
    w_EH -= 2 * dw_EH;
  }
}
