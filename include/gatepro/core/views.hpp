// SPDX-License-Identifier: MIT
// Views of the caller's memory: pointer, extents, strides. They never own and never copy.
#ifndef GATEPRO_CORE_VIEWS_HPP
#define GATEPRO_CORE_VIEWS_HPP

#include <Eigen/Core>
#include <cstddef>
#include <type_traits>
#include <utility>
#include <vector>

#include "gatepro/core/config.hpp"

namespace gatepro {

/// Every size, stride and position. Signed, so that differences are safe.
using Index = std::ptrdiff_t;

/// The Eigen matrix that converts to a view without a copy.
template <class T>
using RowMatrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

namespace detail {

/// A count as an index. A template, because a plain cast is useless where the types are the same.
template <class Count>
constexpr Index index_of(Count count) {
  return static_cast<Index>(count);
}

template <class M>
using plain_t = std::remove_cv_t<std::remove_reference_t<M>>;

template <class M, class = void>
struct is_eigen_dense : std::false_type {};
template <class M>
struct is_eigen_dense<M, std::enable_if_t<std::is_base_of_v<Eigen::DenseBase<M>, M>>>
    : std::true_type {};

template <class M, class = void>
struct is_eigen_storage : std::false_type {};
template <class M>
struct is_eigen_storage<M, std::enable_if_t<is_eigen_dense<M>::value>>
    : std::is_base_of<Eigen::PlainObjectBase<M>, M> {};

template <class M>
constexpr bool eigen_has_data() {
  if constexpr (is_eigen_dense<M>::value) {
    return (Eigen::internal::traits<M>::Flags & Eigen::DirectAccessBit) != 0;
  } else {
    return false;
  }
}

template <class M>
constexpr bool eigen_rows_are_contiguous() {
  if constexpr (eigen_has_data<M>()) {
    return bool(M::IsRowMajor) && int(M::InnerStrideAtCompileTime) == 1;
  } else {
    return false;
  }
}

/// A matrix that owns its memory is viewed only while it has a name: a view of a temporary would
/// dangle.
template <class M>
inline constexpr bool outlives_the_call_v =
    std::is_lvalue_reference_v<M> || !is_eigen_storage<plain_t<M>>::value;

template <class M>
using eigen_data_t = decltype(std::declval<std::remove_reference_t<M>&>().data());

template <class M, class T, bool Usable>
struct eigen_converts : std::false_type {};
template <class M, class T>
struct eigen_converts<M, T, true>
    : std::bool_constant<std::is_same_v<std::remove_const_t<std::remove_pointer_t<eigen_data_t<M>>>,
                                        std::remove_const_t<T>> &&
                         std::is_convertible_v<eigen_data_t<M>, T*> && outlives_the_call_v<M>> {};

template <class M, class T>
inline constexpr bool converts_to_matrix_view_v =
    eigen_converts<M, T, eigen_rows_are_contiguous<plain_t<M>>()>::value;

template <class M, class T>
inline constexpr bool converts_to_strided_view_v =
    eigen_converts<M, T, eigen_has_data<plain_t<M>>()>::value;

/// Where views of objects without elements point: not at null, which would mean "not given".
alignas(64) inline unsigned char no_elements[64] = {};

/// An object's elements; Eigen and std::vector may have a null where there are none.
template <class T>
GATEPRO_ALWAYS_INLINE inline T* elements(T* data, Index size) {
  const bool none = data == nullptr && size == 0;
  return none ? static_cast<T*>(static_cast<void*>(no_elements)) : data;
}

template <class T>
struct NonDeduced {
  using type = T;
};
/// A parameter whose type follows from other parameters, so that arguments may convert to it.
template <class T>
using non_deduced_t = typename NonDeduced<T>::type;

template <class C, class T>
struct is_std_vector : std::false_type {};
template <class A, class T>
struct is_std_vector<std::vector<std::remove_const_t<T>, A>, T> : std::true_type {};

}  // namespace detail

/// A row-major matrix in the caller's memory: element (r, c) is `data[r * row_stride + c]`.
///
/// `T` may be const. A default-constructed view is "not given": it stands for an optional input
/// that is absent or an optional output that is not wanted. A view of an empty object is given, so
/// that a gradient that nobody sized is refused for its shape, not left out. Row-major Eigen
/// matrices, maps, refs and blocks with contiguous rows convert implicitly; anything that would
/// need a copy (a column-major matrix, an expression, a temporary matrix) does not compile.
///
/// Elements stand where their type may stand, at a multiple of alignof(T); no more is asked. What a
/// file holds at an odd offset has to be copied out. Where T is const, a row stride of 0 shows one
/// row in the place of all, as frameworks expand gradients. Without elements, strides do not
/// matter. Strides, alignment and null pointers are checked by the functions that take views, not
/// here.
template <class T>
struct MatrixView {
  T* data = nullptr;     ///< Element (0, 0).
  Index rows = 0;        ///< Number of rows.
  Index cols = 0;        ///< Number of columns.
  Index row_stride = 0;  ///< Elements from one row to the next; at least cols, or 0 to read.

