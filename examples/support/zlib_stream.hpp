// SPDX-License-Identifier: MIT
// Bytes as a zlib stream (RFC 1950, 1951), made short where they repeat the byte or the row before.
#ifndef EXAMPLES_SUPPORT_ZLIB_STREAM_HPP
#define EXAMPLES_SUPPORT_ZLIB_STREAM_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

namespace report {

namespace detail {

inline void append_big_endian(std::string& out, std::uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(value >> shift & 0xff);
}

inline std::uint32_t adler32(const std::string& bytes) {
  std::uint32_t a = 1, b = 0;
  for (const char byte : bytes) {
    a = (a + static_cast<unsigned char>(byte)) % 65521;
    b = (b + a) % 65521;
  }
  return b << 16 | a;
}

/// One block with the fixed codes of RFC 1951, section 3.2.6.
class DeflateBlock {
 public:
  DeflateBlock() {
    bits(1, 1);  // the last block
    bits(1, 2);  // fixed codes
  }

  void literal(unsigned char byte) {
    byte < 144 ? code(0x30U + byte, 8) : code(0x190U + byte - 144, 9);
  }

  /// `length` bytes, 3 to 257, that stand `distance`, 1 to 32768, before.
  void copy(std::size_t length, std::size_t distance) {
    const Part size(length - 3, 2);
    const std::uint32_t symbol = 257 + size.symbol;
    symbol < 280 ? code(symbol - 256, 7) : code(0xc0 + symbol - 280, 8);
    bits(size.rest, size.rest_bits);
    const Part back(distance - 1, 1);
    code(back.symbol, 5);
    bits(back.rest, back.rest_bits);
  }

  /// The bytes; nothing may follow.
  std::string end() {
    code(0, 7);  // end of block
    bits(0, 7);  // to a whole byte
    return bytes_;
  }

 private:
  /// Lengths and distances: a symbol for each 2^kept numbers up to twice their size, and the rest.
  struct Part {
    std::uint32_t symbol, rest = 0;
    int rest_bits = 0;

    Part(std::size_t number, int kept) : symbol(static_cast<std::uint32_t>(number)) {
      const std::uint32_t whole = symbol;
      while (symbol >= 2U << kept) {
        ++rest_bits;
        symbol >>= 1;
      }
      rest = whole & ((1U << rest_bits) - 1);
      symbol += static_cast<std::uint32_t>(rest_bits) << kept;
    }
  };

  /// Numbers stand with the lowest bit first, codes with the highest.
  void bits(std::uint32_t value, int count) {
    for (int b = 0; b < count; ++b) {
      waiting_ = static_cast<unsigned char>(waiting_ | (value >> b & 1) << filled_);
      if (++filled_ < 8) continue;
      bytes_ += static_cast<char>(waiting_);
      waiting_ = 0;
      filled_ = 0;
    }
  }
  void code(std::uint32_t value, int count) {
    for (int b = count - 1; b >= 0; --b) bits(value >> b, 1);
  }

  std::string bytes_;
  unsigned char waiting_ = 0;
  int filled_ = 0;
};

/// How many bytes from `at` on, 257 at most, are those `distance` before.
inline std::size_t repeated(const std::string& data, std::size_t at, std::size_t distance) {
  if (distance > at) return 0;
  const std::size_t most = std::min<std::size_t>(257, data.size() - at);
  std::size_t length = 0;
  while (length < most && data[at + length] == data[at + length - distance]) ++length;
  return length;
}

}  // namespace detail

/// The zlib stream of `data`, whose rows have `row` bytes, 32768 at most.
inline std::string zlib_stream(const std::string& data, std::size_t row) {
  detail::DeflateBlock block;
  for (std::size_t at = 0; at < data.size();) {
    const std::size_t along = detail::repeated(data, at, 1);
    const std::size_t above = detail::repeated(data, at, row);
    const std::size_t length = std::max(along, above);
    if (length < 3) {
      block.literal(static_cast<unsigned char>(data[at++]));
    } else {
      block.copy(length, along == length ? 1 : row);
      at += length;
    }
  }
  std::string result = "\x78\x01" + block.end();
  detail::append_big_endian(result, detail::adler32(data));
  return result;
}

}  // namespace report

#endif  // EXAMPLES_SUPPORT_ZLIB_STREAM_HPP
