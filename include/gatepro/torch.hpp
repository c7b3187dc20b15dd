// SPDX-License-Identifier: MIT
// LibTorch's tensors as views, its memory as workspace, its threads as an executor: opt-in, and the
// only header with ATen. docs/torch.md shows an operator library made with it.
#ifndef GATEPRO_TORCH_HPP
#define GATEPRO_TORCH_HPP

#if defined(__has_include)
#if !__has_include(<ATen/core/Tensor.h>)
#error "gatepro/torch.hpp needs LibTorch: link gatepro::torch"
#endif
#endif

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "gatepro/core/error.hpp"
#include "gatepro/core/executor.hpp"
#include "gatepro/core/scalar.hpp"
#include "gatepro/core/views.hpp"
#include "gatepro/core/workspace.hpp"

namespace gatepro {
namespace detail {

/// The dtype of tensors that hold elements of type T.
template <class T>
constexpr at::ScalarType dtype_of() {
  using Element = std::remove_const_t<T>;
  if constexpr (std::is_same_v<Element, bfloat16>) {
    return at::kBFloat16;
  } else if constexpr (std::is_same_v<Element, half>) {
    return at::kHalf;
  } else {
    return c10::CppTypeToScalarType<Element>::value;
  }
}

inline namespace GATEPRO_ABI {

/// Refuses the tensor `name` for a property that it lacks.
[[noreturn]] inline void refuse_tensor(const char* name, const std::string& wanted,
                                       const std::string& got) {
  fail("tensor", std::string(name) + " " + wanted + " (got " + got + ")", {});
}

inline void check_dtype(const at::Tensor& tensor, const char* name, at::ScalarType dtype) {
  if (tensor.scalar_type() == dtype) return;
  refuse_tensor(name, std::string("of dtype ") + c10::toString(dtype),
                std::string("dtype=") + c10::toString(tensor.scalar_type()));
}

/// What raw pointers ask of a tensor. The dtype is looked at, because a void* has none.
inline void check_tensor(const at::Tensor& tensor, const char* name, at::ScalarType dtype,
                         std::int64_t dimensions) {
  if (!tensor.defined()) refuse_tensor(name, "that is defined", "an undefined tensor");
  if (!tensor.device().is_cpu() || tensor.layout() != at::kStrided) {
    refuse_tensor(name, "on the CPU, strided", "device=" + tensor.device().str());
  }
  check_dtype(tensor, name, dtype);
  if (tensor.is_neg()) refuse_tensor(name, "that holds its numbers", "a pending negation");
  if (tensor.dim() != dimensions) {
    refuse_tensor(name, "of " + std::to_string(dimensions) + " dimensions",
                  "dimensions=" + std::to_string(tensor.dim()));
  }
}

template <class T>
T* data_of(const at::Tensor& tensor) {
  return elements(static_cast<T*>(tensor.data_ptr()), tensor.numel());
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// A view of a matrix with contiguous rows, without a copy: slices of rows or columns, expanded
/// rows (to read), any stride where there is one row.
///
/// `T`: float, double, bfloat16, half, std::int32_t, std::int64_t or std::uint8_t, const to read.
/// The tensor must outlive the view. Writing through it goes past autograd: the gradient of whoever
/// saved the tensor is spoilt, unnoticed.
///
/// Throws Error that quotes `name` unless the tensor is defined, on the CPU, strided, of T's dtype,
/// without a negation that is pending, 2-D and with rows that are contiguous; the functions that
/// take views check the rest.
template <class T>
MatrixView<T> view(const at::Tensor& tensor, const char* name) {
  detail::check_tensor(tensor, name, detail::dtype_of<T>(), 2);
  const Index rows = tensor.size(0), cols = tensor.size(1);
  if (tensor.numel() > 0 && cols > 1 && tensor.stride(1) != 1) {
    detail::refuse_tensor(name, "with contiguous rows",
                          "stride=" + std::to_string(tensor.stride(1)));
  }
  return {detail::data_of<T>(tensor), rows, cols, rows > 1 ? tensor.stride(0) : cols};
}

/// The same with any two strides, for [T, K] results.
template <class T>
StridedView<T> strided_view(const at::Tensor& tensor, const char* name) {
  detail::check_tensor(tensor, name, detail::dtype_of<T>(), 2);
  return {detail::data_of<T>(tensor), tensor.size(0), tensor.size(1), tensor.stride(0),
          tensor.stride(1)};
}

/// A view of a contiguous vector; else as `view`.
template <class T>
VectorView<T> vector_view(const at::Tensor& tensor, const char* name) {
  detail::check_tensor(tensor, name, detail::dtype_of<T>(), 1);
  if (!tensor.is_contiguous()) detail::refuse_tensor(name, "that is contiguous", "gaps");
  return {detail::data_of<T>(tensor), tensor.size(0)};
}

/// A padding mask, true = padding, from a contiguous vector of dtype bool; else as `view`.
inline VectorView<const std::uint8_t> padding_view(const at::Tensor& tensor, const char* name) {
  static_assert(sizeof(bool) == 1, "gatepro: a bool tensor is read as bytes");
  detail::check_tensor(tensor, name, at::kBool, 1);
  if (!tensor.is_contiguous()) detail::refuse_tensor(name, "that is contiguous", "gaps");
  return {detail::data_of<const std::uint8_t>(tensor), tensor.size(0)};
}

/// `bytes` of scratch from ATen's allocator, for workspace_view.
inline at::Tensor empty_workspace(std::size_t bytes) {
  return at::empty({static_cast<std::int64_t>(bytes)}, at::TensorOptions(at::kByte));
}

/// The memory of a tensor of bytes as a workspace; else as `vector_view`.
inline Workspace workspace_view(const at::Tensor& tensor) {
  const auto bytes = vector_view<std::uint8_t>(tensor, "workspace");
  return {bytes.data, static_cast<std::size_t>(bytes.size)};
}

/// Calls `call(T())` for the scalar T of a tensor of tokens or router weights: float, double,
/// bfloat16 or half. Throws Error that quotes `name` for another dtype.
template <class Call>
decltype(auto) with_scalar(const at::Tensor& tensor, const char* name, const Call& call) {
  const at::ScalarType dtype = tensor.scalar_type();
  if (dtype == at::kFloat) return call(float());
  if (dtype == at::kDouble) return call(double());
  if (dtype == at::kBFloat16) return call(bfloat16());
  if (dtype == at::kHalf) return call(half());
  detail::refuse_tensor(name, "of dtype Float, Double, BFloat16 or Half",
                        std::string("dtype=") + c10::toString(dtype));
}

/// Calls `call(A())` for the scalar A of a tensor of logits or weights: float or double; else as
/// with_scalar.
template <class Call>
decltype(auto) with_accumulator(const at::Tensor& tensor, const char* name, const Call& call) {
  if (tensor.scalar_type() == at::kDouble) return call(double());
  detail::check_dtype(tensor, name, at::kFloat);
  return call(float());
}

/// Spreads the work over LibTorch's intra-op threads, at::set_num_threads of them; one inside of an
/// at::parallel_for.
///
/// Results are the same bits as with SerialExecutor, for any number of threads. Copies are
/// independent; const calls may run concurrently. Where LibTorch uses OpenMP, units that are not
/// compiled with -fopenmp run all on the calling thread: that is at::parallel_for's doing, and
/// LibTorch's own CMake package does not set the flag; gatepro::torch does.
class ATenExecutor {
 public:
  /// As many workers as at::parallel_for would start here.
  ATenExecutor() : workers_(at::in_parallel_region() ? 1 : at::get_num_threads()) {}

  /// The number of workers.
  int workers() const noexcept { return workers_; }
  /// Multiply-adds that are worth starting a thread for: some 30 us of one core.
  double least_work() const noexcept { return 4194304; }

  /// Calls `body(w)` once for each w in [0, count), concurrently where threads are to be had.
  template <class Body>
  void run(int count, Body body) const {
    at::parallel_for(0, count, 1, [&body](std::int64_t begin, std::int64_t end) {
      for (std::int64_t worker = begin; worker < end; ++worker) body(static_cast<int>(worker));
    });
  }

 private:
  int workers_;
};

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_TORCH_HPP
