// SPDX-License-Identifier: MIT
#include <Eigen/Core>
#include <limits>
#include <memory>

#include "peers/peer.hpp"

namespace bench {
namespace peers {
namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Input = Eigen::Map<const Matrix>;
using Output = Eigen::Map<Matrix>;

Run gate(const GateJob& job) {
  return [job] {
    const Shape& s = job.shape;
    Output logits_TE(job.logits_TE, s.tokens, s.experts);
    logits_TE.noalias() =
        Input(job.x_TH, s.tokens, s.hidden) * Input(job.w_EH, s.experts, s.hidden).transpose();
  };
}

Run refresh(const RefreshJob& job) {
  const Shape& s = job.shape;
  const auto directions_EH = std::make_shared<Matrix>(s.experts, s.hidden);
  const auto similarity_EE = std::make_shared<Matrix>(s.experts, s.experts);
  return [job, directions_EH, similarity_EE] {
    *directions_EH = Input(job.w_EH, job.shape.experts, job.shape.hidden).rowwise().normalized();
    similarity_EE->noalias() = *directions_EH * directions_EH->transpose();
    similarity_EE->diagonal().setConstant(std::numeric_limits<float>::lowest());
    for (Index e = 0; e < job.shape.experts; ++e) {
      Index partner = 0;
      similarity_EE->row(e).maxCoeff(&partner);
      job.partners_E[e] = static_cast<std::int32_t>(partner);
    }
  };
}

Peer make() {
  Peer peer;
  peer.gate = gate;
  peer.refresh = refresh;
  return peer;
}

}  // namespace

const Peer eigen = make();

}  // namespace peers
}  // namespace bench
