// SPDX-License-Identifier: MIT
// Routing under every rule of scores, bias, groups and competition, against a naive reference.
#include <gatepro/routing/route_logits.hpp>

#include <gatepro/router/router.hpp>
#include <gatepro/routing/weigh_choices.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "support/bits.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
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
using scored_data::Extras;
using scored_data::Outcome;
using scored_data::route;

template <class A>
class RouteLogitsTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(RouteLogitsTest, Scalars, TypeNames);

struct Shape {
  Index experts;
  Index top_k;
  std::vector<GroupLimit> groups;
};

std::vector<Shape> small_shapes() {
  const GroupLimit off;
  const auto share = GroupScore::share_of_top_k;
  const auto top_1 = GroupScore::top_1;
  const auto top_2 = GroupScore::top_2;
  const auto best_n = GroupScore::best_n;
  return {{1, 1, {off}},
          {6, 6, {off, {2, 2, share}}},
          {8, 2, {off, {4, 2, share}, {4, 1, top_2}, {8, 2, top_1}}},
          // More groups than choices, and one or several experts that speak for their group.
          {8, 2, {{4, 3, top_2}, {4, 4, best_n, 1}, {2, 2, best_n, 3}}},
          {12, 4, {{4, 2, top_1}, {3, 2, best_n, 3}, {3, 1, best_n, 4}, {6, 5, best_n, 2}}},
          {8, 5, {off, {2, 2, share}, {4, 3, top_2}}},
          {12, 4, {off, {3, 2, share}, {3, 1, share}, {4, 2, top_2}}},
          {37, 9, {off}}};
}

TYPED_TEST(RouteLogitsTest, EveryCombinationMatchesTheReference) {
  using A = TypeParam;
  const Index tokens = 37;
  for (const Shape& shape : small_shapes()) {
    const RowMatrix<A> logits_TE = data::random_matrix<A>(tokens, shape.experts, 11) * A(3);
    for (double bias : {0.0, 0.2, 5.0}) {
      const Extras plain{
          bias == 0 ? std::vector<double>{} : scored_data::random_bias(shape.experts, bias, 12),
          {}};
      Extras padded = plain;
      padded.is_padding = scored_data::padding(tokens, 5);
      for (const GroupLimit& groups : shape.groups) {
        for (const SelectionRule& rule : scored_data::rules_of(shape.top_k, groups)) {
          SCOPED_TRACE(scored_data::describe(rule) + ", bias " + std::to_string(bias));
          for (const Extras& extras : {plain, padded}) {
            scored_data::expect_reference(logits_TE, rule, extras,
                                          route<A>(logits_TE, rule, extras));
            ASSERT_FALSE(this->HasFailure());
          }
        }
      }
    }
  }
}

// NaNs, infinities, zeros of both signs, ties: the total order and the rules for what has no
// weight.
TYPED_TEST(RouteLogitsTest, HardValuesMatchTheReference) {
  using A = TypeParam;
  const A inf = data::infinity<A>(), nan = data::marked_nan<A>();
  const A levels[] = {0, A(-0.0), 1, -1, A(0.5), 1, nan, inf, -inf, -inf, 2};
  for (const Index levels_used : {6, 7, 8, 11}) {
    RowMatrix<A> logits_TE(301, 8);
    for (Index i = 0; i < logits_TE.size(); ++i) {
      logits_TE.data()[i] =
          levels[data::random_below(levels_used, 3, static_cast<std::uint64_t>(i))];
    }
    logits_TE.row(0).setConstant(nan);
    logits_TE.row(1).setConstant(-inf);
    logits_TE.row(2).setConstant(inf);
    for (const Extras& extras : {Extras{}, Extras{{-1, 0, 0.375, 0, -0.25, 0, 0, 1}, {}}}) {
      for (const GroupLimit& groups : {GroupLimit{}, GroupLimit{4, 2, GroupScore::share_of_top_k},
                                       GroupLimit{2, 1, GroupScore::top_2}}) {
        for (const SelectionRule& rule : scored_data::rules_of(3, groups)) {
          SCOPED_TRACE(scored_data::describe(rule));
          // Scores of ties differ in nothing, but a sum of a group's scores may differ in rounding.
          scored_data::expect_reference(logits_TE, rule, extras, route<A>(logits_TE, rule, extras));
          ASSERT_FALSE(this->HasFailure());
        }
      }
    }
  }
}

