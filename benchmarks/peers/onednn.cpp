// SPDX-License-Identifier: MIT
#include <omp.h>

#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>

#include "peers/peer.hpp"

namespace bench {
namespace peers {
namespace {

using dnnl::memory;

/// x_TH w_EH^T, with w_EH first brought to the layout that the primitive prefers, as gatepro packs
/// its weights in each call.
struct Product {
  explicit Product(const GateJob& job)
      : engine(dnnl::engine::kind::cpu, 0),
        stream(engine),
        x(plain(job.shape.tokens, job.shape.hidden, job.shape.hidden, 1), engine, input(job.x_TH)),
        w(plain(job.shape.hidden, job.shape.experts, 1, job.shape.hidden), engine, input(job.w_EH)),
        logits(plain(job.shape.tokens, job.shape.experts, job.shape.experts, 1), engine,
               job.logits_TE),
        chosen({x.get_desc(),
                memory::desc({job.shape.hidden, job.shape.experts}, memory::data_type::f32,
                             memory::format_tag::any),
                logits.get_desc()},
               engine),
        packed(chosen.weights_desc(), engine),
        pack(w, packed),
        multiply(chosen),
        arguments{{DNNL_ARG_SRC, x}, {DNNL_ARG_WEIGHTS, packed}, {DNNL_ARG_DST, logits}} {}

  void run() {
    pack.execute(stream, w, packed);
    multiply.execute(stream, arguments);
    stream.wait();
  }

  static memory::desc plain(Index rows, Index cols, Index row_stride, Index col_stride) {
    return {{rows, cols}, memory::data_type::f32, memory::dims{row_stride, col_stride}};
  }
  static void* input(const float* data) { return const_cast<float*>(data); }  // only read

  dnnl::engine engine;
  dnnl::stream stream;
  memory x, w, logits;
  dnnl::matmul::primitive_desc chosen;
  memory packed;
  dnnl::reorder pack;
  dnnl::matmul multiply;
  std::unordered_map<int, memory> arguments;
};

Run gate(const GateJob& job) {
  omp_set_num_threads(1);
  const auto product = std::make_shared<Product>(job);
  return [product] { product->run(); };
}

Run gate_sgemm(const GateJob& job) {
  omp_set_num_threads(1);
  return [job] {
    const Shape& s = job.shape;
    dnnl_sgemm('N', 'T', s.tokens, s.experts, s.hidden, 1, job.x_TH, s.hidden, job.w_EH, s.hidden,
               0, job.logits_TE, s.experts);
  };
}

Peer make(Run (*gate_of)(const GateJob&)) {
  Peer peer;
  peer.gate = gate_of;
  return peer;
}

}  // namespace

const Peer onednn = make(gate);
const Peer onednn_sgemm = make(gate_sgemm);

}  // namespace peers
}  // namespace bench
