// SPDX-License-Identifier: MIT
// The loser pays, strictly, on the original logits; everything else keeps its bits.
#include <gatepro/routing/competition.hpp>

#include <cmath>
#include <vector>

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
using gatepro::CompetitionMode;
using gatepro::Index;
using gatepro::MatrixView;
using gatepro::RivalTable;
using gatepro::RowMatrix;
using gatepro::SerialExecutor;
using gatepro::TieRule;
using Partners = RowMatrix<std::int32_t>;
using Bytes = RowMatrix<std::uint8_t>;

struct Rivals {
  RivalTable table;
  reference::Ids ids;
};

/// m random partners per expert, "none" among them.
Rivals random_rivals(Index experts, Index m, bool both_sides, std::uint64_t seed) {
  const auto partners_EM = data::random_partners(experts, m, seed);
  return {RivalTable(gatepro::view(partners_EM), both_sides),
          reference::rivals(data::to_ids(partners_EM), both_sides)};
}

/// The same penalty as a double that A holds exactly.
template <class A>
Competition penalty(double lambda) {
  return Competition::penalty(data::round_to<A>(lambda));
}

template <class A>
struct Outcome {
  RowMatrix<A> penalised_TE;
  Bytes loser_TE;
};

template <class A, class Executor = SerialExecutor>
Outcome<A> compete(const RowMatrix<A>& logits_TE, const RivalTable& rivals,
                   const Competition& competition, const Executor& executor = {}) {
  const Index tokens = logits_TE.rows(), experts = logits_TE.cols();
  Outcome<A> outcome{RowMatrix<A>::Constant(tokens, experts, A(77)),
                     Bytes::Constant(tokens, experts, 77)};
  auto memory =
      data::scratch(gatepro::apply_competition_workspace_bytes<A>(experts, executor.workers()));
  gatepro::apply_competition(gatepro::view(logits_TE), rivals, competition,
                             gatepro::view(outcome.penalised_TE), gatepro::view(outcome.loser_TE),
                             memory, executor);
  return outcome;
}

template <class A>
Outcome<A> expected(const RowMatrix<A>& logits_TE, const reference::Ids& rivals,
                    const Competition& competition) {
  Outcome<A> outcome{logits_TE, Bytes::Zero(logits_TE.rows(), logits_TE.cols())};
  const reference::Matrix logits = data::to_reference(logits_TE);
  for (Index t = 0; t < logits_TE.rows(); ++t) {
    const reference::Token token = reference::route(logits[static_cast<std::size_t>(t)], rivals,
                                                    competition, 1, data::round_to<A>);
    for (Index e = 0; e < logits_TE.cols(); ++e) {
      outcome.loser_TE(t, e) = token.contest.loses[static_cast<std::size_t>(e)] ? 1 : 0;
      const double after = token.contest.logits[static_cast<std::size_t>(e)];
      // Signs of zeros and payloads of NaNs survive where nothing was paid.
      if (competition.mode == CompetitionMode::penalty && after < data::at(logits, t, e)) {
        outcome.penalised_TE(t, e) = static_cast<A>(after);
      }
    }
  }
  return outcome;
}

template <class A>
void expect_equal(const Outcome<A>& got, const Outcome<A>& want) {
  EXPECT_TRUE(data::same_bits(got.penalised_TE, want.penalised_TE));
  EXPECT_TRUE(data::same_bits(got.loser_TE, want.loser_TE));
}

template <class A>
class CompetitionTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(CompetitionTest, Scalars, TypeNames);

TYPED_TEST(CompetitionTest, MatchesTheReference) {
  using A = TypeParam;
  const double largest = static_cast<double>(std::numeric_limits<A>::max());
  for (Index experts : {1, 2, 5, 16, 33}) {
    const RowMatrix<A> all_logits[] = {data::random_matrix<A>(37, experts, 1),
                                       data::tied_matrix<A>(37, experts, 2),
                                       data::special_matrix<A>(37, experts, 3)};
    for (Index m : {1, 3}) {
      for (bool both_sides : {false, true}) {
        const Rivals rivals = random_rivals(experts, m, both_sides, 4);
        for (const RowMatrix<A>& logits_TE : all_logits) {
          for (const Competition& competition :
               {Competition::off(),
                Competition{},
                penalty<A>(0),
                penalty<A>(1e-4),
                penalty<A>(0.5),
                penalty<A>(largest),
                penalty<A>(static_cast<double>(std::numeric_limits<A>::denorm_min())),
                Competition::eliminate(),
                {CompetitionMode::penalty, 0.5, TieRule::higher_id_loses},
                {CompetitionMode::eliminate, 0, TieRule::higher_id_loses}}) {
            // The default lambda, 1e-4, is no float.
            Competition exact = competition;
            exact.lambda = data::round_to<A>(competition.lambda);
            expect_equal(compete(logits_TE, rivals.table, competition),
                         expected(logits_TE, rivals.ids, exact));
          }
        }
      }
    }
  }
}