// With one rival and with several. A NaN loses to nobody, and nobody to a NaN.
TYPED_TEST(RouteLogitsTest, MarksThoseWhoLostToAnyRival) {
  using A = TypeParam;
  const A nan = data::marked_nan<A>();
  const A levels[] = {0, A(-0.0), 1, A(1.25), nan, -1};
  const Index tokens = 70, experts = 7;
  RowMatrix<A> logits_TE(tokens, experts);
  for (Index i = 0; i < logits_TE.size(); ++i) {
    logits_TE.data()[i] = levels[data::random_below(6, 5, static_cast<std::uint64_t>(i))];
  }
  SelectionRule rule;
  rule.top_k = experts;
  rule.competition = Competition::penalty(1e-30);  // vanishes in rounding
  for (const Index rivals_each : {1, 3}) {
    RowMatrix<std::int32_t> rivals_EM(experts, rivals_each);
    for (Index i = 0; i < rivals_EM.size(); ++i) {
      rivals_EM.data()[i] =
          static_cast<std::int32_t>((i / rivals_each + 1 + i % rivals_each * 2) % experts);
    }
    Outcome<A, std::int32_t> got(tokens, experts, experts);
    auto memory = data::scratch(gatepro::route_logits_workspace_bytes<A>(experts, rule));
    gatepro::route_logits({logits_TE}, gatepro::RivalTable(gatepro::strided_view(rivals_EM), false),
                          rule, got.view(), memory);
    for (Index t = 0; t < tokens; ++t) {
      for (Index j = 0; j < experts; ++j) {
        const Index e = got.ids_TK(t, j);
        bool lost = false;
        for (Index m = 0; m < rivals_each; ++m) {
          lost = lost || logits_TE(t, e) < logits_TE(t, rivals_EM(e, m));  // false for NaNs
        }
        ASSERT_EQ(got.penalised_TK(t, j), lost ? 1 : 0) << t << ", " << e;
      }
    }
  }
}

TYPED_TEST(RouteLogitsTest, IdsAreDistinctForAnyBits) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::special_matrix<A>(203, 12, 4, 2);
  const double large = static_cast<double>(std::numeric_limits<A>::max());
  for (double bias : {0.1, 1e30, large}) {
    const Extras extras{scored_data::random_bias(12, bias, 5), {}};
    for (const GroupLimit& groups : {GroupLimit{}, GroupLimit{4, 2, GroupScore::top_2}}) {
      for (const SelectionRule& rule : scored_data::rules_of(6, groups)) {
        const auto got = route<A, std::uint64_t>(logits_TE, rule, extras);
        for (Index t = 0; t < logits_TE.rows(); ++t) {
          std::vector<bool> seen(12, false);
          for (Index j = 0; j < 6; ++j) {
            ASSERT_LT(got.ids_TK(t, j), 12U);
            ASSERT_FALSE(seen[got.ids_TK(t, j)]) << scored_data::describe(rule);
            seen[got.ids_TK(t, j)] = true;
          }
        }
      }
    }
  }
}

// With defaults this is Router, to the bit.
TYPED_TEST(RouteLogitsTest, DefaultsEqualTheRouter) {
  using A = TypeParam;
  const Index experts = 12, top_k = 4, tokens = 301;
  const RowMatrix<std::int32_t> partners_E1 = scored_data::partners_of(experts);
  for (const Competition& competition : scored_data::all_competitions()) {
    gatepro::Router<A> router({8, experts, top_k, competition});
    router.set_partners(gatepro::strided_view(partners_E1), 0);
    for (const RowMatrix<A>& logits_TE :
         {RowMatrix<A>(data::random_matrix<A>(tokens, experts, 6) * A(2)),
          data::tied_matrix<A>(tokens, experts, 7), data::special_matrix<A>(tokens, experts, 8)}) {
      RowMatrix<std::int32_t> ids_TK(tokens, top_k);
      RowMatrix<A> weights_TK(tokens, top_k);
      std::vector<std::int64_t> counts(static_cast<std::size_t>(experts));
      auto memory = data::scratch(router.forward_workspace_bytes());
      const gatepro::RoutingReport report =
          router.forward_logits(logits_TE, {ids_TK, weights_TK, counts}, memory);
      const SelectionRule rule{top_k, {}, {}, competition};
      const auto got = route<A>(logits_TE, rule);
      EXPECT_TRUE(data::same_bits(got.ids_TK, ids_TK));
      EXPECT_TRUE(data::same_bits(got.weights_TK, weights_TK));
      EXPECT_TRUE(data::same_bits(got.scores_TK, weights_TK));
      EXPECT_EQ(got.tokens_per_expert_E, counts);
      EXPECT_EQ(got.report.nonfinite_rows, report.nonfinite_rows);
      EXPECT_EQ(got.report.tokens_short_of_survivors, report.tokens_short_of_survivors);

      // A bias of 0 and a limit to all groups change nothing either, but the path.
      SelectionRule same = rule;
      same.groups = {3, 3, GroupScore::share_of_top_k};
      const auto by_other_path = route<A>(logits_TE, same, {std::vector<double>(experts, 0), {}});
      scored_data::expect_same(by_other_path, got);
    }
  }
}

// Competition off, or lambda = 0, never looks at the partners.
TYPED_TEST(RouteLogitsTest, OffIsOff) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::special_matrix<A>(67, 8, 8);
  for (ScoreFunction function : data::score_functions) {
    const SelectionRule off{3, {function, true, 1}, {}, Competition::off()};
    SelectionRule zero = off;
    zero.competition = Competition::penalty(0);
    const auto want = route<A>(logits_TE, off);
    scored_data::expect_same(route<A>(logits_TE, zero), want);
    Outcome<A, std::int32_t> without(67, 3, 8);
    auto memory = data::scratch(gatepro::route_logits_workspace_bytes<A>(8, off));
    without.report =
        gatepro::route_logits({logits_TE}, gatepro::RivalTable(), off, without.view(), memory);
    scored_data::expect_same(without, want);
  }
}

