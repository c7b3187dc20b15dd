// SPDX-License-Identifier: MIT
// What gatepro is compared with. Each peer is one translation unit that alone knows its library; a
// peer that was not found at configure time can do nothing. Peers use one thread.
#ifndef GATEPRO_BENCHMARKS_PEERS_PEER_HPP
#define GATEPRO_BENCHMARKS_PEERS_PEER_HPP

#include "support/jobs.hpp"

namespace bench {

/// The jobs that a library can do; null for one that it cannot. Each prepares the job and returns
/// the part to time.
struct Peer {
  Run (*gate)(const GateJob&) = nullptr;
  Run (*select)(const SelectJob&) = nullptr;
  Run (*select_after_softmax)(const SelectJob&) = nullptr;  ///< Weights: softmax over all experts.
  Run (*select_deepseek)(const DeepSeekJob&) = nullptr;
  Run (*route)(const RouteJob&) = nullptr;
  Run (*compete)(const CompeteJob&) = nullptr;
  Run (*refresh)(const RefreshJob&) = nullptr;
  Run (*gate_backward)(const GateBackwardJob&) = nullptr;
  Run (*route_backward)(const RouteBackwardJob&) = nullptr;
  /// The processor that the library chose its kernels for.
  const char* (*core_name)() = nullptr;
};

namespace peers {
extern const Peer eigen;         ///< Eigen's products, -O3 -march=native.
extern const Peer openblas;      ///< cblas_sgemm.
extern const Peer onednn;        ///< The matmul primitive, weights in the layout it prefers.
extern const Peer onednn_sgemm;  ///< dnnl_sgemm.
extern const Peer torch;         ///< LibTorch's tensors.
extern const Peer partial_sort;  ///< std::partial_sort of ids.
extern const Peer full_sort;     ///< std::sort of ids.
extern const Peer k_scans;       ///< K searches for the largest.
extern const Peer published;     ///< Selections that others publish, in plain loops.
extern const Peer naive;         ///< A loop over the rows.
}  // namespace peers

}  // namespace bench

#endif  // GATEPRO_BENCHMARKS_PEERS_PEER_HPP
