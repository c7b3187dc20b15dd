// SPDX-License-Identifier: MIT
// The figures of the summary, their bars, and the table.
#ifndef GATEPRO_BENCHMARKS_SUPPORT_FIGURES_HPP
#define GATEPRO_BENCHMARKS_SUPPORT_FIGURES_HPP

#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include "support/rounds.hpp"

namespace bench {

/// What a figure should be.
struct Bar {
  enum class Kind { at_least, at_most, within, reported };
  Kind kind;
  double value;
  double most = 0;  ///< Of `within`, whose least is `value`.
};

/// A key of the summary.
struct Key {
  const char* name;
  Bar bar;
};

/// All keys of the summary, in order.
const std::vector<Key>& summary_keys();

/// A measured figure. What is not known is left out.
struct Figure {
  std::string name;
  std::optional<double> value{};
  std::optional<double> ours{};     ///< Seconds for one item.
  std::optional<double> against{};  ///< Seconds for one item of what ours is compared with.
  std::optional<double> fraction_of_peak{};
  std::string note{};
  bool needs_idle_machine = false;  ///< No value is no fault.
};

/// `against` is how many times as slow as `ours`; times are given per item.
Figure versus(const std::string& name, const Samples& samples, const std::string& ours,
              const std::string& against, Index items);
/// `ours` is how many times as slow as `base`.
Figure over(const std::string& name, const Samples& samples, const std::string& ours,
            const std::string& base, Index items);
/// Nanoseconds of one item.
Figure nanoseconds(const std::string& name, std::optional<double> seconds, Index items);

/// The figures of a run.
class Figures {
 public:
  /// A figure whose name is no key of the summary is only printed.
  void add(Figure figure) { figures_.push_back(std::move(figure)); }
  /// Lines to print after the table.
  void remark(const std::string& text) { remarks_ += text; }

  /// Null for a figure that was not added.
  const Figure* find(const std::string& name) const;
  /// One line per key, then the other figures and the remarks.
  void print(std::ostream& out) const;

 private:
  std::vector<Figure> figures_;
  std::string remarks_;
};

/// A time with three digits and a unit.
std::string format_time(double seconds);

}  // namespace bench

#endif  // GATEPRO_BENCHMARKS_SUPPORT_FIGURES_HPP
