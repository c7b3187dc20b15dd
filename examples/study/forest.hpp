// SPDX-License-Identifier: MIT
// Draws the differences of a question, one line each.
#ifndef STUDY_FOREST_HPP
#define STUDY_FOREST_HPP

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "comparison.hpp"
#include "support/plot.hpp"

namespace study {

/// The series whose colour a verdict has.
inline int verdict_series(Verdict verdict) {
  return verdict == Verdict::holds ? 2 : verdict == Verdict::does_not_hold ? 1 : 5;
}

inline std::string trial_name(const Trial& trial) {
  return trial.model + ": " + trial.arm + (trial.against.empty() ? "" : " − " + trial.against);
}

struct ForestLine {
  std::string label;
  Estimate difference;
  Verdict verdict;
};

/// Means and intervals, each below its label, with a line at 0 and one at what is worth having.
inline report::Svg forest(const std::string& title, const std::vector<ForestLine>& lines,
                          double wanted, const std::string& unit) {
  constexpr double width = 400, left = 14, right = 386, line_height = 34, top = 8;
  const double height = top + line_height * static_cast<double>(lines.size()) + 40;
  double low = std::min(0.0, wanted), high = std::max(0.0, wanted);
  for (const ForestLine& line : lines) {
    if (!std::isfinite(line.difference.low)) continue;
    low = std::min(low, line.difference.low);
    high = std::max(high, line.difference.high);
  }
  const double margin = 0.04 * (high - low);
  report::Axis axis{unit, low - margin, high + margin};
  const auto x = [&](double value) { return left + axis.share(value) * (right - left); };
  const double bottom = height - 36;

  report::Svg svg(width, height, title);
  for (const report::Tick& tick : report::linear_ticks(axis.low, axis.high, 5)) {
    svg.line(x(tick.at), top, x(tick.at), bottom, "grid");
    svg.text(x(tick.at), bottom + 15, tick.label, "muted", "middle");
  }
  svg.line(x(0), top, x(0), bottom, "frame");
  svg.line(x(wanted), top, x(wanted), bottom, "rule");
  svg.text((left + right) / 2, bottom + 31, unit, "ink", "middle");
  double y = top;
  for (const ForestLine& line : lines) {
    svg.text(left, y + 12, line.label, "ink halo");
    const int series = verdict_series(line.verdict);
    if (std::isfinite(line.difference.low)) {
      svg.line(x(line.difference.low), y + 22, x(line.difference.high), y + 22,
               report::series_class(series, "-line"));
    }
    if (std::isfinite(line.difference.mean)) {
      svg.circle(x(line.difference.mean), y + 22, 4, report::series_class(series, "-fill"),
                 line.label + ": " + report::number(line.difference.mean) + ", " +
                     verdict_name(line.verdict));
    }
    y += line_height;
  }
  return svg;
}

}  // namespace study

#endif  // STUDY_FOREST_HPP
