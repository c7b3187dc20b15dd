// SPDX-License-Identifier: MIT
// Off is off: without competition a router gives the bits of one that never had partners, whatever
// its partner table holds, forward and backward. Switching is a change of data.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include "support/bits.hpp"
#include "support/inputs.hpp"
#include "support/routing_data.hpp"
#include "support/type_names.hpp"

namespace {

using data::random_matrix;
using data::same_bits;
using gatepro::Competition;
using gatepro::Index;
using gatepro::RowMatrix;

constexpr Index tokens = 150, hidden = 48, top_k = 3;

template <class A>
class RouterOff : public testing::Test {
 public:
  using TestedRouter = gatepro::Router<A>;

  static gatepro::RouterConfig config(Index experts, const Competition& competition) {
    gatepro::RouterConfig result{hidden, experts, top_k};
    result.competition = competition;
    result.pairing.partners_per_expert = 3;
    result.pairing.both_sides = true;
    return result;
  }

  /// Partner tables that no similarity could give.
  static std::vector<RowMatrix<std::int32_t>> poisoned_tables(Index experts) {
    const auto last = static_cast<std::int32_t>(experts - 1);
    RowMatrix<std::int32_t> everyone_against_one(experts, 3), garbage(experts, 3);
    everyone_against_one.setConstant(last);
    for (Index i = 0; i < garbage.size(); ++i) {
      garbage.data()[i] = static_cast<std::int32_t>((7 * i + 3) % experts);
    }
    return {everyone_against_one, garbage};
  }

  /// Logits with ties, zeros of both signs and infinities among them: their order must not change.
  static RowMatrix<A> tied_logits(Index experts) {
    RowMatrix<A> logits = random_matrix<A>(tokens, experts, 1);
    for (Index i = 0; i < logits.size(); i += 3) logits.data()[i] = i % 2 == 0 ? A(0) : A(-0.0);
    for (Index i = 0; i < logits.size(); i += 17) {
      logits.data()[i] = -std::numeric_limits<A>::infinity();
    }
    return logits;
  }

