// SPDX-License-Identifier: MIT
// The checks that every stage makes before it writes: shapes, strides, scalars, ids, executors.
#ifndef GATEPRO_CORE_CHECKS_HPP
#define GATEPRO_CORE_CHECKS_HPP

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>

#include "gatepro/core/error.hpp"
#include "gatepro/core/executor.hpp"
#include "gatepro/core/isa.hpp"
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

[[noreturn]] inline void fail_view(const char* where, const char* name, const char* rule,
                                   std::initializer_list<NamedValue> got) {
  fail(where, std::string(name) + " with " + rule, got);
}

inline void check_not_negative(const char* where, const char* name, Index rows, Index cols) {
  if (rows < 0 || cols < 0) {
    fail_view(where, name, "rows >= 0 and cols >= 0", {{"rows", rows}, {"cols", cols}});
  }
}

/// Elements stand where their type may stand: elsewhere, reading one is undefined.
template <class T>
void check_alignment(const char* where, const char* name, const T* data, bool has_elements) {
  const std::uintptr_t misplaced_by = reinterpret_cast<std::uintptr_t>(data) % alignof(T);
  if (has_elements && misplaced_by != 0) {
    fail_view(where, name, "data aligned as its element type",
              {{"address modulo alignment", misplaced_by}, {"alignment", alignof(T)}});
  }
}

/// A given matrix of the expected shape whose elements all have addresses.
template <class T>
void check_matrix(const char* where, const char* name, const MatrixView<T>& m, Index rows,
                  Index cols) {
  if (m.rows != rows || m.cols != cols) {
    fail_view(where, name, "the right shape",
              {{"rows", m.rows}, {"cols", m.cols}, {"rows needed", rows}, {"cols needed", cols}});
  }
  check_not_negative(where, name, m.rows, m.cols);
  if (m.rows > 1 && m.row_stride < m.cols) {
    fail_view(where, name, "row_stride >= cols", {{"row_stride", m.row_stride}, {"cols", m.cols}});
  }
  if (m.data == nullptr && m.rows > 0 && m.cols > 0) {
    fail_view(where, name, "data that is not null", {{"rows", m.rows}, {"cols", m.cols}});
  }
  check_alignment(where, name, m.data, m.rows > 0 && m.cols > 0);
  constexpr Index most = (std::numeric_limits<Index>::max)() / static_cast<Index>(sizeof(T));
  if (m.rows > 1 && m.row_stride > (most - m.cols) / (m.rows - 1)) {
    fail_view(where, name, "rows * row_stride within the address space",
              {{"rows", m.rows}, {"row_stride", m.row_stride}});
  }
}

/// The same, or not given. A null that has an extent is neither.
template <class T>
void check_optional_matrix(const char* where, const char* name, const MatrixView<T>& m, Index rows,
                           Index cols) {
  const bool absent = m.data == nullptr && m.rows == 0 && m.cols == 0;
  if (!absent) check_matrix(where, name, m, rows, cols);
}

/// A given [T, K] matrix of the expected shape whose elements do not overlap.
template <class T>
void check_strided(const char* where, const char* name, const StridedView<T>& m, Index rows,
                   Index cols) {
  if (m.rows != rows || m.cols != cols) {
    fail_view(where, name, "the right shape",
              {{"rows", m.rows}, {"cols", m.cols}, {"rows needed", rows}, {"cols needed", cols}});
  }
  check_not_negative(where, name, m.rows, m.cols);
  if (m.data == nullptr && m.rows > 0 && m.cols > 0) {
    fail_view(where, name, "data that is not null", {{"rows", m.rows}, {"cols", m.cols}});
  }
  check_alignment(where, name, m.data, m.rows > 0 && m.cols > 0);
  constexpr Index most = (std::numeric_limits<Index>::max)() / static_cast<Index>(sizeof(T)) / 2;
  const Index row_gaps = m.rows > 1 ? m.rows - 1 : 0;
  const Index col_gaps = m.cols > 1 ? m.cols - 1 : 0;
  const bool positive = (row_gaps == 0 || m.row_stride > 0) && (col_gaps == 0 || m.col_stride > 0);
  const bool addressable = positive && (row_gaps == 0 || m.row_stride <= most / row_gaps) &&
                           (col_gaps == 0 || m.col_stride <= most / col_gaps);
  const bool disjoint =
      addressable && (row_gaps == 0 || col_gaps == 0 || m.row_stride > col_gaps * m.col_stride ||
                      m.col_stride > row_gaps * m.row_stride);
  if (!disjoint) {
    fail_view(where, name, "positive strides that keep its elements apart",
              {{"rows", m.rows},
               {"cols", m.cols},
               {"row_stride", m.row_stride},
               {"col_stride", m.col_stride}});
  }
}

/// The same, or not given. A null that has an extent is neither.
template <class T>
void check_optional_strided(const char* where, const char* name, const StridedView<T>& m,
                            Index rows, Index cols) {
  const bool absent = m.data == nullptr && m.rows == 0 && m.cols == 0;
  if (!absent) check_strided(where, name, m, rows, cols);
}

template <class T>
void check_vector(const char* where, const char* name, const VectorView<T>& v, Index size) {
  if (v.size != size) {
    fail_view(where, name, "the right size", {{"size", v.size}, {"size needed", size}});
  }
  if (v.data == nullptr && size > 0) {
    fail_view(where, name, "data that is not null", {{"size", v.size}});
  }
  check_alignment(where, name, v.data, size > 0);
}

/// The same, or not given. A null that has an extent is neither.
template <class T>
void check_optional_vector(const char* where, const char* name, const VectorView<T>& v,
                           Index size) {
  const bool absent = v.data == nullptr && v.size == 0;
  if (!absent) check_vector(where, name, v, size);
}

/// 1 <= E, and every id fits the internal and the caller's id type.
inline void check_num_experts(const char* where, Index num_experts) {
  need(num_experts >= 1 && num_experts <= (std::numeric_limits<std::int32_t>::max)(), where,
       "1 <= num_experts <= 2^31 - 1", {{"num_experts", num_experts}});
}

/// The same for a workspace query, which has an answer for E = 0: the stage says what is wrong.
inline void check_query_experts(const char* where, Index num_experts) {
  if (num_experts != 0) check_num_experts(where, num_experts);
}

inline void check_top_k(const char* where, Index top_k, Index num_experts) {
  need(top_k >= 1 && top_k <= num_experts, where, "1 <= top_k <= num_experts",
       {{"top_k", top_k}, {"num_experts", num_experts}});
}

/// Every id of a table that the caller supplies is in range.
template <class Id>
void check_ids(const char* where, const char* name, const StridedView<Id>& ids, Index num_experts) {
  for (Index t = 0; t < ids.rows; ++t) {
    for (Index j = 0; j < ids.cols; ++j) {
      const auto id = ids(t, j);
      const bool in_range =
          static_cast<std::uint64_t>(id) < static_cast<std::uint64_t>(num_experts);
      if (!in_range) {
        fail_view(where, name, "every id in [0, num_experts)",
                  {{"id", id}, {"row", t}, {"column", j}, {"num_experts", num_experts}});
      }
    }
  }
}

/// How many bodies may run at once. Chooses the instruction set as well: in a body, which must not
/// throw, it would be too late to find that GATEPRO_ISA names none.
template <class Executor>
int checked_workers(const char* where, const Executor& executor) {
  chosen_isa();
  const int workers = executor.workers();
  need(workers >= 1, where, "an executor with workers() >= 1", {{"workers", workers}});
  return workers;
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_CORE_CHECKS_HPP
