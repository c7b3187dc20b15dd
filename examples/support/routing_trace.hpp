// SPDX-License-Identifier: MIT
// Files of routers that other programs read: decisions as a line of a routing trace, weights as
// .npy.
#ifndef EXAMPLES_SUPPORT_ROUTING_TRACE_HPP
#define EXAMPLES_SUPPORT_ROUTING_TRACE_HPP

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <gatepro/core.hpp>
#include <string>

namespace report {

/// What a line is about.
struct TraceRecord {
  std::int64_t step = 0;
  gatepro::Index layer = 0;
  int rank = 0;
};

namespace detail {

/// [[...], ...], a list per token.
template <class T, class Write>
std::string lists(const gatepro::MatrixView<T>& values_TK, const Write& write) {
  std::string text = "[";
  for (gatepro::Index t = 0; t < values_TK.rows; ++t) {
    text += t == 0 ? "[" : ",[";
    for (gatepro::Index k = 0; k < values_TK.cols; ++k) {
      if (k != 0) text += ',';
      text += write(values_TK(t, k));
    }
    text += ']';
  }
  return text + "]";
}

/// Digits that give the same float again; JSON has no NaN.
inline std::string json_number(double value) {
  if (!std::isfinite(value)) return "null";
  char text[40];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

}  // namespace detail

/// A line of a router_trace_rank*.jsonl as Megatron-LM writes it, with the weights as a field more,
/// which its scripts pass over. expert_ids_TK: -1 for none. weights_TK: of the same shape.
template <class Id, class A>
std::string trace_line(const TraceRecord& record, gatepro::MatrixView<Id> expert_ids_TK,
                       gatepro::MatrixView<A> weights_TK) {
  return "{\"step\": " + std::to_string(record.step) +
         ", \"stage\": \"pre_dispatch\", \"block\": \"decoder\", \"layer\": " +
         std::to_string(record.layer) + ", \"rank\": " + std::to_string(record.rank) +
         ", \"num_tokens\": " + std::to_string(expert_ids_TK.rows) +
         ", \"topk\": " + std::to_string(expert_ids_TK.cols) + ", \"top_indices\": " +
         detail::lists(expert_ids_TK, [](auto id) { return std::to_string(id); }) +
         ", \"top_weights\": " +
         detail::lists(
             weights_TK,
             [](auto weight) { return detail::json_number(static_cast<double>(weight)); }) +
         "}\n";
}

/// A float matrix as the bytes of a .npy file.
inline std::string npy_bytes(gatepro::MatrixView<const float> matrix) {
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" +
                       std::to_string(matrix.rows) + ", " + std::to_string(matrix.cols) + "), }";
  while ((10 + header.size() + 1) % 64 != 0) header += ' ';
  header += '\n';
  std::string bytes("\x93NUMPY\x01\0", 8);
  bytes += static_cast<char>(header.size() & 0xff);
  bytes += static_cast<char>(header.size() >> 8);
  bytes += header;
  for (gatepro::Index r = 0; r < matrix.rows; ++r) {
    for (gatepro::Index c = 0; c < matrix.cols; ++c) {
      std::uint32_t bits;
      std::memcpy(&bits, &matrix(r, c), sizeof bits);
      for (int shift = 0; shift < 32; shift += 8) bytes += static_cast<char>(bits >> shift & 0xff);
    }
  }
  return bytes;
}

}  // namespace report

#endif  // EXAMPLES_SUPPORT_ROUTING_TRACE_HPP
