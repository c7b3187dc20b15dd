// SPDX-License-Identifier: MIT
// Numbers from raw bytes, and promises that are checked.
#ifndef GATEPRO_TESTS_FUZZ_FUZZING_HPP
#define GATEPRO_TESTS_FUZZ_FUZZING_HPP

#include <fuzzer/FuzzedDataProvider.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <gatepro/core/views.hpp>
#include <limits>
#include <type_traits>

namespace fuzzing {

inline void check(bool ok, const char* promise) {
  if (ok) return;
  std::fprintf(stderr, "broken promise: %s\n", promise);
  std::abort();
}

/// Any double.
inline double number(FuzzedDataProvider& data) {
  const auto bits = data.ConsumeIntegral<std::uint64_t>();
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// True now and then; never for the zeros that a short input ends in.
inline bool rarely(FuzzedDataProvider& data) {
  return data.ConsumeIntegral<std::uint8_t>() == 0x33;
}

/// Values from the input while it lasts, then from a generator that the input seeds. Every third
/// or so is special.
class Values {
 public:
  explicit Values(FuzzedDataProvider& data)
      : data_(data), state_(data.ConsumeIntegral<std::uint64_t>()) {}

  template <class T>
  T next() {
    if (data_.remaining_bytes() >= sizeof(T) && next_bits() % 4 == 0) {
      T value;
      std::uint8_t bytes[sizeof(T)];
      data_.ConsumeData(bytes, sizeof(T));
      std::memcpy(static_cast<void*>(&value), bytes, sizeof(T));
      return value;
    }
    const std::uint64_t draw = next_bits();
    using Limits = std::numeric_limits<float>;
    const float special[] = {
        Limits::quiet_NaN(),  Limits::infinity(), -Limits::infinity(), 0.0F, -0.0F,
        Limits::denorm_min(), Limits::max(),      -Limits::max(),      1.0F};
    if (special_share_ != 0 && draw % special_share_ == 0) {
      return static_cast<T>(special[draw / 64 % 9]);
    }
    return static_cast<T>(static_cast<float>(draw >> 40) / 8388608.0F - 1);
  }
  gatepro::RowMatrix<float> matrix(gatepro::Index rows, gatepro::Index cols) {
    gatepro::RowMatrix<float> m(rows, cols);
    for (gatepro::Index i = 0; i < rows * cols; ++i) m.data()[i] = next<float>();
    return m;
  }
  /// One in how many generated values is special; 0 for none.
  void set_special_share(std::uint64_t share) { special_share_ = share; }
  std::uint64_t next_bits() {
    state_ = state_ * 6364136223846793005U + 1442695040888963407U;
    return state_ ^ (state_ >> 33);
  }

 private:
  FuzzedDataProvider& data_;
  std::uint64_t state_;
  std::uint64_t special_share_ = 3;
};

/// Equal bits; of a NaN only that it is one, because the hardware may keep either operand's.
template <class T>
bool same(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (std::isnan(a) && std::isnan(b)) return true;
  }
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

template <class View>
void check_same(const View& a, const View& b, const char* promise) {
  for (gatepro::Index r = 0; r < a.rows; ++r) {
    for (gatepro::Index c = 0; c < a.cols; ++c) check(same(a(r, c), b(r, c)), promise);
  }
}

}  // namespace fuzzing

#endif  // GATEPRO_TESTS_FUZZ_FUZZING_HPP
