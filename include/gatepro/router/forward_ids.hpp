// SPDX-License-Identifier: MIT
// The ids of a router's forwards.
#ifndef GATEPRO_ROUTER_FORWARD_IDS_HPP
#define GATEPRO_ROUTER_FORWARD_IDS_HPP

#include <cstddef>
#include <cstdint>
#include <vector>

#include "gatepro/core/config.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// Draws ids that no other object draws which exists at the same time, and knows those it drew.
///
/// An object is known by the address of memory that it owns, since a count of all objects would be
/// global state. It never gives this memory up, and never counts back, so that it draws no id
/// twice. A copy draws ids of its own; an object that others are copied into knows none of before.
class ForwardIds {
 public:
  ForwardIds() = default;
  ForwardIds(const ForwardIds&) : ForwardIds() {}
  ForwardIds(ForwardIds&&) noexcept = default;
  ForwardIds& operator=(const ForwardIds&) {
    identity_.resize(1);  // empty once moved from
    forget();
    return *this;
  }
  ForwardIds& operator=(ForwardIds&&) noexcept = default;
  ~ForwardIds() = default;

  /// An id that was never drawn.
  std::uint64_t draw() { return base() + ++drawn_; }
  /// True for ids that were drawn since `forget`.
  bool knows(std::uint64_t id) const {
    const std::uint64_t number = id - base();
    return number > forgotten_ && number <= drawn_;
  }
  /// Knows none of the ids that were drawn so far.
  void forget() noexcept { forgotten_ = drawn_; }

 private:
  /// Ids follow this one. Multiples of the golden ratio keep those of several objects apart.
  std::uint64_t base() const {
    return reinterpret_cast<std::uintptr_t>(identity_.data()) * std::uint64_t{0x9E3779B97F4A7C15};
  }

  std::uint64_t drawn_ = 0;
  std::uint64_t forgotten_ = 0;                   // the ids up to this number
  std::vector<std::byte> identity_{std::byte{}};  // its address goes along when the object moves
};

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTER_FORWARD_IDS_HPP