// Far from 0 sigmoids are 1 for all: the lowest ids win, whatever the logits.
TYPED_TEST(RouteLogitsTest, SaturatedSigmoidsTieByTheLowestId) {
  using A = TypeParam;
  RowMatrix<A> logits_TE(5, 8);
  for (Index i = 0; i < logits_TE.size(); ++i) {
    logits_TE.data()[i] =
        static_cast<A>(50 + data::random_uniform(9, static_cast<std::uint64_t>(i)));
  }
  const SelectionRule rule{3, {ScoreFunction::sigmoid, true, 1}, {}, Competition::off()};
  const auto got = route<A>(logits_TE, rule);
  for (Index t = 0; t < 5; ++t) {
    for (Index j = 0; j < 3; ++j) {
      EXPECT_EQ(got.ids_TK(t, j), static_cast<std::int32_t>(j));
      EXPECT_EQ(got.scores_TK(t, j), 1);
      EXPECT_EQ(got.weights_TK(t, j), A(1) / A(3));
    }
  }
  // A bias breaks the tie.
  const Extras extras{{0, 0, 0, 0, 0, 1e-3, 0, 0}, {}};
  EXPECT_EQ(route<A>(logits_TE, rule, extras).ids_TK(0, 0), 5);
}

// Where scores are tiny numbers or none, weights are those of the reference all the same.
TYPED_TEST(RouteLogitsTest, WeightsSumToTheScaleForAnyFiniteLogits) {
  using A = TypeParam;
  const Index tokens = 19, experts = 12, top_k = 8;
  const A large = std::numeric_limits<A>::max() / 2;
  for (A centre : {A(30), A(0), A(-20), A(-50), A(-110), A(-800), A(-1e5), large, -large}) {
    RowMatrix<A> logits_TE = data::random_matrix<A>(tokens, experts, 31) * A(3);
    logits_TE.array() += centre;
    for (ScoreFunction function : data::score_functions) {
      for (const Competition& competition : scored_data::all_competitions()) {
        const SelectionRule rule{top_k, {function, true, 2.5}, {}, competition};
        SCOPED_TRACE(scored_data::describe(rule));
        const auto got = route<A>(logits_TE, rule);
        for (Index t = 0; t < tokens; ++t) {
          ASSERT_NEAR(static_cast<double>(got.weights_TK.row(t).sum()), 2.5,
                      20 * static_cast<double>(std::numeric_limits<A>::epsilon()));
        }
        // Which of equal scores is chosen is another question than what it weighs.
        if (centre > -60 && centre <= 0) expect_reference(logits_TE, rule, {}, got);
      }
    }
  }
}

// One renormalised expert weighs exactly the scale.
TYPED_TEST(RouteLogitsTest, OneShareIsTheWhole) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(300, 4, 32) * A(60);
  for (ScoreFunction function : data::score_functions) {
    const SelectionRule rule{1, {function, true, 2.5}, {}, Competition::off()};
    EXPECT_TRUE((route<A>(logits_TE, rule).weights_TK.array() == A(2.5)).all());
  }
}

// As published, scores that all underflow are divided by 1e-20, not by 0.
TYPED_TEST(RouteLogitsTest, PublishedWeightsFadeOut) {
  using A = TypeParam;
  SelectionRule rule{8, {}, {}, Competition::off()};
  rule.scores = {ScoreFunction::sigmoid, true, 1, gatepro::Renormalisation::published};
  const RowMatrix<A> eight_TE = RowMatrix<A>::Constant(1, 8, A(-50));
  const double sum = 8 * std::exp(-50.0);
  EXPECT_NEAR(static_cast<double>(route<A>(eight_TE, rule).weights_TK.sum()), sum / (sum + 1e-20),
              1e-5);
  const RowMatrix<A> logits_TE = RowMatrix<A>::Constant(3, 5, A(-1e4));
  rule.top_k = 2;
  for (ScoreFunction function : {ScoreFunction::sigmoid, ScoreFunction::sqrt_softplus}) {
    rule.scores.function = function;
    const auto got = route<A>(logits_TE, rule);
    EXPECT_TRUE((got.weights_TK.array() == 0).all());
    EXPECT_EQ(got.report.nonfinite_rows, 0);
  }
}

// huggingface/transformers, vLLM and others filled masked groups with 0, above score + bias < 0.
TEST(Regression, MaskedGroupsNeverBeatNegativeBiasedExperts) {
  const Index experts = 16, tokens = 129;
  const RowMatrix<float> logits_TE = data::random_matrix<float>(tokens, experts, 10) * 4.0F;
  for (double bias : {-3.0, -1e6}) {
    Extras extras{scored_data::random_bias(experts, 0.1, 11), {}};
    for (double& b : extras.bias) b += bias;
    for (ScoreFunction function : data::score_functions) {
      for (const Competition& competition : scored_data::all_competitions()) {
        for (GroupScore score : {GroupScore::share_of_top_k, GroupScore::top_2}) {
          // As many experts as the allowed groups have: the last ones are poor choices.
          const SelectionRule rule{8, {function, true, 1}, {4, 2, score}, competition};
          const auto got = route<float>(logits_TE, rule, extras);
          for (Index t = 0; t < tokens; ++t) {
            std::vector<int> of_group(4, 0);
            for (Index j = 0; j < 8; ++j) {
              ++of_group[static_cast<std::size_t>(got.ids_TK(t, j) / 4)];
            }
            EXPECT_EQ(std::count(of_group.begin(), of_group.end(), 4), 2);
          }
        }
      }
    }
  }
}

