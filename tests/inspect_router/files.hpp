// SPDX-License-Identifier: MIT
// Files as their formats are published, written by hand, so that each rule can be broken.
#ifndef TESTS_INSPECT_ROUTER_FILES_HPP
#define TESTS_INSPECT_ROUTER_FILES_HPP

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

/// `count` bytes of `value`, the lowest first.
inline std::string little_endian(std::uint64_t value, std::size_t count) {
  std::string bytes;
  for (std::size_t b = 0; b < count; ++b) bytes += static_cast<char>(value >> 8 * b & 0xff);
  return bytes;
}

/// A .npy file: version 1, 2 or 3, the dictionary, and the data.
inline std::string npy(const std::string& dictionary, const std::string& data, int version = 1) {
  std::string header = dictionary;
  const std::size_t before = version == 1 ? 10 : 12;
  while ((before + header.size() + 1) % 64 != 0) header += ' ';
  header += '\n';
  return std::string("\x93NUMPY") + static_cast<char>(version) + '\0' +
         little_endian(header.size(), version == 1 ? 2 : 4) + header + data;
}
inline std::string npy_dictionary(const std::string& descr, const std::string& shape) {
  return "{'descr': '" + descr + "', 'fortran_order': False, 'shape': " + shape + ", }";
}

/// A .safetensors file.
inline std::string safetensors(const std::string& header, const std::string& data) {
  return little_endian(header.size(), 8) + header + data;
}

/// Floats as bytes.
inline std::string floats(const std::vector<float>& values) {
  std::string bytes;
  for (const float value : values) {
    std::uint32_t bits;
    static_assert(sizeof bits == sizeof value);
    std::memcpy(&bits, &value, sizeof bits);
    bytes += little_endian(bits, 4);
  }
  return bytes;
}

#endif  // TESTS_INSPECT_ROUTER_FILES_HPP
