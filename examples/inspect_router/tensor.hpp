// SPDX-License-Identifier: MIT
// Where a tensor lies in a file, and its numbers as float.
#ifndef INSPECT_ROUTER_TENSOR_HPP
#define INSPECT_ROUTER_TENSOR_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <gatepro/core.hpp>
#include <limits>
#include <string>
#include <vector>

#include "source.hpp"

namespace inspect_router {

using gatepro::Index;
using gatepro::RowMatrix;

enum class Scalar { float16, bfloat16, float32, float64 };

inline std::uint64_t bytes_of(Scalar scalar) {
  return scalar == Scalar::float64 ? 8 : scalar == Scalar::float32 ? 4 : 2;
}

using Shape = std::vector<std::uint64_t>;

inline std::string text_of(const Shape& shape) {
  std::string text = "(";
  for (const std::uint64_t size : shape) {
    text += (text.size() == 1 ? "" : ", ") + std::to_string(size);
  }
  return text + ")";
}

/// The bytes of so many elements of `element_bytes`; refuses what no memory holds.
inline std::uint64_t checked_bytes(const std::string& file, const std::string& field,
                                   const Shape& shape, std::uint64_t element_bytes) {
  constexpr auto largest = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  std::uint64_t bytes = element_bytes;
  bool empty = false;
  for (const std::uint64_t size : shape) {
    empty = empty || size == 0;
    if (size != 0 && bytes > largest / size) {
      refuse(file, field, "the product of the shape " + text_of(shape) + " leaves 63 bits");
    }
    if (size != 0) bytes *= size;
  }
  return empty ? 0 : bytes;
}

/// A tensor in a file.
struct Tensor {
  std::string name;
  Scalar scalar = Scalar::float32;
  Shape shape;
  std::uint64_t offset = 0;   ///< Of its first byte, at any alignment.
  bool big_endian = false;    ///< The highest byte of a number stands first.
  bool column_major = false;  ///< Only of a matrix.
};

namespace detail {

inline float element(const unsigned char* bytes, Scalar scalar, bool big_endian) {
  const std::uint64_t count = bytes_of(scalar);
  std::uint64_t bits = 0;
  for (std::uint64_t b = 0; b < count; ++b) {
    bits = bits << 8 | bytes[big_endian ? b : count - 1 - b];
  }
  const auto low16 = static_cast<std::uint16_t>(bits);
  switch (scalar) {
    case Scalar::float16:
      return static_cast<float>(Eigen::numext::bit_cast<gatepro::half>(low16));
    case Scalar::bfloat16:
      return static_cast<float>(Eigen::numext::bit_cast<gatepro::bfloat16>(low16));
    case Scalar::float32:
      return Eigen::numext::bit_cast<float>(static_cast<std::uint32_t>(bits));
    case Scalar::float64:
      break;
  }
  return static_cast<float>(Eigen::numext::bit_cast<double>(bits));
}

}  // namespace detail

/// The matrix `number` of a tensor with two dimensions, or with three of which the first counts
/// matrices. Every element must be finite. float64 is rounded to float, the rest is exact.
inline RowMatrix<float> read_matrix(const Source& source, const Tensor& tensor,
                                    std::uint64_t number = 0) {
  const std::string field = "tensor " + shown(tensor.name);
  const std::size_t dimensions = tensor.shape.size();
  if (dimensions != 2 && dimensions != 3) {
    refuse(source.name(), field,
           "need a matrix, or a stack of them (got the shape " + text_of(tensor.shape) + ")");
  }
  const std::uint64_t rows = tensor.shape[dimensions - 2], cols = tensor.shape[dimensions - 1];
  const std::uint64_t size = bytes_of(tensor.scalar);
  const std::uint64_t bytes = checked_bytes(source.name(), field, {rows, cols}, size);
  if (bytes == 0) refuse(source.name(), field, "is empty: shape " + text_of(tensor.shape));
  const std::uint64_t first = tensor.offset + number * bytes;
  if (first > source.size() || bytes > source.size() - first) {
    source.read(first, nullptr, bytes);  // refuses before memory is taken
  }

  RowMatrix<float> matrix(static_cast<Index>(rows), static_cast<Index>(cols));
  // A line is what stands together: a row, or a column.
  const std::uint64_t lines = tensor.column_major ? cols : rows;
  std::vector<unsigned char> line(static_cast<std::size_t>(bytes / lines));
  for (std::uint64_t l = 0; l < lines; ++l) {
    source.read(first + l * line.size(), line.data(), line.size());
    for (std::uint64_t i = 0; i < line.size() / size; ++i) {
      const auto r = static_cast<Index>(tensor.column_major ? i : l);
      const auto c = static_cast<Index>(tensor.column_major ? l : i);
      matrix(r, c) = detail::element(line.data() + i * size, tensor.scalar, tensor.big_endian);
      if (!std::isfinite(matrix(r, c))) {
        refuse(source.name(), field,
               "need finite numbers (row " + std::to_string(r) + ", column " + std::to_string(c) +
                   " is NaN, infinite or beyond float)");
      }
    }
  }
  return matrix;
}

}  // namespace inspect_router

#endif  // INSPECT_ROUTER_TENSOR_HPP
