// SPDX-License-Identifier: MIT
// The owning helper: what it holds, that it never moves, and that it gives the same results as
// memory of the caller's own.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/bits.hpp"
#include "support/complete_data.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/routing_data.hpp"

namespace {

using data::random_matrix;
using data::same_bits;
using gatepro::Index;
using gatepro::MatrixView;
using gatepro::RowMatrix;
using TestedRouter = gatepro::Router<float>;

constexpr Index hidden = 30, experts = 7, top_k = 3;

template <class T>
RowMatrix<T> copy(MatrixView<const T> m) {
  return Eigen::Map<const RowMatrix<T>>(m.data, m.rows, m.cols);
}

class RoutingBuffersTest : public testing::Test {
 public:
  RoutingBuffersTest() { router.refresh(w, 0); }

  const RowMatrix<float> w = random_matrix<float>(experts, hidden, 1);
  TestedRouter router{gatepro::RouterConfig{hidden, experts, top_k}};
};

TEST_F(RoutingBuffersTest, ForwardAndBackwardLikeMemoryOfOnesOwn) {
  gatepro::RoutingBuffers buffers(router, gatepro::BufferShape{100, 3, 1, true});
  for (const Index tokens : {100, 1, 63, 0}) {
    const auto x = random_matrix<float>(tokens, hidden, 2);
    const auto expected = routing_data::forward(router, x, w);
    const auto report = router.forward(x, w, buffers, ThreadExecutor(3));
    routing_data::expect_same_report(report, expected.report);
    EXPECT_TRUE(same_bits(copy(buffers.expert_ids_TK()), expected.ids_TK));
    EXPECT_TRUE(same_bits(copy(buffers.weights_TK()), expected.weights_TK));
    EXPECT_TRUE(same_bits(copy(buffers.logits_TE()), expected.logits_TE));
    const auto counts = buffers.tokens_per_expert_E();
    EXPECT_EQ(std::vector<std::int64_t>(counts.data, counts.data + counts.size),
              expected.tokens_per_expert_E);

    const gatepro::PackedWeights<float> packed(gatepro::view(w));
    router.forward(x, packed, buffers);
    EXPECT_TRUE(same_bits(copy(buffers.weights_TK()), expected.weights_TK));

    const auto dweights = random_matrix<float>(tokens, top_k, 3);
    const routing_data::Gradients<float> start{random_matrix<float>(tokens, hidden, 4),
                                               random_matrix<float>(experts, hidden, 5)};
    auto gradients = start;
    router.backward(x, w, buffers, {dweights}, {gradients.dx_TH, gradients.dw_EH},
                    ThreadExecutor(3));
    const auto same =
        routing_data::backward(router, x, w, expected, dweights, RowMatrix<float>(), start);
    EXPECT_TRUE(same_bits(gradients.dx_TH, same.dx_TH));
    EXPECT_TRUE(same_bits(gradients.dw_EH, same.dw_EH));
  }
}

TEST_F(RoutingBuffersTest, NothingMoves) {
  gatepro::RoutingBuffers buffers(router, gatepro::BufferShape{50, 1, 1, true});
  const auto before = buffers.view();
  const void* scratch = buffers.workspace().data;
  for (const Index tokens : {50, 7, 0, 50}) {
    buffers.resize(tokens);
    const auto view = buffers.view();
    EXPECT_EQ(view.expert_ids_TK.data, before.expert_ids_TK.data);
    EXPECT_EQ(view.weights_TK.data, before.weights_TK.data);
    EXPECT_EQ(view.logits_TE.data, before.logits_TE.data);
    EXPECT_EQ(view.tokens_per_expert_E.data, before.tokens_per_expert_E.data);
    EXPECT_EQ(buffers.workspace().data, scratch);
    EXPECT_EQ(view.expert_ids_TK.rows, tokens);
    EXPECT_EQ(view.weights_TK.rows, tokens);
    EXPECT_EQ(view.logits_TE.rows, tokens);
    EXPECT_EQ(buffers.expert_ids_TK().rows, tokens);
    EXPECT_EQ(buffers.weights_TK().rows, tokens);
    EXPECT_EQ(buffers.logits_TE().rows, tokens);
  }
}

TEST_F(RoutingBuffersTest, StartsWithAllTokensAndNoExtras) {
  gatepro::RoutingBuffers buffers(router, 12);
  const auto view = buffers.view();
  EXPECT_EQ(view.expert_ids_TK.rows, 12);
  EXPECT_EQ(view.expert_ids_TK.cols, top_k);
  EXPECT_EQ(view.weights_TK.cols, top_k);
  EXPECT_EQ(view.tokens_per_expert_E.size, experts);
  EXPECT_FALSE(view.logits_TE.given());
  EXPECT_FALSE(buffers.logits_TE().given());
  EXPECT_EQ(view.statistics, nullptr);
  EXPECT_GE(buffers.workspace().bytes, router.forward_workspace_bytes());
  EXPECT_GE(buffers.workspace().bytes, router.backward_workspace_bytes(12));
}

TEST_F(RoutingBuffersTest, NoTokensAtAll) {
  gatepro::RoutingBuffers buffers(router, gatepro::BufferShape{0, 1, 1, true});
  const RowMatrix<float> x(0, hidden);
  const auto report = router.forward(x, w, buffers);
  EXPECT_EQ(report.nonfinite_rows, 0);
  EXPECT_EQ(buffers.expert_ids_TK().rows, 0);
  EXPECT_EQ(buffers.tokens_per_expert_E()[0], 0);
  EXPECT_THROW(buffers.resize(1), gatepro::Error);
}

TEST_F(RoutingBuffersTest, CopiesAndMovesOwnTheirMemory) {
  const auto x = random_matrix<float>(20, hidden, 6);
  gatepro::RoutingBuffers buffers(router, 20);
  router.forward(x, w, buffers);
  const auto ids = copy(buffers.expert_ids_TK());
  gatepro::RoutingBuffers<TestedRouter> copied = buffers;
  EXPECT_NE(copied.expert_ids_TK().data, buffers.expert_ids_TK().data);
  const gatepro::RoutingBuffers<TestedRouter> moved = std::move(buffers);
  copied.view().expert_ids_TK(0, 0) = 99;
  EXPECT_TRUE(same_bits(copy(moved.expert_ids_TK()), ids));
  EXPECT_EQ(copied.expert_ids_TK()(0, 0), 99);
  const auto expect_refused = [](const auto& call) {
    expect_error(call, {"RoutingBuffers", "buffers that were not moved from"});
  };
  // NOLINTBEGIN(bugprone-use-after-move)
  expect_refused([&] { router.forward(x, w, buffers); });
  expect_refused([&] { (void)buffers.weights_TK(); });
  expect_refused([&] { (void)buffers.view(); });
  // NOLINTEND(bugprone-use-after-move)
  buffers = copied;
  router.forward(x, w, buffers);
  EXPECT_TRUE(same_bits(copy(buffers.expert_ids_TK()), ids));
}

// Buffers of one router do not fit another of other sizes.
TEST_F(RoutingBuffersTest, OfAnotherRouter) {
  gatepro::RoutingBuffers buffers(router, 10);
  TestedRouter other({hidden, experts, top_k + 1});
  other.refresh(w, 0);
  const auto x = random_matrix<float>(10, hidden, 7);
  EXPECT_THROW(other.forward(x, w, buffers), gatepro::Error);
}

// Workers may come in any integer type, but not as a bool, which would be meant for something else.
TEST(RoutingBuffersTypes, NumbersOfWorkers) {
  using Buffers = gatepro::RoutingBuffers<TestedRouter>;
  static_assert(std::is_constructible_v<Buffers, const TestedRouter&, Index, unsigned>);
  static_assert(std::is_constructible_v<Buffers, const TestedRouter&, gatepro::BufferShape>);
  static_assert(!std::is_constructible_v<Buffers, const TestedRouter&, Index, bool>);
  using Complete = gatepro::CompleteRouter<float>;
  using CompleteBuffers = gatepro::RoutingBuffers<Complete>;
  static_assert(std::is_constructible_v<CompleteBuffers, const Complete&, Index, unsigned>);
  static_assert(!std::is_constructible_v<CompleteBuffers, const Complete&, Index, bool>);
}

TEST(RoutingBuffersTypes, SizesForAnExecutor) {
  const TestedRouter router({hidden, experts, top_k});
  const ThreadExecutor three(3);
  EXPECT_EQ(router.forward_workspace_bytes(three), router.forward_workspace_bytes(3));
  EXPECT_EQ(router.forward_workspace_bytes(gatepro::SerialExecutor{}),
            router.forward_workspace_bytes());
  EXPECT_GT(router.forward_workspace_bytes(three), router.forward_workspace_bytes());
  EXPECT_EQ(router.backward_workspace_bytes(50, three), router.backward_workspace_bytes(50, 3));
  EXPECT_EQ(router.workspace_bytes({50, three}), router.workspace_bytes({50, 3}));
  EXPECT_EQ(gatepro::z_loss_workspace_bytes<float>(50, experts, three),
            gatepro::z_loss_workspace_bytes<float>(50, experts, 3));
  gatepro::RoutingBuffers buffers(router, 50, three);
  EXPECT_EQ(buffers.workspace().bytes, router.workspace_bytes({50, 3}));
  expect_error([&] { (void)router.forward_workspace_bytes(ThreadExecutor(0)); },
               {"workers >= 1", "workers=0"});
  expect_error([&] { gatepro::RoutingBuffers(router, 50, ThreadExecutor(-1)); },
               {"workers >= 1", "workers=-1"});
  static_assert(!std::is_convertible_v<bool, gatepro::Workers>);
  static_assert(!std::is_convertible_v<std::string, gatepro::Workers>);
}

// ---- Outputs in memory of the caller ------------------------------------------------------------

/// Memory that holds what somebody left there, at an odd address.
struct UsedMemory {
  std::vector<std::byte> bytes;
  explicit UsedMemory(std::size_t size) : bytes(size + 1, std::byte{0xA5}) {}
  gatepro::Workspace view() { return {bytes.data() + 1, bytes.size() - 1}; }
};

// Two forwards in flight share a workspace, each with outputs in an arena of the trainer.
TEST(CarvedOutputs, OfACompleteRouterAreThoseOfBuffers) {
  using R = gatepro::CompleteRouter<float>;
  const auto config = complete_data::full_config(hidden, 8, top_k);
  const auto w = random_matrix<float>(8, hidden, 1);
  const std::vector<std::int64_t> begin = {0, 20, 40};
  gatepro::ForwardInputs<> in;
  in.sequence_begin_S1 = begin;
  const gatepro::BufferShape shape{40, 1, 2};
  const auto run = [&](R& router, const auto& out_of, gatepro::Workspace scratch) {
    router.refresh(w, 0);
    std::vector<gatepro::CompleteReport> reports;
    std::vector<RowMatrix<float>> results;
    for (const int step : {0, 1}) {
      const auto x = random_matrix<float>(40, hidden, 2 + std::uint64_t(step));
      reports.push_back(router.forward(x, w, in, out_of(step), scratch));
    }
    for (const int step : {1, 0}) {
      const auto x = random_matrix<float>(40, hidden, 2 + std::uint64_t(step));
      const auto dweights = random_matrix<float>(40, top_k, 4);
      RowMatrix<float> dx = RowMatrix<float>::Zero(40, hidden);
      RowMatrix<float> dw = RowMatrix<float>::Zero(8, hidden);
      const auto out = out_of(step);
      router.backward(x, w, {in, out, reports[std::size_t(step)]}, {dweights}, {dx, dw}, scratch);
      results.insert(results.end(), {data::copy<float>(out.weights_TK), dx, dw});
    }
    return results;
  };
  R router(config), other(config);
  gatepro::RoutingBuffers first(router, shape), second(router, shape);
  const auto want = run(
      router, [&](int step) { return (step == 0 ? first : second).view(); }, first.workspace());
  UsedMemory a(other.outputs_bytes(shape)), b(other.outputs_bytes(shape));
  UsedMemory scratch(other.workspace_bytes(shape));
  const auto got = run(
      other, [&](int step) { return other.outputs(shape, (step == 0 ? a : b).view()); },
      scratch.view());
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(same_bits(got[i], want[i])) << i;
}

TEST(CarvedOutputs, OfARouter) {
  TestedRouter router({hidden, experts, top_k});
  const auto w = random_matrix<float>(experts, hidden, 1), x = random_matrix<float>(9, hidden, 2);
  router.refresh(w, 0);
  const gatepro::BufferShape shape{9, 1, 1, true};
  UsedMemory memory(router.outputs_bytes(shape)), scratch(router.forward_workspace_bytes());
  const auto out = router.outputs(shape, memory.view());
  router.forward(x, w, out, scratch.view());
  const auto want = routing_data::forward(router, x, w);
  EXPECT_TRUE(same_bits(data::copy<std::int32_t>(out.expert_ids_TK), want.ids_TK));
  EXPECT_TRUE(same_bits(data::copy<float>(out.weights_TK), want.weights_TK));
  EXPECT_TRUE(same_bits(copy(MatrixView<const float>(out.logits_TE)), want.logits_TE));
  EXPECT_FALSE(router.outputs({9}, memory.view()).logits_TE.given());
}

TEST(CarvedOutputs, NeedAsMuchMemoryAsTheySay) {
  const TestedRouter router({hidden, experts, top_k});
  const gatepro::CompleteRouter<float> complete(complete_data::full_config(hidden, 8, top_k));
  const auto expect_refused = [](const auto& of) {
    UsedMemory memory(of.outputs_bytes({9}) - 1);
    const auto before = memory.bytes;
    expect_error([&] { (void)of.outputs({9}, memory.view()); },
                 {"outputs", "workspace", "bytes needed"});
    expect_error([&] { (void)of.outputs({9}, {}); }, {"outputs", "workspace"});
    expect_error([&] { (void)of.outputs({-1}, memory.view()); }, {"max_tokens=-1"});
    EXPECT_EQ(memory.bytes, before);
  };
  expect_refused(router);
  expect_refused(complete);
}

TEST(RoutingBuffersTypes, OfACompleteRouterMoveAndCopy) {
  using R = gatepro::CompleteRouter<float>;
  using Buffers = gatepro::RoutingBuffers<R>;
  static_assert(std::is_nothrow_move_constructible_v<Buffers>);
  static_assert(std::is_nothrow_move_assignable_v<Buffers>);
  gatepro::CompleteConfig config{{hidden, experts, top_k}};
  config.competition = gatepro::Competition::off();
  R router(config);
  Buffers buffers(router, 20);
  const auto x = random_matrix<float>(20, hidden, 6), w = random_matrix<float>(experts, hidden, 1);
  router.forward(x, w, {}, buffers);
  const auto before = buffers.view();
  Buffers copied = buffers;
  EXPECT_NE(copied.view().expert_ids_TK.data, before.expert_ids_TK.data);
  EXPECT_TRUE(same_bits(copy(copied.expert_ids_TK()), copy(buffers.expert_ids_TK())));
  EXPECT_EQ(copied.view().forward_id[0], buffers.report().forward_id);
  Buffers moved = std::move(buffers);
  EXPECT_EQ(moved.view().expert_ids_TK.data, before.expert_ids_TK.data);
  EXPECT_EQ(moved.view().forward_id[0], moved.report().forward_id);
}

TEST(RoutingBuffersTypes, FollowTheRouter) {
  using R = gatepro::Router<gatepro::half, double, std::uint64_t>;
  static_assert(std::is_same_v<gatepro::RoutingBuffers<R>::Accumulator, double>);
  static_assert(std::is_same_v<gatepro::RoutingBuffers<R>::ExpertId, std::uint64_t>);
  const R router({3, 4, 2});
  gatepro::RoutingBuffers buffers(router, 5);
  static_assert(std::is_same_v<decltype(buffers.view()), R::Routing>);
  EXPECT_EQ(buffers.weights_TK().rows, 5);
}

}  // namespace
