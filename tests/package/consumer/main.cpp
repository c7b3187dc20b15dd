// SPDX-License-Identifier: MIT
#include <gatepro/gatepro.hpp>

#include <cstdio>

#if defined(EXPECT_OPENMP) != defined(_OPENMP)
#error "OpenMP must be on with gatepro::openmp, and only then"
#endif

int main() {
  std::printf("gatepro %d.%d.%d\n", GATEPRO_VERSION_MAJOR, GATEPRO_VERSION_MINOR,
              GATEPRO_VERSION_PATCH);
}
