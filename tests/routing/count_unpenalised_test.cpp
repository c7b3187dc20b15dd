// SPDX-License-Identifier: MIT
// The loads of plain top-k: those of select_top_k, and of route_logits without competition.
#include <gatepro/routing/count_unpenalised.hpp>

#include <vector>

#include <gatepro/router/router.hpp>
#include <gatepro/routing/route_logits.hpp>
#include <gatepro/routing/top_k.hpp>

#include "support/conversions.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/losses.hpp"
#include "support/memory.hpp"
#include "support/reference/routing.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;
using losses::Counts;
using losses::Mask;
using Ids = RowMatrix<std::int32_t>;

template <class A, class Executor = gatepro::SerialExecutor>
Counts count(const RowMatrix<A>& logits_TE, ScoreFunction function, Index top_k,
             const Mask& mask = {}, const Executor& executor = {}) {
  Counts counts(static_cast<std::size_t>(logits_TE.cols()), 77);
  auto memory = data::scratch(
      gatepro::count_unpenalised_workspace_bytes<A>(logits_TE.cols(), top_k, executor.workers()));
  gatepro::count_unpenalised(gatepro::view(logits_TE), function, top_k, data::optional(mask),
                             counts, memory, executor);
  return counts;
}

template <class A>
class CountUnpenalisedTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(CountUnpenalisedTest, Scalars, TypeNames);

/// By sorting: NaN last, larger first, lower id first.
template <class A>
Counts naive_counts(const RowMatrix<A>& logits_TE, Index top_k, const Mask& mask) {
  Ids ids_TK(logits_TE.rows(), top_k);
  const auto round = [](double v) { return v; };
  for (Index t = 0; t < logits_TE.rows(); ++t) {
    const RowMatrix<A> row = logits_TE.row(t);
    const auto token = reference::route(data::to_reference(row)[0], {}, gatepro::Competition::off(),
                                        static_cast<int>(top_k), round);
    for (Index j = 0; j < top_k; ++j) ids_TK(t, j) = token.ids[static_cast<std::size_t>(j)];
  }
  return losses::count(ids_TK, logits_TE.cols(), mask);
}

TYPED_TEST(CountUnpenalisedTest, EqualsASort) {
  using A = TypeParam;
  for (Index experts : {1, 7, 40}) {
    for (Index top_k : {Index{1}, std::min<Index>(3, experts), experts}) {
      for (const RowMatrix<A>& logits_TE :
           {data::random_matrix<A>(300, experts, 1), data::tied_matrix<A>(300, experts, 2),
            data::special_matrix<A>(300, experts, 3, 20)}) {
        const auto by_logit = ScoreFunction::softmax_after_top_k;
        for (const Mask& mask : {Mask(), data::random_mask(300, 4)}) {
          EXPECT_EQ(count(logits_TE, by_logit, top_k, mask), naive_counts(logits_TE, top_k, mask));
        }
      }
      // Scores keep the order of moderate logits.
      const RowMatrix<A> logits_TE = data::random_matrix<A>(300, experts, 5);
      for (const ScoreFunction function : data::score_functions) {
        EXPECT_EQ(count(logits_TE, function, top_k), naive_counts(logits_TE, top_k, {}));
      }
    }
  }
}

// In all cases, equal scores of different logits among them.
TYPED_TEST(CountUnpenalisedTest, EqualsScoredRoutingWithoutCompetition) {
  using A = TypeParam;
  const Index tokens = 260, experts = 9, top_k = 4;
  const RowMatrix<A> saturated_TE = data::random_matrix<A>(tokens, experts, 6) * A(900);
  const Mask mask = data::random_mask(tokens, 7);
  for (const RowMatrix<A>& logits_TE :
       {saturated_TE, data::special_matrix<A>(tokens, experts, 8, 20)}) {
    for (const ScoreFunction function : data::score_functions) {
      gatepro::SelectionRule rule;
      rule.top_k = top_k;
      rule.scores.function = function;
      rule.competition = gatepro::Competition::off();
      Ids ids_TK(tokens, top_k);
      RowMatrix<A> weights_TK(tokens, top_k);
      Counts want(static_cast<std::size_t>(experts));
      gatepro::RoutingView<A> out;
      out.expert_ids_TK = ids_TK;
      out.weights_TK = weights_TK;
      out.tokens_per_expert_E = want;
      auto memory = data::scratch(gatepro::route_logits_workspace_bytes<A>(experts, rule));
      gatepro::route_logits({logits_TE, {}, mask}, gatepro::RivalTable(), rule, out, memory);
      EXPECT_EQ(count(logits_TE, function, top_k, mask), want) << static_cast<int>(function);
    }
  }
  EXPECT_NE(count(saturated_TE, ScoreFunction::sigmoid, top_k),
            count(saturated_TE, ScoreFunction::softmax_after_top_k, top_k));
}

