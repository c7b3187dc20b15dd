// SPDX-License-Identifier: MIT
// gatepro_bench_table <title>=<file>...: the table of docs/performance.md, a column per summary.
#include <cmath>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/bars.hpp"

namespace {

/// A run of the summary.
struct Column {
  std::string title;
  nlohmann::json figures;

  std::string instruction_set() const { return figures.value("instruction_set", "unknown"); }
};

Column read(const std::string& argument) {
  const std::size_t equals = argument.find('=');
  if (equals == std::string::npos) throw std::runtime_error("no <title>=<file>: " + argument);
  const std::string path = argument.substr(equals + 1);
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {argument.substr(0, equals), nlohmann::json::parse(file)};
}

std::string with_signs(std::string bar) {
  if (bar.rfind(">=", 0) == 0) bar.replace(0, 2, "≥");
  if (bar.rfind("<=", 0) == 0) bar.replace(0, 2, "≤");
  return bar;
}

/// One bar for both sets, or both of them.
std::string bars_text(const bench::Bars& bars) {
  const std::string avx2 = with_signs(bars.avx2.text());
  const std::string avx512 = with_signs(bars.avx512.text());
  if (avx2 == avx512) return avx2;
  return (avx2.empty() ? "-" : avx2) + ", " + (avx512.empty() ? "-" : avx512);
}

/// The value, in bold if it misses its bar.
std::string cell(const bench::Key& key, const Column& column) {
  const auto found = column.figures.find(key.name);
  if (found == column.figures.end() || found->is_null()) return "-";
  const auto value = found->get<double>();
  char text[32];
  std::snprintf(text, sizeof text, std::abs(value) < 10 ? "%.3f" : "%.1f", value);
  const bool met = key.bars.on(column.instruction_set()).admits(value);
  return met ? text : std::string("**") + text + "**";
}

void print(const std::vector<Column>& columns) {
  std::string titles = "| figure | bar: AVX2, AVX-512 |", rule = "|---|---|";
  for (const Column& column : columns) {
    titles += ' ' + column.title + ", " + column.instruction_set() + " |";
    rule += "---|";
  }
  std::cout << titles << '\n' << rule << '\n';
  for (const bench::Key& key : bench::summary_keys()) {
    std::cout << "| `" << key.name << "` | " << bars_text(key.bars) << " |";
    for (const Column& column : columns) std::cout << ' ' << cell(key, column) << " |";
    std::cout << '\n';
  }
}

}  // namespace

int main(int argc, char** argv) try {
  std::vector<Column> columns;
  for (int i = 1; i < argc; ++i) columns.push_back(read(argv[i]));
  if (columns.empty()) {
    std::cerr << "usage: gatepro_bench_table <title>=<file>...\n";
    return 2;
  }
  print(columns);
} catch (const std::exception& error) {
  std::cerr << "gatepro_bench_table: " << error.what() << '\n';
  return 1;
}
