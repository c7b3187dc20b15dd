// SPDX-License-Identifier: MIT
// The checks that every stage makes before it writes: shapes, strides, scalars, ids, executors.
#ifndef GATEPRO_CORE_CHECKS_HPP
#define GATEPRO_CORE_CHECKS_HPP

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <type_traits>

#include "gatepro/core/error.hpp"
#include "gatepro/core/executor.hpp"
#include "gatepro/core/isa.hpp"
#include "gatepro/core/overlap.hpp"
#include "gatepro/core/scalar.hpp"
#include "gatepro/core/views.hpp"

namespace gatepro {
namespace detail {

template <class T>
using value_t = std::remove_const_t<T>;

template <class X, class W>
constexpr void check_input_scalars() {
  static_assert(is_input_scalar_v<X> && is_input_scalar_v<W>,
                "gatepro: tokens and router weights are float, double, gatepro::bfloat16 or "
                "gatepro::half");
}

template <class A>
constexpr void check_accumulator() {
  static_assert(is_accumulator_v<A>, "gatepro: logits, weights and gradients are float or double");
}

template <class Id>
constexpr void check_id_type() {
  static_assert(is_expert_id_v<Id>,
                "gatepro: expert ids are std::int32_t, std::int64_t or std::uint64_t");
}

template <class Executor>
constexpr void check_executor() {
  static_assert(is_executor_v<Executor>,
                "gatepro: an executor needs `int workers() const` and `run(int count, body) "
                "const`; see gatepro::SerialExecutor");
}

inline namespace GATEPRO_ABI {

/// Refuses the argument `name` for a rule that it breaks. It and `need` stand beside those of
/// Checks for templates that quote members of dependent types: nvcc breaks such lists in a member's
/// call.
[[noreturn]] inline void fail_view(const char* where, const char* name, const char* rule,
                                   std::initializer_list<NamedValue> got) {
  fail(where, std::string(name) + " with " + rule, got);
}

/// What a function checks before it writes, under the name that leads its messages. The first check
/// that fails throws. A name, which must be a literal, converts where checks are wanted.
class Checks {
 public:
  constexpr Checks(const char* where) : where_(where) {}

  constexpr const char* where() const { return where_; }

  void need(bool ok, const char* rule, std::initializer_list<NamedValue> got = {}) const {
    if (!ok) fail(where_, rule, got);
  }

  [[noreturn]] void refuse(const char* name, const char* rule,
                           std::initializer_list<NamedValue> got) const {
    fail_view(where_, name, rule, got);
  }

  /// a * b for sizes; see checked_product.
  Index product(const char* rule, Index a, Index b) const {
    return checked_product(where_, rule, a, b);
  }

  /// A given matrix of the expected shape whose elements all have addresses, and stand apart but
  /// for one row that is read again and again.
  template <class T>
  void matrix(const char* name, const MatrixView<T>& m, Index rows, Index cols) const {
    shape(name, m.rows, m.cols, rows, cols);
    if (m.rows == 0 || m.cols == 0) return;
    if (m.rows > 1 && m.row_stride < m.cols && !repeats<T>(m.row_stride)) {
      fail_view(where_, name,
                std::is_const_v<T> ? "row_stride >= cols, or 0" : "row_stride >= cols",
                {{"row_stride", m.row_stride}, {"cols", m.cols}});
    }
    elements(name, m);
    constexpr Index most = (std::numeric_limits<Index>::max)() / static_cast<Index>(sizeof(T));
    if (m.rows > 1 && m.row_stride > (most - m.cols) / (m.rows - 1)) {
      fail_view(where_, name, "rows * row_stride within the address space",
                {{"rows", m.rows}, {"row_stride", m.row_stride}});
    }
  }

  /// The same, or not given. A null that has an extent is neither.
  template <class T>
  void optional_matrix(const char* name, const MatrixView<T>& m, Index rows, Index cols) const {
    const bool absent = m.data == nullptr && m.rows == 0 && m.cols == 0;
    if (!absent) matrix(name, m, rows, cols);
  }

  /// A given [T, K] matrix of the expected shape whose elements do not overlap, but for rows or
  /// columns that are all the same one.
  template <class T>
  void strided(const char* name, const StridedView<T>& m, Index rows, Index cols) const {
    shape(name, m.rows, m.cols, rows, cols);
    if (m.rows == 0 || m.cols == 0) return;
    elements(name, m);
    constexpr Index most = (std::numeric_limits<Index>::max)() / static_cast<Index>(sizeof(T)) / 2;
    const Index row_gaps = repeats<T>(m.row_stride) ? 0 : m.rows - 1;
    const Index col_gaps = repeats<T>(m.col_stride) ? 0 : m.cols - 1;
    const auto within = [](Index gaps, Index stride) {
      return gaps <= 0 || (stride > 0 && stride <= most / gaps);
    };
    const bool addressable = within(row_gaps, m.row_stride) && within(col_gaps, m.col_stride);
    const bool disjoint =
        addressable && (row_gaps == 0 || col_gaps == 0 || m.row_stride > col_gaps * m.col_stride ||
                        m.col_stride > row_gaps * m.row_stride);
    if (!disjoint) {
      fail_view(where_, name, "positive strides that keep its elements apart",
                {{"rows", m.rows},
                 {"cols", m.cols},
                 {"row_stride", m.row_stride},
                 {"col_stride", m.col_stride}});
    }
  }

  /// The same, or not given. A null that has an extent is neither.
  template <class T>
  void optional_strided(const char* name, const StridedView<T>& m, Index rows, Index cols) const {
    const bool absent = m.data == nullptr && m.rows == 0 && m.cols == 0;
    if (!absent) strided(name, m, rows, cols);
  }

  template <class T>
  void vector(const char* name, const VectorView<T>& v, Index size) const {
    if (v.size != size) {
      fail_view(where_, name, "the right size", {{"size", v.size}, {"size needed", size}});
    }
    if (v.data == nullptr && size > 0) {
      fail_view(where_, name, "data that is not null", {{"size", v.size}});
    }
    if (size > 0) aligned(name, v.data, alignof(T));
  }

  /// The same, or not given. A null that has an extent is neither.
  template <class T>
  void optional_vector(const char* name, const VectorView<T>& v, Index size) const {
    const bool absent = v.data == nullptr && v.size == 0;
    if (!absent) vector(name, v, size);
  }

  /// 1 <= E, and every id fits the internal and the caller's id type.
  void num_experts(Index experts) const {
    need(experts >= 1 && experts <= (std::numeric_limits<std::int32_t>::max)(),
         "1 <= num_experts <= 2^31 - 1", {{"num_experts", experts}});
  }

  /// The same for a workspace query, which has an answer for E = 0: the stage says what is wrong.
  void query_experts(Index experts) const {
    if (experts != 0) num_experts(experts);
  }

  void top_k(Index k, Index experts) const {
    need(k >= 1 && k <= experts, "1 <= top_k <= num_experts",
         {{"top_k", k}, {"num_experts", experts}});
  }

  /// Every id of a table that the caller supplies is in range.
  template <class Id>
  void ids(const char* name, const StridedView<Id>& table, Index experts) const {
    for (Index r = 0; r < table.rows; ++r) {
      for (Index c = 0; c < table.cols; ++c) {
        const auto id = table(r, c);
        const bool in_range = static_cast<std::uint64_t>(id) < static_cast<std::uint64_t>(experts);
        if (!in_range) {
          fail_view(where_, name, "every id in [0, num_experts)",
                    {{"id", id}, {"row", r}, {"column", c}, {"num_experts", experts}});
        }
      }
    }
  }

  /// What is written shares no byte with any other argument; see check_overlaps.
  template <class... Arguments>
  void overlaps(const Arguments&... arguments) const {
    check_overlaps(where_, arguments...);
  }

  /// How many bodies may run at once. Chooses the instruction set as well: in a body, which must
  /// not throw, it would be too late to find that GATEPRO_ISA names none.
  template <class Executor>
  int workers(const Executor& executor) const {
    check_executor<Executor>();
    chosen_isa();
    const int count = executor.workers();
    need(count >= 1, "an executor with workers() >= 1", {{"workers", count}});
    return count;
  }

 private:
  void shape(const char* name, Index rows, Index cols, Index rows_needed, Index cols_needed) const {
    if (rows != rows_needed || cols != cols_needed) {
      fail_view(where_, name, "the right shape",
                {{"rows", rows},
                 {"cols", cols},
                 {"rows needed", rows_needed},
                 {"cols needed", cols_needed}});
    }
    if (rows < 0 || cols < 0) {
      fail_view(where_, name, "rows >= 0 and cols >= 0", {{"rows", rows}, {"cols", cols}});
    }
  }

  /// What is only read may have one row, or column, in the place of all.
  template <class T>
  static constexpr bool repeats(Index stride) {
    return std::is_const_v<T> && stride == 0;
  }

  /// A matrix that has elements points to them.
  template <class View>
  void elements(const char* name, const View& m) const {
    if (m.data == nullptr) {
      fail_view(where_, name, "data that is not null", {{"rows", m.rows}, {"cols", m.cols}});
    }
    aligned(name, m.data, alignof(decltype(*m.data)));
  }

  /// Elements stand where their type may stand: elsewhere, reading one is undefined.
  void aligned(const char* name, const void* data, std::size_t alignment) const {
    const std::uintptr_t misplaced_by = reinterpret_cast<std::uintptr_t>(data) % alignment;
    if (misplaced_by != 0) {
      fail_view(where_, name, "data aligned as its element type",
                {{"address modulo alignment", misplaced_by}, {"alignment", alignment}});
    }
  }

  const char* where_;
};

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_CORE_CHECKS_HPP
