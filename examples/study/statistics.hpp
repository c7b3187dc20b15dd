// SPDX-License-Identifier: MIT
// What a few seeds can tell: intervals, verdicts, and the seeds that it would take.
#ifndef STUDY_STATISTICS_HPP
#define STUDY_STATISTICS_HPP

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <vector>

#include "sample.hpp"

namespace study {

using train_moe::Sample;

/// P(T <= t) of Student's t with `freedom` >= 1 degrees: the finite series for whole degrees
/// (Abramowitz and Stegun 26.7.3-4).
inline double student_probability(double t, std::size_t freedom) {
  const double angle = std::atan(t / std::sqrt(static_cast<double>(freedom)));
  const double cosine = std::cos(angle);
  const bool odd = freedom % 2 == 1;
  double term = odd ? cosine : 1;
  double sum = freedom == 1 ? 0 : term;
  for (std::size_t i = odd ? 3 : 2; i < freedom; i += 2) {
    const double step = static_cast<double>(i);
    term *= cosine * cosine * (step - 1) / step;
    sum += term;
  }
  const double pi = std::acos(-1.0);
  const double inside = odd ? 2 / pi * (angle + std::sin(angle) * sum) : std::sin(angle) * sum;
  return 0.5 * (1 + inside);
}

/// The t that a share `probability` >= 1/2 lies below.
inline double student_quantile(double probability, std::size_t freedom) {
  double low = 0, high = 1;
  while (student_probability(high, freedom) < probability) high *= 2;
  for (int halving = 0; halving < 100; ++halving) {
    const double middle = (low + high) / 2;
    (student_probability(middle, freedom) < probability ? low : high) = middle;
  }
  return (low + high) / 2;
}

/// Verdicts use this confidence rather than the usual 95 %, because the report has hundreds of
/// rows.
inline constexpr double confidence = 0.99;

/// Mean, spread and confidence interval of a sample. Below two values all but the mean are NaN.
struct Estimate {
  std::size_t n = 0;
  double mean = std::nan("");
  double deviation = std::nan("");
  double low = std::nan("");
  double high = std::nan("");
};

/// The interval around the mean, from its standard error.
inline Estimate with_interval(Estimate e, double error, std::size_t freedom) {
  const double reach = student_quantile((1 + confidence) / 2, freedom) * error;
  e.low = e.mean - reach;
  e.high = e.mean + reach;
  return e;
}

inline Estimate estimate(const Sample& sample) {
  Estimate e;
  e.n = sample.size();
  if (e.n == 0) return e;
  e.mean = sample.mean();
  e.deviation = sample.deviation();
  if (e.n < 2) return e;
  const double error = e.deviation / std::sqrt(static_cast<double>(e.n));
  return with_interval(e, error, e.n - 1);
}

/// The mean of several means, each of equal weight, whatever its sample's size and spread: Welch's
/// interval, whose degrees of freedom are Satterthwaite's. `deviation` stays NaN.
inline Estimate mean_of(const std::vector<Estimate>& estimates) {
  const double count = static_cast<double>(estimates.size());
  Estimate pooled;
  double sum = 0, variance = 0, squares = 0;
  for (const Estimate& e : estimates) {
    const double own = e.deviation * e.deviation / static_cast<double>(e.n) / (count * count);
    pooled.n += e.n;
    sum += e.mean;
    variance += own;
    squares += own * own / static_cast<double>(e.n - 1);
  }
  if (estimates.empty()) return pooled;
  pooled.mean = sum / count;
  const double freedom = squares > 0 ? variance * variance / squares : 1;
  return with_interval(pooled, std::sqrt(variance),
                       static_cast<std::size_t>((std::max)(1.0, freedom)));
}

enum class Verdict { holds, holds_small, does_not_hold, opposite, not_shown, cannot_show };

inline constexpr std::array<Verdict, 6> verdicts{Verdict::holds,         Verdict::holds_small,
                                                 Verdict::does_not_hold, Verdict::opposite,
                                                 Verdict::not_shown,     Verdict::cannot_show};

inline const char* verdict_name(Verdict verdict) {
  constexpr std::array<const char*, 6> names{"holds",        "holds, small", "does not hold",
                                             "the opposite", "not shown",    "cannot show"};
  return names[static_cast<std::size_t>(verdict)];
}

inline constexpr std::size_t least_seeds = 5;

/// Is there an effect in the direction of `sign`? `relevant` > 0: what is worth having.
///
/// Holds if the interval is on that side of 0; small if the mean stays below `relevant`. The
/// opposite if the interval is on the other side. Does not hold if it excludes `relevant`.
/// Otherwise, or with fewer than five seeds, nothing is shown.
inline Verdict effect_verdict(const Estimate& difference, double sign, double relevant) {
  if (difference.n < least_seeds) return Verdict::not_shown;
  const double low = sign > 0 ? difference.low : -difference.high;
  const double high = sign > 0 ? difference.high : -difference.low;
  if (low > 0) return sign * difference.mean >= relevant ? Verdict::holds : Verdict::holds_small;
  if (high < 0) return Verdict::opposite;
  return high < relevant ? Verdict::does_not_hold : Verdict::not_shown;
}

/// Is there no harm, where harm is an effect of `relevant` or more in the direction of `sign`?
inline Verdict no_harm_verdict(const Estimate& difference, double sign, double relevant) {
  if (difference.n < least_seeds) return Verdict::not_shown;
  if ((sign > 0 ? difference.high : -difference.low) < relevant) return Verdict::holds;
  const Verdict harm = effect_verdict(difference, sign, relevant);
  return harm == Verdict::holds ? Verdict::does_not_hold : Verdict::not_shown;
}

/// Pairs of seeds after which an effect of this size is seen with probability 0.8, at the
/// confidence above. 0 if the deviation is unknown.
inline std::size_t seeds_needed(double deviation, double effect) {
  constexpr std::size_t most = 100000;
  if (!(deviation >= 0) || !(effect > 0)) return 0;
  for (std::size_t n = 2; n < most; n = n < 200 ? n + 1 : n + n / 50) {
    const double reach =
        student_quantile((1 + confidence) / 2, n - 1) + student_quantile(0.8, n - 1);
    if (reach * deviation <= effect * std::sqrt(static_cast<double>(n))) return n;
  }
  return most;
}

/// 0 for the smallest value; equal values share the mean of their ranks.
inline std::vector<double> ranks(const std::vector<double>& values) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return values[a] < values[b]; });
  std::vector<double> result(values.size());
  for (std::size_t first = 0; first < order.size();) {
    std::size_t end = first + 1;
    while (end < order.size() && values[order[end]] == values[order[first]]) ++end;
    const double shared = 0.5 * static_cast<double>(first + end - 1);
    for (; first < end; ++first) result[order[first]] = shared;
  }
  return result;
}

/// Spearman's: the correlation of the ranks, in [-1, 1]; 0 if either side is constant.
inline double rank_correlation(const std::vector<double>& left, const std::vector<double>& right) {
  const std::vector<double> a = ranks(left), b = ranks(right);
  const double middle = 0.5 * (static_cast<double>(a.size()) - 1);
  double ab = 0, aa = 0, bb = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    ab += (a[i] - middle) * (b[i] - middle);
    aa += (a[i] - middle) * (a[i] - middle);
    bb += (b[i] - middle) * (b[i] - middle);
  }
  return aa > 0 && bb > 0 ? ab / std::sqrt(aa * bb) : 0;
}

}  // namespace study

#endif  // STUDY_STATISTICS_HPP
