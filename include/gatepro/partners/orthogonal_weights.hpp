// SPDX-License-Identifier: MIT
// Stage: router weights to start from, whose rows are orthogonal.
#ifndef GATEPRO_PARTNERS_ORTHOGONAL_WEIGHTS_HPP
#define GATEPRO_PARTNERS_ORTHOGONAL_WEIGHTS_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "gatepro/core/checks.hpp"
#include "gatepro/core/product.hpp"
#include "gatepro/core/workspace.hpp"
#include "gatepro/gate/noise.hpp"
#include "gatepro/gate/rounding.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// Rows that are orthonormal so far, and room for the next one. Sums have the same order on all
/// instruction sets.
class OrthonormalRows {
 public:
  OrthonormalRows(Arena& arena, Index rows, Index cols)
      : rows_(arena.take<double>(rows, cols), rows, cols), cosine_(arena.take<double>(rows)) {}

  Index room() const { return rows_.rows; }
  double* row(Index i) const { return rows_.row(i); }

  /// Row i loses what it has of the directions before it, and becomes 1 long. Twice, because what
  /// the first time leaves is as small as its rounding where the rows before span almost all.
  void orthonormalise(Index i) const {
    for (int time = 0; time < 2; ++time) {
      for (Index j = 0; j < i; ++j) cosine_[j] = dot(rows_.row(j), rows_.row(i));
      for (Index j = 0; j < i; ++j) subtract(cosine_[j], rows_.row(j), rows_.row(i));
      const double norm = std::sqrt(dot(rows_.row(i), rows_.row(i)));
      for (Index h = 0; h < rows_.cols; ++h) rows_(i, h) /= norm;
    }
  }

 private:
  double dot(const double* a, const double* b) const {
    return gradient_kernels<double, double>().dot(a, b, rows_.cols);
  }
  void subtract(double factor, const double* from, double* row) const {
    for (Index h = 0; h < rows_.cols; ++h) row[h] -= product(factor, from[h]);
  }

  MatrixView<double> rows_;
  double* cosine_;
};

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Bytes of workspace for orthogonal_weights of E x H.
inline std::size_t orthogonal_weights_workspace_bytes(Index num_experts, Index hidden_size) {
  detail::Checks("orthogonal_weights").query_experts(num_experts);
  return detail::measure([&](detail::Arena& arena) {
    detail::OrthonormalRows(arena, (std::min)(num_experts, hidden_size), hidden_size);
  });
}

/// Router weights whose rows are orthogonal and `gain` long, in directions that are uniformly
/// random: where an orthogonality loss is least, and no expert is more similar to one than to
/// another.
///
/// w_EH: E x H, overwritten. With E <= H it is what torch.nn.init.orthogonal_ draws from, a random
/// orthogonal matrix without its other rows. With E > H no E rows can be orthogonal: here rows
/// [b H, (b + 1) H) are, for each b, and all are `gain` long; torch makes the columns orthonormal
/// instead, and rows about sqrt(H / E) long.
///
/// Row i is a function of the seed, H, and the rows of its block before it: the same on all
/// machines whose logarithms and sines agree, but for the rounding to W. Throws Error for shapes, a
/// gain that is not finite as a W, or a workspace below orthogonal_weights_workspace_bytes(E, H),
/// before any write. Cost: 4 E min(E, H) H operations in double, on the calling thread; no
/// allocation. Thread-safe.
template <class W>
void orthogonal_weights(std::uint64_t seed, double gain, MatrixView<W> w_EH, Workspace workspace) {
  detail::check_input_scalars<W, W>();
  using A = accumulator_t<W>;
  const detail::Checks checks("orthogonal_weights");
  checks.num_experts(w_EH.rows);
  checks.matrix("w_EH", w_EH, w_EH.rows, w_EH.cols);
  const auto is_finite_weight = [](double value) {
    return detail::is_finite_as<A>(value) &&
           detail::is_finite(static_cast<A>(detail::rounded_to<W>(static_cast<A>(value))));
  };
  checks.need(is_finite_weight(gain), "gain finite, also in the precision of the weights",
              {{"gain", gain}});
  checks.overlaps(detail::output("w_EH", w_EH), detail::output("workspace", workspace));
  checks.workers(SerialExecutor());
  detail::Arena arena(checks.where(), workspace,
                      orthogonal_weights_workspace_bytes(w_EH.rows, w_EH.cols));
  const detail::OrthonormalRows rows(arena, (std::min)(w_EH.rows, w_EH.cols), w_EH.cols);
  const NoiseKey noise{seed, 0, 0};
  detail::for_each_noise(noise, detail::NoiseUse::weights, w_EH.rows, w_EH.cols,
                         detail::normal_work, detail::normals_of, SerialExecutor(), 1,
                         [&](Index i, Index h, double normal) {
                           const Index at = i % rows.room();
                           rows.row(at)[h] = normal;
                           if (h + 1 < w_EH.cols) return;
                           rows.orthonormalise(at);
                           for (Index c = 0; c < w_EH.cols; ++c) {
                             const A value = static_cast<A>(gain * rows.row(at)[c]);
                             w_EH(i, c) = detail::rounded_to<W>(value);
                           }
                         });
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_PARTNERS_ORTHOGONAL_WEIGHTS_HPP
