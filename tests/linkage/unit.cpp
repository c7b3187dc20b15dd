// SPDX-License-Identifier: MIT
// Compiled once per set of flags; the build names the function through ROUTE. Options and views
// come from a unit with other flags, and Errors go there.
#include <gatepro/gatepro.hpp>

#include <cmath>
#include <vector>

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
  gatepro::RoutingBuffers buffers(router, gatepro::BufferShape{x_TH.rows, 1, 1, true});
  router.forward(x_TH, w_EH, buffers);

  // No Eigen matrices: Eigen's own allocation differs between units built with different -m flags.
  const auto zeros = [](gatepro::Index rows, gatepro::Index cols) {
    return std::vector<float>(static_cast<std::size_t>(rows * cols));
  };
  std::vector<float> dweights_data = zeros(x_TH.rows, config.top_k);
  std::vector<float> dx_data = zeros(x_TH.rows, x_TH.cols);
  std::vector<float> dw_data = zeros(w_EH.rows, w_EH.cols);
  const gatepro::MatrixView<float> dweights(dweights_data.data(), x_TH.rows, config.top_k);
  const gatepro::MatrixView<float> dx(dx_data.data(), x_TH.rows, x_TH.cols);
  const gatepro::MatrixView<float> dw(dw_data.data(), w_EH.rows, w_EH.cols);
  double sum = 0;
  for (gatepro::Index t = 0; t < x_TH.rows; ++t) {
    for (gatepro::Index j = 0; j < config.top_k; ++j) {
      const double id = buffers.expert_ids_TK()(t, j);
      const double weight = double(buffers.weights_TK()(t, j));
      dweights(t, j) = static_cast<float>(j + t % 3);
      sum += (id + 1) * weight * static_cast<double>(t + 1);
    }
  }
  router.backward(x_TH, w_EH, buffers, {dweights}, {dx, dw});
  for (float gradient : dx_data) sum += std::abs(double(gradient));
  for (float gradient : dw_data) sum += std::abs(double(gradient));
  return sum;
}
