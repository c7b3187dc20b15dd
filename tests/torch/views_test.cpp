// SPDX-License-Identifier: MIT
// Tensors as views: which are taken as they are, which are refused, and the executor.
#include <ATen/ATen.h>

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <gatepro/torch.hpp>
#include <type_traits>

#include "support/errors.hpp"

namespace {

using at::Tensor;

TEST(TorchViews, OfRowsColumnsAndRepeatedRows) {
  const Tensor whole = at::arange(24, at::kFloat).view({4, 6});
  const auto view = gatepro::view<float>(whole, "x");
  EXPECT_EQ(view.data, whole.data_ptr());
  EXPECT_EQ(view.rows, 4);
  EXPECT_EQ(view.cols, 6);
  EXPECT_EQ(view.row_stride, 6);

  const auto columns = gatepro::view<const float>(whole.narrow(1, 2, 3), "x");
  EXPECT_EQ(columns.row_stride, 6);
  EXPECT_EQ(columns(1, 0), 8.0F);
  const auto repeated = gatepro::view<const float>(whole.narrow(0, 1, 1).expand({5, 6}), "x");
  EXPECT_EQ(repeated.row_stride, 0);
  EXPECT_EQ(repeated(4, 2), 8.0F);
  const auto transposed = gatepro::strided_view<const float>(whole.t(), "x");
  EXPECT_EQ(transposed(2, 1), 8.0F);
  // Frameworks give any stride to dimensions of one element.
  const auto row = gatepro::view<const float>(whole.as_strided({1, 6}, {1, 1}), "x");
  EXPECT_EQ(row.row_stride, 6);
  EXPECT_EQ(gatepro::view<const float>(whole.as_strided({4, 1}, {6, 77}), "x")(3, 0), 18.0F);
}

TEST(TorchViews, OfTensorsWithoutElementsAreGiven) {
  for (const Tensor& none : {at::empty({0, 6}), at::empty({3, 0})}) {
    EXPECT_TRUE(gatepro::view<float>(none, "x").given());
    EXPECT_TRUE(gatepro::strided_view<float>(none, "x").given());
  }
  EXPECT_TRUE(gatepro::padding_view(at::empty({0}, at::kBool), "mask").given());
  EXPECT_EQ(gatepro::workspace_view(gatepro::empty_workspace(0)).bytes, 0U);
  EXPECT_EQ(gatepro::workspace_view(gatepro::empty_workspace(100)).bytes, 100U);
}

TEST(TorchViews, RefuseWhatRawPointersWouldMisread) {
  const Tensor ids = at::zeros({4, 2}, at::kLong);
  expect_error([&] { gatepro::view<const std::int32_t>(ids, "partners"); },
               {"partners of dtype Int", "dtype=Long"});
  // The bits of both types of 16 bits would pass through a void*.
  expect_error(
      [&] {
        gatepro::view<gatepro::bfloat16>(at::zeros({4, 2}, at::kHalf), "x");
      },
      {"x of dtype BFloat16", "dtype=Half"});
  expect_error([&] { gatepro::view<float>(Tensor(), "x"); }, {"x that is defined"});
  expect_error([&] { gatepro::view<float>(at::zeros({4}), "x"); }, {"x of 2 dimensions"});
  expect_error(
      [&] {
        gatepro::view<float>(at::_neg_view(at::ones({2, 2})), "x");
      },
      {"x that holds its numbers", "negation"});
  expect_error(
      [&] {
        gatepro::view<float>(at::zeros({4, 2}).t(), "x");
      },
      {"x with contiguous rows", "stride=2"});
  expect_error(
      [&] {
        gatepro::view<float>(at::zeros({4, 2}, at::kMeta), "x");
      },
      {"x on the CPU", "device=meta"});
  expect_error(
      [&] {
        gatepro::vector_view<float>(at::zeros({4, 2}).select(1, 0), "bias");
      },
      {"bias that is contiguous"});
  for (const at::ScalarType dtype : {at::kByte, at::kLong, at::kFloat}) {
    expect_error([&] { gatepro::padding_view(at::zeros({4}, dtype), "mask"); },
                 {"mask of dtype Bool"});
  }
}

TEST(TorchViews, ScalarsFollowFromTheDtype) {
  const auto size = [](auto scalar) { return sizeof(scalar); };
  EXPECT_EQ(gatepro::with_scalar(at::zeros({1}, at::kDouble), "x", size), 8U);
  EXPECT_EQ(gatepro::with_scalar(at::zeros({1}, at::kFloat), "x", size), 4U);
  EXPECT_TRUE(gatepro::with_scalar(at::zeros({1}, at::kBFloat16), "x", [](auto scalar) {
    return std::is_same_v<decltype(scalar), gatepro::bfloat16>;
  }));
  EXPECT_TRUE(gatepro::with_scalar(at::zeros({1}, at::kHalf), "x", [](auto scalar) {
    return std::is_same_v<decltype(scalar), gatepro::half>;
  }));
  EXPECT_EQ(gatepro::with_accumulator(at::zeros({1}, at::kDouble), "x", size), 8U);
  expect_error([&] { gatepro::with_scalar(at::zeros({1}, at::kInt), "x", size); }, {"dtype=Int"});
  expect_error([&] { gatepro::with_accumulator(at::zeros({1}, at::kHalf), "x", size); },
               {"dtype=Half"});
}

TEST(TorchExecutor, CallsEachBodyOnce) {
  static_assert(gatepro::is_executor_v<gatepro::ATenExecutor>);
  for (const int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    const gatepro::ATenExecutor executor;
    EXPECT_EQ(executor.workers(), threads);
    for (int count = 0; count <= threads; ++count) {
      std::array<std::atomic<int>, 3> calls{};
      executor.run(count, [&](int worker) { ++calls[static_cast<std::size_t>(worker)]; });
      for (int worker = 0; worker < 3; ++worker) {
        EXPECT_EQ(calls[static_cast<std::size_t>(worker)], worker < count ? 1 : 0);
      }
    }
  }
}

TEST(TorchExecutor, HasOneWorkerInsideOfAParallelFor) {
  at::set_num_threads(2);
  const gatepro::ATenExecutor from_outside;
  std::atomic<int> workers{0}, calls{0};
  at::parallel_for(0, 2, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      workers += gatepro::ATenExecutor().workers();
      from_outside.run(2, [&](int worker) { calls += worker + 1; });
    }
  });
  EXPECT_EQ(workers, 2);
  EXPECT_EQ(calls, 6);
}

}  // namespace
