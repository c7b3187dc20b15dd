// SPDX-License-Identifier: MIT
// Selection in the one total order, and elimination stage by stage.
#include <gatepro/routing/top_k.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "gatepro/routing/competition.hpp"
#include "gatepro/routing/softmax.hpp"
#include "support/bits.hpp"
#include "support/conversions.hpp"
#include "support/executors.hpp"
#include "support/ids.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/reference/partners.hpp"
#include "support/reference/routing.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::Competition;
using gatepro::EliminatedExperts;
using gatepro::Index;
using gatepro::MatrixView;
using gatepro::RivalTable;
using gatepro::RowMatrix;
using gatepro::SerialExecutor;
using gatepro::StridedView;
using Bytes = RowMatrix<std::uint8_t>;

template <class A, class Id>
struct Selection {
  RowMatrix<Id> ids_TK;
  RowMatrix<A> logits_TK;
  Index short_tokens = 0;
};

template <class Id, class A, class Executor = SerialExecutor>
Selection<A, Id> select_from(const RowMatrix<A>& logits_TE, const EliminatedExperts& eliminated,
                             Index k, const Executor& executor = {}) {
  const Index tokens = logits_TE.rows(), experts = logits_TE.cols();
  Selection<A, Id> got{RowMatrix<Id>::Constant(tokens, k, Id(77)),
                       RowMatrix<A>::Constant(tokens, k, A(77)), 0};
  auto memory =
      data::scratch(gatepro::select_top_k_workspace_bytes<A>(experts, k, executor.workers()));
  got.short_tokens =
      gatepro::select_top_k(gatepro::view(logits_TE), eliminated, gatepro::strided_view(got.ids_TK),
                            gatepro::strided_view(got.logits_TK), memory, executor);
  return got;
}

/// An empty loser_TE stands for none.
template <class Id, class A, class Executor = SerialExecutor>
Selection<A, Id> select(const RowMatrix<A>& logits_TE, const Bytes& loser_TE, Index k,
                        const Executor& executor = {}) {
  const auto eliminated = loser_TE.size() == 0 ? EliminatedExperts() : EliminatedExperts(loser_TE);
  return select_from<Id>(logits_TE, eliminated, k, executor);
}

/// Numbers before NaN, survivors before losers, the larger logit, the lower id: by a full sort.
template <class Id, class A>
Selection<A, Id> expected(const RowMatrix<A>& logits_TE, const Bytes& loser_TE, Index k) {
  Selection<A, Id> want{RowMatrix<Id>(logits_TE.rows(), k), RowMatrix<A>(logits_TE.rows(), k), 0};
  for (Index t = 0; t < logits_TE.rows(); ++t) {
    const auto logit = [&](Index e) { return logits_TE(t, e); };
    const auto loses = [&](Index e) { return loser_TE.size() != 0 && loser_TE(t, e) != 0; };
    std::vector<Index> order(static_cast<std::size_t>(logits_TE.cols()));
    std::iota(order.begin(), order.end(), Index{0});
    std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) {
      if (std::isnan(logit(a)) || std::isnan(logit(b))) {
        return !std::isnan(logit(a)) && std::isnan(logit(b));
      }
      if (loses(a) != loses(b)) return loses(b);
      return logit(a) > logit(b);
    });
    bool is_short = false;
    for (Index j = 0; j < k; ++j) {
      const Index e = order[static_cast<std::size_t>(j)];
      const bool lost = loses(e) && !std::isnan(logit(e));
      is_short = is_short || lost;
      want.ids_TK(t, j) = static_cast<Id>(e);
      A value = logit(e) == 0 ? A(0) : logit(e);
      if (std::isnan(value)) value = std::numeric_limits<A>::quiet_NaN();
      if (lost) value = -data::infinity<A>();
      want.logits_TK(t, j) = value;
    }
    want.short_tokens += is_short ? 1 : 0;
  }
  return want;
}

template <class A, class Id>
void expect_equal(const Selection<A, Id>& got, const Selection<A, Id>& want) {
  EXPECT_TRUE(data::same_bits(got.ids_TK, want.ids_TK));
  EXPECT_TRUE(data::same_bits(got.logits_TK, want.logits_TK));
  EXPECT_EQ(got.short_tokens, want.short_tokens);
}

