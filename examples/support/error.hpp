// SPDX-License-Identifier: MIT
// What the user can put right: ends the program with one line and exit code 2.
#ifndef EXAMPLES_SUPPORT_ERROR_HPP
#define EXAMPLES_SUPPORT_ERROR_HPP

#include <stdexcept>

namespace report {

/// The message says what is wrong and what to do about it.
class UserError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace report

#endif  // EXAMPLES_SUPPORT_ERROR_HPP
