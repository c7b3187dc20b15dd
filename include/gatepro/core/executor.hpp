// SPDX-License-Identifier: MIT
// How work is spread over threads: the contract, and the executor that starts none.
#ifndef GATEPRO_CORE_EXECUTOR_HPP
#define GATEPRO_CORE_EXECUTOR_HPP

#include <atomic>
#include <cstddef>
#include <initializer_list>
#include <type_traits>
#include <utility>

#include "gatepro/core/config.hpp"

namespace gatepro {

/// Runs everything on the calling thread.
///
/// It also shows the contract. An executor is any type with
/// ```cpp
/// int workers() const;               // how many bodies may run at once, >= 1
/// template <class Body>
/// void run(int count, Body body) const;  // body(w) exactly once for each w in [0, count)
/// ```
/// The library calls it with a count from 1 to workers(). `run` may call the bodies in any order
/// and on any threads, and returns when all have returned. It may throw, once no body runs any
/// more: outputs are then unspecified, but no counter or partner has changed, and the call may be
/// repeated. Bodies do not throw, and results never depend on the executor: workers draw blocks of
/// fixed size from a common counter and each block writes memory of its own. It may also have
/// ```cpp
/// double least_work() const;             // multiply-adds that are worth starting a worker for
/// ```
/// Then stages leave workers idle where there is less for each.
struct SerialExecutor {
  /// One.
  GATEPRO_ALWAYS_INLINE constexpr int workers() const noexcept { return 1; }
  /// Calls `body(0)` to `body(count - 1)` in order.
  template <class Body>
  void run(int count, Body body) const {
    for (int worker = 0; worker < count; ++worker) body(worker);
  }
};

namespace detail {

struct ExecutorProbe {
  void operator()(int) const noexcept {}
};

template <class E, class = void>
struct is_executor : std::false_type {};
template <class E>
struct is_executor<E, std::void_t<decltype(int(std::declval<const E&>().workers())),
                                  decltype(std::declval<const E&>().run(1, ExecutorProbe{}))>>
    : std::true_type {};

template <class E, class = void>
struct has_least_work : std::false_type {};
template <class E>
struct has_least_work<E, std::void_t<decltype(double(std::declval<const E&>().least_work()))>>
    : std::true_type {};

inline namespace GATEPRO_ABI {

/// Of `workers`, as many as get work that is worth starting them for, but at least one. The work
/// is a product, in multiply-adds as the gate does them: some 140 a nanosecond. What stages take of
/// an element was measured where caches hold it.
template <class Executor>
int useful_workers([[maybe_unused]] const Executor& executor, int workers,
                   [[maybe_unused]] std::initializer_list<std::ptrdiff_t> factors) {
  if constexpr (has_least_work<Executor>::value) {
    double work = 1;
    for (const std::ptrdiff_t factor : factors) work *= static_cast<double>(factor);
    const double most = work / executor.least_work();
    if (most < workers) return most < 1 ? 1 : static_cast<int>(most);
  }
  return workers;
}

/// Calls `body(worker, block)` for every block in [0, blocks). A worker runs one block at a time,
/// so it may keep scratch memory of its own. Without blocks the executor has nothing to run.
template <class Executor, class Body>
void for_each_block(const Executor& executor, int workers, std::ptrdiff_t blocks,
                    const Body& body) {
  if (blocks == 0) return;
  std::atomic<std::ptrdiff_t> next{0};
  const int count = blocks < workers ? static_cast<int>(blocks) : workers;
  executor.run(count, [&next, &body, blocks](int worker) noexcept {
    for (std::ptrdiff_t block = next.fetch_add(1, std::memory_order_relaxed); block < blocks;
         block = next.fetch_add(1, std::memory_order_relaxed)) {
      body(worker, block);
    }
  });
}

/// Calls `body(i)` for every row in [0, rows), each of which writes memory of its own.
template <class Executor, class Body>
void for_each_row(std::ptrdiff_t rows, const Executor& executor, int workers, const Body& body) {
  constexpr std::ptrdiff_t block_rows = 64;
  const std::ptrdiff_t blocks = (rows + block_rows - 1) / block_rows;
  for_each_block(executor, workers, blocks, [&](int, std::ptrdiff_t block) {
    const std::ptrdiff_t end = block + 1 < blocks ? (block + 1) * block_rows : rows;
    for (std::ptrdiff_t row = block * block_rows; row < end; ++row) body(row);
  });
}

}  // namespace GATEPRO_ABI
}  // namespace detail

/// True if `E` keeps the contract described at SerialExecutor.
template <class E>
inline constexpr bool is_executor_v = detail::is_executor<E>::value;

/// How many workers memory is for: a number, or as many as an executor has. Whoever gives a size
/// query the executor of the call need not see to it that the two agree. A bool does not convert.
struct Workers {
  int count = 1;  ///< >= 1; the queries check it.

  /// `count_` of them.
  GATEPRO_ALWAYS_INLINE constexpr Workers(int count_) : count(count_) {}
  /// Those of `executor`.
  template <class Executor, std::enable_if_t<is_executor_v<Executor>, int> = 0>
  GATEPRO_ALWAYS_INLINE constexpr Workers(const Executor& executor)
      : count(int(executor.workers())) {}
  template <class Flag, std::enable_if_t<std::is_same_v<Flag, bool>, int> = 0>
  Workers(Flag) = delete;

  /// The number.
  GATEPRO_ALWAYS_INLINE constexpr operator int() const { return count; }
};

}  // namespace gatepro

#endif  // GATEPRO_CORE_EXECUTOR_HPP
