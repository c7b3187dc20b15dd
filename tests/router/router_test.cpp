// SPDX-License-Identifier: MIT
// The whole router against the reference, for every mode, pairing, k and pair of scalars.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include "support/bits.hpp"
#include "support/conversions.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/reference/gate.hpp"
#include "support/reference/partners.hpp"
#include "support/reference/routing.hpp"
#include "support/routing_data.hpp"
#include "support/type_names.hpp"

namespace {

using data::random_matrix;
using data::to_reference;
using gatepro::Competition;
using gatepro::Index;
using gatepro::Pairing;
using gatepro::RouterConfig;
using gatepro::RowMatrix;
using routing_data::expect_reference_routing;

const std::vector<Competition>& competitions() {
  static const std::vector<Competition> all = {
      Competition::off(),
      Competition::penalty(1e-4),
      Competition::penalty(0.1),
      Competition::penalty(1),
      Competition::penalty(1e4),
      Competition::eliminate(),
      {gatepro::CompetitionMode::eliminate, 0, gatepro::TieRule::higher_id_loses}};
  return all;
}

std::vector<Pairing> pairings() {
  std::vector<Pairing> all(5);
  all[1].partners_per_expert = 3;
  all[2].min_similarity = 0.05;
  all[3].both_sides = true;
  all[4] = {2, 0.05, true};
  return all;
}

template <class Scalars>
class RouterTest : public testing::Test {
 public:
  using Token = typename Scalars::X;
  using Weight = typename Scalars::W;
  using Result = gatepro::accumulator_t<Token, Weight>;
  using TestedRouter = gatepro::Router<Token, Weight>;
  static constexpr double eps = static_cast<double>(std::numeric_limits<Result>::epsilon());

  /// Bound of the error of a logit.
  static double logit_error(const RowMatrix<Token>& x_TH, const RowMatrix<Weight>& w_EH) {
    double x_square = 0, w_square = 0;
    for (Index t = 0; t < x_TH.rows(); ++t) {
      x_square = std::max(x_square, x_TH.row(t).template cast<double>().squaredNorm());
    }
    for (Index e = 0; e < w_EH.rows(); ++e) {
      w_square = std::max(w_square, w_EH.row(e).template cast<double>().squaredNorm());
    }
    return 2 * std::sqrt(static_cast<double>(x_TH.cols()) * x_square * w_square) * eps;
  }

  static void expect_reference_logits(const RowMatrix<Token>& x_TH, const RowMatrix<Weight>& w_EH,
                                      const RowMatrix<Result>& logits_TE) {
    const reference::Matrix expected =
        reference::gate_logits(to_reference(x_TH), to_reference(w_EH));
    const double bound = logit_error(x_TH, w_EH);
    for (Index t = 0; t < logits_TE.rows(); ++t) {
      for (Index e = 0; e < logits_TE.cols(); ++e) {
        ASSERT_NEAR(static_cast<double>(logits_TE(t, e)),
                    expected[static_cast<std::size_t>(t)][static_cast<std::size_t>(e)], bound);
      }
    }
  }

