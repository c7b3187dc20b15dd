// SPDX-License-Identifier: MIT
// float to 16 bits by every instruction set that this machine has, against the definition.
#include <gatepro/kernels/dispatch.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "support/bits.hpp"
#include "support/reference/rounding.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::Index;
using gatepro::detail::Isa;

template <class Target>
struct Narrowed;
template <>
struct Narrowed<gatepro::bfloat16> {
  static constexpr reference::Format format = reference::bfloat16_format;
  static constexpr int lost_bits = 16;
  static constexpr std::uint32_t quiet_nan = 0x7fc0;
};
template <>
struct Narrowed<gatepro::half> {
  static constexpr reference::Format format = reference::half_format;
  static constexpr int lost_bits = 13;
  static constexpr std::uint32_t quiet_nan = 0x7e00;
};

template <class Target>
float widened(std::uint32_t bits) {
  const auto low = static_cast<std::uint16_t>(bits);
  Target value;
  std::memcpy(static_cast<void*>(&value), &low, sizeof low);
  return static_cast<float>(value);
}

/// All numbers of Target, the middles between neighbours, what is next to either, and any bits.
template <class Target>
std::vector<float> hard_values() {
  std::vector<float> values;
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const std::uint32_t exact = data::bits_of(widened<Target>(bits));
    const std::uint32_t middle = exact + (1U << (Narrowed<Target>::lost_bits - 1));
    for (const std::uint32_t near : {exact - 1, exact, exact + 1, middle - 1, middle, middle + 1}) {
      values.push_back(data::from_bits<float>(near));
    }
  }
  std::mt19937 random(1);
  for (int i = 0; i < 100000; ++i)
    values.push_back(data::from_bits<float>(std::uint32_t(random())));
  // Below the least normal half, middles stand elsewhere: at odd multiples of 2^-25.
  for (int odd = 1; odd < 2050; odd += 2) {
    const float middle = std::ldexp(float(odd), -25);
    for (const float away : {0.0F, 1.0F}) values.push_back(std::nextafter(middle, away));
    values.push_back(-middle);
  }
  return values;
}

template <class Target>
void expect_narrow(float value, const Target& got, const char* isa) {
  std::uint16_t bits;
  std::memcpy(&bits, &got, sizeof bits);
  const std::uint32_t wide = data::bits_of(value);
  if (std::isnan(value)) {
    const std::uint32_t payload = (wide & 0x7fffff) >> Narrowed<Target>::lost_bits;
    ASSERT_EQ(bits, ((wide >> 16) & 0x8000) | Narrowed<Target>::quiet_nan | payload) << isa;
    return;
  }
  const auto want =
      static_cast<float>(reference::rounded(static_cast<double>(value), Narrowed<Target>::format));
  ASSERT_EQ(data::bits_of(widened<Target>(bits)), data::bits_of(want)) << isa << ", " << value;
}

template <class Target>
class NarrowTest : public testing::Test {
 protected:
  template <class Body>
  static void for_each_isa(const Body& body) {
    for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
      if (isa > gatepro::detail::best_isa()) continue;
      body(gatepro::detail::kernels_for<gatepro::detail::NarrowKernels<Target>>(isa).narrow,
           gatepro::detail::name_of(isa));
    }
  }
};
using Targets = testing::Types<gatepro::bfloat16, gatepro::half>;
TYPED_TEST_SUITE(NarrowTest, Targets, TypeNames);

TYPED_TEST(NarrowTest, RoundsToTheNearestEven) {
  const std::vector<float> values = hard_values<TypeParam>();
  this->for_each_isa([&](const auto narrow, const char* isa) {
    std::vector<TypeParam> got(values.size());
    narrow(values.data(), Index(values.size()), got.data());
    for (std::size_t i = 0; i < values.size(); ++i) {
      ASSERT_NO_FATAL_FAILURE(expect_narrow(values[i], got[i], isa));
    }
  });
}

TYPED_TEST(NarrowTest, TakesAnyCount) {
  this->for_each_isa([](const auto narrow, const char* isa) {
    for (std::size_t count = 0; count < 70; ++count) {
      std::vector<float> from(count);
      for (std::size_t i = 0; i < count; ++i) from[i] = 1.0F / float(i + 3);
      std::vector<TypeParam> to(count + 1, TypeParam(77));
      narrow(from.data(), Index(count), to.data());
      for (std::size_t i = 0; i < count; ++i) {
        ASSERT_NO_FATAL_FAILURE(expect_narrow(from[i], to[i], isa));
      }
      ASSERT_EQ(to.back(), TypeParam(77)) << isa << ", " << count;
    }
  });
}

}  // namespace
