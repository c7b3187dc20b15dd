// SPDX-License-Identifier: MIT
// Tells the user how far the training is, on stderr.
#ifndef TRAIN_MOE_PROGRESS_HPP
#define TRAIN_MOE_PROGRESS_HPP

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>

#include "training.hpp"

namespace train_moe {

/// One line that is redrawn on a terminal; elsewhere one line per run.
class Progress {
 public:
  Progress(std::int64_t runs, std::int64_t steps)
      : total_(runs * steps), steps_(steps), terminal_(isatty(STDERR_FILENO) == 1) {}

  void update(const StepRecord& record) {
    ++done_;
    if (!std::isnan(record.validation_loss)) validation_loss_ = record.validation_loss;
    const Clock::time_point now = Clock::now();
    const bool run_ends = record.step == steps_;
    if (terminal_ && (run_ends || now - drawn_ > std::chrono::milliseconds(100))) {
      drawn_ = now;
      const double used = std::chrono::duration<double>(now - start_).count();
      const double left = used / static_cast<double>(done_) * static_cast<double>(total_ - done_);
      std::fprintf(stderr,
                   "\r\033[K%s seed %lld  step %lld/%lld  loss %.3f  %.0f tokens/s  %.0f s left",
                   record.arm.c_str(), as_long(record.seed), as_long(record.step), as_long(steps_),
                   record.loss, record.tokens_per_second, left);
    }
    if (run_ends) {
      std::fprintf(stderr, "%s%s seed %lld: loss %.3f, validation loss %.3f\n",
                   terminal_ ? "\r\033[K" : "", record.arm.c_str(), as_long(record.seed),
                   record.loss, validation_loss_);
    }
  }

  /// Ends a line that was drawn, before other output.
  void stop() const {
    if (terminal_) std::fputs("\r\033[K", stderr);
  }

 private:
  using Clock = std::chrono::steady_clock;
  static long long as_long(std::int64_t value) { return static_cast<long long>(value); }

  std::int64_t total_;
  std::int64_t steps_;
  std::int64_t done_ = 0;
  double validation_loss_ = 0;
  bool terminal_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point drawn_ = start_;
};

}  // namespace train_moe

#endif  // TRAIN_MOE_PROGRESS_HPP
