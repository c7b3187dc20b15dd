// SPDX-License-Identifier: MIT
// The colours, light and dark, and the style sheet of pages and drawings.
#ifndef EXAMPLES_SUPPORT_THEME_HPP
#define EXAMPLES_SUPPORT_THEME_HPP

#include <string>

namespace report {

inline constexpr int series_count = 6;

/// One scheme. The series are Okabe and Ito's, which colour-blind readers can tell apart, lifted
/// for the dark scheme so that they keep their contrast.
struct Theme {
  const char* paper;   ///< Behind everything.
  const char* card;    ///< Behind a figure.
  const char* ink;     ///< Text.
  const char* muted;   ///< Captions, tick labels.
  const char* grid;    ///< Grid lines and frames.
  const char* accent;  ///< Links.
  const char* series[series_count];
};

inline constexpr Theme light_theme{
    "#f6f7f8",
    "#ffffff",
    "#1a1e23",
    "#59626d",
    "#dfe3e8",
    "#0a5f9e",
    {"#0072b2", "#d55e00", "#009e73", "#b8608f", "#8a6d00", "#3d3d3d"}};
inline constexpr Theme dark_theme{
    "#101317",
    "#191d23",
    "#e7eaee",
    "#9da7b3",
    "#323942",
    "#6cb8f0",
    {"#4fa8e4", "#ff8b45", "#2cc794", "#e0a0c6", "#e3c04b", "#d5d5d5"}};

/// The class of series `i`, with a suffix: -line is stroked, -dash likewise but dashed, -fill is
/// filled, -area is filled thinly.
inline std::string series_class(int i, const char* suffix) {
  return "s" + std::to_string(i % series_count) + suffix;
}

/// What depends on the scheme.
inline std::string colour_css(const Theme& theme) {
  const auto rule = [](const std::string& selector, const char* property, const char* colour) {
    return selector + "{" + property + ":" + colour + "}";
  };
  std::string css = rule(".paper", "fill", theme.card) + rule(".ink", "fill", theme.ink) +
                    rule(".muted", "fill", theme.muted) + rule(".grid", "stroke", theme.grid) +
                    rule(".frame", "stroke", theme.muted) + rule(".rule", "stroke", theme.ink) +
                    rule(".cell", "fill", theme.grid) + rule(".knob", "stroke", theme.muted) +
                    rule(".knob", "fill", theme.card) + rule(".halo", "stroke", theme.card) + "\n";
  for (int i = 0; i < series_count; ++i) {
    const std::string dot = ".s" + std::to_string(i);
    css += rule(dot + "-line," + dot + "-dash", "stroke", theme.series[i]) +
           rule(dot + "-fill," + dot + "-area", "fill", theme.series[i]) + "\n";
  }
  return css;
}

/// What does not. Lines have no area and areas no line. Upright lines of class lanes are drawn in
/// 18 of 36 pixels, and leave the others to labels.
inline std::string shape_css() {
  std::string lines = ".grid,.frame,.rule,.hint", dashes, fills, areas;
  for (int i = 0; i < series_count; ++i) {
    const std::string dot = ".s" + std::to_string(i);
    lines += "," + dot + "-line," + dot + "-dash";
    dashes += (i == 0 ? "" : ",") + dot + "-dash";
    areas += (i == 0 ? "" : ",") + dot + "-area";
  }
  return ".figure{font:12px system-ui,-apple-system,'Segoe UI','Noto Sans','DejaVu "
         "Sans',sans-serif;"
         "font-variant-numeric:tabular-nums}" +
         lines + "{fill:none}" + lines + "{stroke-width:1.6px;stroke-linejoin:round}" +
         ".grid,.frame{stroke-width:1px}.rule{stroke-width:1.2px;stroke-dasharray:4 3}" + dashes +
         "{stroke-dasharray:6 4}.lanes{stroke-dasharray:18}.rule.lanes{stroke-dasharray:4 3 4 3 4 "
         "18}.pale{stroke-opacity:.6}" +
         areas + "{fill-opacity:.2}.knob{stroke-width:1px}" +
         ".halo{stroke-width:3px;paint-order:stroke}.pixels{image-rendering:pixelated}" +
         ".strong{font-weight:600}\n";
}

/// The style sheet of a drawing in a file of its own.
inline std::string drawing_css() { return shape_css() + colour_css(light_theme); }

}  // namespace report

#endif  // EXAMPLES_SUPPORT_THEME_HPP
