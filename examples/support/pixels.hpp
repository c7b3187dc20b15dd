// SPDX-License-Identifier: MIT
// A matrix of values as one picture of pixels: a heat map.
#ifndef EXAMPLES_SUPPORT_PIXELS_HPP
#define EXAMPLES_SUPPORT_PIXELS_HPP

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "zlib_stream.hpp"

namespace report {

/// The scale from -1 to 1: orange, nothing, blue, which colour-blind readers can tell apart. The
/// colour stays and only its opacity grows, in even steps, so that the middle is whatever lies
/// behind: one picture fits a light and a dark page. Both hues have like contrast to both.
struct HeatScale {
  static constexpr std::array<std::uint8_t, 3> negative{0xd9, 0x6a, 0x12},
      positive{0x1f, 0x77, 0xc9}, unknown{0x80, 0x80, 0x80};
  static constexpr int middle = 127, last = 254, not_a_number = 255;

  /// The index in the palette of a value in [-1, 1]; what lies outside is held within.
  static std::uint8_t index(double value) {
    if (std::isnan(value)) return not_a_number;
    return static_cast<std::uint8_t>(middle + std::lround(127 * std::clamp(value, -1.0, 1.0)));
  }
  static int opacity(int index) {
    return index == not_a_number ? 255 : std::abs(index - middle) * 255 / 127;
  }
  static const std::array<std::uint8_t, 3>& hue(int index) {
    return index == not_a_number ? unknown : index < middle ? negative : positive;
  }
};

namespace detail {

inline std::uint32_t crc32(const std::string& bytes) {
  std::uint32_t crc = 0xffffffff;
  for (const char byte : bytes) {
    crc ^= static_cast<unsigned char>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xedb88320 : 0);
  }
  return ~crc;
}

inline std::string chunk(const std::string& type, const std::string& data) {
  std::string result;
  append_big_endian(result, static_cast<std::uint32_t>(data.size()));
  result += type + data;
  append_big_endian(result, crc32(type + data));
  return result;
}

inline std::string base64(const std::string& bytes) {
  static constexpr char digits[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string result;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t three = 0;
    for (std::size_t k = 0; k < 3; ++k) {
      three = three << 8 | (i + k < bytes.size() ? static_cast<unsigned char>(bytes[i + k]) : 0U);
    }
    for (std::size_t k = 0; k < 4; ++k) {
      result += i + k > bytes.size() ? '=' : digits[three >> (18 - 6 * k) & 63];
    }
  }
  return result;
}

}  // namespace detail

/// A PNG of width x height squares on the HeatScale, as a data: address. indices: row by row. Each
/// square is repeat x repeat pixels: some readers blur pixels that they stretch.
inline std::string heat_address(std::size_t width, std::size_t height,
                                const std::vector<std::uint8_t>& indices, std::size_t repeat = 1) {
  std::string head, palette, opacity, rows;
  detail::append_big_endian(head, static_cast<std::uint32_t>(repeat * width));
  detail::append_big_endian(head, static_cast<std::uint32_t>(repeat * height));
  head += std::string("\x08\x03\0\0\0", 5);  // 8 bits, by palette
  for (int i = 0; i < 256; ++i) {
    for (const std::uint8_t channel : HeatScale::hue(i)) palette += static_cast<char>(channel);
    opacity += static_cast<char>(HeatScale::opacity(i));
  }
  for (std::size_t r = 0; r < height; ++r) {
    std::string row(1, '\0');  // no filter
    for (std::size_t c = 0; c < width; ++c) {
      row.append(repeat, static_cast<char>(indices[r * width + c]));
    }
    for (std::size_t again = 0; again < repeat; ++again) rows += row;
  }
  const std::string data = zlib_stream(rows, 1 + repeat * width);
  return "data:image/png;base64," +
         detail::base64("\x89PNG\r\n\x1a\n" + detail::chunk("IHDR", head) +
                        detail::chunk("PLTE", palette) + detail::chunk("tRNS", opacity) +
                        detail::chunk("IDAT", data) + detail::chunk("IEND", ""));
}

}  // namespace report

#endif  // EXAMPLES_SUPPORT_PIXELS_HPP
