// SPDX-License-Identifier: MIT
// The executor for a number of threads.
#ifndef GATEPRO_BENCHMARKS_SUPPORT_EXECUTORS_HPP
#define GATEPRO_BENCHMARKS_SUPPORT_EXECUTORS_HPP

#include "gatepro/core/executor.hpp"
#ifdef _OPENMP
#include "gatepro/openmp.hpp"
#endif

namespace bench {
namespace {  // a copy per unit: units with different flags must not share it

/// Calls `body` with gatepro's serial executor, or with OpenMP's for more than one thread.
template <class Body>
void with_executor([[maybe_unused]] int threads, const Body& body) {
#ifdef _OPENMP
  if (threads > 1) return body(gatepro::OpenMPExecutor(threads));
#endif
  body(gatepro::SerialExecutor{});
}

}  // namespace
}  // namespace bench

#endif  // GATEPRO_BENCHMARKS_SUPPORT_EXECUTORS_HPP
