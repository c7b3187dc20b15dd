// SPDX-License-Identifier: MIT
// Weights of experts that were chosen before.
#include <gatepro/routing/weigh_choices.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

#include "support/bits.hpp"
#include "support/conversions.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/ids.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/reference/routing.hpp"
#include "support/scored_data.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::Competition;
using gatepro::GroupLimit;
using gatepro::GroupScore;
using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;
using gatepro::SelectionRule;
using gatepro::StridedView;
using scored_data::Bytes;
using scored_data::Extras;

template <class A>
struct Replay {
  RowMatrix<A> weights_TK;
  RowMatrix<A> scores_TK;
  gatepro::RoutingReport report;
};

/// An empty penalised_TK stands for none.
template <class A, class Id, class Executor = gatepro::SerialExecutor>
Replay<A> replay(const RowMatrix<A>& logits_TE, const SelectionRule& rule,
                 const RowMatrix<Id>& ids_TK, const Bytes& penalised_TK,
                 const std::vector<std::uint8_t>& is_padding = {}, const Executor& executor = {}) {
  const Index tokens = ids_TK.rows(), experts = logits_TE.cols();
  Replay<A> got{RowMatrix<A>::Constant(tokens, rule.top_k, A(77)),
                RowMatrix<A>::Constant(tokens, rule.top_k, A(77)),
                {}};
  const StridedView<const std::uint8_t> penalised =
      penalised_TK.size() == 0 ? StridedView<const std::uint8_t>()
                               : StridedView<const std::uint8_t>(penalised_TK);
  auto memory =
      data::scratch(gatepro::weigh_choices_workspace_bytes<A>(experts, rule, executor.workers()));
  gatepro::RoutingView<A, Id> out;
  out.weights_TK = got.weights_TK;
  out.scores_TK = got.scores_TK;
  got.report = gatepro::weigh_choices(
      {logits_TE, {}, data::optional(is_padding)}, scored_data::rivals_of(experts), rule,
      gatepro::RecordedChoices<Id>{ids_TK, penalised}, out, memory, executor);
  return got;
}

template <class A>
void expect_same(const Replay<A>& a, const Replay<A>& b) {
  EXPECT_TRUE(data::same_bits(a.weights_TK, b.weights_TK));
  EXPECT_TRUE(data::same_bits(a.scores_TK, b.scores_TK));
  EXPECT_EQ(a.report.nonfinite_rows, b.report.nonfinite_rows);
  EXPECT_EQ(a.report.tokens_short_of_survivors, b.report.tokens_short_of_survivors);
}

template <class A>
class WeighChoicesTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(WeighChoicesTest, Scalars, TypeNames);

TYPED_TEST(WeighChoicesTest, RestoresTheForwardToTheBit) {
  using A = TypeParam;
  const Index tokens = 256 + 21, experts = 12;
  const Extras extras{scored_data::random_bias(experts, 0.3, 1), scored_data::padding(tokens, 7)};
  for (Index special_every : {2, 1000000}) {
    const RowMatrix<A> logits_TE = data::special_matrix<A>(tokens, experts, 2, special_every);
    for (const GroupLimit& groups : {GroupLimit{}, GroupLimit{3, 2, GroupScore::top_2}}) {
      for (const SelectionRule& rule : scored_data::rules_of(5, groups)) {
        SCOPED_TRACE(scored_data::describe(rule));
        const auto want = scored_data::route<A>(logits_TE, rule, extras);
        const Replay<A> as_routed{want.weights_TK, want.scores_TK, want.report};
        expect_same(replay(logits_TE, rule, want.ids_TK, want.penalised_TK, extras.is_padding),
                    as_routed);
        // The competition decides the same once more.
        expect_same(
            replay(logits_TE, rule, want.ids_TK, Bytes(), extras.is_padding, ThreadExecutor(3)),
            as_routed);
      }
    }
  }
}

