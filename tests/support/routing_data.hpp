// SPDX-License-Identifier: MIT
// Runs of the router, and comparisons that its tests share.
#ifndef GATEPRO_TESTS_SUPPORT_ROUTING_DATA_HPP
#define GATEPRO_TESTS_SUPPORT_ROUTING_DATA_HPP

#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "support/bits.hpp"
#include "support/conversions.hpp"
#include "support/ids.hpp"
#include "support/memory.hpp"
#include "support/reference/partners.hpp"
#include "support/reference/routing.hpp"

namespace routing_data {

using gatepro::Index;
using gatepro::RowMatrix;

/// Everything that a forward can write, owned. Ids and weights start as garbage.
template <class R>
struct Outcome {
  using A = typename R::Accumulator;
  using Id = typename R::ExpertId;

  Outcome(const R& router, Index tokens)
      : ids_TK(RowMatrix<Id>::Constant(tokens, router.config().top_k, Id(77))),
        weights_TK(RowMatrix<A>::Constant(tokens, router.config().top_k, A(77))),
        logits_TE(RowMatrix<A>::Constant(tokens, router.config().num_experts, A(77))),
        tokens_per_expert_E(static_cast<std::size_t>(router.config().num_experts), 77) {}

  /// All outputs. Drop from it what a test does not want.
  typename R::Routing view() {
    typename R::Routing out;
    out.expert_ids_TK = ids_TK;
    out.weights_TK = weights_TK;
    out.tokens_per_expert_E = tokens_per_expert_E;
    out.logits_TE = logits_TE;
    out.statistics = &statistics;
    return out;
  }

  RowMatrix<Id> ids_TK;
  RowMatrix<A> weights_TK;
  RowMatrix<A> logits_TE;
  std::vector<std::int64_t> tokens_per_expert_E;
  gatepro::PenaltyStatistics statistics;
  gatepro::RoutingReport report;
};

template <class R, class MX, class MW, class Executor = gatepro::SerialExecutor>
Outcome<R> forward(const R& router, const MX& x_TH, const MW& w_EH, const Executor& executor = {}) {
  Outcome<R> outcome(router, x_TH.rows());
  auto memory = data::scratch(router.forward_workspace_bytes(executor.workers()));
  outcome.report = router.forward(x_TH, w_EH, outcome.view(), memory, executor);
  return outcome;
}

/// Routes given logits; the outcome's logits are a copy of them.
template <class R, class Executor = gatepro::SerialExecutor>
Outcome<R> forward_logits(const R& router, const RowMatrix<typename R::Accumulator>& logits_TE,
                          const Executor& executor = {}) {
  Outcome<R> outcome(router, logits_TE.rows());
  auto memory = data::scratch(router.forward_workspace_bytes(executor.workers()));
  auto out = outcome.view();
  out.logits_TE = {};
  outcome.report = router.forward_logits(logits_TE, out, memory, executor);
  outcome.logits_TE = logits_TE;
  return outcome;
}

/// Ids and weights, which every way of routing gives.
template <class R>
void expect_same_routing(const Outcome<R>& a, const Outcome<R>& b) {
  EXPECT_TRUE(data::same_bits(a.ids_TK, b.ids_TK));
  EXPECT_TRUE(data::same_bits(a.weights_TK, b.weights_TK));
}

inline void expect_same_report(const gatepro::RoutingReport& a, const gatepro::RoutingReport& b) {
  EXPECT_EQ(a.nonfinite_rows, b.nonfinite_rows);
  EXPECT_EQ(a.tokens_short_of_survivors, b.tokens_short_of_survivors);
}

inline void expect_same_statistics(const gatepro::PenaltyStatistics& a,
                                   const gatepro::PenaltyStatistics& b) {
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.penalised_pairs, b.penalised_pairs);
  EXPECT_EQ(a.tied_pairs, b.tied_pairs);
  EXPECT_EQ(a.penalties_lost_in_rounding, b.penalties_lost_in_rounding);
  EXPECT_EQ(a.tokens_changed, b.tokens_changed);
  EXPECT_EQ(a.tokens_short_of_survivors, b.tokens_short_of_survivors);
  EXPECT_EQ(a.partnered_selections, b.partnered_selections);
  EXPECT_EQ(a.coactivations, b.coactivations);
  EXPECT_EQ(a.unpenalised_partnered_selections, b.unpenalised_partnered_selections);
  EXPECT_EQ(a.unpenalised_coactivations, b.unpenalised_coactivations);
}

