// SPDX-License-Identifier: MIT
// What other stacks read of a whole router, and hand back to it. Each loop works as the consumer
// does, on the memory that the router, the plan or the dense routing wrote. Plans alone:
// dispatch_plan_test.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "support/bits.hpp"
#include "support/conversions.hpp"
#include "support/inputs.hpp"
#include "support/reference/gate.hpp"

namespace {

using data::random_matrix;
using gatepro::bfloat16;
using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::strided_view;
using gatepro::view;
using Id = std::int64_t;

constexpr Index tokens = 40, hidden = 24, experts = 13, top_k = 3;
constexpr auto choices = std::size_t(tokens * top_k), cells = std::size_t(tokens * experts);

/// A forward of a router in which losers are eliminated.
template <class X, class W>
struct Routed {
  RowMatrix<X> x_TH = random_matrix<X>(tokens, hidden, 1);
  RowMatrix<W> w_EH = random_matrix<W>(experts, hidden, 2);
  gatepro::Router<X, W, Id> router{config()};
  gatepro::RoutingBuffers<gatepro::Router<X, W, Id>> buffers{router, tokens};

  Routed() {
    router.refresh(w_EH, 0);
    router.forward(x_TH, w_EH, buffers);
  }
  static gatepro::RouterConfig config() {
    gatepro::RouterConfig config{hidden, experts, top_k};
    config.competition = gatepro::Competition::eliminate();
    return config;
  }
  gatepro::Choices<const Id> chosen() const { return {buffers.expert_ids_TK()}; }

