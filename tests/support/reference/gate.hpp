// SPDX-License-Identifier: MIT
// Logits and what follows from their gradients.
#ifndef GATEPRO_TESTS_SUPPORT_REFERENCE_GATE_HPP
#define GATEPRO_TESTS_SUPPORT_REFERENCE_GATE_HPP

#include <numeric>

#include "support/reference/matrix.hpp"

namespace reference {

// GatePro eq. 1.
inline Matrix gate_logits(const Matrix& x_TH, const Matrix& w_EH) {
  Matrix logits_TE = zeros(x_TH.size(), w_EH.size());
  for (std::size_t t = 0; t < x_TH.size(); ++t) {
    for (std::size_t e = 0; e < w_EH.size(); ++e) {
      logits_TE[t][e] = std::inner_product(x_TH[t].begin(), x_TH[t].end(), w_EH[e].begin(), 0.0);
    }
  }
  return logits_TE;
}

// Gradients of loss = sum of weights * dweights, plus dlogits_TE (empty for none).
struct Gradients {
  Matrix dx_TH;
  Matrix dw_EH;
};
inline Gradients backward(const Matrix& x_TH, const Matrix& w_EH, const Ids& ids_TK,
                          const Matrix& weights_TK, const Matrix& dweights_TK,
                          const Matrix& dlogits_TE) {
  const std::size_t hidden = w_EH[0].size();
  Gradients g{zeros(x_TH.size(), hidden), zeros(w_EH.size(), hidden)};
  for (std::size_t t = 0; t < x_TH.size(); ++t) {
    std::vector<double> dlogits =
        dlogits_TE.empty() ? std::vector<double>(w_EH.size(), 0.0) : dlogits_TE[t];
    const double mean =
        std::inner_product(weights_TK[t].begin(), weights_TK[t].end(), dweights_TK[t].begin(), 0.0);
    for (std::size_t j = 0; j < ids_TK[t].size(); ++j) {
      dlogits[static_cast<std::size_t>(ids_TK[t][j])] +=
          weights_TK[t][j] * (dweights_TK[t][j] - mean);
    }
    for (std::size_t e = 0; e < w_EH.size(); ++e) {
      for (std::size_t h = 0; h < hidden; ++h) {
        g.dx_TH[t][h] += dlogits[e] * w_EH[e][h];
        g.dw_EH[e][h] += dlogits[e] * x_TH[t][h];
      }
    }
  }
  return g;
}

}  // namespace reference

#endif  // GATEPRO_TESTS_SUPPORT_REFERENCE_GATE_HPP
