// SPDX-License-Identifier: MIT
// What if the model needs more than the paper? A training loop with the complete router: sigmoid
// scores, groups, competition, a z-loss, and a bias that evens out the load without a loss.
#include <gatepro/gatepro.hpp>
#include <iostream>

int main() {
  constexpr gatepro::Index tokens = 512, hidden = 32, experts = 16, top_k = 4;
  using Matrix = gatepro::RowMatrix<float>;

  gatepro::CompleteConfig config{{hidden, experts, top_k}};
  config.competition = gatepro::Competition::eliminate();
  config.scores = {gatepro::ScoreFunction::sigmoid, /*renormalise=*/true, /*scale=*/2.5};
  config.groups = {/*num_groups=*/4, /*groups_per_token=*/2, gatepro::GroupScore::top_2};
  config.bias = {/*enabled=*/true, /*update_rate=*/0.02};
  config.losses.z = 1e-3;
  gatepro::CompleteRouter<float> router(config);
  gatepro::RoutingBuffers buffers(router, tokens);  // allocates once

  // Tokens that lean one way, so that a few experts are everybody's favourites.
  const Matrix x_TH = (Matrix::Random(tokens, hidden).array() + 0.3F).matrix();
  const Matrix dweights_TK = 0.1F * Matrix::Random(tokens, top_k);  // of a loss that is made up
  Matrix w_EH = 0.2F * Matrix::Random(experts, hidden);
  Matrix dw_EH = Matrix::Zero(experts, hidden);

  double first_violation = 0, violation = 0;
  for (int step = 0; step <= 60; ++step) {
    router.refresh(w_EH, step);  // partners
    const auto report = router.forward(x_TH, w_EH, {}, buffers);
    violation = gatepro::max_violation(buffers.view().tokens_per_expert_E);
    if (step == 0) first_violation = violation;
    if (step % 20 == 0) {
      std::cout << "step " << step << ": largest load " << 1 + violation
                << " times the mean, z-loss " << report.losses.z << '\n';
    }
    router.backward(x_TH, w_EH, {}, buffers, {dweights_TK}, {/*dx_TH=*/{}, dw_EH});
    w_EH -= 0.01F * dw_EH;
    dw_EH.setZero();
    router.end_step();  // moves the bias
  }
  return violation < first_violation / 2 ? 0 : 1;
}
