// SPDX-License-Identifier: MIT
// Random numbers that depend on the seed only, not on the standard library or the thread.
#ifndef TRAIN_MOE_RANDOM_HPP
#define TRAIN_MOE_RANDOM_HPP

#include <cmath>
#include <cstdint>

namespace train_moe {

/// What a stream of random numbers is for. Streams of one seed are independent, so that a longer
/// training, another arm or one more parameter does not move the numbers of the others.
enum class Stream : std::uint64_t { block_order, validation, training, parameters };

/// SplitMix64: one addition and three mixing steps per number.
class Random {
 public:
  /// `position` picks a place within a stream, such as a step or a parameter.
  Random(std::uint64_t seed, Stream stream, std::uint64_t position = 0)
      : state_(mix(mix(seed + 1) + mix(static_cast<std::uint64_t>(stream) << 32) + position)) {}

  /// 64 random bits.
  std::uint64_t bits() { return mix(state_ += increment); }

  /// A number in [0, count). The bias is below count / 2^64.
  std::uint64_t below(std::uint64_t count) { return bits() % count; }

  /// A normal deviate: Box-Muller, cosine half.
  double normal() {
    constexpr double pi = 3.14159265358979323846;
    const double radius = std::sqrt(-2 * std::log(1 - uniform()));
    return radius * std::cos(2 * pi * uniform());
  }

 private:
  static constexpr std::uint64_t increment = 0x9E3779B97F4A7C15;

  static std::uint64_t mix(std::uint64_t z) {
    z += increment;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }

  /// In [0, 1).
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }

  std::uint64_t state_;
};

}  // namespace train_moe

#endif  // TRAIN_MOE_RANDOM_HPP
