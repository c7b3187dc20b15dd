// SPDX-License-Identifier: MIT
// Both translation units must run, and route alike.
#include <cmath>
#include <cstdio>

double route_baseline();
double route_variant();

int main() {
#ifdef NEEDED_CPU_FEATURE
  if (!__builtin_cpu_supports(NEEDED_CPU_FEATURE)) {
    std::puts("skipped: this CPU has no " NEEDED_CPU_FEATURE);
    return 77;
  }
#endif
  const double baseline = route_baseline();
  const double variant = route_variant();
  std::printf("baseline %.17g, variant %.17g\n", baseline, variant);
  return std::abs(variant - baseline) <= 1e-5 * std::abs(baseline) ? 0 : 1;
}
