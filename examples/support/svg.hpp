// SPDX-License-Identifier: MIT
// A drawing as SVG text. The same calls give the same bytes, on any machine.
#ifndef EXAMPLES_SUPPORT_SVG_HPP
#define EXAMPLES_SUPPORT_SVG_HPP

#include <cmath>
#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "plain_text.hpp"

namespace report {

/// `text` as character data or attribute value of XML: plain, and with markup escaped.
inline std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : plain_text(text)) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

/// `value` with so many digits that count, as readers want it: no exponent below a million, a true
/// minus sign, and a dash for what is not a number.
inline std::string number(double value, int digits = 3) {
  if (std::isnan(value)) return "–";
  if (std::isinf(value)) return value < 0 ? "−∞" : "∞";
  const double size = std::abs(value);
  char text[400];
  if (size == 0) {
    return "0";
  } else if (size >= 1e6 || size < 1e-4) {
    std::snprintf(text, sizeof text, "%.*g", digits, size);
  } else {
    const int before = static_cast<int>(std::floor(std::log10(size))) + 1;
    std::snprintf(text, sizeof text, "%.*f", before >= digits ? 0 : digits - before, size);
  }
  return (value < 0 ? "−" : "") + std::string(text);
}

/// `value` with so many places behind the point, for columns of numbers.
inline std::string fixed(double value, int places) {
  if (!std::isfinite(value)) return number(value);
  char text[400];
  std::snprintf(text, sizeof text, "%.*f", places, std::abs(value));
  const bool zero = std::string_view(text).find_first_not_of("0.") == std::string_view::npos;
  return (value < 0 && !zero ? "−" : "") + std::string(text);
}

/// A share as a percentage, on one line.
inline std::string percent(double share, int places = 1) {
  return fixed(100 * share, places) + "\u00a0%";
}

/// A coordinate: two places are a hundredth of a pixel.
inline std::string coordinate(double value) {
  char text[400];
  std::snprintf(text, sizeof text, "%.2f", value);
  std::string result = text;
  while (result.back() == '0') result.pop_back();
  if (result.back() == '.') result.pop_back();
  return result == "-0" ? "0" : result;
}

using Points = std::vector<std::pair<double, double>>;

/// A drawing of width x height pixels. Colours and fonts are classes: see theme.hpp.
class Svg {
 public:
  /// `title` is read aloud in the place of the picture.
  Svg(double width, double height, const std::string& title)
      : width_(width), height_(height), title_(title) {}

  double width() const { return width_; }
  double height() const { return height_; }

  void rectangle(double x, double y, double width, double height, const std::string& css,
                 const std::string& tooltip = "") {
    element("rect",
            attribute("x", x) + attribute("y", y) + attribute("width", width) +
                attribute("height", height),
            css, tooltip);
  }
  void line(double x1, double y1, double x2, double y2, const std::string& css) {
    element("line",
            attribute("x1", x1) + attribute("y1", y1) + attribute("x2", x2) + attribute("y2", y2),
            css, "");
  }
  void circle(double x, double y, double radius, const std::string& css,
              const std::string& tooltip = "") {
    element("circle", attribute("cx", x) + attribute("cy", y) + attribute("r", radius), css,
            tooltip);
  }
  /// A line through the points; with an area class, what it encloses.
  void polyline(const Points& points, const std::string& css, const std::string& tooltip = "") {
    if (points.empty()) return;
    std::string path;
    for (const auto& [x, y] : points) {
      path += (path.empty() ? "M" : "L") + coordinate(x) + " " + coordinate(y);
    }
    element("path", " d=\"" + path + "\"", css, tooltip);
  }
  /// `anchor`: start, middle or end.
  void text(double x, double y, const std::string& text, const std::string& css = "ink",
            const std::string& anchor = "start", double size = 0) {
    body_ += "<text" + attribute("x", x) + attribute("y", y) + " class=\"" + css + "\"";
    if (anchor != "start") body_ += " text-anchor=\"" + anchor + "\"";
    if (size > 0) body_ += attribute("font-size", size);
    body_ += ">" + escaped(text) + "</text>\n";
  }
  /// Text that reads upwards, centred on (x, y).
  void vertical_text(double x, double y, const std::string& text, const std::string& css = "ink") {
    body_ += "<text class=\"" + css + "\" text-anchor=\"middle\" transform=\"translate(" +
             coordinate(x) + " " + coordinate(y) + ") rotate(-90)\">" + escaped(text) + "</text>\n";
  }
  /// A picture of pixels, as a data: address, stretched without smoothing.
  void image(double x, double y, double width, double height, const std::string& address) {
    body_ += "<image" + attribute("x", x) + attribute("y", y) + attribute("width", width) +
             attribute("height", height) +
             " preserveAspectRatio=\"none\" class=\"pixels\" href=\"" + address + "\" />\n";
  }
  /// Another drawing, at (x, y).
  void drawing(double x, double y, const Svg& other) {
    body_ += "<g transform=\"translate(" + coordinate(x) + " " + coordinate(y) + ")\">\n" +
             other.body_ + "</g>\n";
  }

  /// For a page, whose style sheet has the classes.
  std::string inline_text() const { return text("", ""); }
  /// A file of its own; `css` is its style sheet.
  std::string file_text(const std::string& css) const {
    return "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n" +
           text(attribute("width", width_) + attribute("height", height_),
                "<style>" + css +
                    "</style>\n<rect width=\"100%\" height=\"100%\" class=\"paper\" />\n");
  }

 private:
  static std::string attribute(const char* name, double value) {
    return std::string(" ") + name + "=\"" + coordinate(value) + "\"";
  }

  void element(const char* name, const std::string& attributes, const std::string& css,
               const std::string& tooltip) {
    body_ += std::string("<") + name + attributes + " class=\"" + css + "\"";
    if (tooltip.empty()) {
      body_ += " />\n";
    } else {
      body_ += "><title>" + escaped(tooltip) + "</title></" + name + ">\n";
    }
  }

  std::string text(const std::string& attributes, const std::string& first) const {
    return "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"figure\" role=\"img\" viewBox=\"0 "
           "0 " +
           coordinate(width_) + " " + coordinate(height_) + "\"" + attributes + " aria-label=\"" +
           escaped(title_) + "\">\n" + first + body_ + "</svg>\n";
  }

  double width_, height_;
  std::string title_;
  std::string body_;
};

}  // namespace report

#endif  // EXAMPLES_SUPPORT_SVG_HPP
