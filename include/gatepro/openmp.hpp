// SPDX-License-Identifier: MIT
// Token parallelism with OpenMP: opt-in, and the only header with pragmas.
#ifndef GATEPRO_OPENMP_HPP
#define GATEPRO_OPENMP_HPP

#ifndef _OPENMP
#error "gatepro/openmp.hpp needs OpenMP: compile with -fopenmp or link gatepro::openmp"
#endif

#include <omp.h>

#include "gatepro/core/error.hpp"
#include "gatepro/core/executor.hpp"

namespace gatepro {
inline namespace GATEPRO_ABI {

/// Spreads the work over OpenMP threads.
///
/// Results are the same bits as with SerialExecutor, for any number of threads. Inside a caller's
/// parallel region OpenMP's own nesting rules hold (by default: one thread). It changes no OpenMP
/// or Eigen setting. Copies are independent; const calls may run concurrently.
///
/// A thread is started for `least_work` multiply-adds or more. The default, some 30 us of one core,
/// suits threads that spin between regions, as they do by default; with OMP_WAIT_POLICY=passive a
/// larger one may be faster (docs/performance.md).
class OpenMPExecutor {
 public:
  /// As many workers as OpenMP would start here.
  OpenMPExecutor() : OpenMPExecutor(omp_get_max_threads()) {}
  /// A fixed number of workers. Throws Error if it is below 1, or the least work not above 0.
  explicit OpenMPExecutor(int threads, double least_work = 4194304)
      : threads_(threads), least_work_(least_work) {
    detail::need(threads >= 1, "OpenMPExecutor", "threads >= 1", {{"threads", threads}});
    detail::need(least_work > 0, "OpenMPExecutor", "least_work > 0", {{"least_work", least_work}});
  }

  /// The number of workers.
  int workers() const noexcept { return threads_; }
  /// Multiply-adds that are worth starting a thread for.
  double least_work() const noexcept { return least_work_; }

  /// Calls `body(w)` once for each w in [0, count), concurrently where threads are to be had.
  template <class Body>
  void run(int count, Body body) const {
    if (count < 1) return;           // num_threads(0) would start as many as there may be
    if (count == 1) return body(0);  // even a region of one thread costs
#pragma omp parallel for schedule(static, 1) num_threads(count)
    for (int worker = 0; worker < count; ++worker) body(worker);
  }

 private:
  int threads_;
  double least_work_;
};

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_OPENMP_HPP
