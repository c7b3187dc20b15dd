// SPDX-License-Identifier: MIT
// The main function of all unit tests. Where GATEPRO_ISA asks for an instruction set that the CPU
// lacks, the library takes the best one that it has; a test of the set is then skipped, with the
// exit status 77. GATEPRO_TEST_BEST names the best set of a CPU to imitate.
#include <gatepro/core/isa.hpp>

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

const char* environment(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

/// The best instruction set of this CPU, or of the one to imitate.
const char* best_set() {
  const char* imitated = environment("GATEPRO_TEST_BEST");
  return *imitated != '\0' ? imitated : gatepro::detail::name_of(gatepro::detail::best_isa());
}

/// Where a set stands in the order of the sets.
int rank_of(const char* set) {
  if (std::strcmp(set, "portable") == 0 || std::strcmp(set, "neon") == 0) return 0;
  return std::strcmp(set, "avx2") == 0 ? 1 : 2;
}

}  // namespace

int main(int argc, char** argv) {
  const char* wanted = environment("GATEPRO_ISA");
  if (*wanted != '\0' && rank_of(wanted) > rank_of(best_set())) {
    std::printf("skipped: this CPU has no %s\n", wanted);
    return 77;
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
