// SPDX-License-Identifier: MIT
// Runs of the auxiliary losses, and comparisons that their tests share.
#ifndef GATEPRO_TESTS_SUPPORT_LOSSES_HPP
#define GATEPRO_TESTS_SUPPORT_LOSSES_HPP

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <gatepro/balance/load_balancing_loss.hpp>
#include <gatepro/balance/z_loss.hpp>
#include <limits>
#include <vector>

#include "support/bits.hpp"
#include "support/conversions.hpp"
#include "support/memory.hpp"
#include "support/reference/losses.hpp"

namespace losses {

using gatepro::BalanceCounts;
using gatepro::Index;
using gatepro::LossWeight;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;
using gatepro::SerialExecutor;
using reference::Counts;
using reference::Mask;

template <class A>
struct Loss {
  double value = 0;
  RowMatrix<A> dlogits_TE;  // what was added to zeros
};

/// Calls `run(dlogits view)` on zeros.
template <class A, class Run>
Loss<A> on_zeros(const RowMatrix<A>& logits_TE, const Run& run) {
  Loss<A> loss{0, RowMatrix<A>::Zero(logits_TE.rows(), logits_TE.cols())};
  loss.value = run(gatepro::view(loss.dlogits_TE));
  return loss;
}

template <class A, class Executor = SerialExecutor>
Loss<A> z_loss(const RowMatrix<A>& logits_TE, const LossWeight& weight, const Mask& mask = {},
               const Executor& executor = {}) {
  auto memory = data::scratch(
      gatepro::z_loss_workspace_bytes<A>(logits_TE.rows(), logits_TE.cols(), executor.workers()));
  return on_zeros(logits_TE, [&](const auto& dlogits) {
    return gatepro::z_loss(
        gatepro::LossLogits{gatepro::view(logits_TE), data::optional(mask), dlogits}, weight,
        memory, executor);
  });
}

template <class A, class Executor = SerialExecutor>
Loss<A> balance(const RowMatrix<A>& logits_TE, ScoreFunction function, Index top_k,
                const BalanceCounts& counts, const LossWeight& weight, const Mask& mask = {},
                const Executor& executor = {}) {
  auto memory = data::scratch(gatepro::load_balancing_loss_workspace_bytes<A>(
      logits_TE.rows(), logits_TE.cols(), executor.workers()));
  return on_zeros(logits_TE, [&](const auto& dlogits) {
    return gatepro::load_balancing_loss(
        gatepro::LossLogits{gatepro::view(logits_TE), data::optional(mask), dlogits}, counts,
        {function, top_k}, weight, memory, executor);
  });
}

template <class A, class Id, class Executor = SerialExecutor>
Loss<A> per_sequence(const RowMatrix<A>& logits_TE, const RowMatrix<Id>& ids_TK,
                     const Counts& begin, ScoreFunction function, const LossWeight& weight,
                     const Mask& mask = {}, const Executor& executor = {}) {
  auto memory = data::scratch(gatepro::sequence_load_balancing_loss_workspace_bytes<A>(
      logits_TE.rows(), logits_TE.cols(), static_cast<Index>(begin.size()) - 1,
      executor.workers()));
  return on_zeros(logits_TE, [&](const auto& dlogits) {
    return gatepro::sequence_load_balancing_loss(
        gatepro::LossLogits{gatepro::view(logits_TE), data::optional(mask), dlogits},
        gatepro::SequenceChoices{gatepro::strided_view(ids_TK), begin}, function, weight, memory,
        executor);
  });
}

/// Counts of the tokens that are not masked.
template <class Id>
Counts count(const RowMatrix<Id>& ids_TK, Index experts, const Mask& mask = {}) {
  return reference::count(data::to_ids(ids_TK), static_cast<std::size_t>(experts), mask, 0,
                          static_cast<std::size_t>(ids_TK.rows()));
}

inline std::int64_t valid(const Mask& mask) {
  return static_cast<std::int64_t>(reference::valid_tokens(mask, 0, mask.size()));
}

/// The rows that are not masked.
template <class T>
RowMatrix<T> valid_rows(const RowMatrix<T>& rows, const Mask& mask) {
  RowMatrix<T> result(valid(mask), rows.cols());
  Index next = 0;
  for (Index t = 0; t < rows.rows(); ++t) {
    if (mask[static_cast<std::size_t>(t)] == 0) result.row(next++) = rows.row(t);
  }
  return result;
}

/// `ulps` is the error in units of A's precision: of the value, and of gradients relative to the
/// largest, or to what a token adds to the value, of which they are differences.
template <class A>
void expect_close(const Loss<A>& got, const reference::Loss& want, double ulps) {
  const double eps = static_cast<double>(std::numeric_limits<A>::epsilon());
  EXPECT_NEAR(got.value, want.value, ulps * eps * std::abs(want.value));
  double largest = std::abs(want.value) / static_cast<double>(want.dlogits_TE.size());
  for (const auto& row : want.dlogits_TE) {
    for (double v : row) largest = std::max(largest, std::abs(v));
  }
  for (Index t = 0; t < got.dlogits_TE.rows(); ++t) {
    for (Index e = 0; e < got.dlogits_TE.cols(); ++e) {
      ASSERT_NEAR(static_cast<double>(got.dlogits_TE(t, e)), data::at(want.dlogits_TE, t, e),
                  ulps * eps * largest)
          << "token " << t << ", expert " << e;
    }
  }
}

template <class A>
void expect_same_bits(const Loss<A>& got, const Loss<A>& want) {
  EXPECT_TRUE(data::same_bits(got.value, want.value));
  EXPECT_TRUE(data::same_bits(got.dlogits_TE, want.dlogits_TE));
}

inline void expect_same_value(double got, double want) {
  EXPECT_NEAR(got, want, 1e-12 * std::abs(want));
}

/// The gradient that `loss(logits)` returns against its value at four points per logit: 1e-9 of the
/// largest.
template <class Evaluate>
void expect_finite_differences(const RowMatrix<double>& logits_TE, const Evaluate& loss) {
  const RowMatrix<double> got_TE = loss(logits_TE).dlogits_TE;
  const double largest = got_TE.cwiseAbs().maxCoeff();
  EXPECT_GT(largest, 1e-6);
  for (Index t = 0; t < logits_TE.rows(); ++t) {
    for (Index e = 0; e < logits_TE.cols(); ++e) {
      const auto at = [&](double offset) {
        RowMatrix<double> moved_TE = logits_TE;
        moved_TE(t, e) += offset;
        return loss(moved_TE).value;
      };
      ASSERT_NEAR(got_TE(t, e), reference::derivative(at, 2e-3), 1e-9 * largest)
          << "token " << t << ", expert " << e;
    }
  }
}

}  // namespace losses

#endif  // GATEPRO_TESTS_SUPPORT_LOSSES_HPP
