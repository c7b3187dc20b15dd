// SPDX-License-Identifier: MIT
// What the user can put right: ends the program with one line and exit code 2.
#ifndef TRAIN_MOE_ERROR_HPP
#define TRAIN_MOE_ERROR_HPP

#include <stdexcept>

namespace train_moe {

/// The message says what is wrong and what to do about it.
class UserError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace train_moe

#endif  // TRAIN_MOE_ERROR_HPP
