// SPDX-License-Identifier: MIT
// Where the experts stand in the picture of who names whom.
#ifndef INSPECT_ROUTER_GRAPH_LAYOUT_HPP
#define INSPECT_ROUTER_GRAPH_LAYOUT_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "tensor.hpp"

namespace inspect_router {

struct Place {
  double x = 0, y = 0;
};

struct GraphLayout {
  std::vector<Place> place_E;  ///< In units of a node's diameter.
  double width = 0, height = 0;
};

namespace detail {

/// Experts that are joined by naming each other: a component is a tree but for the pair, or ring,
/// that it hangs from.
class GraphPlanner {
 public:
  explicit GraphPlanner(const std::vector<std::int32_t>& partner_E)
      : partner_E_(partner_E), neighbours_(partner_E.size()), place_E_(partner_E.size()) {
    for (std::size_t e = 0; e < partner_E.size(); ++e) {
      const auto partner = static_cast<std::size_t>(partner_E[e]);
      if (partner == e) continue;
      neighbours_[e].push_back(partner);
      // Named by each other: one edge.
      if (static_cast<std::size_t>(partner_E[partner]) != e) neighbours_[partner].push_back(e);
    }
  }

  GraphLayout run() {
    std::vector<Box> boxes;
    std::vector<char> seen(partner_E_.size());
    for (std::size_t e = 0; e < seen.size(); ++e) {
      if (seen[e] == 0) boxes.push_back(plan(component(e, seen)));
    }
    return pack(boxes);
  }

 private:
  using Nodes = std::vector<std::size_t>;
  struct Box {
    Nodes nodes;
    double width, height;
  };

  static constexpr double edge = 1.45;    // length of an edge
  static constexpr double room = 1.18;    // least distance of two nodes
  static constexpr double margin = 1.25;  // a node, and the space around a component

  Nodes component(std::size_t first, std::vector<char>& seen) const {
    Nodes nodes{first};
    seen[first] = 1;
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      for (const std::size_t next : neighbours_[nodes[i]]) {
        if (seen[next] == 0) nodes.push_back(next);
        seen[next] = 1;
      }
    }
    return nodes;
  }

  /// Starts as a tree that opens in all directions from its hub; then edges pull, and nodes that
  /// stand too close push each other away.
  Box plan(Nodes nodes) {
    const std::size_t hub = *std::max_element(nodes.begin(), nodes.end(), [&](auto a, auto b) {
      return neighbours_[a].size() < neighbours_[b].size();
    });
    std::vector<char> seen(partner_E_.size());
    place_E_[hub] = {0, 0};
    open(hub, 0, 6.283185307179586, 1, seen);
    // Each round looks at all pairs; beyond some hundred nodes there are fewer rounds.
    const auto pairs = static_cast<double>(nodes.size() * nodes.size());
    const int rounds = static_cast<int>(std::clamp(5e7 / pairs, 20.0, 400.0));
    for (int round = 0; round < rounds; ++round) {
      const double step = 0.5 * (1 - static_cast<double>(round) / rounds);
      for (const std::size_t a : nodes) {
        for (const std::size_t b : neighbours_[a]) move(a, b, edge, step, true);
      }
      separate(nodes, 1.6, 0.25 * step);
      separate(nodes, room, 0.5);
    }
    for (int round = 0; round < rounds; ++round) separate(nodes, room, 0.5);
    return settle(std::move(nodes));
  }

  std::size_t size_below(std::size_t node, std::vector<char> seen) const {
    Nodes nodes{node};
    seen[node] = 1;
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      for (const std::size_t next : neighbours_[nodes[i]]) {
        if (seen[next] == 0) nodes.push_back(next);
        seen[next] = 1;
      }
    }
    return nodes.size();
  }

  /// Gives each subtree below `node` a sector by its size.
  void open(std::size_t node, double from, double to, int depth, std::vector<char>& seen) {
    seen[node] = 1;
    Nodes children;
    std::vector<double> sizes;
    double total = 0;
    for (const std::size_t next : neighbours_[node]) {
      if (seen[next] != 0) continue;
      children.push_back(next);
      sizes.push_back(std::sqrt(static_cast<double>(size_below(next, seen))));
      total += sizes.back();
    }
    for (std::size_t c = 0; c < children.size(); ++c) {
      const double end = from + (to - from) * sizes[c] / total;
      const double angle = (from + end) / 2;
      if (seen[children[c]] == 0) {
        place_E_[children[c]] = {edge * depth * std::cos(angle), edge * depth * std::sin(angle)};
        open(children[c], from, end, depth + 1, seen);
      }
      from = end;
      total -= sizes[c];
    }
  }

