// SPDX-License-Identifier: MIT
// Two units that hold the single header, kernels and all, make one program.
#include <gtest/gtest.h>

#include "single_header/route.hpp"

namespace {

TEST(SingleHeader, TwoUnitsMakeOneProgram) {
  gatepro::RowMatrix<float> logits_TE(2, 4);
  logits_TE << 1, 3, 2, 0, 5, 4, 6, 7;
  const Ids expected_TK = {1, 2, 3, 2};
  EXPECT_EQ(route(logits_TE), expected_TK);
  EXPECT_EQ(route_elsewhere(logits_TE), expected_TK);
}

}  // namespace
