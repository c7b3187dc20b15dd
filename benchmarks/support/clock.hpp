// SPDX-License-Identifier: MIT
// What is counted as time. On a busy machine processor time stays what it is on an idle one, but
// for shared caches.
#ifndef GATEPRO_BENCHMARKS_SUPPORT_CLOCK_HPP
#define GATEPRO_BENCHMARKS_SUPPORT_CLOCK_HPP

namespace bench {

enum class Clock {
  thread,    ///< Processor time of the calling thread.
  children,  ///< Processor time of the processes that were waited for.
  wall,      ///< For what several threads do together.
};

/// Seconds since some time in the past.
double seconds_now(Clock clock);

}  // namespace bench

#endif  // GATEPRO_BENCHMARKS_SUPPORT_CLOCK_HPP
