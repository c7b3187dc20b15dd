// SPDX-License-Identifier: MIT
// Tokens with different numbers of choices, ids of -1 behind them, on the way to the experts and
// back: each consumer against the list of choices that were made.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "support/bits.hpp"
#include "support/conversions.hpp"
#include "support/errors.hpp"
#include "support/ids.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/type_names.hpp"

namespace {

using data::random_matrix;
using gatepro::Choices;
using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::strided_view;
using gatepro::view;

constexpr Index T = 41, E = 9, K = 4, H = 10;

/// A choice that was made.
struct Made {
  Index token, rank, expert;
};

/// Token t makes t mod (K + 1) choices.
template <class Id>
struct Varying {
  RowMatrix<Id> ids_TK = data::random_ids<Id>(T, E, K, 1);
  RowMatrix<double> weights_TK = random_matrix<double>(T, K, 2);
  std::vector<Made> made;
  std::vector<std::int64_t> counts = std::vector<std::int64_t>(E, 0);

  Varying() {
    for (Index t = 0; t < T; ++t) {
      for (Index j = 0; j < K; ++j) {
        if (j < t % (K + 1)) {
          made.push_back({t, j, static_cast<Index>(ids_TK(t, j))});
          ++counts[static_cast<std::size_t>(ids_TK(t, j))];
        } else {
          ids_TK(t, j) = static_cast<Id>(-1);
          weights_TK(t, j) = 0;
        }
      }
    }
  }
  Choices<Id> choices() { return {strided_view(ids_TK)}; }
  /// The choices in the order of a plan: by expert, then by token, or by rank before.
  std::vector<Made> sorted(bool choice_major) const {
    std::vector<Made> rows = made;
    if (choice_major) {
      std::stable_sort(rows.begin(), rows.end(),
                       [](const Made& a, const Made& b) { return a.rank < b.rank; });
    }
    std::stable_sort(rows.begin(), rows.end(),
                     [](const Made& a, const Made& b) { return a.expert < b.expert; });
    return rows;
  }
};

template <class Id>
class VaryingK : public ::testing::Test {};
using Ids = ::testing::Types<std::int32_t, std::int64_t, std::uint64_t>;
TYPED_TEST_SUITE(VaryingK, Ids, TypeNames);

TYPED_TEST(VaryingK, Counts) {
  Varying<TypeParam> batch;
  std::vector<std::int64_t> counts(E, 0);
  gatepro::add_tokens_per_expert(strided_view(batch.ids_TK),
                                 gatepro::VectorView<std::int64_t>(counts));
  EXPECT_EQ(counts, batch.counts);
}

TYPED_TEST(VaryingK, PlanPermuteAndCombineWithTheirGradients) {
  Varying<TypeParam> batch;
  const RowMatrix<double> x_TH = random_matrix<double>(T, H, 3),
                          dy_TH = random_matrix<double>(T, H, 4);
  const auto rows = static_cast<Index>(batch.made.size());
  for (const auto order :
       {gatepro::DispatchOrder::token_major, gatepro::DispatchOrder::choice_major}) {
    gatepro::DispatchPlan<std::int64_t> plan;
    std::vector<std::int64_t> counts(E), token_of_row(batch.made.size()),
        choice_of_row = token_of_row;
    RowMatrix<std::int64_t> row_TK(T, K);
    plan.tokens_per_expert_E = counts;
    plan.token_of_row_N = token_of_row;
    plan.choice_of_row_N = choice_of_row;
    plan.row_TK = row_TK;
    auto memory = data::scratch(gatepro::plan_dispatch_workspace_bytes(E));
    gatepro::DispatchRule rule;
    rule.order = order;
    ASSERT_EQ(gatepro::plan_dispatch(batch.choices(), E, rule, plan, memory), rows);
    EXPECT_EQ(counts, batch.counts);
    const auto sorted = batch.sorted(order == gatepro::DispatchOrder::choice_major);
    RowMatrix<std::int64_t> want_TK = RowMatrix<std::int64_t>::Constant(T, K, -1);
    RowMatrix<double> y_TH = RowMatrix<double>::Zero(T, H),
                      dweights_TK = RowMatrix<double>::Zero(T, K);
    RowMatrix<double> rows_NH(rows, H), drows_NH(rows, H);
    for (Index r = 0; r < rows; ++r) {
      const Made& choice = sorted[static_cast<std::size_t>(r)];
      want_TK(choice.token, choice.rank) = r;
      EXPECT_EQ(token_of_row[static_cast<std::size_t>(r)], choice.token);
      rows_NH.row(r) = x_TH.row(choice.token);
      y_TH.row(choice.token) += batch.weights_TK(choice.token, choice.rank) * rows_NH.row(r);
      dweights_TK(choice.token, choice.rank) = rows_NH.row(r).dot(dy_TH.row(choice.token));
      drows_NH.row(r) = batch.weights_TK(choice.token, choice.rank) * dy_TH.row(choice.token);
    }
    EXPECT_EQ(row_TK, want_TK);

    RowMatrix<double> got_NH(rows, H), got_TH = RowMatrix<double>::Zero(T, H);
    gatepro::permute(plan.token_of_row_N, view(x_TH), view(got_NH));
    EXPECT_EQ(got_NH, rows_NH);
    const gatepro::StridedView<const std::int64_t> row(row_TK);
    const gatepro::StridedView<const double> weights(batch.weights_TK);
    gatepro::combine(row, weights, view(rows_NH), view(got_TH));
    EXPECT_TRUE(got_TH.isApprox(y_TH, 1e-14));
    RowMatrix<double> got_TK = RowMatrix<double>::Zero(T, K);
    gatepro::combine_backward_weights(row, view(rows_NH), view(dy_TH), strided_view(got_TK));
    EXPECT_TRUE(got_TK.isApprox(dweights_TK, 1e-14));
    got_NH.setZero();
    gatepro::combine_backward_rows(plan.choice_of_row_N, weights, view(dy_TH), view(got_NH));
    EXPECT_TRUE(got_NH.isApprox(drows_NH, 1e-14));
    RowMatrix<double> dx_TH = RowMatrix<double>::Zero(T, H), want_TH = dx_TH;
    for (Index r = 0; r < rows; ++r) {
      want_TH.row(sorted[static_cast<std::size_t>(r)].token) += drows_NH.row(r);
    }
    gatepro::permute_backward(row, view(drows_NH), view(dx_TH));
    EXPECT_TRUE(dx_TH.isApprox(want_TH, 1e-14));
    gatepro::permute_scaled(plan.choice_of_row_N, weights, view(x_TH), view(got_NH));
    for (Index r = 0; r < rows; ++r) {
      const Made& choice = sorted[static_cast<std::size_t>(r)];
      EXPECT_TRUE(got_NH.row(r).isApprox(
          batch.weights_TK(choice.token, choice.rank) * x_TH.row(choice.token), 1e-14));
    }
  }
}

TYPED_TEST(VaryingK, DenseRoutingAndItsGradient) {
  Varying<TypeParam> batch;
  RowMatrix<double> probs_TE = random_matrix<double>(T, E, 5),
                    want_TE = RowMatrix<double>::Zero(T, E);
  RowMatrix<std::uint8_t> map_TE(T, E), want_map_TE = RowMatrix<std::uint8_t>::Zero(T, E);
  const RowMatrix<double> dprobs_TE = random_matrix<double>(T, E, 6);
  RowMatrix<double> dweights_TK = RowMatrix<double>::Zero(T, K), want_TK = dweights_TK;
  for (const Made& choice : batch.made) {
    want_TE(choice.token, choice.expert) = batch.weights_TK(choice.token, choice.rank);
    want_map_TE(choice.token, choice.expert) = 1;
    want_TK(choice.token, choice.rank) = dprobs_TE(choice.token, choice.expert);
  }
  gatepro::dense_routing(batch.choices(), E, gatepro::StridedView<const double>(batch.weights_TK),
                         gatepro::DenseRouting<double>{probs_TE, map_TE});
  EXPECT_EQ(probs_TE, want_TE);
  EXPECT_EQ(map_TE, want_map_TE);
  gatepro::dense_routing_backward(batch.choices(), view(dprobs_TE), strided_view(dweights_TK));
  EXPECT_EQ(dweights_TK, want_TK);
}

// A choice that was not made takes no slot, is not lost, and gives no weight away.
TYPED_TEST(VaryingK, Capacity) {
  Varying<TypeParam> batch;
  const Index slots = 5;
  for (const auto policy : {gatepro::DropPolicy::probability, gatepro::DropPolicy::position,
                            gatepro::DropPolicy::choice_major}) {
    std::vector<Made> order = batch.made;
    std::stable_sort(order.begin(), order.end(), [&](const Made& a, const Made& b) {
      if (policy == gatepro::DropPolicy::choice_major) return a.rank < b.rank;
      if (policy == gatepro::DropPolicy::position) return a.token < b.token;
      return batch.weights_TK(a.token, a.rank) > batch.weights_TK(b.token, b.rank);
    });
    RowMatrix<std::uint8_t> want_TK = RowMatrix<std::uint8_t>::Zero(T, K), kept_TK(T, K);
    std::vector<std::int64_t> taken(E, 0), kept_E(E, 77);
    Index dropped = 0;
    for (const Made& choice : order) {
      auto& count = taken[static_cast<std::size_t>(choice.expert)];
      if (count < slots) {
        ++count;
        want_TK(choice.token, choice.rank) = 1;
      } else {
        ++dropped;
      }
    }
    RowMatrix<double> weights_TK = batch.weights_TK;
    auto memory =
        data::scratch(gatepro::drop_over_capacity_workspace_bytes<double>(T, E, K, policy));
    const auto report = gatepro::drop_over_capacity(
        batch.choices(), {slots, policy},
        gatepro::KeptRouting{strided_view(weights_TK), strided_view(kept_TK),
                             gatepro::VectorView<std::int64_t>(kept_E)},
        memory);
    EXPECT_EQ(kept_TK, want_TK);
    EXPECT_EQ(kept_E, taken);
    EXPECT_EQ(report.dropped_choices, dropped);
    EXPECT_GT(dropped, 0);

    std::vector<double> totals(T), sums(T);
    gatepro::total_weights(gatepro::StridedView<const double>(batch.weights_TK),
                           gatepro::VectorView<double>(totals));
    RowMatrix<double> shared_TK = weights_TK;
    gatepro::renormalise_kept(
        Choices{strided_view(batch.ids_TK), {}, gatepro::StridedView<const std::uint8_t>(kept_TK)},
        totals, strided_view(shared_TK), gatepro::VectorView<double>(sums));
    for (Index t = 0; t < T; ++t) {
      const auto kept = kept_TK.row(t).template cast<Index>().sum();
      EXPECT_NEAR(shared_TK.row(t).sum(), kept > 0 ? batch.weights_TK.row(t).sum() : 0, 1e-12);
      if (kept == t % (K + 1)) {
        EXPECT_EQ(shared_TK.row(t), batch.weights_TK.row(t));
      }
    }
  }
}

// Gradients that stand where no choice was made, garbage among them, reach nothing.
TYPED_TEST(VaryingK, GradientsOfTheGate) {
  Varying<TypeParam> batch;
  const RowMatrix<double> x_TH = random_matrix<double>(T, H, 7),
                          w_EH = random_matrix<double>(E, H, 8);
  const RowMatrix<double> dlogits_TE = random_matrix<double>(T, E, 9);
  RowMatrix<double> dselected_TK = random_matrix<double>(T, K, 10);
  for (const bool dense : {false, true}) {
    RowMatrix<double> all_TE = dense ? dlogits_TE : RowMatrix<double>::Zero(T, E);
    for (const Made& choice : batch.made) {
      all_TE(choice.token, choice.expert) += dselected_TK(choice.token, choice.rank);
    }
    const gatepro::LogitGradients<double> gradients{
        dselected_TK, dense ? gatepro::MatrixView<const double>(dlogits_TE)
                            : gatepro::MatrixView<const double>()};
    RowMatrix<double> dx_TH = RowMatrix<double>::Zero(T, H), dw_EH = RowMatrix<double>::Zero(E, H);
    auto tokens_memory = data::scratch(gatepro::gate_backward_tokens_workspace_bytes<double>(E));
    gatepro::gate_backward_tokens(batch.choices(), gradients, view(w_EH), view(dx_TH),
                                  tokens_memory);
    EXPECT_TRUE(dx_TH.isApprox(all_TE * w_EH, 1e-13));
    auto memory = data::scratch(gatepro::gate_backward_weights_workspace_bytes<double>(T, E, K));
    gatepro::gate_backward_weights(batch.choices(), gradients, view(x_TH), view(dw_EH), memory);
    EXPECT_TRUE(dw_EH.isApprox(all_TE.transpose() * x_TH, 1e-13));
    RowMatrix<double> merged_TE = RowMatrix<double>::Zero(T, E);
    gatepro::merge_logit_gradients(batch.choices(), gradients, view(merged_TE));
    EXPECT_TRUE(merged_TE.isApprox(all_TE, 1e-14));
  }
}

// What is neither an expert nor none is refused everywhere.
TEST(VaryingKBadInput, IsRefused) {
  for (const std::int32_t id : {-2, static_cast<std::int32_t>(E)}) {
    Varying<std::int32_t> batch;
    batch.ids_TK(7, 0) = id;
    const std::string got = "id=" + std::to_string(id);
    const auto refused = [&](const auto& call) {
      expect_error(call, {"every id in [0, num_experts), or -1 for none", got.c_str(), "row=7"});
    };
    std::vector<std::int64_t> counts(E, 0);
    std::vector<std::byte> memory(1 << 20);
    RowMatrix<double> probs_TE(T, E), weights_TK = batch.weights_TK, dx_TH(T, H);
    RowMatrix<std::uint8_t> kept_TK(T, K);
    const RowMatrix<double> w_EH = random_matrix<double>(E, H, 8);
    refused([&] {
      gatepro::add_tokens_per_expert(strided_view(batch.ids_TK),
                                     gatepro::VectorView<std::int64_t>(counts));
    });
    refused([&] {
      gatepro::plan_dispatch(batch.choices(), E, gatepro::DispatchRule{},
                             gatepro::DispatchPlan<std::int32_t>{}, memory);
    });
    refused([&] {
      gatepro::dense_routing(batch.choices(), E, gatepro::StridedView<const double>(weights_TK),
                             gatepro::DenseRouting<double>{probs_TE});
    });
    refused([&] {
      gatepro::drop_over_capacity(
          batch.choices(), {5, gatepro::DropPolicy::position},
          gatepro::KeptRouting{strided_view(weights_TK), strided_view(kept_TK),
                               gatepro::VectorView<std::int64_t>(counts)},
          memory);
    });
    refused([&] {
      gatepro::gate_backward_tokens(batch.choices(), {strided_view(weights_TK)}, view(w_EH),
                                    view(dx_TH), memory);
    });
  }
}

}  // namespace
