// SPDX-License-Identifier: MIT
// Compiled once per set of flags; the build names the function through ROUTE. Options and views
// come from a unit with other flags, and Errors go there.
#include <gatepro/gatepro.hpp>

#include <cmath>

double ROUTE(const gatepro::RouterConfig& config, gatepro::MatrixView<const float> x_TH,
             gatepro::MatrixView<const float> w_EH);

/// A checksum of a forward and backward. Without exceptions, -1 for settings that would abort.
double ROUTE(const gatepro::RouterConfig& config, gatepro::MatrixView<const float> x_TH,
             gatepro::MatrixView<const float> w_EH) {
#if !defined(__cpp_exceptions)
  if (config.top_k < 1) return -1;
#endif
  gatepro::Router<float> router(config);
  router.refresh(w_EH, 0);
  gatepro::RoutingBuffers buffers(router, x_TH.rows, 1, true);
  router.forward(x_TH, w_EH, buffers);

  using Matrix = gatepro::RowMatrix<float>;
  Matrix dweights(x_TH.rows, config.top_k);
  Matrix dx = Matrix::Zero(x_TH.rows, x_TH.cols);
  Matrix dw = Matrix::Zero(w_EH.rows, w_EH.cols);
  double sum = 0;
  for (gatepro::Index t = 0; t < x_TH.rows; ++t) {
    for (gatepro::Index j = 0; j < config.top_k; ++j) {
      const double id = buffers.expert_ids_TK()(t, j);
      const double weight = double(buffers.weights_TK()(t, j));
      dweights(t, j) = static_cast<float>(j + t % 3);
      sum += (id + 1) * weight * static_cast<double>(t + 1);
    }
  }
  router.backward(x_TH, w_EH, buffers, dweights, {}, dx, dw);
  for (gatepro::Index i = 0; i < dx.size(); ++i) sum += std::abs(double(dx.data()[i]));
  for (gatepro::Index i = 0; i < dw.size(); ++i) sum += std::abs(double(dw.data()[i]));
  return sum;
}
