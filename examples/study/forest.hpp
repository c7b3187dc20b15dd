// SPDX-License-Identifier: MIT
// Draws the differences of a question, one line each.
#ifndef STUDY_FOREST_HPP
#define STUDY_FOREST_HPP

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "comparison.hpp"
#include "support/plot.hpp"

namespace study {

/// How a verdict looks: a colour, and a shape, for those who do not see colours apart.
struct Mark {
  enum class Shape { disc, ring, square, diamond, cross } shape;
  int series;
  bool pale;
};

inline Mark mark_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::holds:
      return {Mark::Shape::disc, 2, false};
    case Verdict::holds_small:
      return {Mark::Shape::ring, 2, true};
    case Verdict::does_not_hold:
      return {Mark::Shape::square, 1, false};
    case Verdict::opposite:
      return {Mark::Shape::diamond, 3, false};
    case Verdict::not_shown:
      return {Mark::Shape::ring, 5, false};
    case Verdict::cannot_show:
      break;
  }
  return {Mark::Shape::cross, 5, true};
}

inline std::string line_class(const Mark& mark) {
  return report::series_class(mark.series, "-line") + (mark.pale ? " pale" : "");
}

inline void draw_mark(report::Svg& svg, double x, double y, const Mark& mark,
                      const std::string& tooltip = "") {
  const std::string line = report::series_class(mark.series, "-line");
  const std::string fill = report::series_class(mark.series, "-fill");
  switch (mark.shape) {
    case Mark::Shape::disc:
      return svg.circle(x, y, 4.5, fill, tooltip);
    case Mark::Shape::ring:
      return svg.circle(x, y, 4, line + " paper", tooltip);
    case Mark::Shape::square:
      return svg.rectangle(x - 4, y - 4, 8, 8, fill, tooltip);
    case Mark::Shape::diamond:
      return svg.polyline({{x - 5.5, y}, {x, y - 5.5}, {x + 5.5, y}, {x, y + 5.5}}, fill, tooltip);
    case Mark::Shape::cross:
      svg.line(x - 4, y - 4, x + 4, y + 4, line_class(mark));
      svg.line(x - 4, y + 4, x + 4, y - 4, line_class(mark));
      return;
  }
}

inline std::string trial_name(const Trial& trial) {
  return trial.model + ": " + trial.arm + (trial.against.empty() ? "" : " − " + trial.against);
}

struct ForestLine {
  std::string label;
  Estimate difference;
  Verdict verdict;
};

/// What the marks mean, three side by side.
inline void draw_legend(report::Svg& svg, const std::set<Verdict>& found, double left) {
  double x = left + 6, y = 12;
  for (const Verdict verdict : found) {
    if (x > left + 3 * 124) x = left + 6, y += 18;
    draw_mark(svg, x, y, mark_of(verdict));
    svg.text(x + 10, y + 4, verdict_name(verdict), "muted");
    x += 124;
  }
}

/// The interval and the mean, on the height `y`.
inline void draw_estimate(report::Svg& svg, const ForestLine& line, double low, double mean,
                          double high, double y) {
  const Mark mark = mark_of(line.verdict);
  if (std::isfinite(line.difference.low)) svg.line(low, y, high, y, line_class(mark));
  if (!std::isfinite(line.difference.mean)) return;
  draw_mark(
      svg, mean, y, mark,
      line.label + ": " + report::number(line.difference.mean) + ", " + verdict_name(line.verdict));
}

/// Means and intervals, each below its label, with a line at 0 and one at what is worth having.
inline report::Svg forest(const std::string& title, const std::vector<ForestLine>& lines,
                          double wanted, const std::string& unit) {
  constexpr double width = 400, left = 14, right = 386, row = 36;  // of class lanes
  double low = std::min(0.0, wanted), high = std::max(0.0, wanted);
  std::set<Verdict> found;
  for (const ForestLine& line : lines) {
    found.insert(line.verdict);
    if (!std::isfinite(line.difference.low)) continue;
    low = std::min(low, line.difference.low);
    high = std::max(high, line.difference.high);
  }
  const double margin = 0.04 * (high - low);
  const report::Axis axis{unit, low - margin, high + margin};
  const auto x = [&](double value) { return left + axis.share(value) * (right - left); };

  const std::size_t legend_rows = (found.size() + 2) / 3;
  const double top = 8 + 18 * static_cast<double>(legend_rows);
  const double bottom = top + row * static_cast<double>(lines.size());
  report::Svg svg(width, bottom + 40, title);
  draw_legend(svg, found, left);
  const auto upright = [&](double value, const std::string& css) {
    svg.line(x(value), top + row / 2, x(value), bottom, css + " lanes");
  };
  for (const report::Tick& tick : report::linear_ticks(axis.low, axis.high, 7)) {
    upright(tick.at, "grid");
    svg.text(x(tick.at), bottom + 17, tick.label, "muted", "middle");
  }
  upright(0, "frame");
  upright(wanted, "rule");
  svg.text((left + right) / 2, bottom + 34, unit, "ink", "middle");
  double y = top;
  for (const ForestLine& line : lines) {
    const Estimate& e = line.difference;
    svg.text(left, y + 13, line.label);
    draw_estimate(svg, line, x(e.low), x(e.mean), x(e.high), y + 0.75 * row);
    y += row;
  }
  return svg;
}

}  // namespace study

#endif  // STUDY_FOREST_HPP
