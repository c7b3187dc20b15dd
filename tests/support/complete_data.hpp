// SPDX-License-Identifier: MIT
// Runs of the complete router that its tests share.
#ifndef GATEPRO_TESTS_SUPPORT_COMPLETE_DATA_HPP
#define GATEPRO_TESTS_SUPPORT_COMPLETE_DATA_HPP

#include <gtest/gtest.h>

#include <cstdint>
#include <gatepro/router/complete_router.hpp>
#include <vector>

#include "support/bits.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"

namespace complete_data {

using gatepro::Index;
using gatepro::RowMatrix;

/// Tokens and router weights.
struct Batch {
  static constexpr Index T = 83, H = 6, E = 8, K = 3;
  RowMatrix<float> x_TH = data::random_matrix<float>(T, H, 1);
  RowMatrix<float> w_EH = data::random_matrix<float>(E, H, 2);
};

/// The results of a forward and a backward, copied out of the buffers.
template <class R>
struct Outcome {
  using A = typename R::Accumulator;
  using Id = typename R::ExpertId;
  gatepro::CompleteReport report;
  RowMatrix<Id> ids_TK;
  RowMatrix<A> weights_TK, logits_TE;
  RowMatrix<std::uint8_t> penalised_TK, kept_TK;
  std::vector<std::int64_t> counts_E, kept_E, totals;
  RowMatrix<A> dx_TH, dw_EH;  // empty without a backward
};

template <class R>
Outcome<R> outcome_of(gatepro::RoutingBuffers<R>& buffers) {
  const auto out = buffers.view();
  Outcome<R> outcome;
  outcome.report = buffers.report();
  outcome.ids_TK = data::copy<typename R::ExpertId>(out.expert_ids_TK);
  outcome.weights_TK = data::copy<typename R::Accumulator>(out.weights_TK);
  outcome.logits_TE = data::copy<typename R::Accumulator>(out.logits_TE);
  outcome.penalised_TK = data::copy<std::uint8_t>(out.penalised_TK);
  outcome.kept_TK = data::copy<std::uint8_t>(out.kept_TK);
  outcome.counts_E = data::copy(out.tokens_per_expert_E);
  outcome.kept_E = data::copy(out.kept_per_expert_E);
  outcome.totals = data::copy(out.totals);
  return outcome;
}

inline Index sequences_of(gatepro::VectorView<const std::int64_t> begin_S1) {
  return begin_S1.size > 1 ? begin_S1.size - 1 : 1;
}

template <class R, class MX, class MW, class Reduce = gatepro::NoReduce,
          class Executor = gatepro::SerialExecutor>
Outcome<R> forward(R& router, const MX& x_TH, const MW& w_EH, const typename R::Inputs& in = {},
                   const Reduce& reduce = {}, const Executor& executor = {}) {
  gatepro::RoutingBuffers<R> buffers(
      router, gatepro::BufferShape{x_TH.rows(), executor.workers(),
                                   sequences_of(in.sequence_begin_S1), true, true});
  router.forward(x_TH, w_EH, in, buffers, reduce, executor);
  return outcome_of(buffers);
}

/// A forward and a backward; gradients are added to zeros, dW to `dw_EH`.
template <class R, class MX, class MW, class A = typename R::Accumulator,
          class Reduce = gatepro::NoReduce, class Executor = gatepro::SerialExecutor>
Outcome<R> step(R& router, const MX& x_TH, const MW& w_EH, const typename R::Inputs& in,
                const RowMatrix<A>& dweights_TK, RowMatrix<A> dw_EH,
                const gatepro::BackwardInputs<A>& more = {}, const Reduce& reduce = {},
                const Executor& executor = {}) {
  gatepro::RoutingBuffers<R> buffers(
      router, gatepro::BufferShape{x_TH.rows(), executor.workers(),
                                   sequences_of(in.sequence_begin_S1), true, true});
  router.forward(x_TH, w_EH, in, buffers, reduce, executor);
  Outcome<R> outcome = outcome_of(buffers);
  outcome.dx_TH = RowMatrix<A>::Zero(x_TH.rows(), x_TH.cols());
  outcome.dw_EH = dw_EH;
  gatepro::BackwardInputs<A> incoming = more;
  incoming.dweights_TK = dweights_TK;
  router.backward(x_TH, w_EH, in, buffers, incoming, {outcome.dx_TH, outcome.dw_EH}, executor);
  return outcome;
}

template <class T>
RowMatrix<T> zeros(Index rows, Index cols) {
  return RowMatrix<T>::Zero(rows, cols);
}

/// Everything that a token gets.
template <class R>
void expect_same_outcome(const Outcome<R>& a, const Outcome<R>& b) {
  using data::same_bits;
  EXPECT_TRUE(same_bits(a.ids_TK, b.ids_TK));
  EXPECT_TRUE(same_bits(a.weights_TK, b.weights_TK));
  EXPECT_TRUE(same_bits(a.logits_TE, b.logits_TE));
  EXPECT_TRUE(same_bits(a.penalised_TK, b.penalised_TK));
  EXPECT_TRUE(same_bits(a.kept_TK, b.kept_TK));
  EXPECT_TRUE(same_bits(a.dx_TH, b.dx_TH));
  EXPECT_TRUE(same_bits(a.dw_EH, b.dw_EH));
  EXPECT_EQ(a.counts_E, b.counts_E);
  EXPECT_EQ(a.kept_E, b.kept_E);
  EXPECT_EQ(a.totals, b.totals);
  EXPECT_EQ(a.report.losses.sum(), b.report.losses.sum());
}

/// Every counter that training moves.
inline void expect_same_state(const gatepro::RouterState& a, const gatepro::RouterState& b) {
  EXPECT_EQ(a.partners_EM, b.partners_EM);
  EXPECT_EQ(a.partners_step, b.partners_step);
  EXPECT_EQ(a.expert_bias_E, b.expert_bias_E);
  EXPECT_EQ(a.bias_counts_E, b.bias_counts_E);
  EXPECT_EQ(a.correction_bias_E, b.correction_bias_E);
  EXPECT_EQ(a.quantile_counts_EB, b.quantile_counts_EB);
  EXPECT_EQ(a.quantile_choices, b.quantile_choices);
  EXPECT_EQ(a.balance_counts_E, b.balance_counts_E);
  EXPECT_EQ(a.balance_tokens, b.balance_tokens);
  EXPECT_EQ(a.noise_position, b.noise_position);
  EXPECT_EQ(a.lambda_estimate, b.lambda_estimate);
  EXPECT_EQ(a.lambda_counts, b.lambda_counts);
}

/// Rows [first, first + count) of a matrix.
template <class T>
RowMatrix<T> rows(const RowMatrix<T>& m, Index first, Index count) {
  return m.middleRows(first, count);
}

/// Everything on at once.
inline gatepro::CompleteConfig full_config(Index hidden, Index experts, Index top_k) {
  gatepro::CompleteConfig config{{hidden, experts, top_k}};
  config.competition = gatepro::Competition::eliminate();
  config.scores = {gatepro::ScoreFunction::sigmoid, true, 2.5};
  config.groups = {4, 2, gatepro::GroupScore::top_2};
  config.bias = {true, 1e-2, true};
  config.losses = {1e-2, 2e-2, 3e-2, 1e-3, gatepro::CountSource::dispatched};
  config.capacity = gatepro::CapacityRule{};
  config.capacity->factor = 1.25;
  config.noise.jitter = 0.02;
  config.noise.logit_sigma = 0.1;
  config.noise.seed = 7;
  config.logit_soft_cap = 5;
  return config;
}

}  // namespace complete_data

#endif  // GATEPRO_TESTS_SUPPORT_COMPLETE_DATA_HPP
