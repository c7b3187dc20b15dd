// SPDX-License-Identifier: MIT
#include "support/inputs.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

namespace bench {
namespace {

/// Keeps the sign, the exponent and the first seven bits of the mantissa.
float round_to_bf16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits &= 0xffff0000u;
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}

}  // namespace

Floats random_floats(std::size_t count, std::uint64_t seed, float deviation) {
  // A sum of four 16-bit uniforms, three times as fast as std::normal_distribution. Its deviation
  // is 2^16 / sqrt(3).
  const float scale = deviation * std::sqrt(3.0f) / 65536.0f;
  std::mt19937_64 bits(seed);
  Floats values(count);
  for (float& value : values) {
    const std::uint64_t draw = bits();
    const std::uint64_t sum =
        (draw & 0xffff) + (draw >> 16 & 0xffff) + (draw >> 32 & 0xffff) + (draw >> 48);
    value = (static_cast<float>(sum) - 131070.0f) * scale;
  }
  return values;
}

GateInputs::GateInputs(const Shape& shape)
    : x_TH(random_floats(area(shape.tokens, shape.hidden), 1)),
      w_EH(random_floats(area(shape.experts, shape.hidden), 2,
                         1 / std::sqrt(static_cast<float>(shape.hidden)))) {}

Floats pattern_logits(Pattern pattern, const Shape& shape) {
  Floats logits = random_floats(area(shape.tokens, shape.experts), 3);
  switch (pattern) {
    case Pattern::gaussian:
      break;
    case Pattern::all_ties:
      std::fill(logits.begin(), logits.end(), 1.0f);
      break;
    case Pattern::bf16_rounded:
      std::transform(logits.begin(), logits.end(), logits.begin(), round_to_bf16);
      break;
    case Pattern::duplicated:  // E is even
      for (std::size_t i = 0; i < logits.size(); i += 2) logits[i + 1] = logits[i];
      break;
    case Pattern::sorted:  // each expert beats all before it
      for (auto row = logits.begin(); row != logits.end(); row += shape.experts) {
        std::sort(row, row + shape.experts);
      }
      break;
  }
  return logits;
}

Ids random_partners(Index experts) {
  std::mt19937 bits(4);
  std::uniform_int_distribution<Index> distance(1, experts - 1);
  Ids partners(static_cast<std::size_t>(experts));
  for (Index e = 0; e < experts; ++e) {
    partners[static_cast<std::size_t>(e)] =
        static_cast<std::int32_t>((e + distance(bits)) % experts);
  }
  return partners;
}

}  // namespace bench