/// About two thirds lose; any byte but 0 marks a loser.
Bytes random_losers(Index tokens, Index experts, std::uint64_t seed) {
  Bytes loser_TE(tokens, experts);
  const std::uint8_t values[] = {0, 1, 255};
  for (Index i = 0; i < tokens * experts; ++i) {
    loser_TE.data()[i] = values[data::random_below(3, seed, static_cast<std::uint64_t>(i))];
  }
  return loser_TE;
}

template <class A>
class TopKTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(TopKTest, Scalars, TypeNames);

TYPED_TEST(TopKTest, MatchesAFullSort) {
  using A = TypeParam;
  for (Index experts : {1, 2, 3, 8, 17, 40}) {
    const RowMatrix<A> all_logits[] = {
        data::random_matrix<A>(35, experts, 1), data::tied_matrix<A>(35, experts, 2),
        data::special_matrix<A>(35, experts, 3, 2), data::special_matrix<A>(35, experts, 4, 1)};
    const Bytes losers_TE = random_losers(35, experts, 5);
    for (Index k : {Index{1}, Index{2}, Index{3}, Index{5}, Index{8}, experts - 1, experts}) {
      if (k < 1 || k > experts) continue;
      for (const RowMatrix<A>& logits_TE : all_logits) {
        SCOPED_TRACE(testing::Message() << "E " << experts << " k " << k);
        for (const Bytes& marks_TE : {Bytes(), losers_TE}) {
          expect_equal(select<std::int64_t>(logits_TE, marks_TE, k),
                       expected<std::int64_t>(logits_TE, marks_TE, k));
        }
      }
    }
  }
}

TYPED_TEST(TopKTest, EveryIdTypeAndLayout) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::special_matrix<A>(29, 12, 6);
  const Bytes loser_TE = random_losers(29, 12, 7);
  const auto want = expected<std::int64_t>(logits_TE, loser_TE, 5);
  expect_equal(select<std::int32_t>(logits_TE, loser_TE, 5),
               {want.ids_TK.template cast<std::int32_t>(), want.logits_TK, want.short_tokens});
  expect_equal(select<std::uint64_t>(logits_TE, loser_TE, 5),
               {want.ids_TK.template cast<std::uint64_t>(), want.logits_TK, want.short_tokens});

  // One plane per choice, and every second element of rows with gaps.
  Eigen::Matrix<std::int32_t, Eigen::Dynamic, Eigen::Dynamic> planes(29, 5);
  RowMatrix<A> spread = RowMatrix<A>::Constant(29, 13, A(77));
  auto memory = data::scratch(gatepro::select_top_k_workspace_bytes<A>(12, 5));
  data::GuardedMatrix<A> logits(logits_TE, 2);
  data::GuardedMatrix<std::uint8_t> losers(loser_TE, 9);
  gatepro::select_top_k(logits.view(), EliminatedExperts(losers.view()),
                        gatepro::strided_view(planes), StridedView<A>(spread.data(), 29, 5, 13, 2),
                        memory);
  for (Index t = 0; t < 29; ++t) {
    for (Index j = 0; j < 5; ++j) {
      ASSERT_EQ(planes(t, j), want.ids_TK(t, j));
      ASSERT_TRUE(data::same_bits(spread(t, 2 * j), want.logits_TK(t, j)));
      ASSERT_EQ(spread(t, 2 * j + 1), 77);
    }
    ASSERT_TRUE((spread.row(t).tail(3).array() == 77).all());
  }
}

TYPED_TEST(TopKTest, RangesAndExecutorsGiveTheSameBits) {
  using A = TypeParam;
  const Index tokens = 256 * 4 + 5;
  const RowMatrix<A> logits_TE = data::special_matrix<A>(tokens, 6, 8);
  const Bytes loser_TE = random_losers(tokens, 6, 9);
  const auto want = select<std::int32_t>(logits_TE, loser_TE, 3);
  expect_equal(want, expected<std::int32_t>(logits_TE, loser_TE, 3));
  expect_equal(select<std::int32_t>(logits_TE, loser_TE, 3, ThreadExecutor(3)), want);
  expect_equal(select<std::int32_t>(logits_TE, loser_TE, 3, LastWorkerFirst(4)), want);

  Selection<A, std::int32_t> parts{RowMatrix<std::int32_t>(tokens, 3), RowMatrix<A>(tokens, 3), 0};
  for (Index first = 0, count = 1; first < tokens; first += count, count += 37) {
    const Index rows = std::min(count, tokens - first);
    const RowMatrix<A> some_TE = logits_TE.middleRows(first, rows);
    const Bytes marks_TE = loser_TE.middleRows(first, rows);
    const auto part = select<std::int32_t>(some_TE, marks_TE, 3);
    parts.ids_TK.middleRows(first, rows) = part.ids_TK;
    parts.logits_TK.middleRows(first, rows) = part.logits_TK;
    parts.short_tokens += part.short_tokens;
  }
  expect_equal(parts, want);
}

