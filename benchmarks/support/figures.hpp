// SPDX-License-Identifier: MIT
// The figures of the summary, and the table that judges them.
#ifndef GATEPRO_BENCHMARKS_SUPPORT_FIGURES_HPP
#define GATEPRO_BENCHMARKS_SUPPORT_FIGURES_HPP

#include <iosfwd>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "support/rounds.hpp"

namespace bench {

/// A measured figure. What is not known is left out.
struct Figure {
  std::string name;
  std::optional<double> value{};
  std::optional<double> ours{};     ///< Seconds for one item.
  std::optional<double> against{};  ///< Seconds for one item of what ours is compared with.
  std::optional<double> fraction_of_peak{};
  std::string note{};
  bool excused = false;  ///< No value is no fault; the note says why.
};

/// `against` is how many times as slow as `ours`; times are given per item.
Figure versus(const std::string& name, const Samples& samples, const std::string& ours,
              const std::string& against, Index items);
/// `ours` is how many times as slow as `base`.
Figure over(const std::string& name, const Samples& samples, const std::string& ours,
            const std::string& base, Index items);
/// Nanoseconds of one item.
Figure nanoseconds(const std::string& name, std::optional<double> seconds, Index items);

/// The figure; if it has no value, that is no fault, for the reason given.
Figure excused(Figure figure, const std::string& reason);

/// The figures of a run.
class Figures {
 public:
  /// A figure whose name is no key of the summary is only printed.
  void add(Figure figure) { figures_.push_back(std::move(figure)); }
  /// Lines to print after the table.
  void remark(const std::string& text) { remarks_ += text; }

  /// Null for a figure that was not added.
  const Figure* find(const std::string& name) const;
  /// One line per key, judged by the bars of the instruction set, then the other figures and the
  /// remarks.
  void print(std::ostream& out, const std::string& instruction_set) const;

 private:
  std::vector<Figure> figures_;
  std::string remarks_;
};

/// A time with three digits and a unit.
std::string format_time(double seconds);

}  // namespace bench

#endif  // GATEPRO_BENCHMARKS_SUPPORT_FIGURES_HPP
