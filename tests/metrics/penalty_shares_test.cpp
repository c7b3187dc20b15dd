// SPDX-License-Identifier: MIT
// Penalty statistics as shares, and summed over ranks.
#include <gatepro/metrics/penalty_shares.hpp>

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "support/errors.hpp"
#include "support/ranks.hpp"

namespace {

using gatepro::Index;
using gatepro::PenaltyShares;
using gatepro::PenaltyStatistics;

PenaltyStatistics statistics() {
  PenaltyStatistics s;
  s.tokens = 10;
  s.penalised_pairs = 20;
  s.penalties_lost_in_rounding = 5;
  s.tied_pairs = 8;
  s.tokens_changed = 3;
  s.tokens_short_of_survivors = 1;
  s.partnered_selections = 16;
  s.coactivations = 4;
  s.unpenalised_partnered_selections = 15;
  s.unpenalised_coactivations = 6;
  return s;
}

TEST(PenaltyShares, AreWhatTheirNamesSay) {
  const PenaltyShares shares = gatepro::penalty_shares(statistics(), 4);
  EXPECT_DOUBLE_EQ(shares.penalised, 0.5);
  EXPECT_DOUBLE_EQ(shares.tied, 0.2);
  EXPECT_DOUBLE_EQ(shares.lost_in_rounding, 0.25);
  EXPECT_DOUBLE_EQ(shares.changed, 0.3);
  EXPECT_DOUBLE_EQ(shares.short_of_survivors, 0.1);
  EXPECT_DOUBLE_EQ(shares.coactivated, 0.25);
  EXPECT_DOUBLE_EQ(shares.unpenalised_coactivated, 0.4);
  const PenaltyShares none = gatepro::penalty_shares({}, 4);
  EXPECT_EQ(none.penalised + none.tied + none.lost_in_rounding + none.changed +
                none.short_of_survivors + none.coactivated + none.unpenalised_coactivated,
            0);
  expect_error([] { gatepro::penalty_shares({}, 0); }, {"penalty_shares", "num_experts=0"});
}

// All members pass the hook, each in its own place: the shares stay, the counts are those of three.
TEST(PenaltyShares, RanksSeeTheSameSums) {
  std::vector<PenaltyStatistics> sums(3);
  run_ranks(3, [&](int rank, const auto& reduce) {
    sums[static_cast<std::size_t>(rank)] = gatepro::all_reduced(statistics(), reduce);
  });
  PenaltyStatistics want = statistics();
  want += statistics();
  want += statistics();
  for (const PenaltyStatistics& s : sums) {
    EXPECT_EQ(s.tokens, want.tokens);
    EXPECT_EQ(s.penalised_pairs, want.penalised_pairs);
    EXPECT_EQ(s.penalties_lost_in_rounding, want.penalties_lost_in_rounding);
    EXPECT_EQ(s.tied_pairs, want.tied_pairs);
    EXPECT_EQ(s.tokens_changed, want.tokens_changed);
    EXPECT_EQ(s.tokens_short_of_survivors, want.tokens_short_of_survivors);
    EXPECT_EQ(s.partnered_selections, want.partnered_selections);
    EXPECT_EQ(s.coactivations, want.coactivations);
    EXPECT_EQ(s.unpenalised_partnered_selections, want.unpenalised_partnered_selections);
    EXPECT_EQ(s.unpenalised_coactivations, want.unpenalised_coactivations);
  }
  const auto overflow = [](std::int64_t* counts, Index) { counts[2] = -1; };
  expect_error([&] { gatepro::all_reduced(statistics(), overflow); },
               {"all_reduced", "reduce hook", "count=-1", "position=2"});
}

}  // namespace
