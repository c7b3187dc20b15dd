// SPDX-License-Identifier: MIT
// The check that what a call writes shares no memory with its other arguments.
#ifndef GATEPRO_CORE_OVERLAP_HPP
#define GATEPRO_CORE_OVERLAP_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "gatepro/core/error.hpp"
#include "gatepro/core/views.hpp"
#include "gatepro/core/workspace.hpp"

namespace gatepro {
namespace detail {

/// Something that repeats: `count` times, every `step` bytes.
struct Repetition {
  std::uintptr_t step = 0;  ///< 0 for what stands once.
  std::uintptr_t count = 1;
};

/// The bytes of an argument: elements that repeat inside of rows that repeat. No two share a byte:
/// what a stride of 0 shows again counts once.
struct Region {
  std::uintptr_t begin = 0;
  std::uintptr_t element_bytes = 0;  ///< 0 if there are no elements.
  Repetition outer{};                ///< The one with the larger step.
  Repetition inner{};
  bool columns_are_outer = false;
};

/// What a call does with an argument.
enum class Access {
  write,     ///< It may share no byte with any other argument.
  read,      ///< It may share bytes with what is read.
  in_place,  ///< Read, but it may be the call's first argument, element for element.
};

/// An argument, as the check takes it.
struct Argument {
  const char* name;
  Access access;
  Region region;
  std::uintptr_t end;  ///< One past its last byte; 0 if it has none.
};

inline namespace GATEPRO_ABI {

template <class T>
Repetition repetition(Index stride, Index count) {
  if (count <= 1 || stride == 0) return {};
  return {static_cast<std::uintptr_t>(stride) * sizeof(T), static_cast<std::uintptr_t>(count)};
}

template <class T>
Region region_of(const StridedView<T>& view) {
  if (view.rows == 0 || view.cols == 0) return {};
  Region region{reinterpret_cast<std::uintptr_t>(view.data), sizeof(T),
                repetition<T>(view.row_stride, view.rows),
                repetition<T>(view.col_stride, view.cols)};
  if (region.outer.step < region.inner.step) {
    std::swap(region.outer, region.inner);
    region.columns_are_outer = true;
  }
  return region;
}

template <class T>
Region region_of(const MatrixView<T>& view) {
  return region_of(StridedView<T>(view.data, view.rows, view.cols, view.row_stride, 1));
}

template <class T>
Region region_of(const VectorView<T>& view) {
  return region_of(StridedView<T>(view.data, view.size, 1, 1, 1));
}

inline Region region_of(const Workspace& workspace) {
  return {reinterpret_cast<std::uintptr_t>(workspace.data), workspace.bytes};
}

template <class T>
Region region_of(T* one) {
  return {reinterpret_cast<std::uintptr_t>(one), one == nullptr ? 0 : sizeof(T)};
}

/// From the first byte to the last.
inline std::uintptr_t bytes_spanned(const Region& region) {
  return region.element_bytes + (region.outer.count - 1) * region.outer.step +
         (region.inner.count - 1) * region.inner.step;
}

inline Argument argument(const char* name, Access access, const Region& region) {
  if (region.element_bytes == 0) return {name, access, {}, 0};
  return {name, access, region, region.begin + bytes_spanned(region)};
}

/// A view, a workspace or a pointer that is written.
template <class View>
Argument output(const char* name, const View& view) {
  return argument(name, Access::write, region_of(view));
}

/// One that is read.
template <class View>
Argument input(const char* name, const View& view) {
  return argument(name, Access::read, region_of(view));
}

/// One that is read, and may be the first argument.
template <class View>
Argument in_place(const char* name, const View& view) {
  return argument(name, Access::in_place, region_of(view));
}

/// What a region repeats every `step` bytes, its steps being no larger.
inline Region row_of(const Region& region, std::uintptr_t step) {
  if (region.outer.step < step) return region;
  return {region.begin, region.element_bytes, region.inner, {}, false};
}

/// True if the regions, which have elements, share a byte. Exact for regions with equal steps, or
/// if one fits between two rows of the other; else true if the one starts within the other.
inline bool share_memory(Region a, Region b) {
  if (b.begin < a.begin) std::swap(a, b);
  const std::uintptr_t distance = b.begin - a.begin;
  if (distance >= bytes_spanned(a)) return false;
  const std::uintptr_t step = (std::max)(a.outer.step, b.outer.step);
  if (step == 0) return true;
  const Region row_a = row_of(a, step), row_b = row_of(b, step);
  if (bytes_spanned(row_a) > step || bytes_spanned(row_b) > step) return true;
  // Rows of b start as far behind a row of a as its first one does, and reach the next one at most.
  const std::uintptr_t rows = a.outer.step == step ? a.outer.count : 1;
  for (std::uintptr_t row = distance / step; row <= distance / step + 1 && row < rows; ++row) {
    Region moved = row_a;
    moved.begin += row * step;
    if (share_memory(moved, row_b)) return true;
  }
  return false;
}

inline bool same_repetition(const Repetition& a, const Repetition& b) {
  return a.step == b.step && a.count == b.count;
}

/// True if the regions hold the same elements in the same places.
inline bool same_elements(const Region& a, const Region& b) {
  const bool same_order = a.columns_are_outer == b.columns_are_outer || a.inner.count == 1;
  return same_order && a.begin == b.begin && a.element_bytes == b.element_bytes &&
         same_repetition(a.outer, b.outer) && same_repetition(a.inner, b.inner);
}

inline bool may_stand_together(const Argument& a, bool a_is_first, const Argument& b) {
  if (a.access != Access::write && b.access != Access::write) return true;
  const bool may_be_same = a_is_first && b.access == Access::in_place;
  if (may_be_same && same_elements(a.region, b.region)) return true;
  return !share_memory(a.region, b.region);
}

/// The check of pairs, of which some reach over the same addresses.
inline void check_pairs(const char* where, const Argument* const* arguments, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t j = i + 1; j < count; ++j) {
      const Argument &a = *arguments[i], &b = *arguments[j];
      if (may_stand_together(a, i == 0, b)) continue;
      const std::string names = std::string(a.name) + " and " + b.name;
      const auto distance = static_cast<Index>(b.region.begin - a.region.begin);
      fail(where, "outputs in different memory, but " + names + " overlap",
           {{"bytes from start to start", distance}});
    }
  }
}

/// What is written shares no byte with any other argument. All must have passed their own checks.
template <class... Arguments>
void check_overlaps(const char* where, const Arguments&... arguments) {
  constexpr std::size_t count = sizeof...(arguments);
  const std::uintptr_t begin[] = {arguments.region.begin...};
  const std::uintptr_t end[] = {arguments.end...};
  // Without branches, because a call may have a hundred pairs, and nearly all are far apart.
  bool any_meet = false;
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t j = i + 1; j < count; ++j) {
      any_meet |= (begin[i] < end[j]) & (begin[j] < end[i]);
    }
  }
  if (!any_meet) return;
  const Argument* const all[] = {&arguments...};
  check_pairs(where, all, count);
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_CORE_OVERLAP_HPP
