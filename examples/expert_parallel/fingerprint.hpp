// SPDX-License-Identifier: MIT
// A number that differs if one bit of a routing does, whoever holds which tokens.
#ifndef EXPERT_PARALLEL_FINGERPRINT_HPP
#define EXPERT_PARALLEL_FINGERPRINT_HPP

#include <cstdint>
#include <cstring>

#include "parallel_training.hpp"

namespace expert_parallel {

class Fingerprint {
 public:
  template <class T>
  void add(const T& value) {
    unsigned char bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    for (const unsigned char byte : bytes) hash_ = (hash_ ^ byte) * 0x100000001B3;  // FNV-1a
  }
  std::uint64_t hash() const { return hash_; }

 private:
  std::uint64_t hash_ = 0xCBF29CE484222325;
};

/// Of ids and weights of all layers and tokens in the last forward; `first` is this rank's first
/// token. All ranks together.
template <class A>
std::uint64_t routing_fingerprint(ParallelModel<A>& model, Index first, const Communicator& comm) {
  std::uint64_t all = 0;
  for (ParallelLayer<A>& layer : model.layers()) {
    const auto ids_TK = layer.routed().expert_ids_TK();
    const auto weights_TK = layer.routed().weights_TK();
    for (Index t = 0; t < ids_TK.rows; ++t) {
      Fingerprint token;
      token.add(&layer - model.layers().data());
      token.add(first + t);
      for (Index k = 0; k < ids_TK.cols; ++k) {
        token.add(ids_TK(t, k));
        token.add(weights_TK(t, k));
      }
      all ^= token.hash();
    }
  }
  MPI_Allreduce(MPI_IN_PLACE, &all, 1, MPI_UINT64_T, MPI_BXOR, comm.get());
  return all;
}

/// Of the biases of all layers.
template <class A>
std::uint64_t bias_fingerprint(ParallelModel<A>& model) {
  Fingerprint all;
  for (ParallelLayer<A>& layer : model.layers()) {
    const auto bias_E = layer.router().bias().values();
    for (Index e = 0; e < bias_E.size; ++e) all.add(bias_E[e]);
  }
  return all.hash();
}

}  // namespace expert_parallel

#endif  // EXPERT_PARALLEL_FINGERPRINT_HPP