// Any ids, e.g. the worst: they are taken as they are.
TYPED_TEST(WeighChoicesTest, AnyIdsMatchTheReference) {
  using A = TypeParam;
  const Index tokens = 43, experts = 9, top_k = 4;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(tokens, experts, 3) * A(2);
  const RowMatrix<std::int64_t> ids_TK = data::random_ids<std::int64_t>(tokens, experts, top_k, 4);
  const double tolerance = 40 * static_cast<double>(std::numeric_limits<A>::epsilon());
  for (SelectionRule rule : scored_data::rules_of(top_k, {})) {
    SCOPED_TRACE(scored_data::describe(rule));
    const Replay<A> got = replay(logits_TE, rule, ids_TK, Bytes());
    rule.competition.lambda = data::round_to<A>(rule.competition.lambda);
    Index nonfinite = 0, short_tokens = 0;
    for (Index t = 0; t < tokens; ++t) {
      reference::Row row;
      std::vector<int> ids;
      for (Index e = 0; e < experts; ++e) row.push_back(static_cast<double>(logits_TE(t, e)));
      for (Index j = 0; j < top_k; ++j) ids.push_back(static_cast<int>(ids_TK(t, j)));
      const reference::Flags loses =
          reference::losers(row, scored_data::reference_rivals_of(experts), rule.competition);
      const auto want =
          reference::weigh(reference::contest(row, loses, rule, {}, data::round_to<A>), ids, rule,
                           /*is_padding=*/false);
      nonfinite += want.nonfinite ? 1 : 0;
      short_tokens += want.short_of_survivors ? 1 : 0;
      for (Index j = 0; j < top_k; ++j) {
        const auto i = static_cast<std::size_t>(j);
        scored_data::expect_close(static_cast<double>(got.scores_TK(t, j)), want.scores[i],
                                  tolerance);
        scored_data::expect_close(static_cast<double>(got.weights_TK(t, j)), want.weights[i],
                                  tolerance);
      }
      ASSERT_FALSE(this->HasFatalFailure()) << t;
    }
    EXPECT_EQ(got.report.nonfinite_rows, nonfinite);
    EXPECT_EQ(got.report.tokens_short_of_survivors, short_tokens);
  }
}

// Regression: a recomputation whose logits differ in rounding must not flip a near-tie.
TYPED_TEST(WeighChoicesTest, TheRecordDecidesWhoHadLost) {
  using A = TypeParam;
  // Partners are 0 -> 1, 1 -> 0, 2 -> 1: see partners_of.
  RowMatrix<A> before_TE(1, 3), after_TE(1, 3);
  before_TE << A(1), A(1.001), A(0);
  after_TE << A(1.001), A(1), A(0);
  for (ScoreFunction function : data::score_functions) {
    for (const Competition& competition :
         {Competition::penalty(0.5), Competition::eliminate(), Competition::off()}) {
      const SelectionRule rule{2, {function, true, 1}, {}, competition};
      SCOPED_TRACE(scored_data::describe(rule));
      const auto first = scored_data::route<A>(before_TE, rule);
      ASSERT_EQ(first.ids_TK(0, 0), 1);
      const auto again = replay(after_TE, rule, first.ids_TK, first.penalised_TK);
      const auto decided_anew = replay(after_TE, rule, first.ids_TK, Bytes());
      const double tolerance = 2e-3;
      for (Index j = 0; j < 2; ++j) {
        EXPECT_NEAR(static_cast<double>(again.weights_TK(0, j)),
                    static_cast<double>(first.weights_TK(0, j)), tolerance);
      }
      const double moved =
          static_cast<double>(std::abs(decided_anew.weights_TK(0, 0) - first.weights_TK(0, 0)));
      if (competition.active()) {
        EXPECT_GT(moved, 0.05);
      } else {
        EXPECT_LT(moved, tolerance);
      }
    }
  }
}

// Off is off: no record is read.
TYPED_TEST(WeighChoicesTest, OffIgnoresTheRecord) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(11, 5, 5);
  const SelectionRule rule{2, {ScoreFunction::sigmoid, true, 1}, {}, Competition::penalty(0)};
  const auto want = scored_data::route<A>(logits_TE, rule);
  const auto got = replay(logits_TE, rule, want.ids_TK, Bytes(Bytes::Constant(11, 2, 1)));
  EXPECT_TRUE(data::same_bits(got.weights_TK, want.weights_TK));
}

// A loser by the record that is a NaN now is a NaN, not a weight of 0.
TYPED_TEST(WeighChoicesTest, NansAreNotHiddenByTheRecord) {
  using A = TypeParam;
  RowMatrix<A> logits_TE(1, 3);
  logits_TE << 1, data::marked_nan<A>(), 0;
  RowMatrix<std::int32_t> ids_TK(1, 2);
  ids_TK << 0, 1;
  Bytes penalised_TK(1, 2);
  penalised_TK << 0, 1;
  for (ScoreFunction function : data::score_functions) {
    for (const Competition& competition : scored_data::all_competitions()) {
      const SelectionRule rule{2, {function, true, 1}, {}, competition};
      const auto got = replay(logits_TE, rule, ids_TK, penalised_TK);
      EXPECT_TRUE(std::isnan(got.weights_TK(0, 0)) && std::isnan(got.weights_TK(0, 1)));
      EXPECT_EQ(got.report.nonfinite_rows, 1);
    }
  }
}

