// SPDX-License-Identifier: MIT
// Inputs: the same numbers in every run.
#ifndef GATEPRO_BENCHMARKS_SUPPORT_INPUTS_HPP
#define GATEPRO_BENCHMARKS_SUPPORT_INPUTS_HPP

#include <cstdint>
#include <vector>

#include "support/shapes.hpp"

namespace bench {

using Floats = std::vector<float>;
using Ids = std::vector<std::int32_t>;

inline std::size_t area(Index rows, Index cols) { return static_cast<std::size_t>(rows * cols); }

/// Nearly normal numbers of mean 0 and standard deviation `deviation`.
Floats random_floats(std::size_t count, std::uint64_t seed, float deviation = 1);

/// Tokens and router weights whose logits have standard deviation 1.
struct GateInputs {
  explicit GateInputs(const Shape& shape);
  Floats x_TH;
  Floats w_EH;
};

/// Logits that are easy or hard to select from.
enum class Pattern { gaussian, all_ties, bf16_rounded, duplicated, sorted };

/// T x E logits of a pattern.
Floats pattern_logits(Pattern pattern, const Shape& shape);

/// A partner other than itself for each expert.
Ids random_partners(Index experts);

}  // namespace bench

#endif  // GATEPRO_BENCHMARKS_SUPPORT_INPUTS_HPP
