// SPDX-License-Identifier: MIT
// The figures of the report: what happened over the steps, and what a penalty of which size does.
#ifndef STUDY_FIGURES_HPP
#define STUDY_FIGURES_HPP

#include <algorithm>
#include <cmath>
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

/// Experts of a layer: what train_moe has without --experts, or what the model says.
inline double experts_of(const std::string& model) {
  const std::string options = options_of(model), name = "--experts ";
  const std::size_t at = options.find(name);
  return at == std::string::npos ? 64 : std::stod(options.substr(at + name.size()));
}

/// A column of curves.csv as it is shown.
struct Quantity {
  const char* column;
  const char* heading;
  const char* label;  // of the axis
  bool of_experts;    // a number of experts, shown as a percentage
};

inline constexpr Quantity unused_quantity{"unused", "Experts without a token",
                                          "experts without a token, %", true};
inline constexpr Quantity coactivation_quantity{"coactivation", "Partners selected together",
                                                "P(partner selected | selected)", false};

/// The curve of a quantity for an arm of a model; empty if it is not there.
inline Curve curve_of(const Table& curves, const std::string& model, const std::string& arm,
                      const Quantity& quantity) {
  Curve curve;
  if (curves.header.empty()) return curve;
  const std::string column = quantity.column;
  const std::size_t step = curves.column("step"), mean = curves.column(column),
                    deviation = curves.column(column + "_sd");
  const double scale = quantity.of_experts ? 100 / experts_of(model) : 1;
  for (std::size_t r = 0; r < curves.rows.size(); ++r) {
    const Cells& row = curves.rows[r];
    if (row[0] != model || row[1] != arm) continue;
    const double at = curves.number(r, step), middle = scale * curves.number(r, mean);
    const double spread = scale * curves.number(r, deviation);
    curve.mean.emplace_back(at, middle);
    if (!std::isfinite(spread)) continue;
    curve.low.emplace_back(at, std::max(0.0, middle - spread));
    curve.high.emplace_back(at, middle + spread);
  }
  return curve;
}

/// The axis of a quantity, with a few more numbers than a plot chooses.
inline report::Axis upright(const std::string& label, double low, double high) {
  return {label, low, high, false, report::linear_ticks(low, high, 6)};
}

using NamedArms = std::vector<std::pair<std::string, std::string>>;

/// Arms of one model over the steps: mean, and a band of one standard deviation. Every other line
/// is dashed, or lines that coincide would hide each other.
inline std::vector<Figure> curve_figure(const Table& curves, const std::string& model,
                                        const NamedArms& arms, const Quantity& quantity,
                                        const std::string& what, const std::string& file) {
  std::vector<Curve> all;
  double steps = 1, high = 0;
  for (const auto& [arm, name] : arms) {
    all.push_back(curve_of(curves, model, arm, quantity));
    for (const report::Points& points : {all.back().mean, all.back().high}) {
      for (const auto& [at, value] : points) {
        steps = std::max(steps, at);
        high = std::max(high, value);
      }
    }
  }
  if (high == 0) return {};
  const std::string title = std::string(quantity.heading) + what;
  report::Plot plot(title, {"step", 0, steps}, upright(quantity.label, 0, 1.02 * high));
  std::vector<std::pair<int, std::string>> legend;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (all[i].mean.empty()) continue;
    const int series = static_cast<int>(i);
    plot.band(all[i].low, all[i].high, series);
    plot.line(all[i].mean, series, i % 2 == 1);
    legend.emplace_back(series, arms[i].second);
  }
  plot.legend(legend);
  return {{title, plot.svg(),
           "Mean of layers and seeds; bands are one standard deviation over seeds.", file}};
}

/// A metric over lambda, on the tiny model; elimination stands at the right end.
inline std::vector<Figure> dose_figure(const Runs& runs, Metric metric, double scale,
                                       const std::string& heading, const std::string& label,
                                       const std::string& file) {
  constexpr double elimination = 3e6;
  static const std::vector<std::pair<std::string, double>> doses{
      {"lambda=1e-5", 1e-5}, {"published", 1e-4}, {"lambda=1e-3", 1e-3},
      {"lambda=1e-2", 1e-2}, {"lambda=0.1", 0.1}, {"lambda=1", 1},
      {"lambda=10", 10},     {"lambda=1e4", 1e4}, {"eliminate", elimination}};
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
  report::Axis x{"lambda", 3e-6, 3e7, true, {}};
  for (const auto& [at, name] :
       {std::pair(1e-4, "1e-4"), std::pair(1e-2, "0.01"), std::pair(1.0, "1"),
        std::pair(100.0, "100"), std::pair(1e4, "1e4"), std::pair(elimination, "eliminate")}) {
    x.ticks.push_back({at, name});
  }
  const double margin = 0.05 * (high - low);
  const std::string title = heading + " over lambda, tiny";
  report::Plot plot(title, x, upright(label, low - margin, high + margin));
  plot.level(0, "");
  for (const auto& [lambda, e] : points) {
    const std::string dose =
        lambda == elimination ? "eliminate" : "lambda " + report::number(lambda, 1);
    plot.interval(lambda, scale * e.low, scale * e.mean, scale * e.high, 0,
                  dose + ": " + report::number(scale * e.mean));
  }
  return {
      {title, plot.svg(), "Against no competition, paired by seed: mean and 99 % interval.", file}};
}

inline Figures overview_figures(const Runs& runs, const Table& curves) {
  static const NamedArms arms{{"off", "off"},
                              {"published", "published"},
                              {"eliminate", "eliminate"},
                              {"off+balance", "balance"},
                              {"eliminate+balance", "both"}};
  static const NamedArms swaps{{"off", "off"},
                               {"eliminate", "on"},
                               {"eliminate+until=150", "off at 150"},
                               {"eliminate+from=150", "on at 150"}};
  Figures figures;
  const auto add = [&](std::vector<Figure> more) {
    for (Figure& figure : more) figures.all.push_back(std::move(figure));
  };
  for (const std::string model : {"tiny", "e128", "attention", "long"}) {
    add(curve_figure(curves, model, arms, unused_quantity, ", " + model, model + "_unused.svg"));
  }
  for (const std::string model : {"tiny", "e128"}) {
    add(curve_figure(curves, model, arms, coactivation_quantity, ", " + model,
                     model + "_coactivation.svg"));
  }
  add(curve_figure(curves, "tiny", swaps, unused_quantity, ", competition switched midway, tiny",
                   "tiny_switched.svg"));
  add(dose_figure(runs, Metric::changed, 100, "Tokens with other experts",
                  "tokens with other experts, %", "lambda_changed.svg"));
  add(dose_figure(runs, Metric::unused, 100, "Change of the experts without a token",
                  "experts without a token, points", "lambda_unused.svg"));
  add(dose_figure(runs, Metric::val_loss, 1, "Change of the validation loss",
                  "validation loss, nats per byte", "lambda_loss.svg"));
  return figures;
}

}  // namespace study

#endif  // STUDY_FIGURES_HPP
