// SPDX-License-Identifier: MIT
#include "support/rounds.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <random>

namespace bench {
namespace {

constexpr double shortest_sample = 0.5e-3;  // seconds
constexpr double long_run = 0.2;            // seconds: a run that warms its caches itself

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<Index>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

double seconds_per_run(const Run& run, int repeats, Clock clock) {
  const double start = seconds_now(clock);
  for (int i = 0; i < repeats; ++i) run();
  return (seconds_now(clock) - start) / repeats;
}

/// A contestant and how many runs make a sample.
struct Entrant {
  Entrant(const std::string& name_, const Run& run_, Clock clock) : name(name_), run(&run_) {
    double estimate = seconds_per_run(run_, 1, clock);
    needs_warming = estimate < long_run;
    if (needs_warming) estimate = std::max(seconds_per_run(run_, 1, clock), 1e-8);
    repeats = std::max(1, static_cast<int>(std::ceil(shortest_sample / estimate)));
  }
  std::string name;
  const Run* run;
  int repeats;
  bool needs_warming;
};

}  // namespace

int rounds_to_run(int wanted) {
  const char* text = std::getenv("BENCH_ROUNDS");
  return text == nullptr ? wanted : std::min(wanted, std::max(1, std::atoi(text)));
}

std::optional<double> Samples::seconds(const std::string& name) const {
  return median_of(name, name, [](double a, double) { return a; });
}

std::optional<double> Samples::best(const std::string& name) const {
  const auto found = seconds_.find(name);
  if (found == seconds_.end()) return std::nullopt;
  return *std::min_element(found->second.begin(), found->second.end());
}

std::optional<double> Samples::ratio(const std::string& a, const std::string& b) const {
  return median_of(a, b, [](double x, double y) { return x / y; });
}

std::optional<double> Samples::difference(const std::string& a, const std::string& b) const {
  return median_of(a, b, [](double x, double y) { return x - y; });
}

template <class Join>
std::optional<double> Samples::median_of(const std::string& a, const std::string& b,
                                         const Join& join) const {
  const auto found_a = seconds_.find(a);
  const auto found_b = seconds_.find(b);
  if (found_a == seconds_.end() || found_b == seconds_.end()) return std::nullopt;
  std::vector<double> joined(found_a->second.size());
  std::transform(found_a->second.begin(), found_a->second.end(), found_b->second.begin(),
                 joined.begin(), join);
  return median(joined);
}

Samples measure(const Contest& contest, const std::vector<std::string>& names, int rounds,
                Clock clock) {
  std::vector<Entrant> entrants;
  for (const std::string& name : names) {
    if (const Run* run = contest.find(name)) entrants.emplace_back(name, *run, clock);
  }
  Samples samples;
  std::mt19937 random(5);
  for (int round = rounds_to_run(rounds); round > 0; --round) {
    std::shuffle(entrants.begin(), entrants.end(), random);
    for (const Entrant& entrant : entrants) {
      if (entrant.needs_warming) (*entrant.run)();
      samples.append(entrant.name, seconds_per_run(*entrant.run, entrant.repeats, clock));
    }
  }
  return samples;
}

}  // namespace bench
