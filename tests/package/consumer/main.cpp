// SPDX-License-Identifier: MIT
#include <gatepro/gatepro.hpp>

#include <cstdio>

#if defined(EXPECT_OPENMP) != defined(_OPENMP)
#error "OpenMP must be on with gatepro::openmp and gatepro::torch, and only then"
#endif
#ifdef EXPECT_TORCH
#include <gatepro/torch.hpp>

const int threads = gatepro::ATenExecutor().workers();
#endif

int main() {
  std::printf("gatepro %d.%d.%d\n", GATEPRO_VERSION_MAJOR, GATEPRO_VERSION_MINOR,
              GATEPRO_VERSION_PATCH);
}