/// Everything that Outcome holds.
template <class R>
void expect_same_outcome(const Outcome<R>& a, const Outcome<R>& b) {
  expect_same_routing(a, b);
  EXPECT_TRUE(data::same_bits(a.logits_TE, b.logits_TE));
  EXPECT_EQ(a.tokens_per_expert_E, b.tokens_per_expert_E);
  expect_same_statistics(a.statistics, b.statistics);
  expect_same_report(a.report, b.report);
}

template <class A>
struct Gradients {
  RowMatrix<A> dx_TH;
  RowMatrix<A> dw_EH;
};

/// Gradients for the ids and weights of `outcome`, added to `start`. dlogits_TE may be empty.
template <class R, class MX, class MW, class A = typename R::Accumulator,
          class Executor = gatepro::SerialExecutor>
Gradients<A> backward(const R& router, const MX& x_TH, const MW& w_EH, const Outcome<R>& outcome,
                      const RowMatrix<A>& dweights_TK, const RowMatrix<A>& dlogits_TE,
                      Gradients<A> start, const Executor& executor = {}) {
  auto memory = data::scratch(router.backward_workspace_bytes(x_TH.rows(), executor.workers()));
  gatepro::MatrixView<const A> dlogits;
  if (dlogits_TE.size() != 0) dlogits = dlogits_TE;
  router.backward(x_TH, w_EH, {outcome.ids_TK, outcome.weights_TK}, {dweights_TK, dlogits},
                  {start.dx_TH, start.dw_EH}, memory, executor);
  return start;
}

/// Compares an outcome with the reference, given the outcome's own logits and the router's own
/// partners: ids exactly, weights up to the rounding of exp and of the sum, NaNs as NaNs, counts.
template <class R>
void expect_reference_routing(const R& router, const Outcome<R>& outcome) {
  using A = typename R::Accumulator;
  const gatepro::RouterConfig& config = router.config();
  const Index experts = config.num_experts;
  const auto partners = router.similarity_cache().partners();
  const reference::Ids rivals =
      reference::rivals(data::to_ids(partners), config.pairing.both_sides);
  gatepro::Competition competition = config.competition;
  competition.lambda = data::round_to<A>(competition.lambda);
  const double tolerance = static_cast<double>(std::numeric_limits<A>::epsilon()) *
                           (8 + 2 * static_cast<double>(config.top_k));
  Index nonfinite = 0, short_of_survivors = 0;
  std::vector<std::int64_t> counts(static_cast<std::size_t>(experts), 0);

  ASSERT_TRUE(data::valid_ids(outcome.ids_TK, experts));
  const reference::Matrix logits_TE = data::to_reference(outcome.logits_TE);
  for (Index t = 0; t < outcome.ids_TK.rows(); ++t) {
    const reference::Token expected =
        reference::route(logits_TE[static_cast<std::size_t>(t)], rivals, competition,
                         static_cast<int>(config.top_k), data::round_to<A>);
    nonfinite += expected.nonfinite ? 1 : 0;
    short_of_survivors += expected.short_of_survivors ? 1 : 0;
    double sum = 0;
    for (Index j = 0; j < config.top_k; ++j) {
      const int id = expected.ids[static_cast<std::size_t>(j)];
      const double weight = expected.weights[static_cast<std::size_t>(j)];
      const auto actual = static_cast<double>(outcome.weights_TK(t, j));
      ASSERT_EQ(static_cast<int>(outcome.ids_TK(t, j)), id) << "token " << t << ", choice " << j;
      ++counts[static_cast<std::size_t>(id)];
      ASSERT_EQ(std::isnan(actual), expected.nonfinite) << "token " << t;
      if (expected.nonfinite) continue;
      ASSERT_NEAR(actual, weight, tolerance) << "token " << t << ", choice " << j;
      if (weight == 0) {
        ASSERT_EQ(actual, 0) << "token " << t << ", choice " << j;
      }
      sum += actual;
    }
    if (!expected.nonfinite) {
      ASSERT_NEAR(sum, 1, tolerance) << "token " << t;
    }
  }
  EXPECT_EQ(outcome.report.nonfinite_rows, nonfinite);
  EXPECT_EQ(outcome.report.tokens_short_of_survivors, short_of_survivors);
  EXPECT_EQ(outcome.tokens_per_expert_E, counts);
}

}  // namespace routing_data

#endif  // GATEPRO_TESTS_SUPPORT_ROUTING_DATA_HPP
