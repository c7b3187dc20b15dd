// SPDX-License-Identifier: MIT
// The pictures of one router, each 370 pixels wide.
#ifndef INSPECT_ROUTER_PICTURES_HPP
#define INSPECT_ROUTER_PICTURES_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "graph_layout.hpp"
#include "layer_report.hpp"
#include "support/pixels.hpp"
#include "support/plot.hpp"

namespace inspect_router {

using report::Plot;
using report::Svg;

inline constexpr double picture_width = 370;

/// How a group is called: A to Z, then A2 and so on.
inline std::string group_name(std::size_t number) {
  const std::string letter(1, static_cast<char>('A' + number % 26));
  return number < 26 ? letter : letter + std::to_string(number / 26 + 1);
}

/// "3, 7, 9"; long lists end early.
inline std::string list_of(const Experts& experts, std::size_t most = 24) {
  std::string text;
  for (std::size_t i = 0; i < std::min(most, experts.size()); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(experts[i]);
  }
  if (experts.size() > most) text += " and " + std::to_string(experts.size() - most) + " more";
  return text;
}

namespace detail {

/// A matrix over experts x experts as a heat map, in the order of the clusters.
class HeatMap {
 public:
  HeatMap(const std::string& title, const LayerReport& layer)
      : layer_(layer), svg_(picture_width, top + side + 46, title) {
    const std::size_t longest = std::to_string(layer.experts - 1).size();
    cell_ = side / static_cast<double>(layer.experts);
    font_ = std::min(cell_ * 0.85, 1.7 * cell_ / static_cast<double>(longest));
    if (font_ > 12) font_ = 0;  // that of the page
  }

  /// value(i, j) in [-1, 1], or NaN; text(i, j) for cells that are large enough.
  template <class Value, class Text>
  void cells(const Value& value, const Text& text) {
    const std::size_t experts = layer_.order.size();
    std::vector<std::uint8_t> indices;
    indices.reserve(experts * experts);
    for (const Index i : layer_.order) {
      for (const Index j : layer_.order) {
        indices.push_back(i == j ? report::HeatScale::middle
                                 : report::HeatScale::index(value(i, j)));
      }
    }
    // Cells of a few experts are large, and would show that they are blurred.
    const std::size_t repeat = std::max<std::size_t>(1, 400 / experts);
    svg_.image(left, top, side, side, report::heat_address(experts, experts, indices, repeat));
    svg_.rectangle(left, top, side, side, "outline");
    if (experts > 12) return;
    for (std::size_t r = 0; r < experts; ++r) {
      for (std::size_t c = 0; c < experts; ++c) {
        if (r == c) continue;
        svg_.text(at(c) + cell_ / 2, top + (static_cast<double>(r) + 0.5) * cell_ + 3,
                  text(layer_.order[r], layer_.order[c]), "ink halo", "middle",
                  std::min(9.0, cell_ * 0.36));
      }
    }
  }

  /// The ids of the experts, where there is room for all of them.
  void names() {
    if (layer_.experts > 40) {
      svg_.text(left + side / 2, top - 6, std::to_string(layer_.experts) + " experts", "muted",
                "middle");
      return;
    }
    for (std::size_t p = 0; p < layer_.order.size(); ++p) {
      const std::string name = std::to_string(layer_.order[p]);
      const double middle = (static_cast<double>(p) + 0.5) * cell_;
      svg_.text(left - 4, top + middle + 0.35 * (font_ > 0 ? font_ : 8), name, "muted", "end",
                font_);
      svg_.text(left + middle, top - 5, name, "muted", "middle", font_);
    }
  }

  /// Frames around the redundant groups, with their letters.
  void groups() {
    double free_from = top;
    for (const auto& [first, group] : by_place()) {
      const double size = cell_ * static_cast<double>(layer_.groups[group].experts.size());
      svg_.rectangle(at(first), top + at(first) - left, size, size, "group");
      const double y = top + at(first) - left + size / 2 + 4;
      if (layer_.experts <= 40 || y < free_from + 11) continue;
      svg_.text(left - 5, y, group_name(group), "ink", "end");
      free_from = y;
    }
  }

  /// The scale below, with labels at -1, 0 and 1.
  void scale(const std::string& low, const std::string& middle, const std::string& high,
             const std::string& meaning) {
    std::vector<std::uint8_t> indices(255);
    std::iota(indices.begin(), indices.end(), std::uint8_t{0});
    const double y = top + side + 12, width = 150;
    svg_.image(left, y, width, 10, report::heat_address(255, 1, indices));
    svg_.rectangle(left, y, width, 10, "outline");
    svg_.text(left, y + 24, low, "muted");
    svg_.text(left + width / 2, y + 24, middle, "muted", "middle");
    svg_.text(left + width, y + 24, high, "muted", "end");
    svg_.text(left + width + 12, y + 9, meaning, "ink");
  }

