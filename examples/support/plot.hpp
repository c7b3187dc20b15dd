// SPDX-License-Identifier: MIT
// Curves, bars and points between two axes.
#ifndef EXAMPLES_SUPPORT_PLOT_HPP
#define EXAMPLES_SUPPORT_PLOT_HPP

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "svg.hpp"
#include "theme.hpp"

namespace report {

struct Tick {
  double at;
  std::string label;  ///< Empty: a mark without a number.
};

/// An axis from low to high. Without ticks, round ones are chosen.
struct Axis {
  std::string label;
  double low = 0;
  double high = 1;
  bool logarithmic = false;
  std::vector<Tick> ticks{};

  /// Where `value` stands: 0 at low, 1 at high; held within.
  double share(double value) const {
    const double low_at = place(low), high_at = place(high);
    if (!(high_at > low_at)) return 0;
    return std::clamp((place(value) - low_at) / (high_at - low_at), 0.0, 1.0);
  }

 private:
  double place(double value) const {
    return logarithmic ? std::log10(std::max(value, 1e-300)) : value;
  }
};

/// The step 1, 2 or 5 times a power of ten that cuts `span` into at most `parts`.
inline double round_step(double span, int parts) {
  if (!(span > 0) || !std::isfinite(span)) return 1;
  const double raw = span / parts;
  const double power = std::pow(10, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= raw * (1 - 1e-9)) return factor * power;
  }
  return 10 * power;
}

/// The smallest number with one digit that is at least `value` > 0.
inline double round_up(double value) {
  const double power = std::pow(10, std::floor(std::log10(value)));
  return power * std::ceil(value / power - 1e-9);
}

/// Ticks at multiples of a round step, which is at least `least`.
inline std::vector<Tick> linear_ticks(double low, double high, int parts = 5, double least = 0) {
  const double step = std::max(least, round_step(high - low, parts));
  std::vector<Tick> ticks;
  for (double i = std::ceil(low / step - 1e-6); i * step <= high + 1e-6 * step; ++i) {
    const double at = i == 0 ? 0 : i * step;
    const int places = std::max(0, -static_cast<int>(std::floor(std::log10(step) + 1e-9)));
    const bool plain = std::abs(at) < 1e6 && places <= 4;
    ticks.push_back({at, plain ? fixed(at, places) : number(at)});
  }
  return ticks;
}

/// Of what is counted.
inline std::vector<Tick> whole_ticks(double low, double high) {
  return linear_ticks(low, high, 5, 1);
}

/// Powers of ten, every second or third if there are many.
inline std::vector<Tick> decade_ticks(double low, double high, int parts = 6) {
  const int first = static_cast<int>(std::ceil(std::log10(std::max(low, 1e-300)) - 1e-9));
  const int last = static_cast<int>(std::floor(std::log10(std::max(high, 1e-300)) + 1e-9));
  const int every = std::max(1, (last - first + parts) / parts);
  std::vector<Tick> ticks;
  for (int exponent = first; exponent <= last; ++exponent) {
    const bool labelled = (exponent - first) % every == 0;
    const double at = std::pow(10, exponent);
    const bool plain = exponent >= -2 && exponent <= 3;
    const std::string label = plain ? coordinate(at) : "1e" + std::to_string(exponent);
    ticks.push_back({at, labelled ? label : ""});
  }
  return ticks;
}

/// A plot of its own size: made for 370 pixels, which a phone shows as they are.
class Plot {
 public:
  static constexpr double default_width = 370, default_height = 240;

  Plot(const std::string& title, Axis x, Axis y, double width = default_width,
       double height = default_height)
      : x_(std::move(x)), y_(std::move(y)), svg_(width, height, title) {
    if (x_.ticks.empty()) x_.ticks = ticks_of(x_, 5);
    if (y_.ticks.empty()) y_.ticks = ticks_of(y_, 4);
    std::size_t longest = 0;
    for (const Tick& tick : y_.ticks) longest = std::max(longest, tick.label.size());
    left_ = 30 + 6.6 * static_cast<double>(std::min<std::size_t>(longest, 8));
    right_ = width - 18;
    bottom_ = height - 42;
    draw_axes();
  }

  /// The place of a value in the drawing.
  double x(double value) const { return left_ + x_.share(value) * (right_ - left_); }
  double y(double value) const { return bottom_ - y_.share(value) * (bottom_ - top); }

