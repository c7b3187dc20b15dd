// SPDX-License-Identifier: MIT
#include "support/figures.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <ostream>

namespace bench {
namespace {

Bar at_least(double value) { return {Bar::Kind::at_least, value, 0}; }
Bar at_most(double value) { return {Bar::Kind::at_most, value, 0}; }
Bar within(double least, double most) { return {Bar::Kind::within, least, most}; }
Bar reported() { return {Bar::Kind::reported, 0, 0}; }

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

std::string format_bar(const Bar& bar) {
  if (bar.kind == Bar::Kind::reported) return "";
  if (bar.kind == Bar::Kind::within) {
    return format("%.4g", bar.value) + " - " + format("%.4g", bar.most);
  }
  return (bar.kind == Bar::Kind::at_least ? ">= " : "<= ") + format("%.4g", bar.value);
}

const char* verdict(const Bar& bar, const std::optional<double>& value) {
  if (!value) return "none";
  if (bar.kind == Bar::Kind::reported) return "";
  const bool high_enough = bar.kind == Bar::Kind::at_most || *value >= bar.value;
  const double most = bar.kind == Bar::Kind::within ? bar.most : bar.value;
  const bool low_enough = bar.kind == Bar::Kind::at_least || *value <= most;
  return high_enough && low_enough ? "met" : "MISSED";
}

void print_line(std::ostream& out, const std::string& name, const std::array<std::string, 6>& cells,
                const std::string& note) {
  char line[128];
  std::snprintf(line, sizeof line, "%-34s %10s %10s %8s %8s %9s %-7s", name.c_str(),
                cells[0].c_str(), cells[1].c_str(), cells[2].c_str(), cells[3].c_str(),
                cells[4].c_str(), cells[5].c_str());
  out << line << note << '\n';
}

/// `key` is null for a figure without a bar.
void print_figure(std::ostream& out, const Figure& figure, const Key* key) {
  print_line(out, figure.name,
             {format_item(figure.ours), format_item(figure.against), format(figure.value),
              format(figure.fraction_of_peak), key == nullptr ? "" : format_bar(key->bar),
              key == nullptr ? "" : verdict(key->bar, figure.value)},
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

const std::vector<Key>& summary_keys() {
  static const std::vector<Key> keys{
      {"gemm_fraction_of_peak_E64", at_least(0.93)},
      {"gemm_fraction_of_peak_E128", at_least(0.93)},
      {"gemm_fraction_of_peak_E256", at_least(0.93)},
      {"gemm_vs_openblas_E64", at_least(1.15)},
      {"gemm_vs_openblas_E128", at_least(1.15)},
      {"gemm_vs_openblas_E256", at_least(1.15)},
      {"gemm_vs_onednn_E8", at_least(1.5)},
      {"gemm_vs_onednn_E64", at_least(1.1)},
      {"gemm_vs_onednn_E128", at_least(1.1)},
      {"gemm_vs_onednn_E256", at_least(1.1)},
      {"gemm_vs_eigen_E8", at_least(1.5)},
      {"gemm_vs_eigen_E64", at_least(1.5)},
      {"gemm_vs_eigen_E128", at_least(1.5)},
      {"gemm_vs_eigen_E256", at_least(1.5)},
      {"bf16_vs_f32_E128", at_least(0.95)},
      {"half_vs_f32_E128", at_least(0.93)},
      {"router_over_gemm_E8", at_most(1.12)},
      {"router_over_gemm_E64", at_most(1.04)},
      {"router_over_gemm_E128", at_most(1.03)},
      {"router_over_gemm_E256", at_most(1.03)},
      {"penalty_ns_E8", reported()},
      {"penalty_ns_E64", reported()},
      {"penalty_ns_E128", reported()},
      {"penalty_ns_E256", reported()},
      {"eliminate_ns_E8", reported()},
      {"eliminate_ns_E64", reported()},
      {"eliminate_ns_E128", reported()},
      {"eliminate_ns_E256", reported()},
      {"penalty_over_select_E64", at_most(1.3)},
      {"penalty_over_select_E128", at_most(1.3)},
      {"penalty_over_select_E256", at_most(1.3)},
      {"eliminate_over_select_E64", at_most(1.3)},
      {"eliminate_over_select_E128", at_most(1.3)},
      {"eliminate_over_select_E256", at_most(1.3)},
      {"penalty_overhead_E8", at_most(1.03)},
      {"penalty_overhead_E64", at_most(1.01)},
      {"penalty_overhead_E128", at_most(1.01)},
      {"penalty_overhead_E256", at_most(1.01)},
      {"select_ns_E64", at_most(20)},
      {"select_ns_E128", at_most(34)},
      {"select_ns_E256", at_most(55)},
      {"select_vs_partial_sort_E64", at_least(14)},
      {"select_vs_partial_sort_E128", at_least(14)},
      {"select_vs_partial_sort_E256", at_least(14)},
      {"select_vs_torch_E64", at_least(14)},
      {"select_vs_torch_E128", at_least(14)},
      {"select_vs_torch_E256", at_least(14)},
      {"select_worst_over_gaussian_E64", at_most(3)},
      {"select_worst_over_gaussian_E256", at_most(3)},
      {"router_vs_torch_E64", at_least(1.15)},
      {"router_vs_torch_E128", at_least(1.15)},
      {"router_vs_torch_E256", at_least(1.15)},
      {"complete_off_over_router_select_E64", at_most(1.15)},
      {"complete_off_over_router_select_E128", at_most(1.15)},
      {"complete_off_over_router_select_E256", at_most(1.15)},
      {"refresh_over_forward_E64", at_most(0.025)},
      {"refresh_over_forward_E128", at_most(0.04)},
      {"refresh_over_forward_E256", at_most(0.06)},
      {"refresh_vs_eigen_E256", at_least(1.5)},
      {"lazy_over_full_refresh_E256", at_most(0.3)},
      {"lazy_fast_over_full_refresh_E256", at_most(1.1)},
      {"backward_vs_torch_E64", at_least(3)},
      {"backward_vs_torch_E128", at_least(3)},
      {"backward_vs_torch_E256", at_least(3)},
      {"backward_vs_dense_openblas_E128", at_least(4)},
      {"backward_dense_vs_openblas_E128", at_least(1.1)},
      {"openmp_2_threads_E128", at_least(1.8)},
      {"baseline_flags_over_native_E128", at_most(1.05)},
      {"native_over_baseline_forward", within(0.93, 1.07)},
      {"native_over_baseline_backward", within(0.93, 1.07)},
      {"include_over_eigen", at_most(2)},
      {"hello_over_eigen", at_most(2.5)},
  };
  return keys;
}

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

const Figure* Figures::find(const std::string& name) const {
  const auto found = std::find_if(figures_.begin(), figures_.end(),
                                  [&](const Figure& figure) { return figure.name == name; });
  return found == figures_.end() ? nullptr : &*found;
}

void Figures::print(std::ostream& out) const {
  print_line(out, "figure", {"ours", "against", "value", "of peak", "bar", ""}, "");
  for (const Key& key : summary_keys()) {
    const Figure* found = find(key.name);
    print_figure(out, found != nullptr ? *found : Figure{key.name}, &key);
  }
  out << "\nwithout a bar\n";
  for (const Figure& figure : figures_) {
    if (!is_key(figure.name)) print_figure(out, figure, nullptr);
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
