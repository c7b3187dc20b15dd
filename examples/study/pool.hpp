// SPDX-License-Identifier: MIT
// Runs side by side, one thread each.
#ifndef STUDY_POOL_HPP
#define STUDY_POOL_HPP

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "stop_signal.hpp"
#include "support/error.hpp"

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
    const double share = std::min(1.0, done_ / total_);
    const double left = (now - start_) / share * (1 - share);
    const std::string line = line_of(name_, share, left, what);
    if (terminal_) {
      std::fprintf(stderr, "\r\033[K%s", line.substr(0, columns() - 1).c_str());
    } else {
      std::fprintf(stderr, "%s\n", line.c_str());
    }
  }

 private:
  static std::string line_of(const std::string& name, double share, double seconds_left,
                             const std::string& what) {
    constexpr std::size_t width = 30;
    const auto filled = static_cast<std::size_t>(share * width);
    char percent[16];
    std::snprintf(percent, sizeof percent, "%3.0f", 100 * share);
    return name + " [" + std::string(filled, '#') + std::string(width - filled, '.') + "] " +
           percent + " %  " + time_text(seconds_left) + " left  " + what;
  }

  /// Of the terminal: a line that is longer would wrap, and leave its first part standing.
  static std::size_t columns() {
    winsize size{};
    const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
    return known ? size.ws_col : 80;
  }

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

/// Calls body(i, stop) for each i below `count`, in this order, on so many threads, until `done()`.
/// An exception ends all of them and is thrown again: stop() says that a body should return early.
template <class Done, class Body>
void in_parallel(int threads, std::size_t count, const Done& done, const Body& body) {
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  std::atomic<bool> failed{false};
  const auto fail = [&](const std::exception_ptr& why) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!failed.exchange(true)) failure = why;
  };
  const auto stop = [&] { return failed || done(); };
  const auto work = [&] {
    for (std::size_t i = next++; i < count && !stop(); i = next++) {
      try {
        body(i, stop);
      } catch (...) {
        fail(std::current_exception());
      }
    }
  };
  const std::size_t wanted = std::min(static_cast<std::size_t>(threads), count);
  std::vector<std::thread> workers;
  try {
    for (workers.reserve(wanted); workers.size() + 1 < wanted;) workers.emplace_back(work);
  } catch (const std::system_error&) {
    fail(std::make_exception_ptr(report::UserError("cannot start " + std::to_string(wanted) +
                                                   " threads: choose fewer --jobs")));
  } catch (...) {
    fail(std::current_exception());
  }
  work();
  for (std::thread& worker : workers) worker.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace study

#endif  // STUDY_POOL_HPP
