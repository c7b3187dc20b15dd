// SPDX-License-Identifier: MIT
// Soft caps under -ffast-math: no NaN is lost, no infinity makes one, and no order of floats
// changes.
#include <gatepro/gate/soft_cap.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "support/bits.hpp"
#include "support/inputs.hpp"

namespace {

using gatepro::Index;

template <class A>
void expect_capped() {
  constexpr double cap = 30;
  std::vector<A> values;
  for (int i = -6000; i <= 6000; ++i) values.push_back(static_cast<A>(i * 0.11));
  const std::vector<A> logits = values;
  const std::size_t numbers = values.size();
  const A nan = data::marked_nan<A>();
  values.insert(values.end(), {data::infinity<A>(), -data::infinity<A>(), nan});
  gatepro::soft_cap_logits(
      cap, gatepro::MatrixView<A>(values.data(), 1, static_cast<Index>(values.size())));
  for (std::size_t i = 0; i < numbers; ++i) {
    EXPECT_NEAR(double(values[i]), cap * std::tanh(double(logits[i]) / cap), 1e-5);
    if (sizeof(A) == 4 && i > 0) {
      EXPECT_FALSE(values[i] < values[i - 1]) << logits[i];
    }
  }
  EXPECT_EQ(values[numbers], A(cap));
  EXPECT_EQ(values[numbers + 1], -A(cap));
  EXPECT_TRUE(data::is_nan(values[numbers + 2]));
}

TEST(SoftCapFastMath, KeepsNaNsAndTheOrder) {
  expect_capped<float>();
  expect_capped<double>();
}

}  // namespace
