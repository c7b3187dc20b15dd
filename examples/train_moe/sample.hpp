// SPDX-License-Identifier: MIT
// One number per seed.
#ifndef TRAIN_MOE_SAMPLE_HPP
#define TRAIN_MOE_SAMPLE_HPP

#include <cmath>
#include <cstddef>
#include <vector>

namespace train_moe {

/// A sample of one number per seed.
class Sample {
 public:
  void add(double value) { values_.push_back(value); }
  std::size_t size() const { return values_.size(); }
  double mean() const {
    double sum = 0;
    for (const double value : values_) sum += value;
    return sum / static_cast<double>(size());
  }
  /// Standard deviation over the seeds; NaN for one.
  double deviation() const {
    double sum = 0;
    for (const double value : values_) sum += (value - mean()) * (value - mean());
    return size() < 2 ? std::nan("") : std::sqrt(sum / static_cast<double>(size() - 1));
  }

 private:
  std::vector<double> values_;
};

}  // namespace train_moe

#endif  // TRAIN_MOE_SAMPLE_HPP