/// DeepSeek-V2's group_limited_greedy as its paper has it: the groups with the largest scores, of a
/// softmax over all experts, then the largest scores in them; ids in descending order of score.
std::vector<Index> deepseek_v2(const std::vector<double>& scores, std::size_t groups,
                               std::size_t groups_per_token, std::size_t top_k) {
  const std::size_t size = scores.size() / groups;
  std::vector<std::size_t> group_order(groups);
  std::iota(group_order.begin(), group_order.end(), std::size_t{0});
  const auto best_of = [&](std::size_t g) {
    const auto first = scores.begin() + static_cast<std::ptrdiff_t>(g * size);
    return *std::max_element(first, first + static_cast<std::ptrdiff_t>(size));
  };
  std::sort(group_order.begin(), group_order.end(),
            [&](std::size_t g, std::size_t h) { return best_of(g) > best_of(h); });
  std::vector<Index> ids;
  for (std::size_t i = 0; i < groups_per_token; ++i) {
    for (std::size_t e = group_order[i] * size; e < (group_order[i] + 1) * size; ++e) {
      ids.push_back(static_cast<Index>(e));
    }
  }
  std::sort(ids.begin(), ids.end(), [&](Index a, Index b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  ids.resize(top_k);
  return ids;
}

// 160 experts in 8 groups, 6 of 3 groups, and weights that are not renormalised, times 16.
TEST(RouteLogits, GroupsByTheirMaximumAreDeepSeekV2s) {
  const Index tokens = 301, experts = 160, top_k = 6;
  const RowMatrix<float> logits_TE = data::random_matrix<float>(tokens, experts, 41) * 3.0F;
  const SelectionRule rule{top_k,
                           {ScoreFunction::softmax_before_top_k, false, 16},
                           {8, 3, GroupScore::top_1},
                           Competition::off()};
  const auto got = route<float>(logits_TE, rule);
  SelectionRule by_share = rule;
  by_share.groups.score = GroupScore::share_of_top_k;
  const auto other = route<float>(logits_TE, by_share);
  for (Index t = 0; t < tokens; ++t) {
    std::vector<double> scores;
    double sum = 0;
    for (Index e = 0; e < experts; ++e) {
      scores.push_back(std::exp(static_cast<double>(logits_TE(t, e))));
      sum += scores.back();
    }
    for (double& score : scores) score /= sum;
    const std::vector<Index> want = deepseek_v2(scores, 8, 3, 6);
    for (Index j = 0; j < top_k; ++j) {
      const Index id = want[static_cast<std::size_t>(j)];
      ASSERT_EQ(got.ids_TK(t, j), id) << "token " << t << ", choice " << j;
      const double weight = 16 * scores[static_cast<std::size_t>(id)];
      ASSERT_NEAR(static_cast<double>(got.weights_TK(t, j)), weight, 1e-5 * weight);
    }
  }
  EXPECT_FALSE(data::same_bits(got.ids_TK, other.ids_TK));
}

// The bias moves the choice, and nothing of it is left in the weights.
TYPED_TEST(RouteLogitsTest, BiasIsNotInTheWeights) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(40, 6, 12);
  for (ScoreFunction function : data::score_functions) {
    const SelectionRule rule{6, {function, true, 1}, {}, Competition::off()};
    const auto plain = route<A>(logits_TE, rule);
    // All are chosen, in another order. The sum in another order may round differently.
    const auto biased = route<A>(logits_TE, rule, {{1e4, 0, 0, 0, 0, 2e4}, {}});
    for (Index t = 0; t < 40; ++t) {
      ASSERT_EQ(biased.ids_TK(t, 0), 5);
      ASSERT_EQ(biased.ids_TK(t, 1), 0);
      for (Index j = 0; j < 6; ++j) {
        const auto same = [&](Index i) { return plain.ids_TK(t, i) == biased.ids_TK(t, j); };
        Index i = 0;
        while (!same(i)) ++i;
        ASSERT_NEAR(static_cast<double>(biased.weights_TK(t, j)),
                    static_cast<double>(plain.weights_TK(t, i)),
                    8 * static_cast<double>(std::numeric_limits<A>::epsilon()));
      }
    }
  }
}

/// The score by which a token's expert is chosen, in double.
double choice_score(const RowMatrix<double>& logits_TE, Index t, Index e, ScoreFunction function) {
  if (function == ScoreFunction::softmax_after_top_k) return logits_TE(t, e);
  const double l = logits_TE(t, e);
  if (function == ScoreFunction::softmax_before_top_k) {
    return std::exp(l) / logits_TE.row(t).array().exp().sum();
  }
  return function == ScoreFunction::sigmoid ? 1 / (1 + std::exp(-l))
                                            : std::sqrt(std::log1p(std::exp(l)));
}

/// Logits in pairs of near-ties, which rounding noise of another kernel turns over.
template <class A>
struct NearTies {
  static constexpr Index tokens = 400, experts = 16;
  static constexpr double noise = 40 * static_cast<double>(std::numeric_limits<A>::epsilon());

  NearTies() : first_TE(data::random_matrix<A>(tokens, experts, 51)) {
    for (Index t = 0; t < tokens; ++t) {
      for (Index e = 1; e < experts; e += 2) first_TE(t, e) = first_TE(t, e - 1);
    }
    second_TE = first_TE;
    first_TE += data::random_matrix<A>(tokens, experts, 52, noise / 2);
    second_TE += data::random_matrix<A>(tokens, experts, 53, noise / 2);
  }

  /// True if noise may carry a score of the token over the middle between two multiples.
  bool straddles(Index t, ScoreFunction function, double step) const {
    const RowMatrix<double> logits_TE = first_TE.template cast<double>();
    for (Index e = 0; e < experts; ++e) {
      const double steps = choice_score(logits_TE, t, e, function) / step;
      // No score has a slope above 1.
      if (std::abs(steps - std::floor(steps) - 0.5) < 4 * noise / step) return true;
    }
    return false;
  }

  RowMatrix<A> first_TE, second_TE;
};

template <class A>
Index tokens_that_differ(const Outcome<A, std::int32_t>& a, const Outcome<A, std::int32_t>& b) {
  return static_cast<Index>((a.ids_TK.array() != b.ids_TK.array()).rowwise().any().count());
}

// By rounded scores, near-ties flip only where a score straddles the middle of two multiples.
TYPED_TEST(RouteLogitsTest, RoundedScoresChooseTheSameUnderRoundingNoise) {
  using A = TypeParam;
  const NearTies<A> data;
  const Index tokens = data.tokens;
  const double step = sizeof(A) == 4 ? 0x1p-12 : 0x1p-40;
  for (ScoreFunction function : data::score_functions) {
    for (const GroupLimit& groups : {GroupLimit{}, GroupLimit{4, 2, GroupScore::top_2}}) {
      SelectionRule rule{5, {function, true, 2.5}, groups, Competition::off()};
      SCOPED_TRACE(scored_data::describe(rule));
      EXPECT_GT(tokens_that_differ(route<A>(data.first_TE, rule), route<A>(data.second_TE, rule)),
                tokens / 3);
      rule.choice.step = step;
      const auto first = route<A>(data.first_TE, rule), second = route<A>(data.second_TE, rule);
      Index straddle = 0;
      for (Index t = 0; t < tokens; ++t) {
        if (data.straddles(t, function, step)) {
          ++straddle;
        } else {
          ASSERT_TRUE((first.ids_TK.row(t).array() == second.ids_TK.row(t).array()).all()) << t;
        }
      }
      EXPECT_LT(straddle, tokens);
      EXPECT_LT(tokens_that_differ(first, second), 2 * straddle / 3 + 1);
    }
  }
}

// Rounding is for the choice alone: weights and scores are those of the experts' own logits.
TYPED_TEST(RouteLogitsTest, RoundedScoresAreNotInTheWeights) {
  using A = TypeParam;
  const Index tokens = 61, experts = 12, top_k = 4;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(tokens, experts, 54) * A(2);
  const Extras extras{scored_data::random_bias(experts, 0.1, 55), {}};
  const auto rules = scored_data::rules_of(top_k, {3, 2, GroupScore::top_1});
  Index changed = 0;
  for (SelectionRule rule : rules) {
    SCOPED_TRACE(scored_data::describe(rule));
    const auto exact = route<A>(logits_TE, rule, extras);
    rule.choice.step = 0.25;
    const auto got = route<A>(logits_TE, rule, extras);
    changed += data::same_bits(got.ids_TK, exact.ids_TK) ? 0 : 1;
    rule.choice.step = 0;
    Outcome<A, std::int32_t> weighed(tokens, top_k, experts);
    auto memory = data::scratch(gatepro::weigh_choices_workspace_bytes<A>(experts, rule));
    gatepro::RoutingView<A> out;
    out.weights_TK = weighed.weights_TK;
    out.scores_TK = weighed.scores_TK;
    gatepro::weigh_choices({logits_TE}, scored_data::rivals_of(experts), rule,
                           gatepro::RecordedChoices<std::int32_t>{got.ids_TK, got.penalised_TK},
                           out, memory);
    EXPECT_TRUE(data::same_bits(got.weights_TK, weighed.weights_TK));
    EXPECT_TRUE(data::same_bits(got.scores_TK, weighed.scores_TK));
  }
  EXPECT_GT(changed, static_cast<Index>(rules.size()) / 2);
}

// The same choices as best first, in order of their ids, with all that belongs to each.
TYPED_TEST(RouteLogitsTest, AscendingIdsAreTheSameChoices) {
  using A = TypeParam;
  const Index tokens = 61, experts = 12;
  const RowMatrix<A> logits_TE = data::special_matrix<A>(tokens, experts, 56, 9);
  const Extras extras{{}, scored_data::padding(tokens, 6)};
  for (const Index top_k : {1, 2, 7}) {
    for (SelectionRule rule : scored_data::rules_of(top_k, {3, 3, GroupScore::top_2})) {
      SCOPED_TRACE(scored_data::describe(rule));
      rule.choice.order = gatepro::ChoiceOrder::best_first;
      const auto best_first = route<A>(logits_TE, rule, extras);
      rule.choice.order = gatepro::ChoiceOrder::ascending_ids;
      const auto by_id = route<A>(logits_TE, rule, extras);
      EXPECT_EQ(by_id.tokens_per_expert_E, best_first.tokens_per_expert_E);
      EXPECT_EQ(by_id.report.tokens_short_of_survivors,
                best_first.report.tokens_short_of_survivors);
      for (Index t = 0; t < tokens; ++t) {
        std::vector<Index> from(static_cast<std::size_t>(top_k));
        std::iota(from.begin(), from.end(), Index{0});
        std::sort(from.begin(), from.end(), [&](Index i, Index j) {
          return best_first.ids_TK(t, i) < best_first.ids_TK(t, j);
        });
        for (Index j = 0; j < top_k; ++j) {
          const Index i = from[static_cast<std::size_t>(j)];
          ASSERT_EQ(by_id.ids_TK(t, j), best_first.ids_TK(t, i)) << t;
          ASSERT_EQ(by_id.penalised_TK(t, j), best_first.penalised_TK(t, i)) << t;
          const double tolerance = 16 * static_cast<double>(std::numeric_limits<A>::epsilon());
          scored_data::expect_close(static_cast<double>(by_id.scores_TK(t, j)),
                                    static_cast<double>(best_first.scores_TK(t, i)), tolerance);
          scored_data::expect_close(static_cast<double>(by_id.weights_TK(t, j)),
                                    static_cast<double>(best_first.weights_TK(t, i)), tolerance);
        }
      }
      ASSERT_FALSE(this->HasFailure());
    }
  }
}

// Padding weighs 0 whatever its logits, is not counted, and does not touch its neighbours.
TYPED_TEST(RouteLogitsTest, PaddingIsAsIfItWereNotThere) {
  using A = TypeParam;
  const Index tokens = 53, real = 40;
  RowMatrix<A> logits_TE = data::random_matrix<A>(tokens, 8, 14);
  Extras extras{scored_data::random_bias(8, 0.3, 15),
                std::vector<std::uint8_t>(static_cast<std::size_t>(tokens), 0)};
  RowMatrix<A> real_TE(real, 8);
  std::vector<Index> place;
  for (Index t = 0; t < tokens; ++t) {
    if (t % 4 == 3) {
      extras.is_padding[static_cast<std::size_t>(t)] = 1;
      logits_TE.row(t).setConstant(t % 8 == 3 ? data::marked_nan<A>() : A(1e3));
    } else {
      real_TE.row(static_cast<Index>(place.size())) = logits_TE.row(t);
      place.push_back(t);
    }
  }
  ASSERT_EQ(static_cast<Index>(place.size()), real);
  for (const SelectionRule& rule : scored_data::rules_of(3, {4, 2, GroupScore::top_2})) {
    const auto padded = route<A>(logits_TE, rule, extras);
    const auto alone = route<A>(real_TE, rule, {extras.bias, {}});
    EXPECT_EQ(padded.tokens_per_expert_E, alone.tokens_per_expert_E);
    EXPECT_EQ(padded.report.nonfinite_rows, 0);
    EXPECT_EQ(padded.report.tokens_short_of_survivors, alone.report.tokens_short_of_survivors);
    for (Index i = 0; i < real; ++i) {
      const RowMatrix<A> got = padded.weights_TK.row(place[static_cast<std::size_t>(i)]);
      const RowMatrix<A> want = alone.weights_TK.row(i);
      ASSERT_TRUE(data::same_bits(got, want)) << scored_data::describe(rule);
    }
    for (Index t = 3; t < tokens; t += 4) {
      ASSERT_TRUE((padded.weights_TK.row(t).array() == 0).all());
      ASSERT_TRUE((padded.scores_TK.row(t).array() == 0).all());
    }
  }
}

// Bits depend on the token alone: not on its place, the batch, the executor or the outputs.
TYPED_TEST(RouteLogitsTest, BitsDoNotDependOnHowTheWorkIsCut) {
  using A = TypeParam;
  const Index tokens = 256 * 2 + 77, experts = 12;
  const RowMatrix<A> logits_TE = data::special_matrix<A>(tokens, experts, 16, 20);
  const Extras extras{scored_data::random_bias(experts, 0.3, 17), {}};
  for (const SelectionRule& rule : scored_data::rules_of(4, {3, 2, GroupScore::share_of_top_k})) {
    SCOPED_TRACE(scored_data::describe(rule));
    const auto want = route<A>(logits_TE, rule, extras);
    scored_data::expect_same(route<A>(logits_TE, rule, extras, ThreadExecutor(3)), want);
    scored_data::expect_same(route<A>(logits_TE, rule, extras, LastWorkerFirst(4)), want);
    for (Index t : {Index{0}, Index{1}, Index{255}, tokens - 1}) {
      const RowMatrix<A> row = logits_TE.row(t);
      const auto alone = route<A>(row, rule, extras);
      const RowMatrix<A> weights = want.weights_TK.row(t), scores = want.scores_TK.row(t);
      const RowMatrix<std::int32_t> ids = want.ids_TK.row(t);
      EXPECT_TRUE(data::same_bits(alone.ids_TK, ids));
      EXPECT_TRUE(data::same_bits(alone.weights_TK, weights));
      EXPECT_TRUE(data::same_bits(alone.scores_TK, scores));
    }
    Outcome<A, std::int32_t> few(tokens, 4, experts);
    auto memory = data::scratch(gatepro::route_logits_workspace_bytes<A>(experts, rule));
    const std::vector<A> bias(extras.bias.begin(), extras.bias.end());
    gatepro::route_logits({logits_TE, data::optional(bias)}, scored_data::rivals_of(experts), rule,
                          gatepro::RoutingView<A>{few.ids_TK, few.weights_TK}, memory);
    EXPECT_TRUE(data::same_bits(few.ids_TK, want.ids_TK));
    EXPECT_TRUE(data::same_bits(few.weights_TK, want.weights_TK));
  }
}

TYPED_TEST(RouteLogitsTest, TakesEveryLayoutAndIdType) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(29, 7, 18);
  const SelectionRule rule{3, {ScoreFunction::sqrt_softplus, true, 1}, {}, Competition::off()};
  const auto want = route<A>(logits_TE, rule);
  const auto wide = route<A, std::int64_t>(logits_TE, rule);
  const RowMatrix<std::int32_t> narrowed_TK = wide.ids_TK.template cast<std::int32_t>();
  EXPECT_TRUE(data::same_bits(narrowed_TK, want.ids_TK));

  data::GuardedMatrix<A> guarded(logits_TE, 5);
  Eigen::Matrix<std::uint64_t, Eigen::Dynamic, Eigen::Dynamic> ids(29, 3);
  Eigen::Matrix<A, Eigen::Dynamic, Eigen::Dynamic> weights(29, 3);
  auto memory = data::scratch(gatepro::route_logits_workspace_bytes<A>(7, rule));
  gatepro::route_logits({guarded.view()}, gatepro::RivalTable(), rule,
                        gatepro::RoutingView<A, std::uint64_t>{ids, weights}, memory);
  const RowMatrix<A> rows = weights;
  const RowMatrix<std::int32_t> id_rows = ids.template cast<std::int32_t>();
  EXPECT_TRUE(data::same_bits(rows, want.weights_TK));
  EXPECT_TRUE(data::same_bits(id_rows, want.ids_TK));
  EXPECT_TRUE(guarded.intact());
}

