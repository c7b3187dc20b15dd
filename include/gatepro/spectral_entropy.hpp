// SPDX-License-Identifier: MIT
// Spectral entropy: over how many directions the rows of the router's weights are spread.
//
// A page of its own, that no other includes, because eigenvalues take as long to compile as the
// rest.
#ifndef GATEPRO_SPECTRAL_ENTROPY_HPP
#define GATEPRO_SPECTRAL_ENTROPY_HPP

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>
#include <vector>

#include "gatepro/core/checks.hpp"
#include "gatepro/core/order.hpp"
#include "gatepro/core/product.hpp"

namespace gatepro {

/// Whose shares the entropy of router weights is of.
enum class Spectrum {
  singular_values,  ///< Of W.
  squares,          ///< Their squares: the variance along each direction.
};

namespace detail {
inline namespace GATEPRO_ABI {

/// -sum p ln p of values whose roundings below 0 count as 0; 0 if there are none above.
inline double entropy_of(const Eigen::VectorXd& values) {
  double total = 0, entropy = 0;
  for (Index i = 0; i < values.size(); ++i) total += (std::max)(values[i], 0.0);
  for (Index i = 0; i < values.size(); ++i) {
    const double p = values[i] > 0 ? values[i] / total : 0;
    if (p > 0) entropy -= product(p, std::log(p));
  }
  return entropy;
}

/// The eigenvalues of a symmetric matrix, of which the lower triangle is read.
inline Eigen::VectorXd eigenvalues(const Eigen::MatrixXd& symmetric) {
  if (symmetric.rows() == 0) return {};
  return Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(symmetric, Eigen::EigenvaluesOnly)
      .eigenvalues();
}

/// The largest magnitude in a row; negative if an element is not finite.
template <class W>
double largest_magnitude(const W* row, Index size) {
  using A = accumulator_t<value_t<W>>;
  double largest = 0;
  for (Index h = 0; h < size; ++h) {
    const A value = static_cast<A>(row[h]);
    if (!is_finite(value)) return -1;
    largest = (std::max)(largest, (std::abs)(static_cast<double>(value)));
  }
  return largest;
}

/// W W^T / scale^2 of the rows in `ids`: its lower triangle.
template <class W>
Eigen::MatrixXd gram_matrix(const MatrixView<W>& w_EH, const std::vector<Index>& ids,
                            double scale) {
  using A = accumulator_t<value_t<W>>;
  const auto element = [&](Index i, Index h) {
    return static_cast<double>(static_cast<A>(w_EH(ids[static_cast<std::size_t>(i)], h))) / scale;
  };
  const auto size = static_cast<Index>(ids.size());
  Eigen::MatrixXd rows(size, w_EH.cols), gram(size, size);
  for (Index i = 0; i < size; ++i) {
    for (Index h = 0; h < w_EH.cols; ++h) rows(i, h) = element(i, h);
  }
  gram.setZero();
  for (Index h = 0; h < w_EH.cols; ++h) {
    for (Index j = 0; j < size; ++j) {
      for (Index i = j; i < size; ++i) gram(i, j) += product(rows(i, h), rows(j, h));
    }
  }
  return gram;
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Spectral entropy -sum p_i ln p_i, in nats, with p_i = e_i / sum of e and e the eigenvalues of
/// the similarity matrix S.
///
/// ln E if all rows are orthogonal, 0 if all are parallel. The paper does not define its spectral
/// entropy. This is the definition whose values fit those that it shows: if the mean cosine of 64
/// to 128 rows falls from 0.25 to 0.15 it rises by 0.3, from about 3.5 to 4.0, whereas that of
/// singular values moves by 0.03. Rows count by direction alone, so that experts which were never
/// trained look diverse: where there are some, compare with the entropy of W itself.
///
/// similarity_EE: E x E, symmetric; rows with a NaN on the diagonal (weights that are not finite)
/// are left out. Throws Error for the shape. Cost: about 3 E^3 operations; allocates. Thread-safe.
template <class S>
double spectral_entropy(MatrixView<S> similarity_EE) {
  using A = detail::value_t<S>;
  detail::check_accumulator<A>();
  const detail::Checks checks("spectral_entropy");
  checks.num_experts(similarity_EE.rows);
  checks.matrix("similarity_EE", similarity_EE, similarity_EE.rows, similarity_EE.rows);
  std::vector<Index> ids;
  for (Index i = 0; i < similarity_EE.rows; ++i) {
    if (detail::is_finite(similarity_EE(i, i))) ids.push_back(i);
  }
  const auto size = static_cast<Index>(ids.size());
  Eigen::MatrixXd finite(size, size);
  for (Index i = 0; i < size; ++i) {
    for (Index j = 0; j < size; ++j) {
      finite(i, j) = static_cast<double>(
          similarity_EE(ids[static_cast<std::size_t>(i)], ids[static_cast<std::size_t>(j)]));
    }
  }
  return detail::entropy_of(detail::eigenvalues(finite));
}

/// The same of the spectrum of the router weights, w_EH (E x H), with their lengths: experts that
/// were never trained count as little as they weigh. At most ln min(E, H); exp of that of the
/// singular values is the effective rank of Roy and Vetterli (2007). Rows that are not finite
/// are left out. Singular values below 1e-8 of the largest are lost in rounding. Throws Error for
/// the shape. Cost: E^2 H + 3 E^3 operations; allocates. Thread-safe.
template <class W>
double spectral_entropy(MatrixView<W> w_EH, Spectrum spectrum) {
  detail::check_input_scalars<detail::value_t<W>, detail::value_t<W>>();
  const detail::Checks checks("spectral_entropy");
  checks.num_experts(w_EH.rows);
  checks.matrix("w_EH", w_EH, w_EH.rows, w_EH.cols);
  std::vector<Index> ids;
  double scale = 0;
  for (Index i = 0; i < w_EH.rows; ++i) {
    const double largest = detail::largest_magnitude(w_EH.row(i), w_EH.cols);
    if (largest >= 0) ids.push_back(i);
    scale = (std::max)(scale, largest);
  }
  if (!(scale > 0)) return 0;
  Eigen::VectorXd values = detail::eigenvalues(detail::gram_matrix(w_EH, ids, scale));
  if (spectrum == Spectrum::singular_values) values = values.cwiseMax(0.0).cwiseSqrt().eval();
  return detail::entropy_of(values);
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_SPECTRAL_ENTROPY_HPP
