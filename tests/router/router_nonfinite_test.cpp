// SPDX-License-Identifier: MIT
// NaN, infinities, -0.0, denormals and huge numbers anywhere: ids stay valid, the rules for NaN
// weights hold, and other tokens do not notice.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <limits>
#include <random>

#include "support/bits.hpp"
#include "support/ids.hpp"
#include "support/inputs.hpp"
#include "support/routing_data.hpp"
#include "support/type_names.hpp"

namespace {

using data::random_matrix;
using data::same_bits;
using data::special_matrix;
using gatepro::Competition;
using gatepro::Index;
using gatepro::RowMatrix;
using routing_data::expect_reference_routing;

template <class A>
void poison_partners(gatepro::Router<A>& router, std::uint64_t seed) {
  const gatepro::RouterConfig& config = router.config();
  const auto partners_EM =
      data::random_partners(config.num_experts, config.pairing.partners_per_expert, seed);
  router.set_partners(partners_EM, 0);
}

template <class A>
class RouterNonfinite : public testing::Test {};
using Accumulators = testing::Types<float, double>;
TYPED_TEST_SUITE(RouterNonfinite, Accumulators, TypeNames);

TYPED_TEST(RouterNonfinite, GivenLogits) {
  using A = TypeParam;
  for (const Index experts : {1, 2, 5, 16, 21}) {
    for (const Index top_k : {Index{1}, Index{2}, Index{5}, experts}) {
      if (top_k > experts) continue;
      gatepro::RouterConfig config{1, experts, top_k};
      config.pairing.partners_per_expert = std::min<Index>(2, std::max<Index>(1, experts - 1));
      config.pairing.both_sides = top_k == 2;
      gatepro::Router<A> router(config);
      poison_partners(router, 3);
      const auto logits =
          special_matrix<A>(300, experts, static_cast<std::uint64_t>(10 * experts + top_k));
      for (const Competition& competition :
           {Competition::off(), Competition::penalty(1e-4), Competition::penalty(1e30),
            Competition::eliminate()}) {
        SCOPED_TRACE(testing::Message()
                     << "E " << experts << ", K " << top_k << ", lambda " << competition.lambda);
        router.set_competition(competition);
        const auto outcome = routing_data::forward_logits(router, logits);
        ASSERT_NO_FATAL_FAILURE(expect_reference_routing(router, outcome));
      }
    }
  }
}

// NaN weights are quiet, and a row has all or none.
TYPED_TEST(RouterNonfinite, NaNWeightsAreQuiet) {
  using A = TypeParam;
  gatepro::RouterConfig config{1, 6, 3};
  config.competition = Competition::eliminate();
  gatepro::Router<A> router(config);
  poison_partners(router, 4);
  const auto outcome = routing_data::forward_logits(router, special_matrix<A>(500, 6, 5));
  EXPECT_GT(outcome.report.nonfinite_rows, 0);
  EXPECT_LT(outcome.report.nonfinite_rows, 500);
  constexpr auto quiet = data::BitsOf<A>{1} << (std::numeric_limits<A>::digits - 2);
  for (Index t = 0; t < 500; ++t) {
    const bool nan = std::isnan(outcome.weights_TK(t, 0));
    for (Index j = 0; j < 3; ++j) {
      ASSERT_EQ(std::isnan(outcome.weights_TK(t, j)), nan);
      if (nan) {
        ASSERT_NE(data::bits_of(outcome.weights_TK(t, j)) & quiet, 0U);
      }
    }
  }
}

// The rows of the rule, one by one.
TYPED_TEST(RouterNonfinite, Rules) {
  using A = TypeParam;
  const A nan = std::numeric_limits<A>::quiet_NaN();
  const A inf = std::numeric_limits<A>::infinity();
  struct Row {
    std::vector<A> logits;
    std::int32_t ids[2];
    A weights[2];  // NaN: both are
  };
  const Row rows[] = {
      {{1, nan, 1}, {0, 2}, {A(0.5), A(0.5)}},            // a NaN that is not selected
      {{nan, 1, nan}, {1, 0}, {nan, nan}},                // one that must be
      {{nan, nan, nan}, {0, 1}, {nan, nan}},              //
      {{nan, -inf, -inf}, {1, 2}, {nan, nan}},            // only -inf
      {{-inf, 5, -inf}, {1, 0}, {1, 0}},                  // -inf weighs nothing
      {{inf, 5, 0}, {0, 1}, {nan, nan}},                  // +inf
      {{A(-0.0), 0, A(-0.0)}, {0, 1}, {A(0.5), A(0.5)}},  // zeros are equal, the lower id first
      {{std::numeric_limits<A>::max(), -std::numeric_limits<A>::max(), nan}, {0, 1}, {1, 0}},
      {{-std::numeric_limits<A>::denorm_min(), 0, std::numeric_limits<A>::denorm_min()},
       {2, 1},
       {A(0.5), A(0.5)}},
  };
  gatepro::RouterConfig config{1, 3, 2};
  config.competition = Competition::off();
  const gatepro::Router<A> router(config);
  for (const Row& row : rows) {
    const RowMatrix<A> logits = Eigen::Map<const RowMatrix<A>>(row.logits.data(), 1, 3);
    const auto outcome = routing_data::forward_logits(router, logits);
    EXPECT_EQ(outcome.report.nonfinite_rows, std::isnan(row.weights[0]) ? 1 : 0);
    for (int j = 0; j < 2; ++j) {
      EXPECT_EQ(outcome.ids_TK(0, j), row.ids[j]) << logits;
      if (std::isnan(row.weights[0])) {
        EXPECT_TRUE(std::isnan(outcome.weights_TK(0, j))) << logits;
      } else {
        EXPECT_EQ(outcome.weights_TK(0, j), row.weights[j]) << logits;
      }
    }
  }
}

// Tokens without anything special keep their bits, forward and backward, whoever sits beside them.
TYPED_TEST(RouterNonfinite, OtherTokensDoNotNotice) {
  using A = TypeParam;
  constexpr Index tokens = 301, hidden = 40, top_k = 3;
  for (const Index experts : {4, 18}) {
    const auto clean = random_matrix<A>(tokens, hidden, 6);
    const auto special = special_matrix<A>(tokens, hidden, 7);
    RowMatrix<A> mixed = clean;
    for (Index t = 0; t < tokens; ++t) {
      if (t % 5 == 1 || (t > 60 && t < 80)) mixed.row(t) = special.row(t);
    }
    const auto w = random_matrix<A>(experts, hidden, 8);
    gatepro::RouterConfig config{hidden, experts, top_k};
    config.competition = Competition::eliminate();
    gatepro::Router<A> router(config);
    router.refresh(w, 0);
    const auto expected = routing_data::forward(router, clean, w);
    const auto actual = routing_data::forward(router, mixed, w);
    ASSERT_NO_FATAL_FAILURE(expect_reference_routing(router, actual));
    EXPECT_GT(actual.report.nonfinite_rows, 0);

    const auto dweights = random_matrix<A>(tokens, top_k, 9);
    const routing_data::Gradients<A> start{RowMatrix<A>::Zero(tokens, hidden),
                                           RowMatrix<A>::Zero(experts, hidden)};
    const auto dclean =
        routing_data::backward(router, clean, w, expected, dweights, RowMatrix<A>(), start);
    const auto dmixed =
        routing_data::backward(router, mixed, w, actual, dweights, RowMatrix<A>(), start);
    for (Index t = 0; t < tokens; ++t) {
      if (mixed.row(t) == clean.row(t)) {
        ASSERT_TRUE(same_bits<std::int32_t>(actual.ids_TK.row(t), expected.ids_TK.row(t)));
        ASSERT_TRUE(same_bits<A>(actual.weights_TK.row(t), expected.weights_TK.row(t)));
        ASSERT_TRUE(same_bits<A>(actual.logits_TE.row(t), expected.logits_TE.row(t)));
        ASSERT_TRUE(same_bits<A>(dmixed.dx_TH.row(t), dclean.dx_TH.row(t)));
      } else if (std::isnan(actual.weights_TK(t, 0))) {
        ASSERT_TRUE(std::isnan(dmixed.dx_TH.row(t).sum())) << "a NaN token has NaN gradients";
      }
    }
  }
}

// A row of W that is not finite: its expert gets NaN logits, ranks last, and has no partner; the
// other experts' logits keep their bits.
TYPED_TEST(RouterNonfinite, RowsOfW) {
  using A = TypeParam;
  constexpr Index tokens = 60, hidden = 33;
  for (const Index experts : {6, 20}) {
    const auto x = random_matrix<A>(tokens, hidden, 10);
    const auto clean = random_matrix<A>(experts, hidden, 11);
    RowMatrix<A> w = clean;
    w(2, 5) = std::numeric_limits<A>::quiet_NaN();
    w(4, 1) = std::numeric_limits<A>::infinity();
    w.row(5) *= std::numeric_limits<A>::min();
    gatepro::RouterConfig config{hidden, experts, 3};
    config.competition = Competition::eliminate();
    gatepro::Router<A> router(config);
    router.refresh(w, 0);
    EXPECT_EQ(router.similarity_cache().report().nonfinite_rows, 2);
    const auto partners = router.similarity_cache().partners();
    EXPECT_EQ(partners(2, 0), 2);
    EXPECT_EQ(partners(4, 0), 4);
    for (Index e = 0; e < experts; ++e) {
      if (e == 2 || e == 4) continue;
      EXPECT_NE(partners(e, 0), e);
      EXPECT_NE(partners(e, 0), 2);
      EXPECT_NE(partners(e, 0), 4);
    }
    const auto outcome = routing_data::forward(router, x, w);
    ASSERT_NO_FATAL_FAILURE(expect_reference_routing(router, outcome));
    const auto unspoilt = routing_data::forward(router, x, clean);
    for (Index e = 0; e < experts; ++e) {
      if (e == 2 || e == 4 || e == 5) continue;
      ASSERT_TRUE(same_bits<A>(outcome.logits_TE.col(e), unspoilt.logits_TE.col(e)));
    }
    for (Index t = 0; t < tokens; ++t) EXPECT_TRUE(std::isnan(outcome.logits_TE(t, 2)));
  }
}

TYPED_TEST(RouterNonfinite, EverythingAtOnce) {
  using A = TypeParam;
  for (unsigned seed = 20; seed < 30; ++seed) {
    const auto x = special_matrix<A>(50, 3, seed);
    const auto w = special_matrix<A>(7, 3, seed + 50);
    gatepro::RouterConfig config{3, 7, 4};
    config.competition = seed % 2 == 0 ? Competition::eliminate() : Competition::penalty(1);
    config.pairing.partners_per_expert = 2;
    gatepro::Router<A> router(config);
    router.refresh(w, 0);
    const auto outcome = routing_data::forward(router, x, w);
    ASSERT_NO_FATAL_FAILURE(expect_reference_routing(router, outcome));
  }
}

// Everyone but expert 0 loses against it: one survivor, and losers fill the other slots. Their
// weights and gradients are exactly zero, so that not even NaN rows of W and NaN gradients of
// their weights get through.
TYPED_TEST(RouterNonfinite, FewerSurvivorsThanChoices) {
  using A = TypeParam;
  constexpr Index tokens = 70, experts = 5, hidden = 9, top_k = 3;
  const A nan = std::numeric_limits<A>::quiet_NaN();
  gatepro::RouterConfig config{hidden, experts, top_k};
  config.competition = Competition::eliminate();
  gatepro::Router<A> router(config);
  const std::vector<std::int32_t> partners(experts, 0);
  router.set_partners({partners.data(), experts, 1, 1, 1}, 0);
  RowMatrix<A> logits = random_matrix<A>(tokens, experts, 12);
  logits.col(0).setConstant(2);
  logits.row(3) << 0, 1, 1, -1, 1;  // here expert 0 beats expert 3 alone
  const auto outcome = routing_data::forward_logits(router, logits);
  ASSERT_NO_FATAL_FAILURE(expect_reference_routing(router, outcome));
  EXPECT_EQ(outcome.report.tokens_short_of_survivors, tokens - 1);
  EXPECT_EQ(outcome.statistics.tokens_short_of_survivors, tokens - 1);

  const auto x = random_matrix<A>(tokens, hidden, 13);
  RowMatrix<A> w = random_matrix<A>(experts, hidden, 14);
  RowMatrix<A> dweights = RowMatrix<A>::Ones(tokens, top_k);
  dweights.rightCols(2).setConstant(nan);
  dweights.row(3) << 1, 2, 3;
  w.row(3).setConstant(nan);  // never selected but as a loser
  const routing_data::Gradients<A> start{random_matrix<A>(tokens, hidden, 15),
                                         random_matrix<A>(experts, hidden, 16)};
  const auto gradients =
      routing_data::backward(router, x, w, outcome, dweights, RowMatrix<A>(), start);
  for (Index t = 0; t < tokens; ++t) {
    if (t == 3) continue;
    EXPECT_EQ(outcome.ids_TK(t, 0), 0);
    EXPECT_EQ(outcome.weights_TK(t, 0), 1);
    EXPECT_EQ(outcome.weights_TK(t, 1), 0);
    EXPECT_EQ(outcome.weights_TK(t, 2), 0);
    // A single weight is the constant 1: no gradient at all.
    EXPECT_TRUE(same_bits<A>(gradients.dx_TH.row(t), start.dx_TH.row(t)));
  }
  EXPECT_TRUE(gradients.dx_TH.allFinite());
  EXPECT_TRUE(gradients.dw_EH.allFinite());
  EXPECT_TRUE(same_bits<A>(gradients.dw_EH.row(0), start.dw_EH.row(0)));
  EXPECT_TRUE(same_bits<A>(gradients.dw_EH.row(3), start.dw_EH.row(3)));
  EXPECT_FALSE(same_bits<A>(gradients.dw_EH.row(1), start.dw_EH.row(1)));  // token 3
}

// 16-bit infinities, NaNs and denormals arrive as what they are.
template <class T>
void expect_special_storage(std::initializer_list<std::uint16_t> patterns) {
  RowMatrix<T> x(static_cast<Index>(patterns.size()), 1);
  RowMatrix<float> wide(x.rows(), 1);
  Index t = 0;
  for (std::uint16_t bits : patterns) {
    x(t, 0) = Eigen::numext::bit_cast<T>(bits);
    wide(t, 0) = static_cast<float>(x(t, 0));
    ++t;
  }
  const auto w = random_matrix<float>(20, 1, 17);
  gatepro::RouterConfig config{1, 20, 2};
  config.competition = Competition::off();
  const auto expected = routing_data::forward(gatepro::Router<float>(config), wide, w);
  const auto actual = routing_data::forward(gatepro::Router<T, float>(config), x, w);
  EXPECT_TRUE(same_bits(actual.ids_TK, expected.ids_TK));
  EXPECT_EQ(actual.report.nonfinite_rows, expected.report.nonfinite_rows);
  for (Index i = 0; i < actual.weights_TK.size(); ++i) {
    const float a = actual.weights_TK.data()[i];
    const float b = expected.weights_TK.data()[i];
    EXPECT_TRUE(a == b || (std::isnan(a) && std::isnan(b)));
  }
}

TEST(RouterNonfiniteStorage, Bfloat16) {
  expect_special_storage<gatepro::bfloat16>(
      {0x7f80, 0xff80, 0x7fc0, 0xffc1, 0x0000, 0x8000, 0x0001, 0x8001, 0x7f7f, 0xff7f, 0x0080});
}
TEST(RouterNonfiniteStorage, Half) {
  expect_special_storage<gatepro::half>(
      {0x7c00, 0xfc00, 0x7e00, 0xfe01, 0x0000, 0x8000, 0x0001, 0x8001, 0x7bff, 0xfbff, 0x0400});
}

}  // namespace