// Eq. 7: strictly below, and each expert looks at its own partner only.
TYPED_TEST(CompetitionTest, TheRuleByHand) {
  using A = TypeParam;
  Partners partners_EM(4, 1);
  partners_EM << 1, 0, 0, 3;
  const RivalTable rivals(gatepro::view(partners_EM), false);
  RowMatrix<A> logits_TE(3, 4), want_TE(3, 4);
  logits_TE << 2, 1, 3, -9,  // 1 loses to 0; 0 does not lose to 2, whom it does not name
      1, 1, 1, 1,            // ties
      0, A(-0.0), A(-1), 5;  // zeros tie
  want_TE << 2, A(0.5), 3, -9, 1, 1, 1, 1, 0, A(-0.0), A(-1.5), 5;
  const Outcome<A> got = compete(logits_TE, rivals, Competition::penalty(0.5));
  EXPECT_TRUE(data::same_bits(got.penalised_TE, want_TE));
  Bytes want_losers(3, 4);
  want_losers << 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0;
  EXPECT_TRUE(data::same_bits(got.loser_TE, want_losers));
}

// Exact copies: by the paper's rule both survive, by the other one the lower id does. Zeros of
// either sign tie, infinities tie, a NaN ties nobody.
TYPED_TEST(CompetitionTest, TheHigherIdLosesATieIfAsked) {
  using A = TypeParam;
  const A nan = std::numeric_limits<A>::quiet_NaN(), inf = std::numeric_limits<A>::infinity();
  for (const bool both_sides : {false, true}) {
    Partners partners_EM(4, 1);
    partners_EM << 1, 0, 3, 2;
    const RivalTable rivals(gatepro::view(partners_EM), both_sides);
    RowMatrix<A> logits_TE(3, 4);
    logits_TE << 2, 2, A(-0.0), 0, nan, nan, inf, inf, -inf, -inf, 1, nan;
    Bytes want_losers(3, 4);
    want_losers << 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0;
    for (const Competition& strict : {Competition::penalty(0.5), Competition::eliminate()}) {
      Competition competition = strict;
      EXPECT_TRUE((compete(logits_TE, rivals, competition).loser_TE.array() == 0).all());
      competition.ties = TieRule::higher_id_loses;
      const Outcome<A> got = compete(logits_TE, rivals, competition);
      EXPECT_TRUE(data::same_bits(got.loser_TE, want_losers));
      RowMatrix<A> want_TE = logits_TE;
      if (competition.mode == CompetitionMode::penalty) {
        want_TE(0, 1) = A(1.5);
        want_TE(0, 3) = A(-0.5);
      }
      EXPECT_TRUE(data::same_bits(got.penalised_TE, want_TE));
    }
  }
}

TYPED_TEST(CompetitionTest, ALoserPaysOnceHoweverManyBeatIt) {
  using A = TypeParam;
  Partners partners_EM(3, 2);
  partners_EM << 1, 2, 0, 2, 0, 1;
  RowMatrix<A> logits_TE(1, 3);
  logits_TE << 1, 2, 3;
  const RivalTable rivals(gatepro::view(partners_EM), true);
  RowMatrix<A> want_TE(1, 3);
  want_TE << 0, 1, 3;
  EXPECT_TRUE(
      data::same_bits(compete(logits_TE, rivals, Competition::penalty(1)).penalised_TE, want_TE));
}