  GATEPRO_ALWAYS_INLINE constexpr MatrixView() = default;
  /// `rows` x `cols` elements without gaps.
  GATEPRO_ALWAYS_INLINE constexpr MatrixView(T* data_, Index rows_, Index cols_)
      : MatrixView(data_, rows_, cols_, cols_) {}
  /// `rows` x `cols` elements, `row_stride` elements from row to row.
  GATEPRO_ALWAYS_INLINE constexpr MatrixView(T* data_, Index rows_, Index cols_, Index row_stride_)
      : data(data_), rows(rows_), cols(cols_), row_stride(row_stride_) {}
  /// A view to read from, of a view to write to.
  template <class U, std::enable_if_t<std::is_same_v<const U, T>, int> = 0>
  GATEPRO_ALWAYS_INLINE constexpr MatrixView(const MatrixView<U>& other)
      : MatrixView(other.data, other.rows, other.cols, other.row_stride) {}
  /// A view of an Eigen object with contiguous rows, without a copy.
  template <class M, std::enable_if_t<detail::converts_to_matrix_view_v<M&&, T>, int> = 0>
  GATEPRO_ALWAYS_INLINE MatrixView(M&& matrix)
      : MatrixView(detail::elements(matrix.data(), matrix.size()), matrix.rows(), matrix.cols(),
                   matrix.outerStride()) {}

  /// True if the view was given.
  GATEPRO_ALWAYS_INLINE constexpr bool given() const { return data != nullptr; }
  /// Pointer to the first element of row `r`.
  GATEPRO_ALWAYS_INLINE constexpr T* row(Index r) const { return data + r * row_stride; }
  /// Element (r, c).
  GATEPRO_ALWAYS_INLINE constexpr T& operator()(Index r, Index c) const { return row(r)[c]; }
  /// The `count` rows from `first`: the way to run a stage on a range of tokens.
  GATEPRO_ALWAYS_INLINE constexpr MatrixView middle_rows(Index first, Index count) const {
    return given() ? MatrixView(row(first), count, cols, row_stride) : *this;
  }
  /// The `count` columns from `first`.
  GATEPRO_ALWAYS_INLINE constexpr MatrixView middle_cols(Index first, Index count) const {
    return given() ? MatrixView(data + first, rows, count, row_stride) : *this;
  }
};

/// A matrix with two strides: element (r, c) is `data[r * row_stride + c * col_stride]`.
///
/// Holds the [T, K] results, so that consumers get token-major rows ({K, 1}) or one plane per
/// choice ({1, T}) without a conversion. Any Eigen object with memory of its own order converts.
/// Elements to write stand apart; to read (const T), a stride may be 0: {0, 0} is one value for
/// all.
template <class T>
struct StridedView {
  T* data = nullptr;     ///< Element (0, 0).
  Index rows = 0;        ///< Number of rows.
  Index cols = 0;        ///< Number of columns.
  Index row_stride = 0;  ///< Elements from one row to the next.
  Index col_stride = 0;  ///< Elements from one column to the next.

