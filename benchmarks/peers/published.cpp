// SPDX-License-Identifier: MIT
// Selections as other projects publish them, in plain loops of our own.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "peers/peer.hpp"

namespace bench {
namespace peers {
namespace {

using Row = std::vector<float>;
using Ids = std::vector<std::int32_t>;

std::size_t size(Index count) { return static_cast<std::size_t>(count); }

/// exp of the logits, less the largest, and their sum.
float exponentials(const float* logits_E, Row& exp_E) {
  const float largest = *std::max_element(logits_E, logits_E + exp_E.size());
  float sum = 0;
  for (std::size_t e = 0; e < exp_E.size(); ++e) {
    exp_E[e] = std::exp(logits_E[e] - largest);
    sum += exp_E[e];
  }
  return sum;
}

/// The first `count` of ids become those with the largest values, best first.
void sort_best(Ids& ids, Index count, const Row& values) {
  std::partial_sort(
      ids.begin(), ids.begin() + count, ids.end(), [&](std::int32_t a, std::int32_t b) {
        return values[static_cast<std::size_t>(a)] > values[static_cast<std::size_t>(b)];
      });
}

/// Softmax over all experts, then a partial sort, as many inference engines do.
Run select_after_softmax(const SelectJob& job) {
  return [job, ids = Ids(size(job.shape.experts)), exp_E = Row(size(job.shape.experts))]() mutable {
    const Shape& s = job.shape;
    for (Index t = 0; t < s.tokens; ++t) {
      const float sum = exponentials(job.logits_TE + t * s.experts, exp_E);
      std::iota(ids.begin(), ids.end(), 0);
      sort_best(ids, s.top_k, exp_E);
      for (Index k = 0; k < s.top_k; ++k) {
        const std::int32_t id = ids[size(k)];
        job.ids_TK[t * s.top_k + k] = id;
        job.weights_TK[t * s.top_k + k] = exp_E[size(id)] / sum;
      }
    }
  };
}

/// K searches for the largest logit, each of which removes what it found, as InfiniTrain does.
Run select_by_scans(const SelectJob& job) {
  return [job, left_E = Row(size(job.shape.experts))]() mutable {
    const Shape& s = job.shape;
    for (Index t = 0; t < s.tokens; ++t) {
      const float* logits_E = job.logits_TE + t * s.experts;
      float* weights_K = job.weights_TK + t * s.top_k;
      std::copy_n(logits_E, s.experts, left_E.begin());
      float sum = 0, largest = 0;
      for (Index k = 0; k < s.top_k; ++k) {
        const auto best = std::max_element(left_E.begin(), left_E.end());
        if (k == 0) largest = *best;
        weights_K[k] = std::exp(*best - largest);
        sum += weights_K[k];
        job.ids_TK[t * s.top_k + k] = static_cast<std::int32_t>(best - left_E.begin());
        *best = -std::numeric_limits<float>::infinity();
      }
      for (Index k = 0; k < s.top_k; ++k) weights_K[k] /= sum;
    }
  };
}

/// The sum of the best two.
float best_two(const float* first, const float* last) {
  float best = -std::numeric_limits<float>::infinity(), second = best;
  for (; first != last; ++first) {
    second = std::max(second, std::min(best, *first));
    best = std::max(best, *first);
  }
  return best + second;
}

/// DeepSeek-V3's selection by partial sorts: of the groups, then of their experts.
class DeepSeek {
 public:
  explicit DeepSeek(const DeepSeekJob& job)
      : job_(job),
        scores_E_(size(job.shape.experts)),
        choice_E_(scores_E_.size()),
        sums_G_(size(DeepSeekJob::groups)),
        groups_(sums_G_.size()) {}

  void run() {
    for (Index t = 0; t < job_.shape.tokens; ++t) select(t);
  }

 private:
  void select(Index t) {
    const Shape& s = job_.shape;
    score(job_.logits_TE + t * s.experts);
    choose_groups();
    ids_.clear();
    const Index members = s.experts / DeepSeekJob::groups;
    for (Index g = 0; g < DeepSeekJob::groups_per_token; ++g) {
      const Index first = groups_[size(g)] * members;
      for (Index e = first; e < first + members; ++e) ids_.push_back(static_cast<std::int32_t>(e));
    }
    sort_best(ids_, s.top_k, choice_E_);
    float sum = 0;
    for (Index k = 0; k < s.top_k; ++k) sum += scores_E_[size(ids_[size(k)])];
    for (Index k = 0; k < s.top_k; ++k) {
      const std::int32_t id = ids_[size(k)];
      job_.ids_TK[t * s.top_k + k] = id;
      job_.weights_TK[t * s.top_k + k] = DeepSeekJob::scale * scores_E_[size(id)] / sum;
    }
  }

  void score(const float* logits_E) {
    for (std::size_t e = 0; e < scores_E_.size(); ++e) {
      scores_E_[e] = 1 / (1 + std::exp(-logits_E[e]));
      choice_E_[e] = scores_E_[e] + job_.bias_E[e];
    }
  }

  void choose_groups() {
    const Index members = job_.shape.experts / DeepSeekJob::groups;
    for (Index g = 0; g < DeepSeekJob::groups; ++g) {
      const float* first = choice_E_.data() + g * members;
      sums_G_[size(g)] = best_two(first, first + members);
    }
    std::iota(groups_.begin(), groups_.end(), 0);
    sort_best(groups_, DeepSeekJob::groups_per_token, sums_G_);
  }

  DeepSeekJob job_;
  Row scores_E_, choice_E_, sums_G_;
  Ids groups_, ids_;
};

Run select_deepseek(const DeepSeekJob& job) {
  return [selection = DeepSeek(job)]() mutable { selection.run(); };
}

Peer make_k_scans() {
  Peer peer;
  peer.select = select_by_scans;
  return peer;
}

Peer make_published() {
  Peer peer;
  peer.select_after_softmax = select_after_softmax;
  peer.select_deepseek = select_deepseek;
  return peer;
}

}  // namespace

const Peer k_scans = make_k_scans();
const Peer published = make_published();

}  // namespace peers
}  // namespace bench
