// SPDX-License-Identifier: MIT
// Rows that other ranks sent, by expert; and what an exchange of rows is told.
#include <gatepro/dispatch.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <tuple>
#include <vector>

#include "support/bits.hpp"
#include "support/errors.hpp"
#include "support/ids.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"

namespace {

using data::random_matrix;
using gatepro::DispatchPlan;
using gatepro::DispatchRule;
using gatepro::Index;
using gatepro::MatrixView;
using gatepro::RowMatrix;
using gatepro::strided_view;
using gatepro::VectorView;
using gatepro::view;
using Counts = RowMatrix<std::int64_t>;
using List = std::vector<std::int64_t>;

/// Everything that a plan of received rows can hold.
struct Plan {
  List counts, offsets, choices, tokens, flat, rows, positions;
  Index size = 0;

  Plan(Index received, Index experts, Index most_rows)
      : counts(std::size_t(experts), 77),
        offsets(std::size_t(experts + 1), 77),
        choices(std::size_t(most_rows), 77),
        tokens(choices),
        flat(choices),
        rows(std::size_t(received), 77),
        positions(rows) {}
  DispatchPlan<std::int64_t> view() {
    DispatchPlan<std::int64_t> plan;
    plan.tokens_per_expert_E = counts;
    plan.offsets_E1 = offsets;
    plan.choice_of_row_N = choices;
    plan.token_of_row_N = tokens;
    plan.flat_index_of_row_N = flat;
    plan.row_TK = {rows.data(), Index(rows.size()), 1};
    plan.position_TK = {positions.data(), Index(rows.size()), 1};
    return plan;
  }
  bool operator==(const Plan& other) const {
    const auto all = [](const Plan& p) {
      return std::tie(p.counts, p.offsets, p.choices, p.tokens, p.flat, p.rows, p.positions,
                      p.size);
    };
    return all(*this) == all(other);
  }
};

/// The experts of the rows, as they come.
RowMatrix<std::int32_t> experts_of(const Counts& counts_SE) {
  std::vector<std::int32_t> ids;
  for (Index s = 0; s < counts_SE.rows(); ++s) {
    for (Index e = 0; e < counts_SE.cols(); ++e) {
      ids.insert(ids.end(), std::size_t(counts_SE(s, e)), std::int32_t(e));
    }
  }
  return Eigen::Map<RowMatrix<std::int32_t>>(ids.data(), Index(ids.size()), 1);
}

Counts random_counts(Index sources, Index experts, std::uint64_t seed) {
  Counts counts(sources, experts);
  for (Index i = 0; i < counts.size(); ++i) {
    counts.data()[i] = data::random_below(6, seed, std::uint64_t(i));
  }
  return counts;
}

// It is the plan of a routing of the received rows, one choice each.
TEST(Regroup, IsAPlanOfTheRowsThatCame) {
  for (const auto& [sources, experts] :
       {std::pair<Index, Index>{1, 1}, {1, 5}, {4, 1}, {3, 7}, {8, 16}, {0, 3}}) {
    for (const DispatchRule& rule :
         {DispatchRule{}, DispatchRule{gatepro::DispatchOrder::choice_major, 4},
          DispatchRule{gatepro::DispatchOrder::token_major, 8, 48, 48}}) {
      const Counts counts = random_counts(sources, experts, std::uint64_t(sources * 7 + experts));
      const auto ids = experts_of(counts);
      const Index most = gatepro::max_dispatch_rows(ids.rows(), experts, 1, rule);
      Plan got(ids.rows(), experts, most), want = got;
      auto memory = data::scratch(gatepro::plan_regroup_workspace_bytes(experts));
      got.size = gatepro::plan_regroup(view(counts), rule, got.view(), memory);
      want.size =
          gatepro::plan_dispatch(gatepro::Choices{view(ids)}, experts, rule, want.view(), memory);
      EXPECT_TRUE(got == want) << sources << " sources, " << experts << " experts";
      const RowMatrix<int> narrow = counts.cast<int>();
      Plan again(ids.rows(), experts, most);
      again.size = gatepro::plan_regroup(view(narrow), rule, again.view(), memory);
      EXPECT_TRUE(again == want);
    }
  }
}

/// MPI_Alltoallv of rows between ranks in one process.
struct Side {
  std::vector<int> counts, displacements;
};
Side side_of(MatrixView<const std::int64_t> counts_RE, Index elements_per_row) {
  Side side{std::vector<int>(std::size_t(counts_RE.rows)),
            std::vector<int>(std::size_t(counts_RE.rows))};
  gatepro::exchange_counts(counts_RE, elements_per_row, {side.counts, side.displacements});
  return side;
}
std::vector<RowMatrix<float>> exchange(const std::vector<RowMatrix<float>>& sent,
                                       const std::vector<Side>& send,
                                       const std::vector<Side>& receive) {
  const std::size_t ranks = sent.size();
  std::vector<RowMatrix<float>> received;
  for (std::size_t to = 0; to < ranks; ++to) {
    const int size = receive[to].counts.back() + receive[to].displacements.back();
    RowMatrix<float> rows(size / sent[0].cols(), sent[0].cols());
    for (std::size_t from = 0; from < ranks; ++from) {
      EXPECT_EQ(send[from].counts[to], receive[to].counts[from]);
      std::copy_n(sent[from].data() + send[from].displacements[to], send[from].counts[to],
                  rows.data() + receive[to].displacements[from]);
    }
    received.push_back(rows);
  }
  return received;
}

// Tokens of three ranks go to six experts, two per rank, and come back weighed: as on one rank.
TEST(Regroup, ALayerOnSeveralRanksIsThatOfOne) {
  constexpr Index ranks = 3, experts = 6, each = experts / ranks, hidden = 4, top_k = 2;
  const Index tokens[ranks] = {10, 0, 17};
  const auto expert_output = [](const auto& rows, Index e) { return rows * float(e + 1); };
  std::vector<RowMatrix<float>> sent, x;
  std::vector<RowMatrix<std::int32_t>> row_TK;
  std::vector<RowMatrix<float>> weights;
  std::vector<Side> send;
  Counts counts_RE(ranks, experts);
  for (Index r = 0; r < ranks; ++r) {
    const auto seed = std::uint64_t(r);
    x.push_back(random_matrix<float>(tokens[r], hidden, 10 + seed));
    weights.push_back(random_matrix<float>(tokens[r], top_k, 20 + seed));
    const auto ids = data::random_ids<std::int32_t>(tokens[r], experts, top_k, 30 + seed);
    row_TK.push_back(RowMatrix<std::int32_t>(tokens[r], top_k));
    std::vector<std::int32_t> token_of_row(std::size_t(tokens[r] * top_k));
    DispatchPlan<> plan;
    plan.tokens_per_expert_E = {&counts_RE(r, 0), experts};
    plan.token_of_row_N = token_of_row;
    plan.row_TK = row_TK.back();
    auto memory = data::scratch(gatepro::plan_dispatch_workspace_bytes(experts));
    gatepro::plan_dispatch(gatepro::Choices{view(ids)}, experts, {}, plan, memory);
    sent.push_back(RowMatrix<float>(tokens[r] * top_k, hidden));
    gatepro::permute(plan.token_of_row_N, x.back(), view(sent.back()));
    send.push_back(side_of({&counts_RE(r, 0), ranks, each}, hidden));
  }
  std::vector<Side> receive;
  std::vector<Counts> counts_SE;  // what an exchange of the counts gives
  for (Index r = 0; r < ranks; ++r) {
    counts_SE.push_back(counts_RE.middleCols(r * each, each));
    receive.push_back(side_of(counts_SE.back(), hidden));
  }
  std::vector<RowMatrix<float>> back;
  const auto received = exchange(sent, send, receive);
  for (Index r = 0; r < ranks; ++r) {
    const RowMatrix<float>& here = received[std::size_t(r)];
    Plan plan(here.rows(), each, here.rows());
    auto memory = data::scratch(gatepro::plan_regroup_workspace_bytes(each));
    ASSERT_EQ(gatepro::plan_regroup(view(counts_SE[std::size_t(r)]), {}, plan.view(), memory),
              here.rows());
    RowMatrix<float> rows(here.rows(), hidden), out(here.rows(), hidden);
    gatepro::permute(VectorView<const std::int64_t>(plan.tokens), here, view(rows));
    for (Index e = 0; e < each; ++e) {
      const Index first = Index(plan.offsets[std::size_t(e)]);
      const Index count = Index(plan.counts[std::size_t(e)]);
      const RowMatrix<float> result = expert_output(rows.middleRows(first, count), r * each + e);
      rows.middleRows(first, count) = result;
    }
    gatepro::permute(VectorView<const std::int64_t>(plan.rows), rows, view(out));
    back.push_back(out);
  }
  const auto returned = exchange(back, receive, send);
  for (Index r = 0; r < ranks; ++r) {
    const auto at = std::size_t(r);
    RowMatrix<float> y = RowMatrix<float>::Zero(tokens[r], hidden);
    gatepro::combine(strided_view(row_TK[at]), weights[at], view(returned[at]), view(y));
    const auto ids = data::random_ids<std::int32_t>(tokens[r], experts, top_k, 30 + at);
    RowMatrix<double> want = RowMatrix<double>::Zero(tokens[r], hidden);
    for (Index t = 0; t < tokens[r]; ++t) {
      for (Index j = 0; j < top_k; ++j) {
        want.row(t) +=
            double(weights[at](t, j)) * expert_output(x[at].row(t), ids(t, j)).cast<double>();
      }
    }
    EXPECT_LT((y.cast<double>() - want).cwiseAbs().sum(), 1e-4);
  }
}

TEST(ExchangeCounts, AreRunningSumsInElements) {
  const Counts counts = (Counts(3, 2) << 1, 2, 0, 0, 4, 5).finished();
  const Side side = side_of(counts, 10);
  EXPECT_EQ(side.counts, (std::vector<int>{30, 0, 90}));
  EXPECT_EQ(side.displacements, (std::vector<int>{0, 30, 30}));
  std::vector<int> only(3, 77);
  gatepro::exchange_counts(view(counts), 1, {only});
  EXPECT_EQ(only, (std::vector<int>{3, 0, 9}));
  gatepro::exchange_counts(view(counts), 1, {{}, only});
  EXPECT_EQ(only, (std::vector<int>{0, 3, 3}));
}

// 2^31 elements: too many for a count, or only for the displacement of the last rank.
TEST(ExchangeCounts, BeyondAnIntAreRefused) {
  std::vector<int> out(2, 77), displacements(2, 77);
  const auto refused = [&](const Counts& counts, Index elements,
                           std::initializer_list<const char*> parts) {
    expect_error(
        [&] {
          gatepro::exchange_counts(view(counts), elements, {out, displacements});
        },
        parts);
    EXPECT_EQ(out, std::vector<int>(2, 77));
    EXPECT_EQ(displacements, std::vector<int>(2, 77));
  };
  constexpr std::int64_t half = std::int64_t{1} << 30;
  refused((Counts(2, 1) << 2 * half, 0).finished(), 1,
          {"exchange_counts", "within an int", "rank=0"});
  refused((Counts(2, 1) << half / 8, 1).finished(), 16, {"within an int", "count=2147483648"});
  refused((Counts(2, 2) << half, half, 0, 0).finished(), 1, {"within an int", "rank=0"});
  refused((Counts(2, 1) << 3, -1).finished(), 1, {"counts_RE", "count=-1", "rank=1", "expert=0"});
  refused((Counts(2, 1) << 3, 1).finished(), 0, {"elements_per_row=0"});
  refused((Counts(3, 1) << 3, 1, 1).finished(), 1, {"counts_R", "size=2", "size needed=3"});
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  refused((Counts(2, 1) << most, most).finished(), 1, {"address space"});
  std::vector<int> three(3, 77);
  const Counts late = (Counts(3, 1) << half, half, 5).finished();
  expect_error([&] { gatepro::exchange_counts(view(late), 1, {three}); },
               {"within an int", "rank=2", "count=5", "displacement=2147483648"});
  EXPECT_EQ(three, std::vector<int>(3, 77));
  const Counts fits = (Counts(2, 1) << 2 * half - 1, 5).finished();
  EXPECT_NO_THROW(gatepro::exchange_counts(view(fits), 1, {out, displacements}));
  EXPECT_EQ(displacements[1], std::numeric_limits<int>::max());
}

TEST(Regroup, BadInputWritesNothing) {
  Counts counts = (Counts(2, 2) << 1, 2, 3, 4).finished();
  Plan plan(10, 2, 10);
  const Plan untouched = plan;
  auto memory = data::scratch(gatepro::plan_regroup_workspace_bytes(2));
  const auto refused = [&](const DispatchRule& rule, const DispatchPlan<std::int64_t>& out,
                           gatepro::Workspace scratch, std::initializer_list<const char*> parts) {
    expect_error([&] { gatepro::plan_regroup(view(counts), rule, out, scratch); }, parts);
    EXPECT_TRUE(plan == untouched);
  };
  refused({{}, 0}, plan.view(), memory, {"plan_regroup", "alignment=0"});
  refused({{}, 4}, plan.view(), memory, {"plan_regroup", "choice_of_row_N", "size=10", "rows=12"});
  refused({{}, 1, 5}, plan.view(), memory, {"rows_per_expert for every", "choices=6"});
  refused({}, plan.view(), {memory.data(), memory.size() - 1}, {"plan_regroup", "workspace"});
  auto out = plan.view();
  out.row_TK.rows = 9;
  refused({}, out, memory, {"row_TK", "rows=9", "rows needed=10"});
  out = plan.view();
  out.token_of_row_N = out.choice_of_row_N;
  refused({}, out, memory, {"choice_of_row_N and token_of_row_N overlap"});
  counts(1, 0) = -3;
  refused({}, plan.view(), memory, {"plan_regroup", "counts_SE", "count=-3", "rank=1", "expert=0"});
  expect_error(
      [&] { gatepro::plan_regroup(MatrixView<int>(nullptr, 0, 0), {}, plan.view(), memory); },
      {"plan_regroup", "num_experts=0"});
}

}  // namespace