// A NaN in the last slot does not hide the losers before it: they stand in order of their logits.
TYPED_TEST(RouteLogitsTest, LosersAreOrderedBeforeNans) {
  using A = TypeParam;
  RowMatrix<A> logits_TE(1, 4);
  logits_TE << 5, 1, 2, std::numeric_limits<A>::quiet_NaN();
  const std::vector<std::int32_t> partners{0, 0, 0, 3};
  const gatepro::RivalTable rivals({partners.data(), 4, 1}, false);
  SelectionRule rule{4, {}, {}, Competition::eliminate()};
  Outcome<A, std::int32_t> got(1, 4, 4);
  auto memory = data::scratch(gatepro::route_logits_workspace_bytes<A>(4, rule));
  const auto report = gatepro::route_logits({logits_TE}, rivals, rule, got.view(), memory);
  EXPECT_EQ(std::vector<std::int32_t>(got.ids_TK.data(), got.ids_TK.data() + 4),
            (std::vector<std::int32_t>{0, 2, 1, 3}));
  EXPECT_EQ(report.tokens_short_of_survivors, 1);
}

TYPED_TEST(RouteLogitsTest, NoTokensCountNothing) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE(0, 4);
  const auto got = route<A>(logits_TE, {2, {}, {}, Competition::off()});
  EXPECT_EQ(got.tokens_per_expert_E, std::vector<std::int64_t>(4, 0));
  EXPECT_EQ(got.report.nonfinite_rows, 0);
}

