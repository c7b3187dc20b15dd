// SPDX-License-Identifier: MIT
// Text that may come from anywhere, made fit for terminals and pages.
#ifndef EXAMPLES_SUPPORT_PLAIN_TEXT_HPP
#define EXAMPLES_SUPPORT_PLAIN_TEXT_HPP

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace report {

namespace detail {

struct CodePoint {
  std::uint32_t value;
  std::size_t size;  ///< Bytes; 0 if they are not UTF-8.
};

/// The code point that `text`, which is not empty, starts with.
inline CodePoint first_code_point(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint32_t>(text[i]) & 0xff; };
  const std::uint32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const std::size_t size = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || size > text.size()) return {0, 0};
  std::uint32_t value = lead & (0x7fU >> size);
  for (std::size_t i = 1; i < size; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return {0, 0};
    value = value << 6 | (byte(i) & 0x3f);
  }
  const bool longer_than_needed = value < (size == 4 ? 0x10000U : size == 3 ? 0x800U : 0x80U);
  const bool surrogate = value >= 0xd800 && value < 0xe000;
  if (longer_than_needed || surrogate || value > 0x10ffff) return {0, 0};
  return {value, size};
}

/// What moves a cursor, starts a line, or turns the direction of reading.
inline bool is_control(std::uint32_t code) {
  return code < 0x20 || (code >= 0x7f && code < 0xa0) || (code >= 0x2028 && code <= 0x202e) ||
         (code >= 0x2066 && code <= 0x2069) || code == 0x061c || code == 0x200e || code == 0x200f;
}

}  // namespace detail

/// `text` as one line of UTF-8: controls become spaces; what is not UTF-8, or no character that XML
/// may hold, becomes U+FFFD.
inline std::string plain_text(std::string_view text) {
  std::string result;
  while (!text.empty()) {
    const detail::CodePoint code = detail::first_code_point(text);
    if (code.size == 0 || (code.value & 0xfffe) == 0xfffe) {
      result += "\xef\xbf\xbd";
    } else if (detail::is_control(code.value)) {
      result += ' ';
    } else {
      result += text.substr(0, code.size);
    }
    text.remove_prefix(code.size == 0 ? 1 : code.size);
  }
  return result;
}

}  // namespace report

#endif  // EXAMPLES_SUPPORT_PLAIN_TEXT_HPP
