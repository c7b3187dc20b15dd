// SPDX-License-Identifier: MIT
// examples/1_hello_router.cpp with plain Eigen: routes 16 random tokens over 8 experts.
#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iostream>
#include <limits>
#include <numeric>
#include <vector>

using RowMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// The most similar other expert of each.
std::vector<Eigen::Index> most_similar(const RowMatrix& w_EH) {
  const RowMatrix directions_EH = w_EH.rowwise().normalized();
  RowMatrix similarity_EE = directions_EH * directions_EH.transpose();
  similarity_EE.diagonal().setConstant(std::numeric_limits<float>::lowest());
  std::vector<Eigen::Index> partners(static_cast<std::size_t>(w_EH.rows()));
  for (Eigen::Index e = 0; e < w_EH.rows(); ++e) {
    similarity_EE.row(e).maxCoeff(&partners[static_cast<std::size_t>(e)]);
  }
  return partners;
}

int main() {
  const RowMatrix x_TH = RowMatrix::Random(16, 64);  // tokens
  const RowMatrix w_EH = RowMatrix::Random(8, 64);   // router
  const std::vector<Eigen::Index> partners = most_similar(w_EH);
  const RowMatrix logits_TE = x_TH * w_EH.transpose();
  const float lambda = 1e-4f;
  for (Eigen::Index t = 0; t < x_TH.rows(); ++t) {
    Eigen::RowVectorXf penalised = logits_TE.row(t);
    for (Eigen::Index e = 0; e < w_EH.rows(); ++e) {
      const Eigen::Index partner = partners[static_cast<std::size_t>(e)];
      if (logits_TE(t, e) < logits_TE(t, partner)) penalised(e) -= lambda;
    }
    std::vector<Eigen::Index> ids(static_cast<std::size_t>(w_EH.rows()));
    std::iota(ids.begin(), ids.end(), Eigen::Index{0});
    std::partial_sort(ids.begin(), ids.begin() + 2, ids.end(),
                      [&](Eigen::Index a, Eigen::Index b) { return penalised(a) > penalised(b); });
    const float second = std::exp(penalised(ids[1]) - penalised(ids[0]));
    std::cout << ids[0] << " (" << 1 / (1 + second) << ")  " << ids[1] << " ("
              << second / (1 + second) << ")\n";
  }
}
