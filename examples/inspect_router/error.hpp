// SPDX-License-Identifier: MIT
// What the user can put right, above all in the files.
#ifndef INSPECT_ROUTER_ERROR_HPP
#define INSPECT_ROUTER_ERROR_HPP

#include <string>
#include <string_view>

#include "support/error.hpp"
#include "support/plain_text.hpp"

namespace inspect_router {

using report::UserError;

/// Text from a file, for a message: one line, of bounded length.
inline std::string shown(std::string_view text) {
  constexpr std::size_t longest = 120;
  return "'" + report::plain_text(text.substr(0, longest)) + (text.size() > longest ? "...'" : "'");
}

/// A file that breaks a rule of its format: names file, field and rule.
[[noreturn]] inline void refuse(const std::string& file, const std::string& field,
                                const std::string& rule) {
  throw UserError(file + ": " + field + ": " + rule);
}

}  // namespace inspect_router

#endif  // INSPECT_ROUTER_ERROR_HPP
