// SPDX-License-Identifier: MIT
#include <cblas.h>

#include "peers/peer.hpp"

namespace bench {
namespace peers {
namespace {

using Size = blasint;

Size size(Index value) { return static_cast<Size>(value); }

Run gate(const GateJob& job) {
  openblas_set_num_threads(1);
  return [job, tokens = size(job.shape.tokens), hidden = size(job.shape.hidden),
          experts = size(job.shape.experts)] {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, tokens, experts, hidden, 1, job.x_TH,
                hidden, job.w_EH, hidden, 0, job.logits_TE, experts);
  };
}

Run gate_backward(const GateBackwardJob& job) {
  openblas_set_num_threads(1);
  return [job, tokens = size(job.shape.tokens), hidden = size(job.shape.hidden),
          experts = size(job.shape.experts)] {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, tokens, hidden, experts, 1,
                job.dlogits_TE, experts, job.w_EH, hidden, 1, job.dx_TH, hidden);
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, experts, hidden, tokens, 1, job.dlogits_TE,
                experts, job.x_TH, hidden, 1, job.dw_EH, hidden);
  };
}

const char* core_name() { return openblas_get_corename(); }

Peer make() {
  Peer peer;
  peer.gate = gate;
  peer.gate_backward = gate_backward;
  peer.core_name = core_name;
  return peer;
}

}  // namespace

const Peer openblas = make();

}  // namespace peers
}  // namespace bench
