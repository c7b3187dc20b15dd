// SPDX-License-Identifier: MIT
// Both translation units must run, and route alike. Options and views go from here to them, and an
// Error comes back.
//
// usage: linkage [<CPU feature that the variant needs>]
#include <gatepro/core/error.hpp>
#include <gatepro/router/config.hpp>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "support/checksums.hpp"

using Route = double(const gatepro::RouterConfig&, gatepro::MatrixView<const float>,
                     gatepro::MatrixView<const float>);
Route route_baseline;
Route route_variant;

namespace {

bool cpu_has([[maybe_unused]] const char* feature) {
#if defined(__x86_64__)
  if (std::strcmp(feature, "avx2") == 0) return __builtin_cpu_supports("avx2");
  if (std::strcmp(feature, "avx512f") == 0) return __builtin_cpu_supports("avx512f");
#endif
  return false;
}

/// True if bad settings give an Error with its message, or -1 from a unit without exceptions.
bool refuses_bad_settings(Route route, gatepro::RouterConfig config,
                          gatepro::MatrixView<const float> x_TH,
                          gatepro::MatrixView<const float> w_EH) {
  config.top_k = 0;
  try {
    return route(config, x_TH, w_EH) == -1;
  } catch (const gatepro::Error& error) {
    return std::strstr(error.what(), "gatepro::Router: need 1 <= top_k") != nullptr;
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && !cpu_has(argv[1])) {
    std::printf("skipped: this CPU has no %s\n", argv[1]);
    return 77;
  }
  constexpr gatepro::Index tokens = 70, hidden = 40, experts = 9;
  const std::vector<float> x = data::numbers<float>(tokens * hidden, 1),
                           w = data::numbers<float>(experts * hidden, 2);
  const gatepro::MatrixView<const float> x_TH(x.data(), tokens, hidden);
  const gatepro::MatrixView<const float> w_EH(w.data(), experts, hidden);
  gatepro::RouterConfig config{hidden, experts, 3};
  config.competition = gatepro::Competition::penalty(0.5);

  const double baseline = route_baseline(config, x_TH, w_EH);
  const double variant = route_variant(config, x_TH, w_EH);
  std::printf("baseline %.17g, variant %.17g\n", baseline, variant);
  const bool alike = baseline > 0 && std::abs(variant - baseline) <= 1e-5 * baseline;
  const bool refused = refuses_bad_settings(route_baseline, config, x_TH, w_EH) &&
                       refuses_bad_settings(route_variant, config, x_TH, w_EH);
  std::printf("alike: %d, bad settings refused: %d\n", alike, refused);
  return alike && refused ? 0 : 1;
}
