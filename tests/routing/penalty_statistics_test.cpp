// SPDX-License-Identifier: MIT
// Every counter of PenaltyStatistics against a count by brute force.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "support/conversions.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/reference/partners.hpp"
#include "support/reference/routing.hpp"
#include "support/routing_data.hpp"
#include "support/type_names.hpp"

namespace {

using data::random_matrix;
using gatepro::Competition;
using gatepro::CompetitionMode;
using gatepro::Index;
using gatepro::PenaltyStatistics;
using gatepro::RowMatrix;

/// Counts from the definitions, token by token.
template <class A>
PenaltyStatistics count(const RowMatrix<A>& logits_TE, const reference::Ids& partners,
                        bool both_sides, Competition competition, int top_k) {
  competition.lambda = data::round_to<A>(competition.lambda);
  const reference::Ids rivals = reference::rivals(partners, both_sides);
  PenaltyStatistics counts;
  for (const std::vector<double>& logits : data::to_reference(logits_TE)) {
    const auto routed = reference::route(logits, rivals, competition, top_k, data::round_to<A>);
    const auto plain =
        reference::route(logits, rivals, Competition::off(), top_k, data::round_to<A>);
    const std::set<int> with(routed.ids.begin(), routed.ids.end());
    const std::set<int> without(plain.ids.begin(), plain.ids.end());
    ++counts.tokens;
    counts.tokens_changed += with != without ? 1 : 0;
    counts.tokens_short_of_survivors += routed.short_of_survivors ? 1 : 0;
    for (std::size_t e = 0; e < logits.size(); ++e) {
      if (competition.active() && !rivals[e].empty()) {
        double best = -std::numeric_limits<double>::infinity();
        bool any = false;
        for (int rival : rivals[e]) {
          const double logit = logits[static_cast<std::size_t>(rival)];
          any = any || !std::isnan(logit);
          if (logit > best) best = logit;
        }
        counts.tied_pairs += any && logits[e] == best ? 1 : 0;
      }
      if (!routed.contest.loses[e]) continue;
      ++counts.penalised_pairs;
      const bool penalty = competition.mode == CompetitionMode::penalty;
      counts.penalties_lost_in_rounding += penalty && routed.contest.logits[e] == logits[e] ? 1 : 0;
    }
    const auto add_pairs = [&](const std::set<int>& selected, std::int64_t& partnered,
                               std::int64_t& coactivated) {
      for (int id : selected) {
        const int partner = partners[static_cast<std::size_t>(id)][0];
        if (partner == id) continue;
        ++partnered;
        coactivated += selected.count(partner) != 0 ? 1 : 0;
      }
    };
    add_pairs(with, counts.partnered_selections, counts.coactivations);
    add_pairs(without, counts.unpenalised_partnered_selections, counts.unpenalised_coactivations);
  }
  return counts;
}

/// Logits with ties, some so large that a small lambda vanishes, NaNs and infinities.
template <class A>
RowMatrix<A> varied_logits(Index tokens, Index experts) {
  RowMatrix<A> logits = random_matrix<A>(tokens, experts, 1);
  for (Index t = 0; t < tokens; ++t) {
    if (t % 4 == 1) logits.row(t) *= std::ldexp(A(1), std::numeric_limits<A>::digits);
    if (t % 4 == 2) logits.row(t) = logits.row(t).array().round();
    if (t % 7 == 3) logits(t, t % experts) = std::numeric_limits<A>::quiet_NaN();
    if (t % 11 == 5) logits(t, t % experts) = -std::numeric_limits<A>::infinity();
    if (t % 13 == 6) logits(t, t % experts) = std::numeric_limits<A>::infinity();
  }
  return logits;
}

template <class A>
class PenaltyStatisticsTest : public testing::Test {};
using Accumulators = testing::Types<float, double>;
TYPED_TEST_SUITE(PenaltyStatisticsTest, Accumulators, TypeNames);

TYPED_TEST(PenaltyStatisticsTest, EqualsBruteForce) {
  using A = TypeParam;
  for (const Index experts : {4, 9}) {
    const auto logits = varied_logits<A>(401, experts);
    const auto w = random_matrix<A>(experts, 6, 2);
    for (const bool both_sides : {false, true}) {
      for (const Index m : {1, 3}) {
        for (const Index top_k : {1, 2, 4}) {
          gatepro::RouterConfig config{6, experts, top_k};
          config.pairing = {m, m == 3 ? 0.1 : -1.0, both_sides};
          gatepro::Router<A> router(config);
          router.refresh(w, 0);
          const auto partners = router.similarity_cache().partners();
          for (const Competition& competition :
               {Competition::off(), Competition::penalty(0), Competition::penalty(0.4),
                Competition::penalty(1e-4), Competition::penalty(1e4), Competition::eliminate(),
                Competition{CompetitionMode::eliminate, 0, gatepro::TieRule::higher_id_loses},
                Competition{CompetitionMode::penalty, 0.4, gatepro::TieRule::higher_id_loses}}) {
            SCOPED_TRACE(testing::Message() << "E " << experts << ", m " << m << ", K " << top_k
                                            << ", lambda " << competition.lambda);
            router.set_competition(competition);
            const auto outcome = routing_data::forward_logits(router, logits);
            routing_data::expect_same_statistics(
                outcome.statistics, count(logits, data::to_ids(partners), both_sides, competition,
                                          static_cast<int>(top_k)));
            EXPECT_EQ(outcome.statistics.tokens_short_of_survivors,
                      outcome.report.tokens_short_of_survivors);
          }
        }
      }
    }
  }
}

// What upcycled models start from: all experts are copies.
TYPED_TEST(PenaltyStatisticsTest, CopiesTieAndSurviveUnlessAskedOtherwise) {
  using A = TypeParam;
  const RowMatrix<A> w = random_matrix<A>(1, 6, 2).replicate(4, 1);
  const RowMatrix<A> x = random_matrix<A>(9, 6, 3);
  gatepro::RouterConfig config{6, 4, 2};
  config.pairing.both_sides = true;
  config.competition = Competition::eliminate();
  gatepro::Router<A> router(config);
  router.refresh(w, 0);
  auto outcome = routing_data::forward(router, x, w);
  EXPECT_EQ(outcome.statistics.tied_pairs, 9 * 4);
  EXPECT_EQ(outcome.statistics.penalised_pairs, 0);
  EXPECT_EQ(outcome.statistics.coactivation_rate(), 1);
  config.competition.ties = gatepro::TieRule::higher_id_loses;
  router.set_competition(config.competition);
  outcome = routing_data::forward(router, x, w);
  EXPECT_EQ(outcome.statistics.tied_pairs, 9 * 4);
  // Partners are 1, 0, 0, 0: only expert 0 has no rival of lower id.
  EXPECT_EQ(outcome.statistics.penalised_pairs, 9 * 3);
  EXPECT_EQ(outcome.statistics.tokens_short_of_survivors, 9);
  EXPECT_TRUE((outcome.weights_TK.col(1).array() == 0).all());
}

TYPED_TEST(PenaltyStatisticsTest, ASmallLambdaIsLostInLargeLogits) {
  using A = TypeParam;
  RowMatrix<A> logits(2, 2);
  logits << std::ldexp(A(1), 60), std::ldexp(A(1), 61), 1, 2;
  gatepro::RouterConfig config{1, 2, 1};
  config.competition = Competition::penalty(1e-4);
  gatepro::Router<A> router(config);
  const std::vector<std::int32_t> partners = {1, 0};
  router.set_partners({partners.data(), 2, 1, 1, 1}, 0);
  const auto outcome = routing_data::forward_logits(router, logits);
  EXPECT_EQ(outcome.statistics.penalised_pairs, 2);
  EXPECT_EQ(outcome.statistics.penalties_lost_in_rounding, 1);
  EXPECT_EQ(outcome.statistics.tokens_changed, 0);
}

TYPED_TEST(PenaltyStatisticsTest, BatchesAddUp) {
  using A = TypeParam;
  const auto logits = varied_logits<A>(333, 8);
  gatepro::RouterConfig config{5, 8, 3};
  config.competition = Competition::eliminate();
  gatepro::Router<A> router(config);
  const auto w = random_matrix<A>(8, 5, 3);
  router.refresh(w, 0);
  const auto whole = routing_data::forward_logits(router, logits);
  PenaltyStatistics sum;
  for (Index first = 0; first < 333; first += 37) {
    const RowMatrix<A> part = logits.middleRows(first, 37);
    sum += routing_data::forward_logits(router, part).statistics;
  }
  routing_data::expect_same_statistics(sum, whole.statistics);
  EXPECT_GT(sum.tokens_short_of_survivors, 0);
  EXPECT_GT(sum.coactivations, 0);
}

// Each forward starts from zero: the counts are its own.
TEST(PenaltyStatisticsRates, AForwardOverwrites) {
  gatepro::Router<float> router({4, 6, 2});
  const auto x = random_matrix<float>(10, 4, 4);
  const auto w = random_matrix<float>(6, 4, 5);
  router.refresh(w, 0);
  routing_data::Outcome<gatepro::Router<float>> outcome(router, 10);
  outcome.statistics.tokens = 1000;
  outcome.statistics.coactivations = 1000;
  auto memory = data::scratch(router.forward_workspace_bytes());
  router.forward(x, w, outcome.view(), memory);
  EXPECT_EQ(outcome.statistics.tokens, 10);
  EXPECT_LT(outcome.statistics.coactivations, 1000);
}

TEST(PenaltyStatisticsRates, Ratios) {
  PenaltyStatistics counts;
  EXPECT_EQ(counts.coactivation_rate(), 0);
  EXPECT_EQ(counts.unpenalised_coactivation_rate(), 0);
  EXPECT_EQ(counts.changed_rate(), 0);
  counts.tokens = 8;
  counts.tokens_changed = 2;
  counts.partnered_selections = 4;
  counts.coactivations = 1;
  counts.unpenalised_partnered_selections = 5;
  counts.unpenalised_coactivations = 4;
  EXPECT_EQ(counts.changed_rate(), 0.25);
  EXPECT_EQ(counts.coactivation_rate(), 0.25);
  EXPECT_EQ(counts.unpenalised_coactivation_rate(), 0.8);
}

// The best of many: with random partners and logits, co-activation is near (K - 1) / (E - 1).
TEST(PenaltyStatisticsRates, CoactivationNearChance) {
  constexpr Index experts = 8, top_k = 3;
  gatepro::RouterConfig config{1, experts, top_k};
  config.competition = Competition::off();
  gatepro::Router<float> router(config);
  const std::vector<std::int32_t> partners = {1, 0, 3, 2, 5, 4, 7, 6};
  router.set_partners({partners.data(), experts, 1, 1, 1}, 0);
  const auto outcome =
      routing_data::forward_logits(router, random_matrix<float>(20000, experts, 7));
  EXPECT_NEAR(outcome.statistics.coactivation_rate(), 2.0 / 7, 0.02);
  EXPECT_EQ(outcome.statistics.coactivation_rate(),
            outcome.statistics.unpenalised_coactivation_rate());
}

}  // namespace
