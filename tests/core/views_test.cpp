// SPDX-License-Identifier: MIT
// Views of the caller's memory: the pointer is the caller's own, whatever Eigen type it came in.
// What must not compile stands in compile_fail/views.cpp.
#include <gatepro/core/views.hpp>

#include <gtest/gtest.h>

#include <cstdint>
#include <type_traits>
#include <vector>

namespace {

using gatepro::Index;
using gatepro::MatrixView;
using gatepro::RowMatrix;
using gatepro::StridedView;
using gatepro::VectorView;
using ColMatrix = Eigen::MatrixXf;
using gatepro::strided_view;
using gatepro::view;

template <class View>
void expect_matrix(const View& v, const void* data, Index rows, Index cols, Index row_stride) {
  EXPECT_EQ(static_cast<const void*>(v.data), data);
  EXPECT_EQ(v.rows, rows);
  EXPECT_EQ(v.cols, cols);
  EXPECT_EQ(v.row_stride, row_stride);
}

template <class View>
void expect_strided(const View& v, const void* data, Index rows, Index cols, Index row_stride,
                    Index col_stride) {
  expect_matrix(v, data, rows, cols, row_stride);
  EXPECT_EQ(v.col_stride, col_stride);
}

/// As a function argument, which is where conversions happen.
MatrixView<float> as_output(MatrixView<float> v) { return v; }
MatrixView<const float> as_input(MatrixView<const float> v) { return v; }
StridedView<const float> as_strided(StridedView<const float> v) { return v; }

TEST(MatrixView, OfAMatrix) {
  RowMatrix<float> m = RowMatrix<float>::Zero(3, 5);
  const RowMatrix<float>& c = m;
  expect_matrix(as_output(m), m.data(), 3, 5, 5);
  expect_matrix(as_input(m), m.data(), 3, 5, 5);
  expect_matrix(as_input(c), m.data(), 3, 5, 5);
  expect_matrix(view(m), m.data(), 3, 5, 5);
  static_assert(std::is_same_v<decltype(view(m)), MatrixView<float>>);
  static_assert(std::is_same_v<decltype(view(c)), MatrixView<const float>>);
}

TEST(MatrixView, OfMapsRefsAndBlocks) {
  RowMatrix<float> m = RowMatrix<float>::Zero(6, 8);
  using Map = Eigen::Map<RowMatrix<float>>;
  using StridedMap = Eigen::Map<RowMatrix<float>, 0, Eigen::OuterStride<>>;
  using ConstMap = Eigen::Map<const RowMatrix<float>>;
  using Ref = Eigen::Ref<RowMatrix<float>>;
  using ConstRef = Eigen::Ref<const RowMatrix<float>>;
  Map map(m.data(), 4, 12);
  StridedMap strided(m.data(), 5, 3, Eigen::OuterStride<>(8));
  const ConstMap constant(m.data(), 6, 8);
  expect_matrix(as_output(map), m.data(), 4, 12, 12);
  expect_matrix(as_output(strided), m.data(), 5, 3, 8);
  expect_matrix(as_input(constant), m.data(), 6, 8, 8);
  static_assert(std::is_same_v<decltype(view(constant)), MatrixView<const float>>);
  Ref ref = m.block(1, 2, 3, 4);
  const ConstRef const_ref = m;
  expect_matrix(as_output(ref), &m(1, 2), 3, 4, 8);
  expect_matrix(as_input(const_ref), m.data(), 6, 8, 8);
  // Views of views may be temporaries: they own nothing.
  expect_matrix(as_output(m.block(2, 3, 4, 5)), &m(2, 3), 4, 5, 8);
  expect_matrix(as_output(m.middleRows(1, 2)), &m(1, 0), 2, 8, 8);
  expect_matrix(as_output(m.rightCols(3)), &m(0, 5), 6, 3, 8);
  expect_matrix(as_output(Map(m.data(), 2, 2)), m.data(), 2, 2, 2);
  expect_matrix(view(m.topRows(2)), m.data(), 2, 8, 8);
  EXPECT_EQ(as_output(m.row(4)).data, &m(4, 0));
  EXPECT_EQ(as_output(m.row(4)).rows, 1);
  EXPECT_EQ(as_output(m.row(4)).cols, 8);
}

TEST(MatrixView, OfFixedSizesAndOtherScalars) {
  Eigen::Matrix<float, 2, 3, Eigen::RowMajor> fixed = decltype(fixed)::Zero();
  expect_matrix(as_output(fixed), fixed.data(), 2, 3, 3);
  RowMatrix<Eigen::half> half(2, 3);
  expect_matrix(view(half), half.data(), 2, 3, 3);
  RowMatrix<std::int64_t> ids(4, 2);
  expect_matrix(view(ids), ids.data(), 4, 2, 2);
  RowMatrix<float> empty = RowMatrix<float>::Zero(0, 7);
  EXPECT_EQ(view(empty).rows, 0);
  EXPECT_EQ(view(empty).cols, 7);
}

TEST(MatrixView, Elements) {
  RowMatrix<float> m = RowMatrix<float>::Zero(3, 4);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = static_cast<float>(i);
  const MatrixView<float> v = m.leftCols(3);
  EXPECT_EQ(v(2, 1), m(2, 1));
  EXPECT_EQ(v.row(1), &m(1, 0));
  v(2, 2) = 50;
  EXPECT_EQ(m(2, 2), 50);
  expect_matrix(v.middle_rows(1, 2), &m(1, 0), 2, 3, 4);
  expect_matrix(v.middle_cols(1, 2), &m(0, 1), 3, 2, 4);
  expect_matrix(MatrixView<const float>(v), m.data(), 3, 3, 4);
  expect_matrix(MatrixView<float>(m.data(), 2, 6), m.data(), 2, 6, 6);
}

TEST(MatrixView, NotGiven) {
  const MatrixView<float> none;
  EXPECT_FALSE(none.given());
  EXPECT_EQ(none.rows, 0);
  EXPECT_EQ(none.cols, 0);
  EXPECT_FALSE(none.middle_rows(5, 3).given());
  EXPECT_FALSE(none.middle_cols(5, 3).given());
  EXPECT_FALSE(StridedView<float>().given());
  EXPECT_FALSE(StridedView<float>().middle_rows(4, 2).given());
  EXPECT_FALSE(VectorView<float>().given());
  float one = 0;
  EXPECT_TRUE(MatrixView<float>(&one, 1, 1).given());
}

// Someone passed it, so it is an argument with a shape, right or wrong.
TEST(MatrixView, OfAnEmptyObjectIsGiven) {
  RowMatrix<float> matrix, no_rows(0, 7), no_cols(7, 0);
  for (RowMatrix<float>* empty : {&matrix, &no_rows, &no_cols}) {
    const RowMatrix<float>& constant = *empty;
    EXPECT_TRUE(as_output(*empty).given());
    EXPECT_TRUE(as_input(constant).given());
    EXPECT_TRUE(as_strided(*empty).given());
    EXPECT_TRUE(view(*empty).given());
    EXPECT_EQ(as_output(*empty).rows, empty->rows());
    EXPECT_EQ(as_output(*empty).cols, empty->cols());
  }
  Eigen::Map<RowMatrix<float>> no_memory(nullptr, 0, 0);
  EXPECT_TRUE(as_output(no_memory).given());
  const ColMatrix columns;
  EXPECT_TRUE(as_strided(columns).given());
  std::vector<double> numbers;
  const std::vector<double>& constant = numbers;
  EXPECT_TRUE(VectorView<double>(numbers).given());
  EXPECT_TRUE(VectorView<const double>(constant).given());
  // A pointer that is missing stays missing.
  Eigen::Map<RowMatrix<float>> lost(nullptr, 2, 3);
  EXPECT_FALSE(as_output(lost).given());
}

TEST(StridedView, OfEitherStorageOrder) {
  RowMatrix<float> rows = RowMatrix<float>::Zero(5, 3);
  ColMatrix cols = ColMatrix::Zero(5, 3);
  const ColMatrix& const_cols = cols;
  expect_strided(as_strided(rows), rows.data(), 5, 3, 3, 1);
  expect_strided(as_strided(cols), cols.data(), 5, 3, 1, 5);
  expect_strided(as_strided(const_cols), cols.data(), 5, 3, 1, 5);
  expect_strided(strided_view(cols), cols.data(), 5, 3, 1, 5);
  static_assert(std::is_same_v<decltype(strided_view(cols)), StridedView<float>>);
  static_assert(std::is_same_v<decltype(strided_view(const_cols)), StridedView<const float>>);
  expect_strided(as_strided(cols.block(1, 1, 3, 2)), &cols(1, 1), 3, 2, 1, 5);
  expect_strided(as_strided(rows.col(1)), &rows(0, 1), 5, 1, 3, 1);
  expect_strided(as_strided(cols.transpose()), cols.data(), 3, 5, 5, 1);
  using AnyMap = Eigen::Map<ColMatrix, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>;
  AnyMap any(rows.data(), 2, 2, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>(6, 2));
  expect_strided(as_strided(any), rows.data(), 2, 2, 2, 6);
}

TEST(StridedView, ElementsAndConversions) {
  ColMatrix m = ColMatrix::Zero(4, 3);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = static_cast<float>(i);
  const StridedView<float> v = m;
  for (Index r = 0; r < 4; ++r) {
    for (Index c = 0; c < 3; ++c) EXPECT_EQ(v(r, c), m(r, c));
  }
  v(3, 2) = 7;
  EXPECT_EQ(m(3, 2), 7);
  expect_strided(v.middle_rows(1, 2), &m(1, 0), 2, 3, 1, 4);
  expect_strided(StridedView<const float>(v), m.data(), 4, 3, 1, 4);
  RowMatrix<float> r = RowMatrix<float>::Zero(4, 6);
  const MatrixView<float> matrix = r.leftCols(2);
  expect_strided(StridedView<float>(matrix), r.data(), 4, 2, 6, 1);
  expect_strided(StridedView<const float>(matrix), r.data(), 4, 2, 6, 1);
  expect_strided(StridedView<float>(r.data(), 4, 6), r.data(), 4, 6, 6, 1);
}

TEST(VectorView, OfAVector) {
  std::vector<std::int64_t> values = {1, 2, 3};
  const std::vector<std::int64_t>& constant = values;
  const VectorView<std::int64_t> v = values;
  const VectorView<const std::int64_t> from_const = constant;
  const VectorView<const std::int64_t> from_view = v;
  EXPECT_EQ(v.data, values.data());
  EXPECT_EQ(v.size, 3);
  EXPECT_EQ(from_const.data, values.data());
  EXPECT_EQ(from_view.data, values.data());
  v[1] = 20;
  EXPECT_EQ(values[1], 20);
}

// The same rules, asked of the type system.
template <class From, class To>
constexpr bool converts = std::is_convertible_v<From, To>;

TEST(Conversions, OnlyWithoutACopy) {
  using In = MatrixView<const float>;
  using Out = MatrixView<float>;
  static_assert(converts<RowMatrix<float>&, In> && converts<const RowMatrix<float>&, In>);
  static_assert(converts<RowMatrix<float>&, Out>);
  static_assert(!converts<const RowMatrix<float>&, Out>);  // const
  static_assert(!converts<RowMatrix<float>, In>);          // a temporary that owns
  static_assert(!converts<const RowMatrix<float>, In>);    // the same, const
  static_assert(!converts<RowMatrix<double>&, In>);        // another scalar
  static_assert(!converts<ColMatrix&, In>);                // columns
  static_assert(!converts<decltype(2 * std::declval<RowMatrix<float>&>()), In>);  // an expression
  static_assert(!converts<decltype(std::declval<RowMatrix<float>&>().transpose()), In>);
  static_assert(!converts<Eigen::VectorXf&, In>);  // a column
  static_assert(converts<Eigen::RowVectorXf&, In>);
  using InnerStrided =
      Eigen::Map<RowMatrix<float>, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>;
  static_assert(!converts<InnerStrided&, In>);  // gaps within rows
  static_assert(converts<Eigen::Map<const RowMatrix<float>>, In>);
  static_assert(!converts<Eigen::Map<const RowMatrix<float>>, Out>);
  static_assert(!converts<In, Out> && converts<Out, In>);
  static_assert(!converts<int, In> && !converts<float*, In> && !converts<std::vector<float>&, In>);

  using Any = StridedView<const float>;
  static_assert(converts<ColMatrix&, Any> && converts<InnerStrided&, Any>);
  static_assert(!converts<ColMatrix, Any> && !converts<RowMatrix<double>&, Any>);
  static_assert(!converts<const ColMatrix&, StridedView<float>>);
  static_assert(converts<In, Any> && !converts<In, StridedView<float>> && !converts<Any, In>);

  using Counts = VectorView<std::int64_t>;
  static_assert(converts<std::vector<std::int64_t>&, Counts>);
  static_assert(!converts<std::vector<std::int64_t>, Counts>);
  static_assert(!converts<const std::vector<std::int64_t>&, Counts>);
  static_assert(!converts<std::vector<std::int32_t>&, Counts>);
}

// Views cross translation units, also such without Eigen: they are plain data.
TEST(Conversions, ViewsArePlainData) {
  static_assert(std::is_trivially_copyable_v<MatrixView<float>>);
  static_assert(std::is_trivially_copyable_v<StridedView<float>>);
  static_assert(std::is_trivially_copyable_v<VectorView<float>>);
  static_assert(std::is_standard_layout_v<MatrixView<float>>);
  static_assert(std::is_standard_layout_v<StridedView<float>>);
}

}  // namespace