  const Svg& svg() const { return svg_; }

 private:
  static constexpr double left = 26, top = 18, side = picture_width - left - 6;

  double at(std::size_t place) const { return left + cell_ * static_cast<double>(place); }

  /// (place of the first expert, number of the group), from the top down.
  std::vector<std::pair<std::size_t, std::size_t>> by_place() const {
    std::vector<std::pair<std::size_t, std::size_t>> places;
    for (std::size_t g = 0; g < layer_.groups.size(); ++g) {
      const auto first =
          std::find(layer_.order.begin(), layer_.order.end(), layer_.groups[g].experts.front());
      places.emplace_back(first - layer_.order.begin(), g);
    }
    std::sort(places.begin(), places.end());
    return places;
  }

  const LayerReport& layer_;
  Svg svg_;
  double cell_, font_;
};

/// Without the zero before the point: cells are narrow.
inline std::string narrow(double value) {
  std::string text = report::fixed(value, 2);
  const std::size_t zero = text.find("0.");
  if (zero != std::string::npos && std::abs(value) < 1) text.erase(zero, 1);
  return text;
}

inline std::vector<char> in_groups(const LayerReport& layer) {
  std::vector<char> marked(static_cast<std::size_t>(layer.experts));
  for (const RedundantGroup& group : layer.groups) {
    for (const Index e : group.experts) marked[static_cast<std::size_t>(e)] = 1;
  }
  return marked;
}

}  // namespace detail

/// Cosines between all rows of W. `limit`: where the colours end.
inline Svg similarity_map(const LayerReport& layer, double limit) {
  detail::HeatMap map("Similarity of the experts of " + layer.label, layer);
  const auto& similarity_EE = layer.likeness->similarity_EE;
  const auto cosine = [&](Index i, Index j) { return static_cast<double>(similarity_EE(i, j)); };
  map.cells([&](Index i, Index j) { return cosine(i, j) / limit; },
            [&](Index i, Index j) { return detail::narrow(cosine(i, j)); });
  map.names();
  map.groups();
  map.scale(report::number(-limit, 2), "0", report::number(limit, 2), "cosine of router rows");
  return map.svg();
}

/// Lifts are pulled towards chance as by so many tokens more: rare pairs tell little.
inline constexpr double lift_prior = 5;

/// Lift of all pairs of experts, from an eighth to eight times as often as chance.
inline Svg lift_map(const LayerReport& layer) {
  detail::HeatMap map("Co-activation of the experts of " + layer.label, layer);
  const RoutingSummary& routing = *layer.routing;
  map.cells(
      [&](Index i, Index j) {
        const auto seen = static_cast<double>(routing.together.counts_EE()(i, j));
        return std::log2((seen + lift_prior) / (routing.expected(i, j) + lift_prior)) / 3;
      },
      [&](Index i, Index j) { return report::number(routing.lift_EE(i, j), 2); });
  map.names();
  map.groups();
  map.scale("⅛", "1", "8", "times as often as chance");
  return map.svg();
}

/// Who names whom: the partner is the most similar other expert.
inline Svg partner_picture(const LayerReport& layer) {
  const std::vector<std::int32_t>& partner_E = layer.likeness->partner_E;
  const GraphLayout layout = plan_graph(partner_E);
  const double unit = std::min(34.0, (picture_width - 4) / layout.width);
  const double offset = (picture_width - unit * layout.width) / 2;
  Svg svg(picture_width, unit * layout.height + 4, "Partners of the experts of " + layer.label);
  const auto x = [&](std::size_t e) { return offset + unit * layout.place_E[e].x; };
  const auto y = [&](std::size_t e) { return 2 + unit * layout.place_E[e].y; };
  for (std::size_t e = 0; e < partner_E.size(); ++e) {
    const auto partner = static_cast<std::size_t>(partner_E[e]);
    const bool mutual = static_cast<std::size_t>(partner_E[partner]) == e;
    if (partner == e || (mutual && partner < e)) continue;
    if (mutual) {
      svg.line(x(e), y(e), x(partner), y(partner), "mutual");
      continue;
    }
    // An arrow that ends where the partner's disc begins.
    const double dx = x(partner) - x(e), dy = y(partner) - y(e);
    const double length = std::max(1e-9, std::sqrt(dx * dx + dy * dy));
    const double tip_x = x(partner) - 0.44 * unit * dx / length;
    const double tip_y = y(partner) - 0.44 * unit * dy / length;
    const double head = 0.2 * unit, ux = dx / length, uy = dy / length;
    svg.line(x(e), y(e), tip_x - head * ux, tip_y - head * uy, "frame");
    svg.polyline({{tip_x, tip_y},
                  {tip_x - head * ux - 0.6 * head * uy, tip_y - head * uy + 0.6 * head * ux},
                  {tip_x - head * ux + 0.6 * head * uy, tip_y - head * uy - 0.6 * head * ux}},
                 "muted");
  }
  const std::vector<char> marked = detail::in_groups(layer);
  const std::size_t digits = std::to_string(layer.experts - 1).size();
  const double font = unit * (digits == 1 ? 0.52 : digits == 2 ? 0.46 : digits == 3 ? 0.36 : 0.28);
  for (std::size_t e = 0; e < partner_E.size(); ++e) {
    const double cosine = layer.likeness->with_partner_E[e];
    svg.circle(x(e), y(e), 0.42 * unit, marked[e] != 0 ? "knob redundant" : "knob",
               "expert " + std::to_string(e) +
                   (std::isnan(cosine) ? std::string(" has no partner")
                                       : " names " + std::to_string(partner_E[e]) + ", cosine " +
                                             report::fixed(cosine, 3)));
    svg.text(x(e), y(e) + 0.36 * font, std::to_string(e), "ink", "middle", font);
  }
  return svg;
}

/// How similar experts are to their partners, against chance.
inline Svg partner_histogram(const LayerReport& layer) {
  std::vector<double> own;
  for (const double cosine : layer.likeness->with_partner_E) {
    if (!std::isnan(cosine)) own.push_back(cosine);
  }
  const std::vector<double>& chance = layer.random->with_partner;
  double low = 0, high = 0.01;
  for (const std::vector<double>* values : {&std::as_const(own), &chance}) {
    for (const double cosine : *values) {
      low = std::min(low, cosine);
      high = std::max(high, cosine);
    }
  }
  const double step = report::round_step(high - low, 40);
  low = step * std::floor(low / step + 1e-9);
  high = step * std::ceil(high / step - 1e-9);
  const auto bins = static_cast<std::size_t>(std::lround((high - low) / step));
  const auto count = [&](const std::vector<double>& values, double weight) {
    std::vector<double> counts(bins);
    for (const double cosine : values) {
      const double bin = std::clamp((cosine - low) / step, 0.0, static_cast<double>(bins) - 1);
      counts[static_cast<std::size_t>(bin)] += weight;
    }
    return counts;
  };
  const std::vector<double> own_B = count(own, 1),
                            chance_B = count(chance, 1.0 / RandomRouters::draws);
  double highest = 1;
  for (const double n : own_B) highest = std::max(highest, n);
  for (const double n : chance_B) highest = std::max(highest, n);

  Plot plot("Similarity to the partner in " + layer.label, {"cosine with the partner", low, high},
            {"experts", 0, highest * 1.08, false, report::whole_ticks(0, highest * 1.08)});
  report::Points outline{{low, 0}};
  for (std::size_t b = 0; b < bins; ++b) {
    const double from = low + step * static_cast<double>(b);
    plot.bar(from, from + step, own_B[b], 0,
             report::number(own_B[b]) + " experts from " + report::number(from) + " to " +
                 report::number(from + step));
    outline.emplace_back(from, chance_B[b]);
    outline.emplace_back(from + step, chance_B[b]);
  }
  outline.emplace_back(high, 0);
  plot.line(outline, 1);
  plot.legend({{0, "this router"}, {1, "random router"}});
  return plot.svg();
}

/// ", mean weight 0.17" of an expert, where that is known.
inline std::string weight_text(const RoutingSummary& routing, Index e) {
  const auto i = static_cast<std::size_t>(e);
  if (routing.weight_E.empty() || routing.load_E[i] == 0) return "";
  const double mean = routing.weight_E[i] / static_cast<double>(routing.load_E[i]);
  return ", mean weight " + report::number(mean);
}

/// The tokens of each expert, the largest first.
inline Svg load_picture(const LayerReport& layer) {
  const std::vector<std::int64_t>& load_E = layer.routing->load_E;
  Experts order(load_E.size());
  std::iota(order.begin(), order.end(), Index{0});
  const auto load = [&](Index e) { return load_E[static_cast<std::size_t>(e)]; };
  std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) { return load(a) > load(b); });
  const auto largest = static_cast<double>(std::max<std::int64_t>(1, load(order.front())));
  const double mean =
      std::accumulate(load_E.begin(), load_E.end(), 0.0) / static_cast<double>(load_E.size());
  const auto experts = static_cast<double>(layer.experts);
  std::vector<report::Tick> ticks;
  for (std::size_t p = 0; layer.experts <= 20 && p < order.size(); ++p) {
    ticks.push_back({static_cast<double>(p) + 0.5, std::to_string(order[p])});
  }
  Plot plot("Loads of the experts of " + layer.label,
            {layer.experts <= 20 ? "expert" : "experts, by load", 0, experts, false, ticks},
            {"tokens", 0, 1.08 * largest, false, report::whole_ticks(0, 1.08 * largest)});
  const std::vector<char> marked = detail::in_groups(layer);
  for (std::size_t p = 0; p < order.size(); ++p) {
    const auto tokens = static_cast<double>(load(order[p]));
    const auto at = static_cast<double>(p);
    plot.bar(at, at + 1, tokens, marked[static_cast<std::size_t>(order[p])] != 0 ? 1 : 0,
             "expert " + std::to_string(order[p]) + ": " + std::to_string(load(order[p])) +
                 " tokens, " + report::number(mean > 0 ? tokens / mean : 0) + " of the mean" +
                 weight_text(*layer.routing, order[p]));
  }
  plot.level(mean, "mean");
  if (!layer.groups.empty()) plot.legend({{0, "expert"}, {1, "in a redundant group"}});
  return plot.svg();
}