// Without an expert a choice weighs nothing, and the others weigh as if it had not been made. The
// ids of padding may be anything.
TYPED_TEST(WeighChoicesTest, ChoicesWithoutAnExpertAreLeftOut) {
  using A = TypeParam;
  const Index tokens = 43, experts = 9, top_k = 4;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(tokens, experts, 3) * A(2);
  const auto all_TK = data::random_ids<std::uint64_t>(tokens, experts, top_k, 4);
  const auto is_padding = scored_data::padding(tokens, 5);
  RowMatrix<std::uint64_t> some_TK(tokens, top_k), rest_TK = all_TK.leftCols(top_k - 1);
  some_TK << all_TK.leftCols(1), RowMatrix<std::uint64_t>::Constant(tokens, 1, ~std::uint64_t{0}),
      all_TK.middleCols(1, top_k - 2);
  some_TK.row(1).setConstant(~std::uint64_t{0});
  for (Index t = 4; t < tokens; t += 5) some_TK.row(t).setConstant(std::uint64_t{1} << 40);
  for (Index t = 4; t < tokens; t += 10) some_TK.row(t).setZero();
  for (SelectionRule rule : scored_data::rules_of(top_k, {})) {
    SCOPED_TRACE(scored_data::describe(rule));
    SelectionRule fewer = rule;
    fewer.top_k = top_k - 1;
    const Replay<A> got =
        replay(logits_TE, rule, some_TK, Bytes(Bytes::Zero(tokens, top_k)), is_padding);
    const Replay<A> want =
        replay(logits_TE, fewer, rest_TK, Bytes(Bytes::Zero(tokens, top_k - 1)), is_padding);
    EXPECT_EQ(got.report.nonfinite_rows, 0);
    EXPECT_EQ(got.report.tokens_short_of_survivors, 0);
    EXPECT_TRUE((got.weights_TK.row(1).array() == 0).all());
    EXPECT_TRUE((got.scores_TK.row(1).array() == 0).all());
    for (Index t = 2; t < tokens; ++t) {
      EXPECT_EQ(got.weights_TK(t, 1), 0);
      EXPECT_EQ(got.scores_TK(t, 1), 0);
      for (Index j = 0; j < top_k; ++j) {
        if (j == 1) continue;
        const A w = want.weights_TK(t, j == 0 ? 0 : j - 1);
        EXPECT_NEAR(got.weights_TK(t, j), w, 8 * std::numeric_limits<A>::epsilon()) << t;
      }
    }
  }
}

// Also beside weights that are NaN.
TYPED_TEST(WeighChoicesTest, ChoicesWithoutAnExpertWeighNothingBesideNans) {
  using A = TypeParam;
  RowMatrix<A> logits_TE(1, 3);
  logits_TE << 1, data::marked_nan<A>(), 0;
  RowMatrix<std::int32_t> ids_TK(1, 3);
  ids_TK << 1, -1, 0;
  for (const SelectionRule& rule : scored_data::rules_of(3, {})) {
    SCOPED_TRACE(scored_data::describe(rule));
    const auto got = replay(logits_TE, rule, ids_TK, Bytes(Bytes::Zero(1, 3)));
    EXPECT_TRUE(std::isnan(got.weights_TK(0, 0)) && std::isnan(got.weights_TK(0, 2)));
    EXPECT_EQ(got.weights_TK(0, 1), 0);
    EXPECT_EQ(got.scores_TK(0, 1), 0);
    EXPECT_EQ(got.report.nonfinite_rows, 1);
  }
}

TEST(WeighChoicesBadInput, IdsAndViews) {
  const RowMatrix<float> logits_TE = data::random_matrix<float>(4, 6, 6);
  const SelectionRule rule{2, {}, {}, Competition::off()};
  RowMatrix<std::int32_t> ids_TK(4, 2);
  ids_TK << 0, 1, 2, 3, 4, 5, 1, 0;
  const Bytes none;
  EXPECT_NO_THROW(replay(logits_TE, rule, ids_TK, none));
  const auto with_id = [&](Index t, Index j, std::int32_t id) {
    RowMatrix<std::int32_t> changed = ids_TK;
    changed(t, j) = id;
    return [&, changed] { replay(logits_TE, rule, changed, none); };
  };
  expect_error(with_id(3, 1, 1), {"weigh_choices", "distinct ids in each row", "row=3"});
  expect_error(with_id(2, 0, 6), {"weigh_choices", "every id in [0, num_experts)", "id=6"});
  expect_error(with_id(0, 1, -2), {"every id in [0, num_experts)", "id=-2", "row=0"});
  expect_error([&] { replay(logits_TE, rule, ids_TK, Bytes(Bytes::Zero(3, 2))); },
               {"penalised_TK", "rows=3"});
  expect_error([&] { replay(logits_TE, rule, ids_TK, none, {1}); }, {"is_padding_T", "size=1"});
  const SelectionRule three{3, {}, {}, Competition::off()};
  expect_error([&] { replay(logits_TE, three, ids_TK, none); }, {"expert_ids_TK", "cols=2"});
}

}  // namespace
