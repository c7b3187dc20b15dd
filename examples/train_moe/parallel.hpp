// SPDX-License-Identifier: MIT
// Work in units of fixed size, spread over threads.
#ifndef TRAIN_MOE_PARALLEL_HPP
#define TRAIN_MOE_PARALLEL_HPP

#include <algorithm>
#include <atomic>
#include <gatepro/core/executor.hpp>
#include <gatepro/core/views.hpp>
#ifdef _OPENMP
#include <gatepro/openmp.hpp>
#endif

namespace train_moe {

using gatepro::Index;
using gatepro::RowMatrix;

#ifdef _OPENMP
using Executor = gatepro::OpenMPExecutor;
inline Executor make_executor(int threads) { return Executor(threads); }
inline int max_threads() { return 256; }
#else
using Executor = gatepro::SerialExecutor;
inline Executor make_executor(int) { return {}; }
inline int max_threads() { return 1; }
#endif

/// Calls body(unit) for each unit in [0, units).
///
/// A unit never depends on the number of threads and writes memory of its own. That makes results
/// the same bits for any number of threads.
template <class Body>
void parallel_for(const Executor& executor, Index units, const Body& body) {
  std::atomic<Index> next{0};
  const int workers = static_cast<int>(std::min<Index>(executor.workers(), units));
  executor.run(workers, [&next, &body, units](int) noexcept {
    for (Index unit = next++; unit < units; unit = next++) body(unit);
  });
}

/// Calls body(first, count) for the ranges of `length` that make up [0, size).
template <class Body>
void parallel_ranges(const Executor& executor, Index size, Index length, const Body& body) {
  parallel_for(executor, (size + length - 1) / length, [&](Index range) {
    const Index first = range * length;
    body(first, std::min(length, size - first));
  });
}

/// Tokens per unit of work where each token is on its own.
inline constexpr Index token_range = 64;

}  // namespace train_moe

#endif  // TRAIN_MOE_PARALLEL_HPP
