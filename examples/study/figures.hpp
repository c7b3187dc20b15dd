// SPDX-License-Identifier: MIT
// The figures of the report: what happened over the steps, and what a penalty of which size does.
#ifndef STUDY_FIGURES_HPP
#define STUDY_FIGURES_HPP

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "comparison.hpp"
#include "document.hpp"
#include "questions.hpp"
#include "support/plot.hpp"
#include "table_file.hpp"

namespace study {

/// One metric over the steps.
struct Curve {
  report::Points mean, low, high;
};

/// The curve of `column` of curves.csv for an arm of a model; empty if it is not there.
inline Curve curve_of(const Table& curves, const std::string& model, const std::string& arm,
                      const std::string& column) {
  Curve curve;
  if (curves.header.empty()) return curve;
  const std::size_t step = curves.column("step"), mean = curves.column(column),
                    deviation = curves.column(column + "_sd");
  for (const Cells& row : curves.rows) {
    if (row[0] != model || row[1] != arm) continue;
    const double at = value_of(row[step]), middle = value_of(row[mean]);
    const double spread = value_of(row[deviation]);
    curve.mean.emplace_back(at, middle);
    if (!std::isfinite(spread)) continue;
    curve.low.emplace_back(at, middle - spread);
    curve.high.emplace_back(at, middle + spread);
  }
  return curve;
}

/// Arms of one model over the steps: mean, and a band of one standard deviation.
inline std::vector<Figure> curve_figure(
    const Table& curves, const std::string& model,
    const std::vector<std::pair<std::string, std::string>>& arms, const std::string& column,
    const std::string& label, const std::string& caption) {
  std::vector<Curve> all;
  double steps = 1, high = 0;
  for (const auto& [arm, name] : arms) {
    all.push_back(curve_of(curves, model, arm, column));
    for (const auto& [at, value] : all.back().mean) {
      steps = std::max(steps, at);
      high = std::max(high, value);
    }
  }
  if (high == 0) return {};
  const std::string title = label + ", " + model;
  report::Plot plot(title, {"step", 0, steps}, {label, 0, 1.1 * high});
  std::vector<std::pair<int, std::string>> legend;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (all[i].mean.empty()) continue;
    const int series = static_cast<int>(i);
    plot.band(all[i].low, all[i].high, series);
    plot.line(all[i].mean, series);
    legend.emplace_back(series, arms[i].second);
  }
  plot.legend(legend);
  return {{title, plot.svg(), caption, model + "_" + column + ".svg"}};
}

/// A metric over lambda, on the tiny model; elimination stands at the right end.
inline std::vector<Figure> dose_figure(const Runs& runs, Metric metric, double scale,
                                       const std::string& label, const std::string& file) {
  static const std::vector<std::pair<std::string, double>> doses{
      {"lambda=1e-5", 1e-5}, {"published", 1e-4}, {"lambda=1e-3", 1e-3},
      {"lambda=1e-2", 1e-2}, {"lambda=0.1", 0.1}, {"lambda=1", 1},
      {"lambda=10", 10},     {"lambda=1e4", 1e4}, {"eliminate", 1e6}};
  std::vector<std::pair<double, Estimate>> points;
  double low = 0, high = 0;
  for (const auto& [arm, lambda] : doses) {
    const Estimate e = compare(runs, {"tiny", arm, "off"}, metric, Seeds::first).difference;
    if (!std::isfinite(e.low)) continue;
    points.emplace_back(lambda, e);
    low = std::min(low, scale * e.low);
    high = std::max(high, scale * e.high);
  }
  if (points.empty() || !(high > low)) return {};
  report::Axis x{"lambda", 3e-6, 4e6, true, {}};
  for (const auto& [at, name] :
       {std::pair(1e-4, "1e-4"), std::pair(1e-2, "0.01"), std::pair(1.0, "1"),
        std::pair(1e4, "1e4"), std::pair(1e6, "eliminate")}) {
    x.ticks.push_back({at, name});
  }
  const double margin = 0.05 * (high - low);
  report::Plot plot(label, x, {label, low - margin, high + margin});
  plot.level(0, "");
  for (const auto& [lambda, e] : points) {
    plot.interval(lambda, scale * e.low, scale * e.mean, scale * e.high, 0,
                  "lambda " + report::number(lambda));
  }
  return {{label + " over lambda, tiny", plot.svg(),
           "Against no competition, paired by seed: mean and 99 % interval.", file}};
}

inline Figures overview_figures(const Runs& runs, const Table& curves) {
  static const std::vector<std::pair<std::string, std::string>> arms{{"off", "off"},
                                                                     {"published", "1e-4"},
                                                                     {"eliminate", "eliminate"},
                                                                     {"off+balance", "balance"},
                                                                     {"eliminate+balance", "both"}};
  static const std::vector<std::pair<std::string, std::string>> swaps{
      {"off", "off"},
      {"eliminate", "on"},
      {"eliminate+until=150", "off at 150"},
      {"eliminate+from=150", "on at 150"}};
  Figures figures;
  const auto add = [&](std::vector<Figure> more) {
    for (Figure& figure : more) figures.all.push_back(std::move(figure));
  };
  const std::string band = "Mean of layers and seeds; bands are one standard deviation over seeds.";
  for (const char* model : {"tiny", "e128", "attention", "long"}) {
    add(curve_figure(curves, model, arms, "unused", "experts without a token", band));
  }
  for (const char* model : {"tiny", "e128"}) {
    add(curve_figure(curves, model, arms, "coactivation", "P(partner selected too)", band));
  }
  std::vector<Figure> swapped =
      curve_figure(curves, "tiny", swaps, "unused", "experts without a token, switched", band);
  for (Figure& figure : swapped) figure.file = "tiny_switched.svg";
  add(std::move(swapped));
  add(dose_figure(runs, Metric::changed, 100, "% of tokens with other experts",
                  "lambda_changed.svg"));
  add(dose_figure(runs, Metric::unused, 100, "change of unused experts, %", "lambda_unused.svg"));
  add(dose_figure(runs, Metric::val_loss, 1, "change of validation loss", "lambda_loss.svg"));
  return figures;
}

}  // namespace study

#endif  // STUDY_FIGURES_HPP