TYPED_TEST(CompetitionTest, NonfiniteLogits) {
  using A = TypeParam;
  const A inf = data::infinity<A>(), nan = data::marked_nan<A>();
  Partners partners_EM(2, 1);
  partners_EM << 1, 0;
  const RivalTable rivals(gatepro::view(partners_EM), false);
  RowMatrix<A> logits_TE(6, 2);
  logits_TE << nan, 1, 1, nan, inf, inf, -inf, -inf, -inf, 0, 1, inf;
  Bytes want(6, 2);
  want << 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0;
  for (const Competition& competition : {Competition::penalty(0.25), Competition::eliminate()}) {
    const Outcome<A> got = compete(logits_TE, rivals, competition);
    EXPECT_TRUE(data::same_bits(got.loser_TE, want));
    RowMatrix<A> want_TE = logits_TE;
    if (competition.mode == CompetitionMode::penalty) want_TE(5, 0) = A(0.75);
    EXPECT_TRUE(data::same_bits(got.penalised_TE, want_TE));
  }
}

TYPED_TEST(CompetitionTest, InPlaceInRangesAndWithGapsGivesTheSameBits) {
  using A = TypeParam;
  const Index tokens = 70, experts = 19;
  const RowMatrix<A> logits_TE = data::special_matrix<A>(tokens, experts, 5);
  const Rivals rivals = random_rivals(experts, 2, false, 6);
  auto memory = data::scratch(gatepro::apply_competition_workspace_bytes<A>(experts));
  for (const Competition& competition : {Competition::penalty(0.5), Competition::eliminate()}) {
    const Outcome<A> want = compete(logits_TE, rivals.table, competition);
    data::GuardedMatrix<A> logits(logits_TE, 3);
    data::GuardedMatrix<std::uint8_t> losers(tokens, experts, 5);
    for (Index first = 0, count = 1; first < tokens; first += count, count += 6) {
      const Index rows = std::min(count, tokens - first);
      gatepro::apply_competition(logits.view().middle_rows(first, rows), rivals.table, competition,
                                 logits.view().middle_rows(first, rows),
                                 losers.view().middle_rows(first, rows), memory);
    }
    expect_equal<A>({logits.values(), losers.values()}, want);
    EXPECT_TRUE(logits.intact());
    EXPECT_TRUE(losers.intact());
  }
}

TYPED_TEST(CompetitionTest, LosersAreOptionalInPenaltyMode) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(20, 7, 7);
  const Rivals rivals = random_rivals(7, 1, false, 8);
  RowMatrix<A> penalised_TE(20, 7);
  auto memory = data::scratch(gatepro::apply_competition_workspace_bytes<A>(7));
  gatepro::apply_competition(gatepro::view(logits_TE), rivals.table, Competition::penalty(0.5),
                             gatepro::view(penalised_TE), MatrixView<std::uint8_t>(), memory);
  EXPECT_TRUE(data::same_bits(
      penalised_TE, compete(logits_TE, rivals.table, Competition::penalty(0.5)).penalised_TE));
}

TYPED_TEST(CompetitionTest, OffIgnoresThePartners) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::special_matrix<A>(20, 7, 9);
  const Rivals poison = random_rivals(7, 3, true, 10);
  for (const Competition& competition : {Competition::off(), Competition::penalty(0)}) {
    for (const RivalTable& rivals : {poison.table, RivalTable()}) {
      expect_equal<A>(compete(logits_TE, rivals, competition), {logits_TE, Bytes::Zero(20, 7)});
    }
  }
}

TYPED_TEST(CompetitionTest, ExecutorsGiveTheSameBits) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::special_matrix<A>(256 * 5 + 3, 6, 11);
  const Rivals rivals = random_rivals(6, 1, false, 12);
  for (const Competition& competition : {Competition::penalty(0.5), Competition::eliminate()}) {
    const Outcome<A> want = compete(logits_TE, rivals.table, competition);
    expect_equal(compete(logits_TE, rivals.table, competition, ThreadExecutor(3)), want);
    expect_equal(compete(logits_TE, rivals.table, competition, LastWorkerFirst(4)), want);
  }
}

TYPED_TEST(CompetitionTest, NoTokensWriteNothing) {
  using A = TypeParam;
  const Rivals rivals = random_rivals(6, 1, false, 13);
  auto memory = data::scratch(gatepro::apply_competition_workspace_bytes<A>(6));
  EXPECT_NO_THROW(gatepro::apply_competition(MatrixView<A>(nullptr, 0, 6), rivals.table,
                                             Competition{}, MatrixView<A>(nullptr, 0, 6),
                                             MatrixView<std::uint8_t>(nullptr, 0, 6), memory));
}

}  // namespace