  /// `router` has partners; `plain` is off and never had any.
  static void expect_plain(const TestedRouter& router, const TestedRouter& plain) {
    const Index experts = plain.config().num_experts;
    const auto x = random_matrix<A>(tokens, hidden, 2);
    const auto w = random_matrix<A>(experts, hidden, 3);
    const auto expected = routing_data::forward(plain, x, w);
    const auto actual = routing_data::forward(router, x, w);
    routing_data::expect_same_routing(actual, expected);
    routing_data::expect_same_report(actual.report, expected.report);
    EXPECT_TRUE(same_bits(actual.logits_TE, expected.logits_TE));
    EXPECT_EQ(actual.tokens_per_expert_E, expected.tokens_per_expert_E);
    EXPECT_EQ(actual.statistics.penalised_pairs, 0);
    EXPECT_EQ(actual.statistics.penalties_lost_in_rounding, 0);
    EXPECT_EQ(actual.statistics.tokens_changed, 0);
    EXPECT_EQ(actual.statistics.tokens_short_of_survivors, 0);

    const auto dweights = random_matrix<A>(tokens, top_k, 4);
    const routing_data::Gradients<A> start{random_matrix<A>(tokens, hidden, 5),
                                           random_matrix<A>(experts, hidden, 6)};
    for (const auto& dlogits : {RowMatrix<A>(), random_matrix<A>(tokens, experts, 7)}) {
      const auto a = routing_data::backward(router, x, w, actual, dweights, dlogits, start);
      const auto b = routing_data::backward(plain, x, w, expected, dweights, dlogits, start);
      EXPECT_TRUE(same_bits(a.dx_TH, b.dx_TH));
      EXPECT_TRUE(same_bits(a.dw_EH, b.dw_EH));
    }

    const auto logits = tied_logits(experts);
    routing_data::expect_same_routing(routing_data::forward_logits(router, logits),
                                      routing_data::forward_logits(plain, logits));
  }
};

using Accumulators = testing::Types<float, double>;
TYPED_TEST_SUITE(RouterOff, Accumulators, TypeNames);

TYPED_TEST(RouterOff, EqualsARouterWithoutPartners) {
  for (const Index experts : {4, 17}) {
    const gatepro::Router<TypeParam> plain(this->config(experts, Competition::off()));
    // Off by mode, whatever its lambda; by lambda = 0 of either sign.
    for (const Competition& off :
         {Competition::off(), Competition{gatepro::CompetitionMode::off, 1e30},
          Competition{gatepro::CompetitionMode::off, -1},
          Competition{gatepro::CompetitionMode::off, std::numeric_limits<double>::quiet_NaN()},
          Competition::penalty(0), Competition::penalty(-0.0)}) {
      EXPECT_FALSE(off.active());
      gatepro::Router<TypeParam> router(this->config(experts, off));
      this->expect_plain(router, plain);  // no partners needed
      for (const auto& table : this->poisoned_tables(experts)) {
        router.set_partners(table, 0);
        this->expect_plain(router, plain);
      }
      // Rows so alike that all similarities are 1, and so large that they are near overflow.
      RowMatrix<TypeParam> huge = RowMatrix<TypeParam>::Constant(
          experts, hidden, std::numeric_limits<TypeParam>::max() / 2);
      router.refresh_now(huge, 1);
      this->expect_plain(router, plain);
      huge.setConstant(std::numeric_limits<TypeParam>::quiet_NaN());
      router.refresh_now(huge, 2);
      this->expect_plain(router, plain);
    }
  }
}

// The tables above do something as soon as the competition is on: the test would see it.
TYPED_TEST(RouterOff, PoisonedTablesActWhenOn) {
  const Index experts = 17;
  const auto x = random_matrix<TypeParam>(tokens, hidden, 2);
  const auto w = random_matrix<TypeParam>(experts, hidden, 3);
  const gatepro::Router<TypeParam> plain(this->config(experts, Competition::off()));
  const auto expected = routing_data::forward(plain, x, w);
  for (const auto& table : this->poisoned_tables(experts)) {
    gatepro::Router<TypeParam> router(this->config(experts, Competition::eliminate()));
    router.set_partners(table, 0);
    const auto actual = routing_data::forward(router, x, w);
    EXPECT_GT(actual.statistics.penalised_pairs, 0);
    EXPECT_FALSE(same_bits(actual.weights_TK, expected.weights_TK));
  }
}

TYPED_TEST(RouterOff, HotSwap) {
  const Index experts = 17;
  const auto x = random_matrix<TypeParam>(tokens, hidden, 8);
  const auto w = random_matrix<TypeParam>(experts, hidden, 9);
  const gatepro::Router<TypeParam> plain(this->config(experts, Competition::off()));
  gatepro::Router<TypeParam> router(this->config(experts, Competition::eliminate()));
  router.refresh(w, 0);
  const auto on = routing_data::forward(router, x, w);
  const auto off = routing_data::forward(plain, x, w);
  ASSERT_FALSE(same_bits(on.ids_TK, off.ids_TK));

  // One set of buffers, made before the first switch, serves all modes.
  gatepro::RoutingBuffers<gatepro::Router<TypeParam>> buffers(router, tokens);
  const void* ids = buffers.view().expert_ids_TK.data;
  const void* scratch = buffers.workspace().data;
  const std::size_t bytes = router.forward_workspace_bytes();
  const auto forward = [&](const Competition& competition) {
    router.set_competition(competition);
    EXPECT_EQ(router.forward_workspace_bytes(), bytes);
    router.forward(x, w, buffers);
    EXPECT_EQ(buffers.view().expert_ids_TK.data, ids);
    EXPECT_EQ(buffers.workspace().data, scratch);
    return RowMatrix<std::int32_t>(
        Eigen::Map<const RowMatrix<std::int32_t>>(buffers.expert_ids_TK().data, tokens, top_k));
  };
  for (int round = 0; round < 3; ++round) {
    EXPECT_TRUE(same_bits(forward(Competition::eliminate()), on.ids_TK));
    EXPECT_TRUE(same_bits(forward(Competition::off()), off.ids_TK));
    EXPECT_TRUE(same_bits(forward(Competition::penalty(0)), off.ids_TK));
  }
  // A refused setting leaves the old one.
  EXPECT_THROW(router.set_competition(Competition::penalty(-1)), gatepro::Error);
  EXPECT_EQ(router.config().competition.lambda, 0);
  router.forward(x, w, buffers);
}

}  // namespace
