// SPDX-License-Identifier: MIT
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

namespace {

TEST(Version, UmbrellaStatesIt) {
  EXPECT_GE(GATEPRO_VERSION_MAJOR, 0);
  EXPECT_GE(GATEPRO_VERSION_MINOR, 0);
  EXPECT_GE(GATEPRO_VERSION_PATCH, 0);
}

}  // namespace
