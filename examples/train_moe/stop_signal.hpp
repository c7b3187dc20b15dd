// SPDX-License-Identifier: MIT
// Ctrl-C and SIGTERM end the training after the present step.
#ifndef TRAIN_MOE_STOP_SIGNAL_HPP
#define TRAIN_MOE_STOP_SIGNAL_HPP

#include <csignal>

namespace train_moe {

inline volatile std::sig_atomic_t stop_requested = 0;

/// A second signal ends the program at once.
inline void catch_stop_signals() {
  const auto stop = [](int signal) {
    stop_requested = 1;
    std::signal(signal, SIG_DFL);
  };
  std::signal(SIGINT, stop);
  std::signal(SIGTERM, stop);
}

}  // namespace train_moe

#endif  // TRAIN_MOE_STOP_SIGNAL_HPP