  /// The partner is the most similar expert, up to the rounding of the similarity.
  static void expect_reference_partners(const RowMatrix<Weight>& w_EH, const TestedRouter& router) {
    const reference::Matrix similarity = reference::cosine_similarity(to_reference(w_EH));
    const auto partners = router.similarity_cache().partners();
    const double bound =
        4 * std::sqrt(static_cast<double>(w_EH.cols())) *
        static_cast<double>(std::numeric_limits<gatepro::accumulator_t<Weight>>::epsilon());
    for (std::size_t i = 0; i < similarity.size(); ++i) {
      const Index partner = partners(static_cast<Index>(i), 0);
      for (std::size_t j = 0; j < similarity.size(); ++j) {
        if (j == i) continue;
        ASSERT_NE(partner, static_cast<Index>(i));
        ASSERT_GE(similarity[i][static_cast<std::size_t>(partner)], similarity[i][j] - bound);
      }
    }
  }
};

using AllInputs =
    testing::Types<Inputs<float, float>, Inputs<double, double>, Inputs<gatepro::bfloat16, float>,
                   Inputs<gatepro::half, gatepro::half>, Inputs<float, double>>;
TYPED_TEST_SUITE(RouterTest, AllInputs, InputNames);

TYPED_TEST(RouterTest, EqualsTheReferenceInEveryModePairingAndK) {
  using X = typename TestFixture::Token;
  using W = typename TestFixture::Weight;
  constexpr Index tokens = 53, hidden = 37, experts = 9;
  const auto x = random_matrix<X>(tokens, hidden, 1);
  const auto w = random_matrix<W>(experts, hidden, 2, 0.3);
  for (const Pairing& pairing : pairings()) {
    for (Index k = 1; k <= experts; ++k) {
      RouterConfig config{hidden, experts, k};
      config.pairing = pairing;
      typename TestFixture::TestedRouter router(config);
      router.refresh(w, 0);
      for (const Competition& competition : competitions()) {
        SCOPED_TRACE(testing::Message()
                     << "k " << k << ", m " << pairing.partners_per_expert << ", both sides "
                     << pairing.both_sides << ", mode " << static_cast<int>(competition.mode)
                     << ", lambda " << competition.lambda);
        router.set_competition(competition);
        const auto outcome = routing_data::forward(router, x, w);
        ASSERT_NO_FATAL_FAILURE(this->expect_reference_logits(x, w, outcome.logits_TE));
        ASSERT_NO_FATAL_FAILURE(expect_reference_routing(router, outcome));
      }
    }
  }
}

// Shapes around the sizes of vectors, panels, tiles and depth blocks.
TYPED_TEST(RouterTest, EqualsTheReferenceInEveryShape) {
  using X = typename TestFixture::Token;
  using W = typename TestFixture::Weight;
  struct Shape {
    Index tokens, hidden, experts, top_k;
  };
  const Shape shapes[] = {{1, 1, 1, 1},     {3, 1, 2, 2},      {47, 16, 8, 2},
                          {48, 8, 16, 6},   {49, 513, 17, 4},  {97, 24, 33, 8},
                          {5, 1030, 65, 3}, {20, 48, 130, 20}, {7, 512, 64, 64}};
  for (const Shape& s : shapes) {
    SCOPED_TRACE(testing::Message() << "T " << s.tokens << ", H " << s.hidden << ", E " << s.experts
                                    << ", K " << s.top_k);
    const auto x = random_matrix<X>(s.tokens, s.hidden, 3);
    const auto w = random_matrix<W>(s.experts, s.hidden, 4, 0.3);
    RouterConfig config{s.hidden, s.experts, s.top_k};
    config.competition = Competition::eliminate();
    typename TestFixture::TestedRouter router(config);
    router.refresh(w, 0);
    ASSERT_NO_FATAL_FAILURE(this->expect_reference_partners(w, router));
    const auto outcome = routing_data::forward(router, x, w);
    ASSERT_NO_FATAL_FAILURE(this->expect_reference_logits(x, w, outcome.logits_TE));
    ASSERT_NO_FATAL_FAILURE(expect_reference_routing(router, outcome));
  }
}

// From X and W to weights without any result of the library in between. The seed leaves no two
// logits as close as their error.
TYPED_TEST(RouterTest, EqualsTheReferenceFromEndToEnd) {
  using X = typename TestFixture::Token;
  using W = typename TestFixture::Weight;
  constexpr Index tokens = 60, hidden = 64, experts = 12, top_k = 3;
  const auto x = random_matrix<X>(tokens, hidden, 5);
  const auto w = random_matrix<W>(experts, hidden, 6, 0.3);
  const reference::Matrix logits = reference::gate_logits(to_reference(x), to_reference(w));
  const reference::Ids rivals = reference::rivals(
      reference::pair_partners(reference::cosine_similarity(to_reference(w)), {}), false);
  const double tolerance = 2 * this->logit_error(x, w) + 16 * TestFixture::eps;
  typename TestFixture::TestedRouter router({hidden, experts, top_k});
  router.refresh(w, 0);
  for (const Competition& competition : competitions()) {
    // With 1e4 the penalised logits of float carry 1e-3 of rounding.
    if (competition.lambda > 100) continue;
    router.set_competition(competition);
    const auto outcome = routing_data::forward(router, x, w);
    for (Index t = 0; t < tokens; ++t) {
      const reference::Token expected =
          reference::route(logits[static_cast<std::size_t>(t)], rivals, competition,
                           static_cast<int>(top_k), [](double v) { return v; });
      for (Index j = 0; j < top_k; ++j) {
        ASSERT_EQ(outcome.ids_TK(t, j), expected.ids[static_cast<std::size_t>(j)]);
        ASSERT_NEAR(static_cast<double>(outcome.weights_TK(t, j)),
                    expected.weights[static_cast<std::size_t>(j)], tolerance);
      }
    }
  }
}

TYPED_TEST(RouterTest, BackwardEqualsTheReferenceAndAccumulates) {
  using X = typename TestFixture::Token;
  using W = typename TestFixture::Weight;
  using A = typename TestFixture::Result;
  constexpr Index tokens = 50, hidden = 70, experts = 10, top_k = 3;
  const auto x = random_matrix<X>(tokens, hidden, 7);
  const auto w = random_matrix<W>(experts, hidden, 8, 0.3);
  const auto dweights = random_matrix<A>(tokens, top_k, 9);
  const routing_data::Gradients<A> start{random_matrix<A>(tokens, hidden, 10),
                                         random_matrix<A>(experts, hidden, 11)};
  RouterConfig config{hidden, experts, top_k};
  config.competition = Competition::penalty(0.5);
  typename TestFixture::TestedRouter router(config);
  router.refresh(w, 0);
  const auto outcome = routing_data::forward(router, x, w);
  for (const auto& dlogits : {RowMatrix<A>(), random_matrix<A>(tokens, experts, 12)}) {
    const auto actual = routing_data::backward(router, x, w, outcome, dweights, dlogits, start);
    const reference::Gradients expected =
        reference::backward(to_reference(x), to_reference(w), data::to_ids(outcome.ids_TK),
                            to_reference(outcome.weights_TK), to_reference(dweights),
                            dlogits.size() == 0 ? reference::Matrix() : to_reference(dlogits));
    const double bound = 64 * TestFixture::eps;
    for (Index h = 0; h < hidden; ++h) {
      for (Index t = 0; t < tokens; ++t) {
        const double added =
            expected.dx_TH[static_cast<std::size_t>(t)][static_cast<std::size_t>(h)];
        ASSERT_NEAR(static_cast<double>(actual.dx_TH(t, h)),
                    static_cast<double>(start.dx_TH(t, h)) + added, bound);
      }
      for (Index e = 0; e < experts; ++e) {
        const double added =
            expected.dw_EH[static_cast<std::size_t>(e)][static_cast<std::size_t>(h)];
        ASSERT_NEAR(static_cast<double>(actual.dw_EH(e, h)),
                    static_cast<double>(start.dw_EH(e, h)) + added, bound);
      }
    }
  }
}

TYPED_TEST(RouterTest, NoTokens) {
  using X = typename TestFixture::Token;
  using W = typename TestFixture::Weight;
  using A = typename TestFixture::Result;
  // More columns than one task of the backward takes, and no memory behind the empty matrices.
  constexpr Index hidden = 1100, experts = 4;
  const RowMatrix<X> x(0, hidden);
  const auto w = random_matrix<W>(experts, hidden, 13);
  for (Index top_k : {1, 2}) {
    typename TestFixture::TestedRouter router({hidden, experts, top_k});
    router.refresh(w, 0);
    const auto outcome = routing_data::forward(router, x, w);
    EXPECT_EQ(outcome.report.nonfinite_rows, 0);
    EXPECT_EQ(outcome.statistics.tokens, 0);
    EXPECT_EQ(outcome.tokens_per_expert_E, std::vector<std::int64_t>(4, 0));
    const routing_data::Gradients<A> start{RowMatrix<A>(0, hidden),
                                           random_matrix<A>(experts, hidden, 14)};
    const auto gradients = routing_data::backward(router, x, w, outcome, RowMatrix<A>(0, top_k),
                                                  RowMatrix<A>(0, experts), start);
    EXPECT_TRUE(data::same_bits(gradients.dw_EH, start.dw_EH));
  }
}

// One expert has no partner: nothing competes, and all weight is its own.
TYPED_TEST(RouterTest, OneExpert) {
  using X = typename TestFixture::Token;
  using W = typename TestFixture::Weight;
  const auto x = random_matrix<X>(20, 5, 15);
  const auto w = random_matrix<W>(1, 5, 16);
  typename TestFixture::TestedRouter router({5, 1, 1});
  router.refresh(w, 0);
  EXPECT_EQ(router.similarity_cache().partners()(0, 0), 0);
  for (const Competition& competition : competitions()) {
    router.set_competition(competition);
    const auto outcome = routing_data::forward(router, x, w);
    EXPECT_TRUE((outcome.ids_TK.array() == 0).all());
    EXPECT_TRUE((outcome.weights_TK.array() == 1).all());
    EXPECT_EQ(outcome.tokens_per_expert_E[0], 20);
    EXPECT_EQ(outcome.statistics.penalised_pairs, 0);
    EXPECT_EQ(outcome.statistics.partnered_selections, 0);
  }
}

// ---- The worked example: logits [2.1, 1.8, 0.5, 3.2], k = 2 -----------------------------------

struct Choice {
  int id;
  double weight;
};

/// Softmax over two logits.
std::vector<Choice> pair_of(int best, double best_logit, int second, double second_logit) {
  const double p = 1 / (1 + std::exp(second_logit - best_logit));
  return {{best, p}, {second, 1 - p}};
}

void expect_example(const Competition& competition, std::vector<std::int32_t> partners,
                    bool both_sides, const std::vector<Choice>& expected) {
  const RowMatrix<double> logits = (RowMatrix<double>(1, 4) << 2.1, 1.8, 0.5, 3.2).finished();
  RouterConfig config{1, 4, 2};
  config.competition = competition;
  config.pairing.both_sides = both_sides;
  gatepro::Router<double> router(config);
  router.set_partners({partners.data(), 4, 1, 1, 1}, 0);
  const auto outcome = routing_data::forward_logits(router, logits);
  for (Index j = 0; j < 2; ++j) {
    EXPECT_EQ(outcome.ids_TK(0, j), expected[static_cast<std::size_t>(j)].id);
    EXPECT_NEAR(outcome.weights_TK(0, j), expected[static_cast<std::size_t>(j)].weight, 1e-15);
  }
}

TEST(WorkedExample, PlainTopK) {
  expect_example(Competition::off(), {0, 1, 2, 3}, false, pair_of(3, 3.2, 0, 2.1));
  EXPECT_NEAR(pair_of(3, 3.2, 0, 2.1)[0].weight, 0.750260105595118, 1e-15);
}

TEST(WorkedExample, ALoserPaysAndMayStay) {
  expect_example(Competition::penalty(0.2), {3, 1, 2, 3}, false, pair_of(3, 3.2, 0, 1.9));
}

TEST(WorkedExample, ALoserPaysAndLeaves) {
  expect_example(Competition::penalty(0.5), {3, 1, 2, 3}, false, pair_of(3, 3.2, 1, 1.8));
}

// 1 loses to 0 by the original logits, although 0 pays as well.
TEST(WorkedExample, OriginalLogitsDecide) {
  expect_example(Competition::penalty(1), {3, 0, 2, 3}, false, pair_of(3, 3.2, 0, 1.1));
}

TEST(WorkedExample, TheRelationNeedNotBeMutual) {
  // 3 names 0 and wins; 0 names nobody and pays nothing.
  expect_example(Competition::penalty(1), {0, 1, 2, 0}, false, pair_of(3, 3.2, 0, 2.1));
  expect_example(Competition::penalty(1), {0, 1, 2, 0}, true, pair_of(3, 3.2, 1, 1.8));
}

TEST(WorkedExample, ALoserIsEliminated) {
  expect_example(Competition::eliminate(), {3, 1, 2, 3}, false, pair_of(3, 3.2, 1, 1.8));
}

TEST(WorkedExample, OneSurvivorTakesAllWeight) {
  expect_example(Competition::eliminate(), {3, 3, 3, 3}, false, {{3, 1}, {0, 0}});
}

TEST(WorkedExample, EqualLogitsDoNotCompete) {
  const RowMatrix<float> logits = (RowMatrix<float>(1, 3) << 1, 1, 0).finished();
  RouterConfig config{1, 3, 2};
  config.competition = Competition::eliminate();
  gatepro::Router<float> router(config);
  const std::vector<std::int32_t> partners = {1, 0, 2};
  router.set_partners({partners.data(), 3, 1, 1, 1}, 0);
  const auto outcome = routing_data::forward_logits(router, logits);
  EXPECT_EQ(outcome.ids_TK(0, 0), 0);
  EXPECT_EQ(outcome.ids_TK(0, 1), 1);
  EXPECT_EQ(outcome.weights_TK(0, 0), 0.5F);
  EXPECT_EQ(outcome.weights_TK(0, 1), 0.5F);
  EXPECT_EQ(outcome.statistics.penalised_pairs, 0);
}

// ---- Gradients of the whole router against finite differences ---------------------------------

class GradientTest : public testing::TestWithParam<Competition> {};

TEST_P(GradientTest, EqualsFiniteDifferences) {
  constexpr Index tokens = 6, hidden = 5, experts = 7, top_k = 3;
  RowMatrix<double> x = random_matrix<double>(tokens, hidden, 17);
  RowMatrix<double> w = random_matrix<double>(experts, hidden, 18);
  const auto dweights = random_matrix<double>(tokens, top_k, 19);
  RouterConfig config{hidden, experts, top_k};
  config.competition = GetParam();
  gatepro::Router<double> router(config);
  router.refresh(w, 0);  // the partners stay: no gradient reaches the similarity

  for (const auto& dlogits : {RowMatrix<double>(), random_matrix<double>(tokens, experts, 20)}) {
    const auto loss = [&] {
      const auto outcome = routing_data::forward(router, x, w);
      double sum = outcome.weights_TK.cwiseProduct(dweights).sum();
      if (dlogits.size() != 0) sum += outcome.logits_TE.cwiseProduct(dlogits).sum();
      return sum;
    };
    const auto slope = [&](double& variable) {
      constexpr double step = 1e-6;  // far below the smallest gap between two logits
      const double value = variable;
      variable = value + step;
      const double above = loss();
      variable = value - step;
      const double below = loss();
      variable = value;
      return (above - below) / (2 * step);
    };
    const auto gradients = routing_data::backward(
        router, x, w, routing_data::forward(router, x, w), dweights, dlogits,
        {RowMatrix<double>::Zero(tokens, hidden), RowMatrix<double>::Zero(experts, hidden)});
    EXPECT_GT(gradients.dx_TH.cwiseAbs().maxCoeff(), 0.01);
    for (Index i = 0; i < x.size(); ++i) {
      ASSERT_NEAR(gradients.dx_TH.data()[i], slope(x.data()[i]), 1e-8) << "dX, element " << i;
    }
    for (Index i = 0; i < w.size(); ++i) {
      ASSERT_NEAR(gradients.dw_EH.data()[i], slope(w.data()[i]), 1e-8) << "dW, element " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, GradientTest,
                         testing::Values(Competition::off(), Competition::penalty(0.1),
                                         Competition::eliminate()));

// ---- top_k = 1 --------------------------------------------------------------------------------

class OneChoice : public testing::Test {
 public:
  void run(const gatepro::Router<float>& router, const RowMatrix<float>& dlogits) {
    router_outcome = routing_data::backward(router, x, w, routing_data::forward(router, x, w),
                                            RowMatrix<float>(RowMatrix<float>::Ones(4, 1)), dlogits,
                                            {zero, zero_w});
  }
  const RowMatrix<float> x = random_matrix<float>(4, 3, 21);
  const RowMatrix<float> w = random_matrix<float>(5, 3, 22);
  const RowMatrix<float> zero = RowMatrix<float>::Zero(4, 3);
  const RowMatrix<float> zero_w = RowMatrix<float>::Zero(5, 3);
  routing_data::Gradients<float> router_outcome;
};

TEST_F(OneChoice, BackwardRefusesWhatWouldTeachNothing) {
  gatepro::Router<float> router({3, 5, 1});
  router.refresh(w, 0);
  EXPECT_THROW(run(router, {}), gatepro::Error);
}

TEST_F(OneChoice, AnAuxiliaryGradientIsEnough) {
  gatepro::Router<float> router({3, 5, 1});
  router.refresh(w, 0);
  run(router, random_matrix<float>(4, 5, 23));
  EXPECT_GT(router_outcome.dx_TH.norm(), 0);
  EXPECT_GT(router_outcome.dw_EH.norm(), 0);
}

TEST_F(OneChoice, ZeroGradientsCanBeMeant) {
  RouterConfig config{3, 5, 1};
  config.allow_zero_gradient = true;
  gatepro::Router<float> router(config);
  router.refresh(w, 0);
  run(router, {});
  EXPECT_TRUE(data::same_bits(router_outcome.dx_TH, zero));
  EXPECT_TRUE(data::same_bits(router_outcome.dw_EH, zero_w));
}

// ---- Either gradient alone --------------------------------------------------------------------

TEST(Backward, EitherGradientMayBeLeftOut) {
  const auto x = random_matrix<float>(30, 20, 24);
  const auto w = random_matrix<float>(6, 20, 25);
  const auto dweights = random_matrix<float>(30, 2, 26);
  gatepro::Router<float> router({20, 6, 2});
  router.refresh(w, 0);
  const auto outcome = routing_data::forward(router, x, w);
  const routing_data::Gradients<float> start{RowMatrix<float>::Zero(30, 20),
                                             RowMatrix<float>::Zero(6, 20)};
  const auto both = routing_data::backward(router, x, w, outcome, dweights, {}, start);
  auto memory = data::scratch(router.backward_workspace_bytes(30));
  RowMatrix<float> dx = start.dx_TH, dw = start.dw_EH;
  router.backward(x, w, {outcome.ids_TK, outcome.weights_TK}, {dweights}, {dx, {}}, memory);
  router.backward(x, w, {outcome.ids_TK, outcome.weights_TK}, {dweights}, {{}, dw}, memory);
  EXPECT_TRUE(data::same_bits(dx, both.dx_TH));
  EXPECT_TRUE(data::same_bits(dw, both.dw_EH));
}

}  // namespace
