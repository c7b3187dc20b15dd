// SPDX-License-Identifier: MIT
// A number that tells whether its object was moved from.
#ifndef GATEPRO_CORE_EMPTIED_HPP
#define GATEPRO_CORE_EMPTIED_HPP

#include <utility>

#include "gatepro/core/config.hpp"
#include "gatepro/core/views.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// A size that is 0 once it was moved from, like the memory that it is the size of.
class EmptiedSize {
 public:
  EmptiedSize(Index size = 0) : size_(size) {}
  EmptiedSize(const EmptiedSize&) = default;
  EmptiedSize(EmptiedSize&& other) noexcept : size_(std::exchange(other.size_, 0)) {}
  EmptiedSize& operator=(const EmptiedSize&) = default;
  EmptiedSize& operator=(EmptiedSize&& other) noexcept {
    size_ = std::exchange(other.size_, 0);
    return *this;
  }
  ~EmptiedSize() = default;

  operator Index() const { return size_; }

 private:
  Index size_;
};

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_CORE_EMPTIED_HPP