  GATEPRO_ALWAYS_INLINE constexpr StridedView() = default;
  /// `rows` x `cols` elements, row-major, without gaps.
  GATEPRO_ALWAYS_INLINE constexpr StridedView(T* data_, Index rows_, Index cols_)
      : StridedView(data_, rows_, cols_, cols_, 1) {}
  /// `rows` x `cols` elements with both strides given.
  GATEPRO_ALWAYS_INLINE constexpr StridedView(T* data_, Index rows_, Index cols_, Index row_stride_,
                                              Index col_stride_)
      : data(data_), rows(rows_), cols(cols_), row_stride(row_stride_), col_stride(col_stride_) {}
  /// A row-major view, with column stride 1.
  template <class U, std::enable_if_t<std::is_convertible_v<U*, T*>, int> = 0>
  GATEPRO_ALWAYS_INLINE constexpr StridedView(const MatrixView<U>& other)
      : StridedView(other.data, other.rows, other.cols, other.row_stride, 1) {}
  /// A view to read from, of a view to write to.
  template <class U, std::enable_if_t<std::is_same_v<const U, T>, int> = 0>
  GATEPRO_ALWAYS_INLINE constexpr StridedView(const StridedView<U>& other)
      : StridedView(other.data, other.rows, other.cols, other.row_stride, other.col_stride) {}
  /// A view of an Eigen object of either storage order, without a copy.
  template <class M, std::enable_if_t<detail::converts_to_strided_view_v<M&&, T>, int> = 0>
  GATEPRO_ALWAYS_INLINE StridedView(M&& matrix)
      : StridedView(detail::elements(matrix.data(), matrix.size()), matrix.rows(), matrix.cols(),
                    matrix.rowStride(), matrix.colStride()) {}

  /// True if the view was given.
  GATEPRO_ALWAYS_INLINE constexpr bool given() const { return data != nullptr; }
  /// Element (r, c).
  GATEPRO_ALWAYS_INLINE constexpr T& operator()(Index r, Index c) const {
    return data[r * row_stride + c * col_stride];
  }
  /// The `count` rows from `first`.
  GATEPRO_ALWAYS_INLINE constexpr StridedView middle_rows(Index first, Index count) const {
    return given() ? StridedView(data + first * row_stride, count, cols, row_stride, col_stride)
                   : *this;
  }
};

/// A contiguous vector in the caller's memory.
template <class T>
struct VectorView {
  T* data = nullptr;  ///< Element 0.
  Index size = 0;     ///< Number of elements.

  GATEPRO_ALWAYS_INLINE constexpr VectorView() = default;
  /// `size` elements from `data`.
  GATEPRO_ALWAYS_INLINE constexpr VectorView(T* data_, Index size_) : data(data_), size(size_) {}
  /// A view to read from, of a view to write to.
  template <class U, std::enable_if_t<std::is_same_v<const U, T>, int> = 0>
  GATEPRO_ALWAYS_INLINE constexpr VectorView(const VectorView<U>& other)
      : VectorView(other.data, other.size) {}
  /// A view of a std::vector that has a name.
  template <class V,
            std::enable_if_t<std::is_lvalue_reference_v<V> &&
                                 detail::is_std_vector<detail::plain_t<V>, T>::value &&
                                 std::is_convertible_v<decltype(std::declval<V>().data()), T*>,
                             int> = 0>
  GATEPRO_ALWAYS_INLINE VectorView(V&& values)
      : VectorView(detail::elements(values.data(), static_cast<Index>(values.size())),
                   static_cast<Index>(values.size())) {}

  /// True if the view was given.
  GATEPRO_ALWAYS_INLINE constexpr bool given() const { return data != nullptr; }
  /// Element i.
  GATEPRO_ALWAYS_INLINE constexpr T& operator[](Index i) const { return data[i]; }
};

/// The view of an Eigen object, with the scalar deduced: for the stage functions, which are
/// templates. Refuses what MatrixView refuses.
template <class M>
GATEPRO_ALWAYS_INLINE inline auto view(M&& matrix) {
  using T = std::remove_pointer_t<detail::eigen_data_t<M&&>>;
  static_assert(detail::converts_to_matrix_view_v<M&&, T>,
                "gatepro::view: need a named row-major Eigen matrix, map or block with contiguous "
                "rows; a view of anything else would be a copy");
  return MatrixView<T>(std::forward<M>(matrix));
}

/// The view with two strides of an Eigen object of either storage order.
template <class M>
GATEPRO_ALWAYS_INLINE inline auto strided_view(M&& matrix) {
  using T = std::remove_pointer_t<detail::eigen_data_t<M&&>>;
  static_assert(detail::converts_to_strided_view_v<M&&, T>,
                "gatepro::strided_view: need a named Eigen object with memory of its own; a view "
                "of anything else would be a copy");
  return StridedView<T>(std::forward<M>(matrix));
}

}  // namespace gatepro

#endif  // GATEPRO_CORE_VIEWS_HPP
