// SPDX-License-Identifier: MIT
// Scratch memory that the caller owns, and how the stages divide it.
#ifndef GATEPRO_CORE_WORKSPACE_HPP
#define GATEPRO_CORE_WORKSPACE_HPP

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "gatepro/core/error.hpp"
#include "gatepro/core/views.hpp"

namespace gatepro {

/// Scratch memory for one call: any alignment, any content, owned by the caller. Each function
/// that takes one has a query for its size, for the executor of the call or for more workers than
/// that has; a smaller one is refused, a larger one serves for any call that needs less. A size
/// depends on T only where its query asks for T. Two calls that run at the same time need two.
struct Workspace {
  void* data = nullptr;   ///< First byte.
  std::size_t bytes = 0;  ///< Size.

  GATEPRO_ALWAYS_INLINE constexpr Workspace() = default;
  /// `bytes` bytes from `data`.
  GATEPRO_ALWAYS_INLINE constexpr Workspace(void* data_, std::size_t bytes_)
      : data(data_), bytes(bytes_) {}
  /// The memory of a vector.
  GATEPRO_ALWAYS_INLINE Workspace(std::vector<std::byte>& memory)
      : Workspace(memory.data(), memory.size()) {}
};

namespace detail {
inline namespace GATEPRO_ABI {

/// Hands out aligned arrays from a workspace, one after the other. Without memory it only adds up
/// what would be handed out, so that a size query is the layout itself, run dry.
class Arena {
 public:
  Arena() = default;
  Arena(const char* where, Workspace workspace, std::size_t needed) {
    need(workspace.data != nullptr || needed == 0, where, "a workspace",
         {{"bytes needed", needed}});
    need(workspace.bytes >= needed, where, "a workspace as large as its query says",
         {{"bytes", workspace.bytes}, {"bytes needed", needed}});
    const auto address = reinterpret_cast<std::uintptr_t>(workspace.data);
    base_ = (address + alignment - 1) / alignment * alignment;
  }

  /// `count` elements.
  template <class T>
  T* take(Index count) {
    constexpr std::size_t most = (std::numeric_limits<Index>::max)() / sizeof(T);
    const std::size_t taken = used_ / sizeof(T) + 2 * alignment;
    const auto wanted = static_cast<std::size_t>(count);  // beyond any room if negative
    if (taken > most || wanted > most - taken) refuse(count, sizeof(T));
    const std::uintptr_t array = base_ + used_;
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    used_ += (bytes + alignment - 1) / alignment * alignment;
    return reinterpret_cast<T*>(array);  // NOLINT(performance-no-int-to-ptr)
  }

  /// `rows` times `cols` elements.
  template <class T>
  T* take(Index rows, Index cols) {
    return take<T>(checked_product("workspace", "sizes within the address space", rows, cols));
  }

  /// An arena over memory that is already aligned.
  static Arena at(std::byte* base) {
    Arena arena;
    arena.base_ = reinterpret_cast<std::uintptr_t>(base);
    return arena;
  }

  /// Bytes taken, whole cache lines.
  std::size_t bytes_taken() const { return used_; }

  /// Bytes that a workspace needs for what was taken so far, at any alignment.
  std::size_t bytes_needed() const { return used_ == 0 ? 0 : used_ + alignment; }

 private:
  [[noreturn]] GATEPRO_NOINLINE void refuse(Index count, std::size_t element_bytes) const {
    fail("workspace", "sizes within the address space",
         {{"bytes", used_}, {"more elements", count}, {"bytes each", element_bytes}});
  }

  static constexpr std::size_t alignment = 64;  // a cache line, and the widest vector
  std::uintptr_t base_ = 0;                     // not a pointer, because a dry run counts from null
  std::size_t used_ = 0;
};

/// How many blocks of `size` it takes to hold `count`, which must not be negative.
inline Index blocks_of(Index count, Index size) {
  need(count >= 0, "workspace", "sizes >= 0", {{"size", count}});
  return count / size + (count % size != 0 ? 1 : 0);
}

/// The size query of a layout: what `carve(arena)` takes.
template <class Carve>
std::size_t measure(const Carve& carve) {
  Arena arena;
  carve(arena);
  return arena.bytes_needed();
}

/// Scratch of equal layout for each worker: `carve(arena)` returns one worker's arrays.
template <class Carve>
class PerWorker {
 public:
  PerWorker(Arena& arena, int workers, const Carve& carve) : carve_(carve) {
    need(workers >= 1, "workspace", "workers >= 1", {{"workers", workers}});
    Arena dry;
    carve_(dry);
    bytes_each_ = static_cast<Index>(dry.bytes_taken());
    base_ = arena.take<std::byte>(
        checked_product("workspace", "sizes within the address space", bytes_each_, workers));
  }

  auto operator()(int worker) const {
    Arena arena = Arena::at(base_ + worker * bytes_each_);
    return carve_(arena);
  }

 private:
  Carve carve_;
  Index bytes_each_ = 0;
  std::byte* base_ = nullptr;
};
template <class Carve>
PerWorker(Arena&, int, const Carve&) -> PerWorker<Carve>;

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_CORE_WORKSPACE_HPP
