// SPDX-License-Identifier: MIT
// What a size query says is enough at any alignment, one byte less is refused, and the bytes around
// a workspace belong to someone else.
#include <gatepro/core/workspace.hpp>

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

#include "gatepro/balance/load_balancing_loss.hpp"
#include "gatepro/balance/quantile_bias.hpp"
#include "gatepro/balance/z_loss.hpp"
#include "gatepro/dispatch/capacity.hpp"
#include "gatepro/dispatch/plan.hpp"
#include "gatepro/gate/gradient.hpp"
#include "gatepro/gate/logits.hpp"
#include "gatepro/partners/cosine_similarity.hpp"
#include "gatepro/partners/search.hpp"
#include "gatepro/router/complete_router.hpp"
#include "gatepro/router/router.hpp"
#include "gatepro/routing/competition.hpp"
#include "gatepro/routing/count_unpenalised.hpp"
#include "gatepro/routing/route_logits.hpp"
#include "gatepro/routing/softmax.hpp"
#include "gatepro/routing/top_k.hpp"
#include "support/bits.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/ids.hpp"
#include "support/inputs.hpp"

namespace {

using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::Workspace;

/// Runs `stage(workspace)`, which returns its outputs, at every misalignment.
template <class T>
void expect_query_suffices(std::size_t bytes, const std::function<RowMatrix<T>(Workspace)>& stage) {
  constexpr std::byte guard{0x5a};
  std::vector<std::byte> aligned(bytes + 64, std::byte{0xff});
  const RowMatrix<T> want = stage(Workspace(aligned.data(), bytes));
  EXPECT_THROW(stage(Workspace(aligned.data(), bytes - 1)), gatepro::Error);
  EXPECT_THROW(stage(Workspace(aligned.data(), 0)), gatepro::Error);
  EXPECT_THROW(stage(Workspace()), gatepro::Error);
  for (std::size_t offset = 0; offset < 64; ++offset) {
    std::vector<std::byte> memory(64 + bytes + 64, guard);
    ASSERT_TRUE(data::same_bits(stage(Workspace(memory.data() + offset, bytes)), want)) << offset;
    for (std::size_t i = 0; i < memory.size(); ++i) {
      if (i >= offset && i < offset + bytes) continue;
      ASSERT_EQ(memory[i], guard) << "offset " << offset << ", byte " << i << " of " << bytes;
    }
  }
}

// The last worker's scratch ends where the workspace ends. Each stage gets a block per worker.
constexpr int workers = 3;
const LastWorkerFirst executor(workers);

TEST(Workspace, GateLogits) {
  for (Index experts : {2, 21}) {
    const auto x_TH = data::random_matrix<gatepro::bfloat16>(48 * 3, 512, 1);
    const auto w_EH = data::random_matrix<float>(experts, 512, 2);
    const std::size_t bytes =
        gatepro::gate_logits_workspace_bytes<gatepro::bfloat16, float>(experts, 512, workers);
    expect_query_suffices<float>(bytes, [&](Workspace workspace) {
      RowMatrix<float> logits_TE(48 * 3, experts);
      gatepro::gate_logits(gatepro::view(x_TH), gatepro::view(w_EH), gatepro::view(logits_TE),
                           workspace, executor);
      return logits_TE;
    });
  }
}

TEST(Workspace, CosineSimilarity) {
  const auto w_EH = data::random_matrix<double>(48 * 3, 9, 3);
  const std::size_t bytes = gatepro::cosine_similarity_workspace_bytes<double>(48 * 3, 9, workers);
  expect_query_suffices<double>(bytes, [&](Workspace workspace) {
    RowMatrix<double> s_EE(48 * 3, 48 * 3);
    gatepro::cosine_similarity(gatepro::view(w_EH), gatepro::view(s_EE), workspace, executor);
    return s_EE;
  });
}

TEST(Workspace, FindPartners) {
  const auto w_EH = data::random_matrix<float>(48 * 3, 9, 3);
  const std::size_t bytes = gatepro::find_partners_workspace_bytes<float>(48 * 3, 9, 2, workers);
  expect_query_suffices<float>(bytes, [&](Workspace workspace) {
    RowMatrix<std::int32_t> partners_EM(48 * 3, 2);
    gatepro::find_partners(gatepro::view(w_EH), {2, -1, false}, {gatepro::view(partners_EM)},
                           workspace, executor);
    return RowMatrix<float>(partners_EM.cast<float>());
  });
}

TEST(Workspace, Competition) {
  const auto logits_TE = data::random_matrix<float>(256 * 3, 5, 4);
  RowMatrix<std::int32_t> partners_EM(5, 1);
  partners_EM << 1, 2, 3, 4, 0;
  const gatepro::RivalTable rivals(gatepro::view(partners_EM), false);
  const std::size_t bytes = gatepro::apply_competition_workspace_bytes<float>(5, workers);
  expect_query_suffices<float>(bytes, [&](Workspace workspace) {
    RowMatrix<float> penalised_TE(256 * 3, 5);
    RowMatrix<std::uint8_t> loser_TE(256 * 3, 5);
    gatepro::apply_competition(gatepro::view(logits_TE), rivals, gatepro::Competition::penalty(1),
                               gatepro::view(penalised_TE), gatepro::view(loser_TE), workspace,
                               executor);
    return penalised_TE;
  });
}

TEST(Workspace, TopK) {
  const auto logits_TE = data::random_matrix<float>(256 * 3, 5, 5);
  const RowMatrix<std::uint8_t> loser_TE = RowMatrix<std::uint8_t>::Ones(256 * 3, 5);
  const std::size_t bytes = gatepro::select_top_k_workspace_bytes<float>(5, 4, workers);
  expect_query_suffices<float>(bytes, [&](Workspace workspace) {
    RowMatrix<std::int32_t> ids_TK(256 * 3, 4);
    RowMatrix<float> selected_TK(256 * 3, 4);
    gatepro::select_top_k(gatepro::view(logits_TE), gatepro::EliminatedExperts(loser_TE),
                          gatepro::strided_view(ids_TK), gatepro::strided_view(selected_TK),
                          workspace, executor);
    return RowMatrix<float>(ids_TK.cast<float>());
  });
}

TEST(Workspace, Softmax) {
  const auto logits_TK = data::random_matrix<double>(256 * 3, 5, 6);
  const std::size_t bytes = gatepro::softmax_selected_workspace_bytes<double>(5, workers);
  expect_query_suffices<double>(bytes, [&](Workspace workspace) {
    RowMatrix<double> weights_TK(256 * 3, 5);
    gatepro::softmax_selected(gatepro::strided_view(logits_TK), gatepro::strided_view(weights_TK),
                              workspace, executor);
    return weights_TK;
  });
}

TEST(Workspace, GateBackward) {
  constexpr Index tokens = 256 * 3, experts = 3, hidden = 130;
  const auto ids_TK = data::random_ids<std::int32_t>(tokens, experts, 2, 7);
  const auto dselected_TK = data::random_matrix<float>(tokens, 2, 8);
  const auto dlogits_TE = data::random_matrix<float>(tokens, experts, 9);
  const auto w_EH = data::random_matrix<gatepro::half>(experts, hidden, 10);
  const auto x_TH = data::random_matrix<gatepro::half>(tokens, hidden, 11);
  expect_query_suffices<float>(
      gatepro::gate_backward_tokens_workspace_bytes<float>(experts, workers),
      [&](Workspace workspace) {
        RowMatrix<float> dx_TH = RowMatrix<float>::Ones(tokens, hidden);
        gatepro::gate_backward_tokens(
            gatepro::Choices{gatepro::strided_view(ids_TK)},
            {gatepro::strided_view(dselected_TK), gatepro::view(dlogits_TE)}, gatepro::view(w_EH),
            gatepro::view(dx_TH), workspace, executor);
        return dx_TH;
      });
  expect_query_suffices<float>(
      gatepro::gate_backward_weights_workspace_bytes<float>(tokens, experts, 2, workers),
      [&](Workspace workspace) {
        RowMatrix<float> dw_EH = RowMatrix<float>::Ones(experts, hidden);
        gatepro::gate_backward_weights(
            gatepro::Choices{gatepro::strided_view(ids_TK)},
            {gatepro::strided_view(dselected_TK), gatepro::view(dlogits_TE)}, gatepro::view(x_TH),
            gatepro::view(dw_EH), workspace, executor);
        return dw_EH;
      });
}

TEST(Workspace, DropOverCapacity) {
  constexpr Index tokens = 50, experts = 5, top_k = 2;
  const auto ids_TK = data::random_ids<std::int32_t>(tokens, experts, top_k, 12);
  for (auto policy : {gatepro::DropPolicy::probability, gatepro::DropPolicy::position}) {
    const std::size_t bytes =
        gatepro::drop_over_capacity_workspace_bytes<float>(tokens, experts, top_k, policy);
    expect_query_suffices<float>(bytes, [&](Workspace workspace) {
      auto weights_TK = data::random_matrix<float>(tokens, top_k, 13);
      RowMatrix<std::uint8_t> kept_TK(tokens, top_k);
      std::vector<std::int64_t> counts(experts);
      gatepro::drop_over_capacity(
          gatepro::Choices{gatepro::strided_view(ids_TK)}, {7, policy},
          gatepro::KeptRouting{gatepro::strided_view(weights_TK), gatepro::strided_view(kept_TK),
                               gatepro::VectorView<std::int64_t>(counts)},
          workspace, executor);
      return weights_TK;
    });
  }
}

TEST(Workspace, PlanDispatch) {
  const auto ids_TK = data::random_ids<std::int32_t>(50, 5, 2, 14);
  expect_query_suffices<float>(gatepro::plan_dispatch_workspace_bytes(5), [&](Workspace workspace) {
    RowMatrix<std::int32_t> row_TK(50, 2);
    gatepro::DispatchPlan<> plan;
    plan.row_TK = gatepro::strided_view(row_TK);
    gatepro::plan_dispatch(gatepro::Choices{gatepro::strided_view(ids_TK)}, 5,
                           gatepro::DispatchRule{}, plan, workspace);
    return RowMatrix<float>(row_TK.cast<float>());
  });
}

// A query says a size; the stage says what is wrong with the shape.
TEST(Workspace, QueriesOfEmptyShapesHaveAnAnswer) {
  EXPECT_NO_THROW((gatepro::gate_logits_workspace_bytes<float, float>(0, 0)));
  EXPECT_NO_THROW(gatepro::cosine_similarity_workspace_bytes<float>(0, 0));
  EXPECT_NO_THROW(gatepro::find_partners_workspace_bytes<float>(0, 0, 0));
  EXPECT_NO_THROW(gatepro::apply_competition_workspace_bytes<float>(0));
  EXPECT_NO_THROW(gatepro::select_top_k_workspace_bytes<float>(0, 0));
  EXPECT_NO_THROW(gatepro::softmax_selected_workspace_bytes<float>(0));
  EXPECT_NO_THROW(gatepro::gate_backward_tokens_workspace_bytes<float>(0));
  EXPECT_NO_THROW(gatepro::gate_backward_weights_workspace_bytes<float>(0, 0, 0));
  EXPECT_NO_THROW(gatepro::drop_over_capacity_workspace_bytes<float>(
      0, 0, 0, gatepro::DropPolicy::probability));
  EXPECT_NO_THROW(gatepro::plan_dispatch_workspace_bytes(0));
}

/// An Error, or a size that holds a byte per unit: no overflow.
template <class Query>
void expect_size_or_error(Index unit, const Query& query) {
  try {
    EXPECT_GE(static_cast<double>(query()), static_cast<double>(unit));
  } catch (const gatepro::Error&) {
  }
}

// Every query with every argument near the borders of int, int32 and the address space.
TEST(Workspace, QueriesOfHugeShapesOverflowNothing) {
  constexpr Index most = std::numeric_limits<Index>::max();
  constexpr int most_workers = std::numeric_limits<int>::max();
  constexpr Index p31 = Index{1} << 31, p62 = Index{1} << 62;
  for (const Index e : {Index{1}, p31 - 1, p31, p62 - 1, p62, most - 63, most}) {
    for (const Index other : {Index{1}, p31 - 1, p31, p62 / 7, p62, most - 255, most}) {
      for (const int count : {1, 3, most_workers}) {
        const Index k = other;
        const auto expect = [&](const auto& query) {
          expect_size_or_error((std::max)(e, count * Index{1}), query);
        };
        expect([&] { return gatepro::select_top_k_workspace_bytes<float>(e, k, count); });
        expect([&] { return gatepro::softmax_selected_workspace_bytes<double>(e, count); });
        expect([&] { return gatepro::apply_competition_workspace_bytes<float>(e, count); });
        expect([&] { return gatepro::gate_logits_workspace_bytes<float, float>(e, other, count); });
        expect([&] { return gatepro::cosine_similarity_workspace_bytes<float>(e, other, count); });
        expect([&] { return gatepro::find_partners_workspace_bytes<float>(e, 3, other, count); });
        expect([&] { return gatepro::find_partners_workspace_bytes<float>(e, other, 1, count); });
        expect([&] { return gatepro::gate_backward_tokens_workspace_bytes<float>(e, count); });
        expect([&] {
          return gatepro::gate_backward_weights_workspace_bytes<float>(other, e, 1, count);
        });
        expect([&] {
          return gatepro::gate_backward_weights_workspace_bytes<float>(1, e, other, count);
        });
        expect([&] { return gatepro::z_loss_workspace_bytes<float>(other, e, count); });
        expect(
            [&] { return gatepro::load_balancing_loss_workspace_bytes<float>(other, e, count); });
        expect([&] {
          return gatepro::sequence_load_balancing_loss_workspace_bytes<float>(3, e, other, count);
        });
        expect([&] {
          gatepro::SelectionRule rule;
          rule.top_k = k;
          return gatepro::route_logits_workspace_bytes<float>(e, rule, count);
        });
        expect([&] { return gatepro::count_unpenalised_workspace_bytes<float>(e, k, count); });
        expect([&] {
          return gatepro::count_needed_bias_workspace_bytes<float>(e, k, gatepro::QuantileRule{},
                                                                   count);
        });
        expect_size_or_error(e, [&] { return gatepro::plan_dispatch_workspace_bytes(e); });
        expect_size_or_error(e, [&] {
          return gatepro::drop_over_capacity_workspace_bytes<float>(
              other, e, k, gatepro::DropPolicy::probability);
        });
        expect([&] {
          return gatepro::Router<float>({other, e, 1}).forward_workspace_bytes(count);
        });
        expect([&] {
          return gatepro::Router<float>({1, e, 1}).backward_workspace_bytes(other, count);
        });
        gatepro::CompleteConfig config;
        static_cast<gatepro::RouterConfig&>(config) = {8, 4, 2};
        config.losses.sequence = 1;
        config.capacity = gatepro::CapacityRule{};
        const gatepro::CompleteRouter<float> router(config);
        expect_size_or_error(e, [&] { return router.outputs_bytes({e}); });
        expect_size_or_error(e, [&] { return router.workspace_bytes({e, count, 1}); });
        expect_size_or_error(other, [&] { return router.workspace_bytes({1, count, other}); });
      }
    }
  }
}

TEST(Workspace, QueriesNameWorkersThatAreNone) {
  gatepro::SelectionRule rule;
  rule.top_k = 2;
  const gatepro::Router<float> router({8, 4, 2});
  for (const int none : {0, -1}) {
    const auto expect_refused = [](const auto& query) { expect_error(query, {"workers >= 1"}); };
    expect_refused([&] { return gatepro::route_logits_workspace_bytes<float>(4, rule, none); });
    expect_refused([&] { return router.forward_workspace_bytes(none); });
    expect_refused([&] { return router.backward_workspace_bytes(5, none); });
  }
}

TEST(Workspace, QueriesRefuseNegativeSizes) {
  for (const Index bad : {Index{-1}, std::numeric_limits<Index>::min()}) {
    EXPECT_THROW(gatepro::select_top_k_workspace_bytes<float>(bad, 1), gatepro::Error);
    EXPECT_THROW(gatepro::select_top_k_workspace_bytes<float>(4, bad), gatepro::Error);
    EXPECT_THROW(gatepro::select_top_k_workspace_bytes<float>(4, 1, -1), gatepro::Error);
    EXPECT_THROW(gatepro::softmax_selected_workspace_bytes<float>(bad), gatepro::Error);
    EXPECT_THROW((gatepro::gate_logits_workspace_bytes<float, float>(4, bad)), gatepro::Error);
    EXPECT_THROW(gatepro::gate_backward_weights_workspace_bytes<float>(bad, 4, 1), gatepro::Error);
    EXPECT_THROW(gatepro::z_loss_workspace_bytes<float>(bad, 4), gatepro::Error);
  }
}

}  // namespace
