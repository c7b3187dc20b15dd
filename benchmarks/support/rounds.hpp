// SPDX-License-Identifier: MIT
// Paired measurements: each round runs every contestant once, in a new random order.
#ifndef GATEPRO_BENCHMARKS_SUPPORT_ROUNDS_HPP
#define GATEPRO_BENCHMARKS_SUPPORT_ROUNDS_HPP

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "support/clock.hpp"
#include "support/contest.hpp"

namespace bench {

/// Rounds for ratios, and for ratios near 1. The environment variable BENCH_ROUNDS lowers both.
inline constexpr int many_rounds = 25;
inline constexpr int most_rounds = 41;
int rounds_to_run(int wanted);

/// Seconds per run: one sample per contestant and round. What was not measured has no value.
class Samples {
 public:
  void append(const std::string& name, double seconds) { seconds_[name].push_back(seconds); }

  /// Median over the rounds.
  std::optional<double> seconds(const std::string& name) const;
  /// The fastest round.
  std::optional<double> best(const std::string& name) const;
  /// Median over the rounds of a's time through b's.
  std::optional<double> ratio(const std::string& a, const std::string& b) const;
  /// Median over the rounds of a's time less b's.
  std::optional<double> difference(const std::string& a, const std::string& b) const;

 private:
  template <class Join>
  std::optional<double> median_of(const std::string& a, const std::string& b,
                                  const Join& join) const;

  std::map<std::string, std::vector<double>> seconds_;
};

/// Times the named contestants; one that is missing is left out. Each sample is at least half a
/// millisecond long and, unless it is very long, follows an untimed run of the same contestant, so
/// that every contestant finds the caches as it left them, whoever ran before.
Samples measure(const Contest& contest, const std::vector<std::string>& names, int rounds,
                Clock clock = Clock::thread);

}  // namespace bench

#endif  // GATEPRO_BENCHMARKS_SUPPORT_ROUNDS_HPP