// ---- Bad input --------------------------------------------------------------------------------

/// Routes 5 tokens over 8 experts after `spoil` changed rule, view, bias, padding or workspace.
struct Call {
  RowMatrix<float> logits_TE = data::random_matrix<float>(5, 8, 19);
  SelectionRule rule{4, {}, {}, Competition::off()};
  Outcome<float, std::int32_t> out{5, 4, 8};
  gatepro::RoutingView<float> view = out.view();
  std::vector<float> bias;
  std::vector<std::uint8_t> is_padding;
  gatepro::RivalTable rivals;
  std::vector<std::byte> memory = data::scratch(1 << 20);

  void operator()() {
    gatepro::route_logits({logits_TE, data::optional(bias), data::optional(is_padding)}, rivals,
                          rule, view, memory);
  }
};

template <class Spoil>
void expect_bad(const Spoil& spoil, std::initializer_list<const char*> parts) {
  Call call;
  spoil(call);
  expect_error([&] { call(); }, parts);
  Outcome<float, std::int32_t> untouched(5, 4, 8);
  EXPECT_TRUE(data::same_bits(call.out.ids_TK, untouched.ids_TK));
  EXPECT_TRUE(data::same_bits(call.out.weights_TK, untouched.weights_TK));
  EXPECT_EQ(call.out.tokens_per_expert_E, untouched.tokens_per_expert_E);
}

