// SPDX-License-Identifier: MIT
// The integer keys order logits as numbers are ordered, and give their values back.
#include <gatepro/core/order.hpp>

#include <cmath>
#include <vector>

#include "support/bits.hpp"
#include "support/inputs.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::detail::is_finite;
using gatepro::detail::key_of;
using gatepro::detail::Order;
using gatepro::detail::value_of;

template <class A>
class OrderTest : public ::testing::Test {
 protected:
  /// Special values, each with both neighbours, and random bit patterns.
  static std::vector<A> values() {
    std::vector<A> values;
    for (A special : data::special_values<A>()) {
      const auto bits = data::bits_of(special);
      values.push_back(special);
      values.push_back(data::from_bits<A>(bits + 1));
      values.push_back(data::from_bits<A>(bits - 1));
    }
    for (std::uint64_t i = 0; i < 300; ++i) {
      const auto bits = static_cast<data::BitsOf<A>>(data::random_bits(1, i));
      values.push_back(data::from_bits<A>(bits));
      values.push_back(data::from_bits<A>(bits + 1));
    }
    return values;
  }
};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(OrderTest, Scalars, TypeNames);

TYPED_TEST(OrderTest, KeysCompareAsTheNumbersDo) {
  const std::vector<TypeParam> values = this->values();
  for (TypeParam a : values) {
    for (TypeParam b : values) {
      if (std::isnan(a) || std::isnan(b)) {
        EXPECT_EQ(key_of(a) < key_of(b), std::isnan(a) && !std::isnan(b)) << a << " " << b;
      } else {
        EXPECT_EQ(key_of(a) < key_of(b), a < b) << a << " " << b;
        EXPECT_EQ(key_of(a) == key_of(b), a == b) << a << " " << b;
      }
    }
  }
}

TYPED_TEST(OrderTest, FiniteNumbersAreKnown) {
  for (TypeParam a : this->values()) EXPECT_EQ(is_finite(a), std::isfinite(a)) << a;
}

TYPED_TEST(OrderTest, AdjacentNumbersHaveAdjacentKeys) {
  for (TypeParam a : this->values()) {
    if (std::isnan(a) || a == data::infinity<TypeParam>()) continue;
    const TypeParam next = std::nextafter(a, data::infinity<TypeParam>());
    EXPECT_EQ(key_of(next), key_of(a) + 1) << a;
  }
}

TYPED_TEST(OrderTest, KeysGiveTheNumberBackWithZeroPositive) {
  for (TypeParam a : this->values()) {
    const TypeParam back = value_of<TypeParam>(key_of(a));
    if (std::isnan(a)) {
      EXPECT_TRUE(data::same_bits(back, std::numeric_limits<TypeParam>::quiet_NaN()));
    } else {
      EXPECT_TRUE(data::same_bits(back, a == 0 ? TypeParam(0) : a));
    }
  }
}

TYPED_TEST(OrderTest, LastRanksStandBelowEveryNumber) {
  using O = Order<TypeParam>;
  const TypeParam infinity = data::infinity<TypeParam>();
  EXPECT_EQ(key_of(TypeParam(0)), 0);
  EXPECT_EQ(key_of(TypeParam(-0.0)), 0);
  EXPECT_EQ(key_of(infinity), +O::infinity);
  EXPECT_EQ(key_of(-infinity), -O::infinity);
  EXPECT_EQ(key_of(std::numeric_limits<TypeParam>::quiet_NaN()), +O::nan);
  EXPECT_LT(+O::empty, +O::nan);
  EXPECT_LT(+O::nan, +O::loser);
  EXPECT_LT(+O::loser, -O::infinity);
}

TYPED_TEST(OrderTest, LastRanksHaveValues) {
  using O = Order<TypeParam>;
  const TypeParam quiet_nan = std::numeric_limits<TypeParam>::quiet_NaN();
  EXPECT_TRUE(data::same_bits(value_of<TypeParam>(O::nan), quiet_nan));
  EXPECT_TRUE(data::same_bits(value_of<TypeParam>(O::empty), quiet_nan));
  EXPECT_TRUE(data::same_bits(value_of<TypeParam>(O::loser), -data::infinity<TypeParam>()));
}

}  // namespace