/// The lift of pairs by their similarity: are similar experts selected for the same tokens?
inline Svg lift_by_similarity(const LayerReport& layer) {
  struct Pair {
    double cosine, seen, expected;
  };
  const RoutingSummary& routing = *layer.routing;
  std::vector<Pair> pairs;
  for (Index i = 0; i < layer.experts; ++i) {
    for (Index j = 0; j < i; ++j) {
      pairs.push_back({static_cast<double>(layer.likeness->similarity_EE(i, j)),
                       static_cast<double>(routing.together.counts_EE()(i, j)),
                       routing.expected(i, j)});
    }
  }
  std::sort(pairs.begin(), pairs.end(),
            [](const Pair& a, const Pair& b) { return a.cosine < b.cosine; });
  const std::size_t parts = std::clamp<std::size_t>(pairs.size() / 6, 1, 20);
  report::Points points;
  double highest = 1.5, low = 0, high = 0.01;
  for (std::size_t p = 0; p < parts; ++p) {
    Pair sum{0, 0, 0};
    const std::size_t first = p * pairs.size() / parts, end = (p + 1) * pairs.size() / parts;
    for (std::size_t i = first; i < end; ++i) {
      sum.cosine += pairs[i].cosine / static_cast<double>(end - first);
      sum.seen += pairs[i].seen;
      sum.expected += pairs[i].expected;
    }
    if (sum.expected <= 0) continue;
    points.emplace_back(sum.cosine, sum.seen / sum.expected);
    highest = std::max(highest, points.back().second);
    low = std::min(low, sum.cosine);
    high = std::max(high, sum.cosine);
  }
  Plot plot("Co-activation by similarity in " + layer.label,
            {"cosine of the pair", low * 1.05, high * 1.05}, {"lift", 0, 1.08 * highest});
  plot.line(points, 0);
  for (const auto& [x, y] : points) {
    plot.point(x, y, 0, "cosine " + report::number(x) + ": lift " + report::number(y));
  }
  plot.level(1, "chance");
  return plot.svg();
}