TEST(RouteLogitsBadInput, Rules) {
  const double inf = data::infinity<double>(), nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_NO_THROW(Call()());
  expect_bad([](Call& c) { c.rule.top_k = 0; }, {"route_logits", "1 <= top_k", "top_k=0"});
  expect_bad([](Call& c) { c.rule.top_k = 9; }, {"top_k <= num_experts", "top_k=9"});
  for (double scale : {0.0, -1.0, inf, nan, 1e300, 1e-60}) {
    expect_bad([&](Call& c) { c.rule.scores.scale = scale; }, {"route_logits", "scale finite"});
  }
  for (Index groups : {Index{0}, Index{-1}, Index{9}}) {
    expect_bad([&](Call& c) { c.rule.groups.num_groups = groups; },
               {"1 <= num_groups <= num_experts", "num_groups="});
  }
  expect_bad(
      [](Call& c) {
        c.rule.groups = {3, 1, GroupScore::top_2};
      },
      {"num_experts a multiple of num_groups", "num_groups=3"});
  for (Index per_token : {Index{0}, Index{-2}, Index{3}}) {
    expect_bad(
        [&](Call& c) {
          c.rule.groups = {2, per_token, GroupScore::top_2};
        },
        {"1 <= groups_per_token <= num_groups", "groups_per_token="});
  }
  // Too few experts in the allowed groups, and too many groups for the experts wanted.
  expect_bad(
      [](Call& c) {
        c.rule.groups = {4, 1, GroupScore::share_of_top_k};
      },
      {"top_k <= groups_per_token * num_experts / num_groups", "top_k=4"});
  expect_bad(
      [](Call& c) {
        c.rule.top_k = 2;
        c.rule.groups = {4, 3, GroupScore::share_of_top_k};
      },
      {"groups_per_token <= top_k to rank", "top_k=2", "groups_per_token=3"});
  for (Index best : {Index{0}, Index{-1}, Index{5}}) {
    expect_bad(
        [&](Call& c) {
          c.rule.groups = {2, 1, GroupScore::best_n, best};
        },
        {"1 <= best <= num_experts / num_groups", "best=", "num_groups=2"});
  }
  expect_bad(
      [](Call& c) {
        c.rule.groups = {8, 4, GroupScore::top_2};
      },
      {"two experts in a group", "num_groups=8"});
  for (double step : {-0.5, 0.75, 0x1p-101, 0x1p101, 5e-324, inf, -inf, nan}) {
    expect_bad([&](Call& c) { c.rule.choice.step = step; },
               {"choice step of 0, or a power of two from 2^-100 to 2^100", "step="});
  }
  expect_bad([](Call& c) { c.rule.competition = Competition::penalty(-1); }, {"lambda"});
  expect_bad([](Call& c) { c.rule.competition = Competition::eliminate(); },
             {"partners of all experts"});
  expect_error(
      [] {
        gatepro::route_logits_workspace_bytes<float>(8, {4, {}, {2, 0, {}}, {}});
      },
      {"groups_per_token"});
}

