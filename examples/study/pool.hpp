// SPDX-License-Identifier: MIT
// Runs side by side, one thread each.
#ifndef STUDY_POOL_HPP
#define STUDY_POOL_HPP

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "stop_signal.hpp"

namespace study {

/// Time since the program started, and when to stop.
class Deadline {
 public:
  /// `seconds`: 0 for no limit.
  explicit Deadline(double seconds) : limit_(seconds) {}
  double elapsed() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  /// A signal came, or the time is over.
  bool reached() const {
    return train_moe::stop_requested != 0 || (limit_ > 0 && elapsed() >= limit_);
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  double limit_;
};

/// How far it is, on stderr: a bar that is redrawn on a terminal, elsewhere a line now and then.
class ProgressBar {
 public:
  /// `total`: the work of all jobs, in any unit.
  ProgressBar(std::string name, double total, const Deadline& clock)
      : name_(std::move(name)),
        total_(total),
        clock_(clock),
        start_(clock.elapsed()),
        terminal_(isatty(STDERR_FILENO) == 1) {}
  ~ProgressBar() {
    if (terminal_) std::fputs("\r\033[K", stderr);
  }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void advance(double work, const std::string& what) {
    done_ += work;
    const double now = clock_.elapsed();
    if (!terminal_ && now - drawn_ < 15 && done_ < total_) return;
    drawn_ = now;
    constexpr std::size_t width = 30;
    const double share = std::min(1.0, done_ / total_);
    const auto filled = static_cast<std::size_t>(share * width);
    const double left = (now - start_) / share * (1 - share);
    std::fprintf(stderr, "%s%s [%s%s] %3.0f %%  %s left  %s%s", terminal_ ? "\r\033[K" : "",
                 name_.c_str(), std::string(filled, '#').c_str(),
                 std::string(width - filled, '.').c_str(), 100 * share, time_text(left).c_str(),
                 what.c_str(), terminal_ ? "" : "\n");
  }

 private:
  static std::string time_text(double seconds) {
    char text[48];
    if (seconds < 100) {
      std::snprintf(text, sizeof text, "%.0f s", seconds);
    } else {
      std::snprintf(text, sizeof text, "%.0f min", seconds / 60);
    }
    return text;
  }

  std::string name_;
  double total_, done_ = 0;
  const Deadline& clock_;
  double start_, drawn_ = -1e9;
  bool terminal_;
};

/// Calls body(i) for each i below `count`, in this order, on so many threads, until `done()`. An
/// exception ends all of them and is thrown again.
template <class Done, class Body>
void in_parallel(int threads, std::size_t count, const Done& done, const Body& body) {
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  std::atomic<bool> failed{false};
  const auto work = [&] {
    for (std::size_t i = next++; i < count && !done() && !failed; i = next++) {
      try {
        body(i);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        if (!failed.exchange(true)) failure = std::current_exception();
      }
    }
  };
  std::vector<std::thread> workers;
  for (int t = 1; t < threads; ++t) workers.emplace_back(work);
  work();
  for (std::thread& worker : workers) worker.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace study

#endif  // STUDY_POOL_HPP