// What a router with competition dispatches differs; what is counted here does not see it.
TYPED_TEST(CountUnpenalisedTest, CompetitionChangesTheDispatchOnly) {
  using A = TypeParam;
  gatepro::RouterConfig config{6, 8, 3};
  config.competition = gatepro::Competition::eliminate();
  gatepro::Router<A> router(config);
  const RowMatrix<A> x_TH = data::random_matrix<A>(100, 6, 9),
                     w_EH = data::random_matrix<A>(8, 6, 10);
  gatepro::RoutingBuffers<gatepro::Router<A>> buffers(router,
                                                      gatepro::BufferShape{100, 1, 1, true});
  const auto dispatched = [&] {
    router.forward(x_TH, w_EH, buffers);
    const auto counts = buffers.tokens_per_expert_E();
    return Counts(counts.data, counts.data + counts.size);
  };
  router.refresh(w_EH, 0);
  const Counts competing = dispatched();
  const RowMatrix<A> logits_TE = Eigen::Map<const RowMatrix<A>>(buffers.logits_TE().data, 100, 8);
  const Counts unpenalised = count(logits_TE, ScoreFunction::softmax_after_top_k, 3);
  EXPECT_NE(competing, unpenalised);
  router.set_competition(gatepro::Competition::off());
  EXPECT_EQ(dispatched(), unpenalised);
}

TYPED_TEST(CountUnpenalisedTest, ExecutorsAndViewsCountTheSame) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(256 * 3 + 7, 9, 11);
  const Mask mask = data::random_mask(256 * 3 + 7, 12);
  const Counts want = count(logits_TE, ScoreFunction::sigmoid, 2, mask);
  EXPECT_EQ(count(logits_TE, ScoreFunction::sigmoid, 2, mask, ThreadExecutor(3)), want);
  EXPECT_EQ(count(logits_TE, ScoreFunction::sigmoid, 2, mask, LastWorkerFirst(4)), want);
  data::GuardedMatrix<A> gaps_TE(logits_TE, 3);
  Counts got(9, 77);
  auto memory = data::scratch(gatepro::count_unpenalised_workspace_bytes<A>(9, 2));
  gatepro::count_unpenalised(gaps_TE.view(), ScoreFunction::sigmoid, 2, mask, got, memory);
  EXPECT_EQ(got, want);
  EXPECT_EQ(count(RowMatrix<A>(0, 3), ScoreFunction::sigmoid, 2), Counts(3, 0));
}

TYPED_TEST(CountUnpenalisedTest, BadInput) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = RowMatrix<A>::Zero(3, 4);
  Counts counts(4, 7), five(5, 7);
  const Mask short_mask(2, 0);
  auto memory = data::scratch(gatepro::count_unpenalised_workspace_bytes<A>(4, 2));
  const auto call = [&](Index top_k, const Mask& mask, Counts& to, std::size_t less) {
    gatepro::count_unpenalised(gatepro::view(logits_TE), ScoreFunction::sigmoid, top_k,
                               data::optional(mask), to, {memory.data(), memory.size() - less});
  };
  const char* where = "count_unpenalised";
  expect_error([&] { call(0, {}, counts, 0); }, {where, "1 <= top_k", "top_k=0"});
  expect_error([&] { call(5, {}, counts, 0); }, {where, "top_k <= num_experts", "top_k=5"});
  expect_error([&] { call(2, short_mask, counts, 0); }, {where, "is_padding_T", "size=2"});
  expect_error([&] { call(2, {}, five, 0); }, {where, "tokens_per_expert_E", "size=5"});
  expect_error([&] { call(2, {}, counts, 65); }, {where, "workspace"});
  EXPECT_EQ(counts, Counts(4, 7));
}

}  // namespace