TEST(RouteLogitsBadInput, Views) {
  const float inf = data::infinity<float>(), nan = std::numeric_limits<float>::quiet_NaN();
  for (float bad : {inf, -inf, nan}) {
    expect_bad(
        [&](Call& c) {
          c.bias.assign(8, 0);
          c.bias[6] = bad;
        },
        {"expert_bias_E", "finite", "expert=6"});
  }
  expect_bad([](Call& c) { c.bias.assign(7, 0); }, {"expert_bias_E", "size=7"});
  expect_bad([](Call& c) { c.is_padding.assign(4, 0); }, {"is_padding_T", "size=4"});
  expect_bad([](Call& c) { c.view.expert_ids_TK.cols = 3; }, {"expert_ids_TK", "cols=3"});
  expect_bad([](Call& c) { c.view.weights_TK = {}; }, {"weights_TK"});
  expect_bad([](Call& c) { c.view.scores_TK.rows = 4; }, {"scores_TK", "rows=4"});
  expect_bad([](Call& c) { c.view.penalised_TK.col_stride = 0; }, {"penalised_TK", "strides"});
  expect_bad([](Call& c) { c.view.tokens_per_expert_E.size = 7; }, {"tokens_per_expert_E"});
  expect_bad([](Call& c) { c.view.scores_TK = c.view.weights_TK; },
             {"outputs in different memory"});
  expect_bad([](Call& c) { c.memory.resize(100); }, {"workspace as large as its query says"});
}

}  // namespace
