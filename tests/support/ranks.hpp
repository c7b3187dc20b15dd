// SPDX-License-Identifier: MIT
// Ranks of a data-parallel run, as threads of one process.
#ifndef GATEPRO_TESTS_SUPPORT_RANKS_HPP
#define GATEPRO_TESTS_SUPPORT_RANKS_HPP

#include <condition_variable>
#include <cstdint>
#include <gatepro/core/views.hpp>
#include <mutex>
#include <thread>
#include <vector>

/// Sums arrays over ranks as MPI_Allreduce does: each rank waits until all have come.
class AllReduce {
 public:
  explicit AllReduce(int ranks) : ranks_(ranks) {}

  void operator()(std::int64_t* counts, gatepro::Index size) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (come_ == 0) sums_.assign(static_cast<std::size_t>(size), 0);
    for (gatepro::Index i = 0; i < size; ++i) sums_[static_cast<std::size_t>(i)] += counts[i];
    const long round = round_;
    if (++come_ == ranks_) {
      result_ = sums_;
      come_ = 0;
      ++round_;
      all_came_.notify_all();
    } else {
      all_came_.wait(lock, [&] { return round_ != round; });
    }
    for (gatepro::Index i = 0; i < size; ++i) counts[i] = result_[static_cast<std::size_t>(i)];
  }

 private:
  int ranks_;
  int come_ = 0;
  long round_ = 0;
  std::vector<std::int64_t> sums_, result_;
  std::mutex mutex_;
  std::condition_variable all_came_;
};

/// Runs `body(rank, reduce)` on `ranks` threads; `reduce` is the hook for the library.
template <class Body>
void run_ranks(int ranks, const Body& body) {
  AllReduce all_reduce(ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&all_reduce, &body, rank] {
      const auto reduce = [&all_reduce](std::int64_t* counts, gatepro::Index size) {
        all_reduce(counts, size);
      };
      body(rank, reduce);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

#endif  // GATEPRO_TESTS_SUPPORT_RANKS_HPP
