// SPDX-License-Identifier: MIT
// Executors that a stage must not notice.
#ifndef GATEPRO_TESTS_SUPPORT_EXECUTORS_HPP
#define GATEPRO_TESTS_SUPPORT_EXECUTORS_HPP

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include "support/function_ref.hpp"

inline void start_threads(int count, FunctionRef<void(int)> body) {
  std::atomic<int> missing{count};
  std::vector<std::thread> threads;
  for (int worker = 0; worker < count; ++worker) {
    threads.emplace_back([&missing, body, worker] {
      --missing;
      while (missing.load() > 0) std::this_thread::yield();
      body(worker);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

/// Real threads. They wait for each other before they start, so that even short work overlaps.
class ThreadExecutor {
 public:
  explicit ThreadExecutor(int workers) : workers_(workers) {}
  int workers() const { return workers_; }
  template <class Body>
  void run(int count, Body body) const {
    start_threads(count, body);
  }

 private:
  int workers_;
};

/// One thread in descending order of workers: the last one, whose scratch ends where the workspace
/// ends, draws all the work.
class LastWorkerFirst {
 public:
  explicit LastWorkerFirst(int workers) : workers_(workers) {}
  int workers() const { return workers_; }
  template <class Body>
  void run(int count, Body body) const {
    for (int worker = count - 1; worker >= 0; --worker) body(worker);
  }

 private:
  int workers_;
};

/// Seven workers on one thread, for `least` multiply-adds each; notes how many were started at
/// once.
struct NotingExecutor {
  double least;
  int* most;
  int workers() const { return 7; }
  double least_work() const { return least; }
  template <class Body>
  void run(int count, Body body) const {
    *most = std::max(*most, count);
    for (int worker = 0; worker < count; ++worker) body(worker);
  }
};

/// Runs so many bodies, over all its runs, and throws at the next: as when no thread can be
/// started.
class ThrowingExecutor {
 public:
  explicit ThrowingExecutor(int bodies) : left_(bodies) {}
  int workers() const { return 2; }
  template <class Body>
  void run(int count, Body body) const {
    for (int worker = 0; worker < count; ++worker) {
      if (left_-- == 0) throw std::runtime_error("no thread");
      body(worker);
    }
  }

 private:
  mutable int left_;
};

#endif  // GATEPRO_TESTS_SUPPORT_EXECUTORS_HPP
