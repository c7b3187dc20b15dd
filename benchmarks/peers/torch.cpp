// SPDX-License-Identifier: MIT
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "peers/peer.hpp"

namespace bench {
namespace peers {
namespace {

template <class T>
at::Tensor tensor(const T* data, Index rows, Index cols) {
  return at::from_blob(const_cast<T*>(data), {rows, cols}, c10::CppTypeToScalarType<T>::value);
}

/// Top-k, softmax, and ids as the 32-bit integers that the job wants (0.5 % of the time).
void select_into(const at::Tensor& logits, Index top_k, at::Tensor& ids, at::Tensor& weights) {
  const auto [values, indices] = at::topk(logits, top_k);
  at::softmax_out(weights, values, 1);
  ids.copy_(indices);
}

Run select(const SelectJob& job) {
  at::set_num_threads(1);
  const Shape& s = job.shape;
  return [logits = tensor(job.logits_TE, s.tokens, s.experts),
          ids = tensor(job.ids_TK, s.tokens, s.top_k),
          weights = tensor(job.weights_TK, s.tokens, s.top_k), top_k = s.top_k]() mutable {
    const c10::InferenceMode without_graph;
    select_into(logits, top_k, ids, weights);
  };
}

Run route(const RouteJob& job) {
  at::set_num_threads(1);
  const Shape& s = job.shape;
  return [x = tensor(job.x_TH, s.tokens, s.hidden), w = tensor(job.w_EH, s.experts, s.hidden),
          ids = tensor(job.ids_TK, s.tokens, s.top_k),
          weights = tensor(job.weights_TK, s.tokens, s.top_k), top_k = s.top_k]() mutable {
    const c10::InferenceMode without_graph;
    select_into(at::matmul(x, w.t()), top_k, ids, weights);
  };
}

Run route_backward(const RouteBackwardJob& job) {
  at::set_num_threads(1);
  const Shape& s = job.shape;
  at::Tensor x = tensor(job.x_TH, s.tokens, s.hidden).set_requires_grad(true);
  at::Tensor w = tensor(job.w_EH, s.experts, s.hidden).set_requires_grad(true);
  x.mutable_grad() = tensor(job.dx_TH, s.tokens, s.hidden);
  w.mutable_grad() = tensor(job.dw_EH, s.experts, s.hidden);
  const at::Tensor values = std::get<0>(at::topk(at::matmul(x, w.t()), s.top_k));
  return [weights = at::softmax(values, 1), dweights = tensor(job.dweights_TK, s.tokens, s.top_k)] {
    weights.backward(dweights, /*retain_graph=*/true);
  };
}

Peer make() {
  Peer peer;
  peer.select = select;
  peer.route = route;
  peer.route_backward = route_backward;
  return peer;
}

}  // namespace

const Peer torch = make();

}  // namespace peers
}  // namespace bench
