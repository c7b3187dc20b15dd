// SPDX-License-Identifier: MIT
// What the figures should be. A bar belongs to an instruction set: what limits a figure differs
// between them.
#ifndef GATEPRO_BENCHMARKS_SUPPORT_BARS_HPP
#define GATEPRO_BENCHMARKS_SUPPORT_BARS_HPP

#include <string>
#include <vector>

namespace bench {

/// What a figure should be; by default it is only reported.
struct Bar {
  enum class Kind { reported, at_least, at_most, within };
  Kind kind = Kind::reported;
  double value = 0;
  double most = 0;  ///< Of `within`, whose least is `value`.

  bool admits(double figure) const;
  /// As the table prints it; empty for one that is only reported.
  std::string text() const;
};

/// The bars of a figure.
struct Bars {
  Bar avx2;
  Bar avx512;

  /// The bar on an instruction set, by its name in gatepro; other sets only report.
  Bar on(const std::string& instruction_set) const;
};

/// A key of the summary.
struct Key {
  std::string name;
  Bars bars;
};

/// All keys of the summary, in order.
const std::vector<Key>& summary_keys();

}  // namespace bench

#endif  // GATEPRO_BENCHMARKS_SUPPORT_BARS_HPP