TYPED_TEST(TopKTest, NoTokensWriteNothing) {
  using A = TypeParam;
  auto memory = data::scratch(gatepro::select_top_k_workspace_bytes<A>(6, 2));
  EXPECT_EQ(gatepro::select_top_k(MatrixView<A>(nullptr, 0, 6), {},
                                  StridedView<std::int32_t>(nullptr, 0, 2),
                                  StridedView<A>(nullptr, 0, 2), memory),
            0);
}

// Competition, selection and softmax one after the other are the whole method.
TYPED_TEST(TopKTest, StagesInARowMatchTheReference) {
  using A = TypeParam;
  const double eps = static_cast<double>(std::numeric_limits<A>::epsilon());
  const Index tokens = 60;
  for (Index experts : {4, 8, 21}) {
    const auto partners_EM = data::random_partners(experts, 2, 10);
    const RivalTable rivals(gatepro::view(partners_EM), true);
    const reference::Ids rival_ids = reference::rivals(data::to_ids(partners_EM), true);
    for (const RowMatrix<A>& logits_TE :
         {data::random_matrix<A>(tokens, experts, 11), data::tied_matrix<A>(tokens, experts, 12),
          data::special_matrix<A>(tokens, experts, 13, 6)}) {
      for (const Competition& competition :
           {Competition::off(), Competition::penalty(0.25), Competition::eliminate(),
            Competition{gatepro::CompetitionMode::penalty, 0.25, gatepro::TieRule::higher_id_loses},
            Competition{gatepro::CompetitionMode::eliminate, 0,
                        gatepro::TieRule::higher_id_loses}}) {
        for (Index k : {Index{2}, Index{4}, experts}) {
          RowMatrix<A> penalised_TE(tokens, experts);
          Bytes loser_TE(tokens, experts);
          auto memory = data::scratch(gatepro::apply_competition_workspace_bytes<A>(experts));
          const EliminatedExperts eliminated = gatepro::apply_competition(
              gatepro::view(logits_TE), rivals, competition, gatepro::view(penalised_TE),
              gatepro::view(loser_TE), memory);
          const bool eliminate = competition.mode == gatepro::CompetitionMode::eliminate;
          ASSERT_EQ(eliminated.given(), eliminate);
          const auto got = select_from<std::int32_t>(penalised_TE, eliminated, k);
          RowMatrix<A> weights_TK(tokens, k);
          auto softmax_memory = data::scratch(gatepro::softmax_selected_workspace_bytes<A>(k));
          const Index nonfinite =
              gatepro::softmax_selected(gatepro::strided_view(got.logits_TK),
                                        gatepro::strided_view(weights_TK), softmax_memory);

          Index want_short = 0, want_nonfinite = 0;
          const reference::Matrix logits = data::to_reference(logits_TE);
          for (Index t = 0; t < tokens; ++t) {
            const reference::Token want =
                reference::route(logits[static_cast<std::size_t>(t)], rival_ids, competition,
                                 static_cast<int>(k), data::round_to<A>);
            want_short += want.short_of_survivors ? 1 : 0;
            want_nonfinite += want.nonfinite ? 1 : 0;
            for (Index j = 0; j < k; ++j) {
              ASSERT_EQ(got.ids_TK(t, j), want.ids[static_cast<std::size_t>(j)]);
              const double weight = want.weights[static_cast<std::size_t>(j)];
              if (want.nonfinite) {
                ASSERT_TRUE(std::isnan(weights_TK(t, j)));
              } else if (weight == 0) {
                ASSERT_EQ(weights_TK(t, j), 0);
              } else {
                ASSERT_NEAR(static_cast<double>(weights_TK(t, j)), weight, 4 * eps);
              }
            }
          }
          EXPECT_EQ(got.short_tokens, want_short);
          EXPECT_EQ(nonfinite, want_nonfinite);
          if (eliminate && k == experts) {
            EXPECT_GT(want_short, 0);
          }
        }
      }
    }
  }
}

}  // namespace
