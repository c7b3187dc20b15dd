// SPDX-License-Identifier: MIT
// gatepro as one compiler builds it with one set of flags.
#ifndef GATEPRO_BENCHMARKS_SUPPORT_BUILD_HPP
#define GATEPRO_BENCHMARKS_SUPPORT_BUILD_HPP

#include "gatepro/router/config.hpp"
#include "support/inputs.hpp"
#include "support/jobs.hpp"

namespace bench {

/// What is built; null without the compiler.
struct Build {
  Run (*route)(const RouteJob& job, const gatepro::Competition& competition, int threads) = nullptr;
  Run (*gate_backward)(const GateBackwardJob& job, const Ids& ids_TK,
                       const Floats& dselected_TK) = nullptr;
};

namespace builds {
extern const Build ours;  ///< What builds the benchmarks, -O2.
// g++ and clang++, -O2 and -O3 -march=native.
extern const Build gxx_baseline, gxx_native, clang_baseline, clang_native;
}  // namespace builds

}  // namespace bench

#endif  // GATEPRO_BENCHMARKS_SUPPORT_BUILD_HPP
