// SPDX-License-Identifier: MIT
// One const router, many threads, under the thread sanitizer: each with a workspace of its own.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <vector>

#include "support/bits.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/routing_data.hpp"

namespace {

using data::random_matrix;
using data::same_bits;
using gatepro::Index;
using gatepro::RowMatrix;
using TestedRouter = gatepro::Router<float>;

// Stands first: nothing before it has asked for the instruction set.
TEST(Threads, FirstUseOfTheInstructionSet) {
  std::vector<const char*> names(8);
  ThreadExecutor(8).run(
      8, [&](int i) { names[static_cast<std::size_t>(i)] = gatepro::instruction_set(); });
  for (const char* name : names) EXPECT_STREQ(name, names[0]);
}

class SharedRouter : public testing::Test {
 public:
  // Enough tiles that no thread can take them all before the others start.
  static constexpr Index tokens = 1500, hidden = 40, experts = 9, top_k = 3;

  static TestedRouter make() {
    gatepro::RouterConfig config{hidden, experts, top_k};
    config.competition = gatepro::Competition::eliminate();
    return TestedRouter(config);
  }
  SharedRouter() { router.refresh(w, 0); }

  /// All that a trainer does with a router between two refreshes.
  template <class Executor>
  void expect_same_step(const Executor& executor) const {
    const auto outcome = routing_data::forward(router, x, w, executor);
    routing_data::expect_same_outcome(outcome, whole);
    const auto gradients =
        routing_data::backward(router, x, w, outcome, dweights, dlogits, start, executor);
    EXPECT_TRUE(same_bits(gradients.dx_TH, expected.dx_TH));
    EXPECT_TRUE(same_bits(gradients.dw_EH, expected.dw_EH));
    EXPECT_EQ(router.similarity_cache().mean_partner_similarity(), partner_similarity);
    EXPECT_FALSE(router.similarity_cache().is_due(0));
  }

  TestedRouter router = make();
  const RowMatrix<float> x = random_matrix<float>(tokens, hidden, 1);
  const RowMatrix<float> w = random_matrix<float>(experts, hidden, 2);
  const RowMatrix<float> dweights = random_matrix<float>(tokens, top_k, 3);
  const RowMatrix<float> dlogits = random_matrix<float>(tokens, experts, 4);
  const routing_data::Gradients<float> start{random_matrix<float>(tokens, hidden, 5),
                                             random_matrix<float>(experts, hidden, 6)};
  routing_data::Outcome<TestedRouter> whole{router, tokens};
  routing_data::Gradients<float> expected;
  double partner_similarity = 0;

  void SetUp() override {
    whole = routing_data::forward(router, x, w);
    expected = routing_data::backward(router, x, w, whole, dweights, dlogits, start);
    partner_similarity = router.similarity_cache().mean_partner_similarity();
  }
};

TEST_F(SharedRouter, ConcurrentStepsWithSerialExecutors) {
  ThreadExecutor(6).run(6, [&](int) {
    for (int round = 0; round < 5; ++round) expect_same_step(gatepro::SerialExecutor{});
  });
}

TEST_F(SharedRouter, ConcurrentStepsWithThreadsOfTheirOwn) {
  ThreadExecutor(3).run(3, [&](int i) {
    for (int round = 0; round < 3; ++round) expect_same_step(ThreadExecutor(i + 1));
  });
}

TEST_F(SharedRouter, OneExecutorWithMoreThreadsThanWork) { expect_same_step(ThreadExecutor(16)); }

TEST_F(SharedRouter, SharedPackedWeights) {
  const gatepro::PackedWeights<float> packed(gatepro::view(w));
  ThreadExecutor(4).run(4, [&](int) {
    routing_data::Outcome<TestedRouter> outcome(router, tokens);
    auto memory = data::scratch(router.forward_workspace_bytes());
    outcome.report = router.forward(x, packed, outcome.view(), memory);
    routing_data::expect_same_outcome(outcome, whole);
  });
}

// A trainer's own threads: the batch cut by hand, dW by experts, nothing shared but input.
TEST_F(SharedRouter, StagesOnRanges) {
  constexpr int workers = 4;
  routing_data::Outcome<TestedRouter> outcome(router, tokens);
  auto gradients = start;
  RowMatrix<float> dselected(tokens, top_k);
  ThreadExecutor(workers).run(workers, [&](int i) {
    const Index first = tokens * i / workers;
    const Index count = tokens * (i + 1) / workers - first;
    auto memory = data::scratch(router.forward_workspace_bytes());
    auto out = outcome.view();
    out.tokens_per_expert_E = {};
    out.statistics = nullptr;
    out.expert_ids_TK = out.expert_ids_TK.middle_rows(first, count);
    out.weights_TK = out.weights_TK.middle_rows(first, count);
    out.logits_TE = out.logits_TE.middle_rows(first, count);
    router.forward(gatepro::view(x).middle_rows(first, count), w, out, memory);
    gatepro::softmax_backward(gatepro::StridedView<float>(out.weights_TK),
                              gatepro::strided_view(dweights).middle_rows(first, count),
                              gatepro::strided_view(dselected).middle_rows(first, count));
  });
  routing_data::expect_same_routing(outcome, whole);
  ThreadExecutor(workers).run(workers, [&](int i) {
    const gatepro::ExpertRange range{experts * i / workers, experts * (i + 1) / workers};
    auto memory = data::scratch(
        gatepro::gate_backward_weights_workspace_bytes<float>(tokens, experts, top_k));
    gatepro::gate_backward_weights(gatepro::Choices{gatepro::strided_view(outcome.ids_TK)},
                                   {gatepro::strided_view(dselected), gatepro::view(dlogits)},
                                   gatepro::view(x), gatepro::view(gradients.dw_EH), memory,
                                   gatepro::SerialExecutor{}, range);
  });
  EXPECT_TRUE(same_bits(gradients.dw_EH, expected.dw_EH));
}

}  // namespace
