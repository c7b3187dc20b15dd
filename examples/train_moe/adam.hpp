// SPDX-License-Identifier: MIT
// Adam (Kingma and Ba 2015).
#ifndef TRAIN_MOE_ADAM_HPP
#define TRAIN_MOE_ADAM_HPP

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "parameter.hpp"

namespace train_moe {

/// The rate of step 1 to `steps`: constant, then falling to zero over the second half.
inline double learning_rate(double base, std::int64_t step, std::int64_t steps) {
  const double done = static_cast<double>(step - 1) / static_cast<double>(steps);
  return done < 0.5 ? base : base * 2 * (1 - done);
}

template <class A>
class Adam {
 public:
  explicit Adam(std::vector<Parameter<A>*> parameters) : parameters_(std::move(parameters)) {
    for (const Parameter<A>* p : parameters_) {
      mean_.push_back(RowMatrix<A>::Zero(p->value.rows(), p->value.cols()));
      square_.push_back(RowMatrix<A>::Zero(p->value.rows(), p->value.cols()));
    }
  }

  /// Moves all parameters and zeroes their gradients.
  void step(double rate, const Executor& executor) {
    ++steps_;
    const double steps = static_cast<double>(steps_);
    // Both averages start at zero; dividing by 1 - decay^steps makes up for it.
    const A size = static_cast<A>(rate / (1 - std::pow(mean_decay, steps)));
    const A square_scale = static_cast<A>(1 / (1 - std::pow(square_decay, steps)));
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      constexpr Index range = 16384;
      parallel_ranges(executor, parameters_[i]->value.size(), range, [&](Index first, Index count) {
        const auto part = [&](RowMatrix<A>& m) {
          return Eigen::Map<Eigen::Array<A, Eigen::Dynamic, 1>>(m.data() + first, count);
        };
        auto value = part(parameters_[i]->value), gradient = part(parameters_[i]->gradient);
        auto mean = part(mean_[i]), square = part(square_[i]);
        mean += A(1 - mean_decay) * (gradient - mean);
        square += A(1 - square_decay) * (gradient.square() - square);
        value -= size * mean / ((square * square_scale).sqrt() + A(epsilon));
        gradient.setZero();
      });
    }
  }

 private:
  static constexpr double mean_decay = 0.9;
  static constexpr double square_decay = 0.999;
  static constexpr double epsilon = 1e-8;

  std::vector<Parameter<A>*> parameters_;
  std::vector<RowMatrix<A>> mean_, square_;
  std::int64_t steps_ = 0;
};

}  // namespace train_moe

#endif  // TRAIN_MOE_ADAM_HPP