  /// Points that are not finite cut the line.
  void line(const Points& points, int series, bool dashed = false) {
    Points part;
    for (const auto& [px, py] : points) {
      if (std::isfinite(px) && std::isfinite(py)) {
        part.emplace_back(x(px), y(py));
      } else {
        svg_.polyline(part, series_class(series, dashed ? "-dash" : "-line"));
        part.clear();
      }
    }
    svg_.polyline(part, series_class(series, dashed ? "-dash" : "-line"));
  }
  void point(double px, double py, int series, const std::string& tooltip = "") {
    if (std::isfinite(px) && std::isfinite(py)) {
      svg_.circle(x(px), y(py), 3, series_class(series, "-fill"), tooltip);
    }
  }
  /// The spread of a value, upright, with the value as a point.
  void interval(double px, double low, double middle, double high, int series,
                const std::string& tooltip = "") {
    svg_.line(x(px), y(low), x(px), y(high), series_class(series, "-line"));
    point(px, middle, series, tooltip);
  }
  /// The area between two curves over the same places.
  void band(const Points& low, const Points& high, int series) {
    Points outline;
    for (const auto& [px, py] : low) outline.emplace_back(x(px), y(py));
    for (auto p = high.rbegin(); p != high.rend(); ++p)
      outline.emplace_back(x(p->first), y(p->second));
    svg_.polyline(outline, series_class(series, "-area"));
  }
  /// A bar from the bottom up to py, over [from, to].
  void bar(double from, double to, double py, int series, const std::string& tooltip = "") {
    if (!std::isfinite(py)) return;
    const double width = x(to) - x(from);
    // Narrow bars overlap a little, or the background would shine through.
    const double gap = width > 6 ? 1 : width > 3 ? 0.5 : -0.4;
    svg_.rectangle(x(from) + gap / 2, y(py), width - gap, bottom_ - y(py),
                   series_class(series, "-fill"), tooltip);
  }
  /// A dashed line across, with its meaning.
  void level(double py, const std::string& label) {
    svg_.line(left_, y(py), right_, y(py), "rule");
    svg_.text(right_ - 2, y(py) - 4, label, "ink halo", "end");
  }
  /// A dashed line upright, with its meaning on the side that has more room.
  void mark(double px, const std::string& label, double down = 0) {
    svg_.line(x(px), top, x(px), bottom_, "rule");
    const bool right = x_.share(px) < 0.5;
    svg_.text(x(px) + (right ? 4 : -4), top + 10 + down, label, "ink halo",
              right ? "start" : "end");
  }
  /// What the series are, in the head of the plot.
  void legend(const std::vector<std::pair<int, std::string>>& entries) {
    double at = left_;
    for (const auto& [series, label] : entries) {
      svg_.rectangle(at, 3, 10, 10, series_class(series, "-fill"));
      svg_.text(at + 14, 12.5, label, "muted");
      at += 28 + 6.1 * static_cast<double>(label.size());
    }
  }

  Svg& svg() { return svg_; }
  const Svg& svg() const { return svg_; }

 private:
  static constexpr double top = 24;

  static std::vector<Tick> ticks_of(const Axis& axis, int parts) {
    return axis.logarithmic ? decade_ticks(axis.low, axis.high, parts + 1)
                            : linear_ticks(axis.low, axis.high, parts);
  }

  void draw_axes() {
    for (const Tick& tick : y_.ticks) {
      svg_.line(left_, y(tick.at), right_, y(tick.at), "grid");
      svg_.text(left_ - 6, y(tick.at) + 4, tick.label, "muted", "end");
    }
    for (const Tick& tick : x_.ticks) {
      svg_.line(x(tick.at), bottom_, x(tick.at), bottom_ + 4, "frame");
      svg_.text(x(tick.at), bottom_ + 17, tick.label, "muted", "middle");
    }
    svg_.line(left_, bottom_, right_, bottom_, "frame");
    svg_.text((left_ + right_) / 2, bottom_ + 35, x_.label, "ink", "middle");
    svg_.vertical_text(12, (top + bottom_) / 2, y_.label);
  }

  Axis x_, y_;
  Svg svg_;
  double left_, right_, bottom_;
};

}  // namespace report

#endif  // EXAMPLES_SUPPORT_PLOT_HPP
