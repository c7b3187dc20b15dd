// SPDX-License-Identifier: MIT
// Which experts belong together: average linkage over a similarity matrix.
#ifndef INSPECT_ROUTER_CLUSTERS_HPP
#define INSPECT_ROUTER_CLUSTERS_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>
#include <vector>

#include "tensor.hpp"

namespace inspect_router {

using Experts = std::vector<Index>;

struct Clusters {
  Experts order;                ///< All experts, so that similar ones stand side by side.
  std::vector<Experts> groups;  ///< Of two or more, the largest first; in the order of `order`.
};

namespace detail {

/// The nearest-neighbour chain: average linkage is reducible, so two clusters that are each other's
/// nearest may merge at once. O(E^2) steps.
class AverageLinkage {
 public:
  AverageLinkage(const RowMatrix<double>& similarity_EE, double group_at)
      : similarity_EE_(similarity_EE), between_EE_(similarity_EE), group_at_(group_at) {
    for (Index e = 0; e < similarity_EE.rows(); ++e) clusters_.push_back({{e}, true, true});
  }

  Clusters run() {
    std::vector<Index> chain;
    for (Index merges = similarity_EE_.rows() - 1; merges > 0;) {
      if (chain.empty()) chain.push_back(first_alive());
      const Index last = chain.back();
      const Index before = chain.size() > 1 ? chain[chain.size() - 2] : -1;
      const Index next = nearest(last, before);
      if (next != before) {
        chain.push_back(next);
        continue;
      }
      chain.resize(chain.size() - 2);
      merge(before, last);
      --merges;
    }
    const Index root = first_alive();
    keep_group(at(root));
    std::stable_sort(groups_.begin(), groups_.end(),
                     [](const Experts& a, const Experts& b) { return a.size() > b.size(); });
    return {std::move(at(root).experts), std::move(groups_)};
  }

 private:
  struct Cluster {
    Experts experts;
    bool is_group;
    bool alive;
  };

  Cluster& at(Index i) { return clusters_[static_cast<std::size_t>(i)]; }
  Index first_alive() {
    Index i = 0;
    while (!at(i).alive) ++i;
    return i;
  }

  /// Ties: the one before in the chain, else the lowest, so that the chain ends.
  Index nearest(Index i, Index before) {
    Index best = before;
    for (Index j = 0; j < between_EE_.cols(); ++j) {
      if (j == i || !at(j).alive) continue;
      if (best < 0 || between_EE_(i, j) > between_EE_(i, best)) best = j;
    }
    return best;
  }

  void keep_group(Cluster& cluster) {
    if (cluster.is_group && cluster.experts.size() > 1) groups_.push_back(cluster.experts);
  }

  void merge(Index a, Index b) {
    if (b < a) std::swap(a, b);
    const double similarity = between_EE_(a, b);
    const bool is_group = similarity >= group_at_ && at(a).is_group && at(b).is_group;
    if (!is_group) {
      keep_group(at(a));
      keep_group(at(b));
    }
    const auto size_a = static_cast<double>(at(a).experts.size());
    const auto size_b = static_cast<double>(at(b).experts.size());
    for (Index j = 0; j < between_EE_.cols(); ++j) {
      if (j == a || j == b || !at(j).alive) continue;
      between_EE_(a, j) = between_EE_(j, a) =
          (size_a * between_EE_(a, j) + size_b * between_EE_(b, j)) / (size_a + size_b);
    }
    join(at(a).experts, at(b).experts);
    at(a).is_group = is_group;
    at(b).alive = false;
  }

  /// Puts b behind a, each turned so that the most similar ends meet.
  void join(Experts& a, Experts& b) const {
    const std::array<double, 4> ends = {
        similarity_EE_(a.back(), b.front()), similarity_EE_(a.back(), b.back()),
        similarity_EE_(a.front(), b.front()), similarity_EE_(a.front(), b.back())};
    const auto best = std::max_element(ends.begin(), ends.end()) - ends.begin();
    if (best >= 2) std::reverse(a.begin(), a.end());
    if (best % 2 == 1) std::reverse(b.begin(), b.end());
    a.insert(a.end(), b.begin(), b.end());
  }

  const RowMatrix<double>& similarity_EE_;
  RowMatrix<double> between_EE_;
  double group_at_;
  std::vector<Cluster> clusters_;
  std::vector<Experts> groups_;
};

}  // namespace detail

/// Clusters of E >= 1 experts. Groups: the largest clusters in which every merge joined parts whose
/// mean similarity is at least `group_at`.
inline Clusters cluster(const RowMatrix<double>& similarity_EE, double group_at) {
  Clusters clusters = detail::AverageLinkage(similarity_EE, group_at).run();
  std::vector<Index> place(clusters.order.size());
  for (std::size_t p = 0; p < place.size(); ++p) {
    place[static_cast<std::size_t>(clusters.order[p])] = static_cast<Index>(p);
  }
  const auto before = [&](Index a, Index b) {
    return place[static_cast<std::size_t>(a)] < place[static_cast<std::size_t>(b)];
  };
  for (Experts& group : clusters.groups) std::sort(group.begin(), group.end(), before);
  return clusters;
}

}  // namespace inspect_router

#endif  // INSPECT_ROUTER_CLUSTERS_HPP