/// The share of the tokens whose experts a penalty would change.
inline Svg lambda_picture(const LayerReport& layer) {
  const gatepro::MarginCounts& margins = *layer.routing->margins;
  const double nearly_all = margins.lambda_for_share(0.99 * margins.largest_share());
  const double low = 1e-6, high = std::pow(10, std::ceil(std::log10(std::max(nearly_all, 0.1))));
  const double most = 100 * std::max(0.01, margins.largest_share());
  Plot plot("Tokens that a penalty changes in " + layer.label, {"penalty λ", low, high, true},
            {"tokens changed (%)", 0, 1.15 * most});
  report::Points curve;
  constexpr int steps = 120;
  for (int i = 0; i <= steps; ++i) {
    const double lambda = low * std::pow(high / low, static_cast<double>(i) / steps);
    curve.emplace_back(lambda, 100 * margins.changed_share(lambda));
  }
  plot.line(curve, 0);
  plot.level(100 * margins.largest_share(), "elimination");
  plot.mark(1e-4, "published λ", 0.35 * plot.svg().height());
  return plot.svg();
}

/// The classes that only these pictures use.
inline std::string picture_css(const report::Theme& theme) {
  return std::string(".outline{fill:none;stroke:") + theme.grid +
         "}.group{fill:none;stroke-width:1.2px;stroke:" + theme.ink +
         "}.mutual{stroke-width:3px;stroke:" + theme.series[0] +
         "}.redundant{stroke:" + theme.series[1] + ";stroke-width:2px}\n";
}

}  // namespace inspect_router

#endif  // INSPECT_ROUTER_PICTURES_HPP
