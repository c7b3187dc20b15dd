// SPDX-License-Identifier: MIT
// A text to learn from.
#ifndef GATEPRO_TESTS_TRAIN_MOE_WORDS_HPP
#define GATEPRO_TESTS_TRAIN_MOE_WORDS_HPP

#include <string>

#include "random.hpp"
#include "text.hpp"

namespace train_moe {

/// Random letters.
inline std::string words(Index bytes) {
  Random random(7, Stream::training);
  std::string text;
  while (static_cast<Index>(text.size()) < bytes) {
    text += static_cast<char>('a' + random.below(26));
  }
  return text;
}

}  // namespace train_moe

#endif  // GATEPRO_TESTS_TRAIN_MOE_WORDS_HPP
