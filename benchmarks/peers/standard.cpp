// SPDX-License-Identifier: MIT
// What a router looks like without a library.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "peers/peer.hpp"

namespace bench {
namespace peers {
namespace {

void softmax(const float* logits_E, const std::int32_t* ids_K, Index top_k, float* weights_K) {
  float sum = 0;
  for (Index j = 0; j < top_k; ++j) {
    weights_K[j] = std::exp(logits_E[ids_K[j]] - logits_E[ids_K[0]]);
    sum += weights_K[j];
  }
  for (Index j = 0; j < top_k; ++j) weights_K[j] /= sum;
}

/// Orders the ids of each token with `sort(begin, middle, end, compare)` and takes the first K.
template <class Sort>
Run select_with(const SelectJob& job, const Sort& sort) {
  return [job, sort,
          ids = std::vector<std::int32_t>(static_cast<std::size_t>(job.shape.experts))]() mutable {
    const Shape& s = job.shape;
    for (Index t = 0; t < s.tokens; ++t) {
      const float* logits_E = job.logits_TE + t * s.experts;
      std::iota(ids.begin(), ids.end(), 0);
      sort(ids.begin(), ids.begin() + s.top_k, ids.end(),
           [logits_E](std::int32_t a, std::int32_t b) { return logits_E[a] > logits_E[b]; });
      std::copy_n(ids.begin(), s.top_k, job.ids_TK + t * s.top_k);
      softmax(logits_E, ids.data(), s.top_k, job.weights_TK + t * s.top_k);
    }
  };
}

Run select_by_partial_sort(const SelectJob& job) {
  return select_with(job, [](auto begin, auto middle, auto end, auto compare) {
    std::partial_sort(begin, middle, end, compare);
  });
}

Run select_by_full_sort(const SelectJob& job) {
  return select_with(
      job, [](auto begin, auto, auto end, auto compare) { std::sort(begin, end, compare); });
}

Run compete(const CompeteJob& job) {
  return [job] {
    const Shape& s = job.shape;
    for (Index t = 0; t < s.tokens; ++t) {
      const float* logits_E = job.logits_TE + t * s.experts;
      float* penalised_E = job.penalised_TE + t * s.experts;
      for (Index e = 0; e < s.experts; ++e) {
        const bool loses = logits_E[e] < logits_E[job.partners_E[e]];
        penalised_E[e] = loses ? logits_E[e] - job.lambda : logits_E[e];
      }
    }
  };
}

Peer selecting(Run (*select)(const SelectJob&)) {
  Peer peer;
  peer.select = select;
  return peer;
}

Peer competing() {
  Peer peer;
  peer.compete = compete;
  return peer;
}

}  // namespace

const Peer partial_sort = selecting(select_by_partial_sort);
const Peer full_sort = selecting(select_by_full_sort);
const Peer naive = competing();

}  // namespace peers
}  // namespace bench
