// SPDX-License-Identifier: MIT
// For programs that are compiled in several ways: the same numbers in all, and a hash of what comes
// out.
#ifndef GATEPRO_TESTS_SUPPORT_CHECKSUMS_HPP
#define GATEPRO_TESTS_SUPPORT_CHECKSUMS_HPP

#include <cstddef>
#include <cstdint>
#include <gatepro/core/views.hpp>
#include <vector>

namespace data {

/// Numbers in [-scale, scale) that are the same everywhere.
template <class T>
std::vector<T> numbers(gatepro::Index count, unsigned state, double scale = 1) {
  std::vector<T> result;
  for (gatepro::Index i = 0; i < count; ++i) {
    state = state * 1664525U + 1013904223U;
    result.push_back(
        static_cast<T>(static_cast<float>((double(state >> 8) / 8388608.0 - 1) * scale)));
  }
  return result;
}

/// FNV-1a over the bytes of results, in the order in which they are added.
class Hash {
 public:
  template <class T>
  void add(const T* values, gatepro::Index count) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(values);
    for (std::size_t i = 0; i < static_cast<std::size_t>(count) * sizeof(T); ++i) {
      state_ = (state_ ^ bytes[i]) * 1099511628211U;
    }
  }
  template <class View>
  void add_rows(const View& view) {
    for (gatepro::Index r = 0; r < view.rows; ++r) {
      for (gatepro::Index c = 0; c < view.cols; ++c) add(&view(r, c), 1);
    }
  }
  std::uint64_t value() const { return state_; }

 private:
  std::uint64_t state_ = 14695981039346656037U;
};

}  // namespace data

#endif  // GATEPRO_TESTS_SUPPORT_CHECKSUMS_HPP