  /// The gradients by the double reference.
  reference::Gradients gradients(const RowMatrix<float>& dweights_TK) const {
    return reference::backward(data::to_reference(x_TH), data::to_reference(w_EH),
                               data::to_ids(buffers.expert_ids_TK()),
                               data::nested<double>(buffers.weights_TK(), tokens, top_k),
                               data::to_reference(dweights_TK), {});
  }
};

template <class A>
void expect_close(const RowMatrix<A>& got, const reference::Matrix& want, double tolerance) {
  for (Index r = 0; r < got.rows(); ++r) {
    for (Index c = 0; c < got.cols(); ++c) {
      ASSERT_NEAR(static_cast<double>(got(r, c)), data::at(want, r, c), tolerance)
          << r << ", " << c;
    }
  }
}

// InfiniTrain: [T, E] probabilities and bools. Its dispatcher scans each column of the bools: int64
// tokens in this order, where each stands in the probabilities, and counts.
TEST(Consumers, InfiniTrainReadsDenseRouting) {
  Routed<float, float> routed;
  std::vector<float> probs(cells);
  const auto routing_map = std::make_unique<bool[]>(cells);
  const gatepro::DenseRouting<float> dense{
      {probs.data(), tokens, experts},
      {reinterpret_cast<std::uint8_t*>(routing_map.get()), tokens, experts}};
  gatepro::dense_routing<const Id, float>(routed.chosen(), experts, routed.buffers.weights_TK(),
                                          dense);
  std::vector<std::int64_t> sorted(choices), in_probs(choices), counts(experts);
  gatepro::DispatchPlan<std::int64_t> plan;
  plan.tokens_per_expert_E = counts;
  plan.token_of_row_N = sorted;
  plan.flat_index_of_row_N = in_probs;
  std::vector<std::byte> scratch(gatepro::plan_dispatch_workspace_bytes(experts));
  EXPECT_EQ(gatepro::plan_dispatch(routed.chosen(), experts, {}, plan, scratch), tokens * top_k);

  std::vector<std::int64_t> their_sorted, their_in_probs, their_counts;
  for (std::int64_t e = 0; e < experts; ++e) {
    const std::size_t before = their_sorted.size();
    for (std::int64_t t = 0; t < tokens; ++t) {
      if (!routing_map[std::size_t(t * experts + e)]) continue;
      their_sorted.push_back(t);
      their_in_probs.push_back(t * experts + e);
    }
    their_counts.push_back(std::int64_t(their_sorted.size() - before));
  }
  EXPECT_EQ(sorted, their_sorted);
  EXPECT_EQ(in_probs, their_in_probs);
  EXPECT_EQ(counts, their_counts);
  for (Index t = 0; t < tokens; ++t) {
    float sum = 0;
    for (Index e = 0; e < experts; ++e) {
      const auto cell = std::size_t(t * experts + e);
      EXPECT_TRUE(routing_map[cell] || probs[cell] == 0);
      sum += probs[cell];
    }
    EXPECT_NEAR(sum, 1, 1e-6);
  }
}

// Its probabilities are gathered row by row, so their gradient comes back dense.
TEST(Consumers, InfiniTrainHandsBackDenseGradients) {
  Routed<float, float> routed;
  const auto dprobs_TE = random_matrix<float>(tokens, experts, 3);
  RowMatrix<float> dweights_TK = RowMatrix<float>::Zero(tokens, top_k);
  gatepro::dense_routing_backward(routed.chosen(), view(dprobs_TE), strided_view(dweights_TK));
  RowMatrix<float> dx_TH = RowMatrix<float>::Zero(tokens, hidden);
  RowMatrix<float> dw_EH = RowMatrix<float>::Zero(experts, hidden);
  routed.router.backward(routed.x_TH, routed.w_EH, routed.buffers, {dweights_TK}, {dx_TH, dw_EH});

  RowMatrix<float> gathered_TK(tokens, top_k);
  const auto ids_TK = routed.buffers.expert_ids_TK();
  for (Index t = 0; t < tokens; ++t) {
    for (Index j = 0; j < top_k; ++j) gathered_TK(t, j) = dprobs_TE(t, ids_TK(t, j));
  }
  const auto want = routed.gradients(gathered_TK);
  expect_close(dx_TH, want.dx_TH, 1e-5);
  expect_close(dw_EH, want.dw_EH, 1e-5);
}

// ktransformers' fine-tuning: tokens in bfloat16, `const int64_t* ids` and `const float* weights`
// of [qlen, k]; its backward fills `float grad_weights[qlen, k]` and leaves the router to its
// caller.
TEST(Consumers, KtransformersFineTuningTakesPointersAndHandsBackGradients) {
  Routed<bfloat16, float> routed;
  const std::int64_t* ids = routed.buffers.expert_ids_TK().data;
  const float* weights = routed.buffers.weights_TK().data;
  ASSERT_EQ(routed.buffers.expert_ids_TK().row_stride, top_k);
  ASSERT_EQ(routed.buffers.weights_TK().row_stride, top_k);

  // Experts that scale: y = sum of weights[t, j] (id + 1) x.
  const auto dy_TH = random_matrix<float>(tokens, hidden, 3);
  std::vector<float> grad_weights(choices);
  for (Index t = 0; t < tokens; ++t) {
    float sum = 0;
    for (Index j = 0; j < top_k; ++j) {
      const auto at = std::size_t(t * top_k + j);
      float dot = 0;
      for (Index h = 0; h < hidden; ++h) dot += dy_TH(t, h) * float(routed.x_TH(t, h));
      grad_weights[at] = dot * float(ids[at] + 1);
      sum += weights[at];
    }
    EXPECT_NEAR(sum, 1, 1e-6);
  }
  const gatepro::MatrixView<const float> dweights_TK(grad_weights.data(), tokens, top_k);
  RowMatrix<bfloat16> dx_TH = RowMatrix<bfloat16>::Zero(tokens, hidden);
  RowMatrix<float> dw_EH = RowMatrix<float>::Zero(experts, hidden);
  routed.router.backward(routed.x_TH, routed.w_EH, routed.buffers, {dweights_TK},
                         gatepro::GateGradients<float, bfloat16>{dx_TH, dw_EH});

  const auto want =
      routed.gradients(Eigen::Map<const RowMatrix<float>>(grad_weights.data(), tokens, top_k));
  expect_close(dw_EH, want.dw_EH, 1e-3);
  for (Index t = 0; t < tokens; ++t) {
    for (Index h = 0; h < hidden; ++h) {
      const double exact = data::at(want.dx_TH, t, h);
      ASSERT_NEAR(double(float(dx_TH(t, h))), exact, std::abs(exact) / 256 + 1e-4);
    }
  }
}

// TransformerEngine's fused router has its map as bool [T, E], as bits of [T, ceil(E / 8)] bytes,
// the lowest for the lowest expert, or as ids [T, K]. Its permutation by a map gives each (token,
// expert) the number of those before it, expert after expert, as row.
TEST(Consumers, TransformerEngineReadsBothMaps) {
  Routed<float, float> routed;
  RowMatrix<float> probs_TE(tokens, experts);
  RowMatrix<std::uint8_t> bytes_TE(tokens, experts), bits_TB(tokens, 2);
  gatepro::dense_routing<const Id, float>(routed.chosen(), experts, routed.buffers.weights_TK(),
                                          {probs_TE, bytes_TE, bits_TB});
  RowMatrix<std::int32_t> row_TK(tokens, top_k);
  gatepro::DispatchPlan<std::int32_t> plan;
  plan.row_TK = strided_view(row_TK);
  std::vector<std::byte> scratch(gatepro::plan_dispatch_workspace_bytes(experts));
  gatepro::plan_dispatch(routed.chosen(), experts, {}, plan, scratch);

  RowMatrix<std::int32_t> row_id_map_TE = RowMatrix<std::int32_t>::Constant(tokens, experts, -1);
  std::int32_t rows = 0;
  for (Index e = 0; e < experts; ++e) {
    for (Index t = 0; t < tokens; ++t) {
      EXPECT_EQ((bits_TB(t, e / 8) >> (e % 8)) & 1, bytes_TE(t, e));
      if (bytes_TE(t, e) != 0) row_id_map_TE(t, e) = rows++;
    }
  }
  EXPECT_EQ(rows, tokens * top_k);
  const auto ids_TK = routed.buffers.expert_ids_TK();
  const auto weights_TK = routed.buffers.weights_TK();
  for (Index t = 0; t < tokens; ++t) {
    EXPECT_EQ(bits_TB(t, 1) >> (experts - 8), 0);
    for (Index j = 0; j < top_k; ++j) {
      EXPECT_EQ(row_id_map_TE(t, ids_TK(t, j)), row_TK(t, j));
      EXPECT_EQ(probs_TE(t, ids_TK(t, j)), weights_TK(t, j));
    }
  }
}

}  // namespace
