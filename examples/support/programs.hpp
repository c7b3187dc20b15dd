// SPDX-License-Identifier: MIT
// Other programs, as the shell finds them.
#ifndef EXAMPLES_SUPPORT_PROGRAMS_HPP
#define EXAMPLES_SUPPORT_PROGRAMS_HPP

#include <cstdlib>
#include <string>

namespace report {

/// True if a program of that name can be started.
inline bool can_run(const std::string& program) {
  return std::system(("command -v " + program + " > /dev/null 2>&1").c_str()) == 0;
}

/// `text` as one word for the shell.
inline std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return result + "'";
}

}  // namespace report

#endif  // EXAMPLES_SUPPORT_PROGRAMS_HPP