  /// Moves a and b along their line towards the distance `wanted`; only apart unless `both_ways`.
  void move(std::size_t a, std::size_t b, double wanted, double step, bool both_ways) {
    Place& p = place_E_[a];
    Place& q = place_E_[b];
    double dx = q.x - p.x, dy = q.y - p.y;
    double distance = std::sqrt(dx * dx + dy * dy);
    if (distance >= wanted && !both_ways) return;
    if (distance < 1e-6) {  // any direction will do, if it is always the same
      dx = a < b ? 1e-3 : -1e-3;
      dy = 1e-3;
      distance = std::sqrt(dx * dx + dy * dy);
    }
    const double shift = step * 0.5 * (distance - wanted) / distance;
    p.x += shift * dx;
    p.y += shift * dy;
    q.x -= shift * dx;
    q.y -= shift * dy;
  }

  void separate(const Nodes& nodes, double wanted, double step) {
    for (std::size_t a = 0; a < nodes.size(); ++a) {
      for (std::size_t b = a + 1; b < nodes.size(); ++b) {
        move(nodes[a], nodes[b], wanted, step, false);
      }
    }
  }

  /// Turns the component so that it lies, and moves it to the corner (0, 0).
  Box settle(Nodes nodes) {
    const auto mean = [&](const auto& of) {
      double sum = 0;
      for (const std::size_t n : nodes) sum += of(place_E_[n]);
      return sum / static_cast<double>(nodes.size());
    };
    const double x = mean([](const Place& p) { return p.x; });
    const double y = mean([](const Place& p) { return p.y; });
    const double xx = mean([&](const Place& p) { return (p.x - x) * (p.x - x); });
    const double yy = mean([&](const Place& p) { return (p.y - y) * (p.y - y); });
    const double xy = mean([&](const Place& p) { return (p.x - x) * (p.y - y); });
    const double angle = 0.5 * std::atan2(2 * xy, xx - yy);  // of the longest extent
    const double c = std::cos(angle), s = std::sin(angle);
    Place low{1e300, 1e300}, high{-1e300, -1e300};
    for (const std::size_t n : nodes) {
      Place& p = place_E_[n];
      p = {c * p.x + s * p.y, c * p.y - s * p.x};
      low = {std::min(low.x, p.x), std::min(low.y, p.y)};
      high = {std::max(high.x, p.x), std::max(high.y, p.y)};
    }
    for (const std::size_t n : nodes) {
      place_E_[n] = {place_E_[n].x - low.x, place_E_[n].y - low.y};
    }
    return {std::move(nodes), high.x - low.x + margin, high.y - low.y + margin};
  }

  /// Shelves, the highest components first, each on the first that has room, in a width that makes
  /// the whole higher than wide.
  GraphLayout pack(std::vector<Box>& boxes) {
    std::stable_sort(boxes.begin(), boxes.end(),
                     [](const Box& a, const Box& b) { return a.height > b.height + 1e-9; });
    double area = 0, widest = 0;
    for (const Box& box : boxes) {
      area += box.width * box.height;
      widest = std::max(widest, box.width);
    }
    GraphLayout layout;
    layout.width = std::max(widest, std::sqrt(area / 1.4));
    struct Shelf {
      double y, height, used;
    };
    std::vector<Shelf> shelves;
    for (const Box& box : boxes) {
      auto shelf = std::find_if(shelves.begin(), shelves.end(), [&](const Shelf& s) {
        return s.used + box.width <= layout.width + 1e-9;
      });
      if (shelf == shelves.end()) {
        shelves.push_back({layout.height, box.height, 0});
        layout.height += box.height;
        shelf = shelves.end() - 1;
      }
      for (const std::size_t n : box.nodes) {
        place_E_[n].x += shelf->used + margin / 2;
        place_E_[n].y += shelf->y + margin / 2;
      }
      shelf->used += box.width;
    }
    layout.place_E = std::move(place_E_);
    return layout;
  }

  const std::vector<std::int32_t>& partner_E_;
  std::vector<Nodes> neighbours_;
  std::vector<Place> place_E_;
};

}  // namespace detail

/// Places for the experts whose partners are partner_E (the expert itself: none).
inline GraphLayout plan_graph(const std::vector<std::int32_t>& partner_E) {
  return detail::GraphPlanner(partner_E).run();
}

}  // namespace inspect_router

#endif  // INSPECT_ROUTER_GRAPH_LAYOUT_HPP
