// SPDX-License-Identifier: MIT
#include "support/figures.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <ostream>

#include "support/bars.hpp"

namespace bench {
namespace {

std::string format(const char* pattern, double value) {
  char text[32];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

std::string format(const std::optional<double>& value) {
  return value ? format(std::abs(*value) < 10 ? "%.3f" : "%.1f", *value) : "-";
}

std::string format_item(const std::optional<double>& seconds) {
  return seconds ? format_time(*seconds) : "-";
}

bool is_key(const std::string& name) {
  const auto& keys = summary_keys();
  return std::any_of(keys.begin(), keys.end(), [&](const Key& key) { return name == key.name; });
}

const char* verdict(const Bar& bar, const std::optional<double>& value) {
  if (!value) return "none";
  if (bar.kind == Bar::Kind::reported) return "";
  return bar.admits(*value) ? "met" : "MISSED";
}

void print_line(std::ostream& out, const std::string& name, const std::array<std::string, 6>& cells,
                const std::string& note) {
  char line[128];
  std::snprintf(line, sizeof line, "%-40s %10s %10s %8s %8s %11s %-7s", name.c_str(),
                cells[0].c_str(), cells[1].c_str(), cells[2].c_str(), cells[3].c_str(),
                cells[4].c_str(), cells[5].c_str());
  out << line << note << '\n';
}

void print_figure(std::ostream& out, const Figure& figure, const Bar& bar) {
  print_line(out, figure.name,
             {format_item(figure.ours), format_item(figure.against), format(figure.value),
              format(figure.fraction_of_peak), bar.text(), verdict(bar, figure.value)},
             figure.note);
}

std::optional<double> per_item(const std::optional<double>& seconds, Index items) {
  if (!seconds) return std::nullopt;
  return *seconds / static_cast<double>(items);
}

Figure compared(const std::string& name, const Samples& samples, const std::string& ours,
                const std::string& against, Index items) {
  Figure figure{name};
  figure.ours = per_item(samples.seconds(ours), items);
  figure.against = per_item(samples.seconds(against), items);
  if (!figure.ours) figure.note = ours + " is missing";
  if (!figure.against) figure.note = against + " is missing";
  return figure;
}

}  // namespace

Figure versus(const std::string& name, const Samples& samples, const std::string& ours,
              const std::string& against, Index items) {
  Figure figure = compared(name, samples, ours, against, items);
  figure.value = samples.ratio(against, ours);
  return figure;
}

Figure over(const std::string& name, const Samples& samples, const std::string& ours,
            const std::string& base, Index items) {
  Figure figure = compared(name, samples, ours, base, items);
  figure.value = samples.ratio(ours, base);
  return figure;
}

Figure nanoseconds(const std::string& name, std::optional<double> seconds, Index items) {
  Figure figure{name};
  figure.ours = per_item(seconds, items);
  if (figure.ours) figure.value = *figure.ours * 1e9;
  return figure;
}

Figure excused(Figure figure, const std::string& reason) {
  figure.excused = !figure.value;
  if (figure.excused) figure.note = "not measured: " + reason;
  return figure;
}

const Figure* Figures::find(const std::string& name) const {
  const auto found = std::find_if(figures_.begin(), figures_.end(),
                                  [&](const Figure& figure) { return figure.name == name; });
  return found == figures_.end() ? nullptr : &*found;
}

void Figures::print(std::ostream& out, const std::string& instruction_set) const {
  print_line(out, "figure", {"ours", "against", "value", "of peak", "bar", ""}, "");
  for (const Key& key : summary_keys()) {
    const Figure* found = find(key.name);
    print_figure(out, found != nullptr ? *found : Figure{key.name}, key.bars.on(instruction_set));
  }
  out << "\nwithout a key\n";
  for (const Figure& figure : figures_) {
    if (!is_key(figure.name)) print_figure(out, figure, Bar{});
  }
  out << '\n' << remarks_;
}

std::string format_time(double seconds) {
  const double size = std::abs(seconds);
  if (size < 1e-6) return format("%.3g ns", seconds * 1e9);
  if (size < 1e-3) return format("%.3g us", seconds * 1e6);
  if (size < 1) return format("%.3g ms", seconds * 1e3);
  return format("%.3g s", seconds);
}

}  // namespace bench
