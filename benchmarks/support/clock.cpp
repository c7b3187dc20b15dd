// SPDX-License-Identifier: MIT
#include "support/clock.hpp"

#include <sys/resource.h>

#include <chrono>
#include <ctime>

namespace bench {
namespace {

double seconds(const timespec& time) {
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
}

double thread_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return seconds(time);
}

double children_seconds() {
  rusage usage{};
  getrusage(RUSAGE_CHILDREN, &usage);
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double wall_seconds() {
  const std::chrono::duration<double> since = std::chrono::steady_clock::now().time_since_epoch();
  return since.count();
}

}  // namespace

double seconds_now(Clock clock) {
  if (clock == Clock::thread) return thread_seconds();
  return clock == Clock::children ? children_seconds() : wall_seconds();
}

}  // namespace bench
