// SPDX-License-Identifier: MIT
// Gradients of scored routing: against finite differences, and where they must be exactly 0.
#include <gatepro/routing/route_logits_backward.hpp>

#include <gatepro/routing/weigh_choices.hpp>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "support/bits.hpp"
#include "support/conversions.hpp"
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
using gatepro::MatrixView;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;
using gatepro::SelectionRule;
using gatepro::StridedView;
using scored_data::Bytes;
using scored_data::Extras;
using scored_data::Outcome;

using Exact = long double;

template <class A>
struct Gradient {
  RowMatrix<A> dselected_TK;
  RowMatrix<A> dlogits_TE;

  /// Both, over all experts.
  RowMatrix<A> total(const RowMatrix<std::int32_t>& ids_TK) const {
    RowMatrix<A> sum_TE = dlogits_TE;
    for (Index t = 0; t < ids_TK.rows(); ++t) {
      for (Index j = 0; j < ids_TK.cols(); ++j) sum_TE(t, ids_TK(t, j)) += dselected_TK(t, j);
    }
    return sum_TE;
  }
};

template <class A, class Executor = gatepro::SerialExecutor>
Gradient<A> gradient(const RowMatrix<A>& logits_TE, const SelectionRule& rule,
                     const Outcome<A, std::int32_t>& forward, const RowMatrix<A>& dweights_TK,
                     const std::vector<std::uint8_t>& is_padding = {},
                     const Executor& executor = {}) {
  const Index tokens = logits_TE.rows(), experts = logits_TE.cols();
  Gradient<A> got{RowMatrix<A>::Constant(tokens, rule.top_k, A(77)),
                  RowMatrix<A>::Zero(tokens, experts)};
  auto memory = data::scratch(
      gatepro::route_logits_backward_workspace_bytes<A>(experts, rule, executor.workers()));
  gatepro::route_logits_backward<A>(
      {logits_TE, {}, data::optional(is_padding)}, scored_data::rivals_of(experts), rule,
      gatepro::RecordedChoices<std::int32_t>{forward.ids_TK, forward.penalised_TK},
      {forward.scores_TK, dweights_TK, got.dselected_TK, got.dlogits_TE}, memory, executor);
  return got;
}

/// Sum of dweights * weights for each token, with experts and losers as `forward` has them.
RowMatrix<double> losses(const RowMatrix<double>& logits_TE, const SelectionRule& rule,
                         const Outcome<double, std::int32_t>& forward,
                         const RowMatrix<double>& dweights_TK,
                         const std::vector<std::uint8_t>& is_padding) {
  RowMatrix<double> weights_TK(forward.ids_TK.rows(), rule.top_k);
  auto memory =
      data::scratch(gatepro::weigh_choices_workspace_bytes<double>(logits_TE.cols(), rule));
  gatepro::RoutingView<double> out;
  out.weights_TK = weights_TK;
  gatepro::weigh_choices(
      {logits_TE, {}, data::optional(is_padding)}, scored_data::rivals_of(logits_TE.cols()), rule,
      gatepro::RecordedChoices<std::int32_t>{forward.ids_TK, forward.penalised_TK}, out, memory);
  return weights_TK.cwiseProduct(dweights_TK).rowwise().sum();
}

void expect_finite_differences(double centre) {
  const Index tokens = 19, experts = 8;
  RowMatrix<double> logits_TE = data::random_matrix<double>(tokens, experts, 1) * 2;
  logits_TE.array() += centre;
  const double step = 1e-5;
  const double tolerance = 1e-9 + 1e-10 * std::abs(centre);  // logits are rounded, too
  for (Index top_k : {1, 2, 5, 8}) {
    const RowMatrix<double> dweights_TK = data::random_matrix<double>(tokens, top_k, 2);
    for (const SelectionRule& rule : scored_data::rules_of(top_k, {})) {
      for (const Extras& extras : {Extras{}, Extras{scored_data::random_bias(experts, 1, 3),
                                                    scored_data::padding(tokens, 4)}}) {
        SCOPED_TRACE(scored_data::describe(rule));
        const auto forward = scored_data::route<double>(logits_TE, rule, extras);
        const RowMatrix<double> got_TE =
            gradient(logits_TE, rule, forward, dweights_TK, extras.is_padding)
                .total(forward.ids_TK);
        for (Index e = 0; e < experts; ++e) {
          RowMatrix<double> up_TE = logits_TE, down_TE = logits_TE;
          up_TE.col(e).array() += step;
          down_TE.col(e).array() -= step;
          const RowMatrix<double> change =
              (losses(up_TE, rule, forward, dweights_TK, extras.is_padding) -
               losses(down_TE, rule, forward, dweights_TK, extras.is_padding)) /
              (2 * step);
          for (Index t = 0; t < tokens; ++t) ASSERT_NEAR(got_TE(t, e), change(t), tolerance) << t;
        }
      }
    }
  }
}

TEST(RouteLogitsBackward, AgreesWithFiniteDifferences) { expect_finite_differences(0); }

// Where scores are far below the 1e-20 of the published quotient, or below any number.
TEST(RouteLogitsBackward, AgreesWithFiniteDifferencesWhereScoresAreTiny) {
  for (double centre : {-47.0, -120.0, -800.0}) expect_finite_differences(centre);
}

template <class A>
class RouteLogitsBackwardTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(RouteLogitsBackwardTest, Scalars, TypeNames);

// Float gives what double gives, up to the rounding of the scores.
TYPED_TEST(RouteLogitsBackwardTest, MatchesDouble) {
  using A = TypeParam;
  const Index tokens = 53, experts = 12;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(tokens, experts, 4) * A(2);
  const RowMatrix<double> exact_TE = logits_TE.template cast<double>();
  const double tolerance = 60 * static_cast<double>(std::numeric_limits<A>::epsilon());
  for (SelectionRule rule : scored_data::rules_of(4, {4, 2, GroupScore::top_2})) {
    SCOPED_TRACE(scored_data::describe(rule));
    rule.competition.lambda = data::round_to<A>(rule.competition.lambda);
    const RowMatrix<A> dweights_TK = data::random_matrix<A>(tokens, 4, 5);
    const auto forward = scored_data::route<A>(logits_TE, rule);
    const auto exact = scored_data::route<double>(exact_TE, rule);
    ASSERT_TRUE(data::same_bits(forward.ids_TK, exact.ids_TK));
    const RowMatrix<A> got_TE =
        gradient(logits_TE, rule, forward, dweights_TK).total(forward.ids_TK);
    const RowMatrix<double> exact_dweights_TK = dweights_TK.template cast<double>();
    const RowMatrix<double> want_TE =
        gradient(exact_TE, rule, exact, exact_dweights_TK).total(exact.ids_TK);
    for (Index i = 0; i < got_TE.size(); ++i) {
      ASSERT_NEAR(static_cast<double>(got_TE.data()[i]), want_TE.data()[i], tolerance);
    }
  }
}

/// d score / d logit, and d log(score) / d logit, of sigmoid or sqrt_softplus.
std::pair<Exact, Exact> exact_slopes(ScoreFunction function, Exact x) {
  const auto sigmoid = [](Exact v) { return 1 / (1 + std::exp(-v)); };
  if (function == ScoreFunction::sigmoid) return {sigmoid(x) * sigmoid(-x), sigmoid(-x)};
  const Exact softplus = std::max(x, 0.0L) + std::log1p(std::exp(-std::abs(x)));
  return {sigmoid(x) / (2 * std::sqrt(softplus)), sigmoid(x) / (2 * softplus)};
}

// Closed forms in long double, for logits of any size: every gradient that A can hold keeps its
// digits.
TYPED_TEST(RouteLogitsBackwardTest, DigitsDoNotDependOnTheSizeOfTheLogits) {
  using A = TypeParam;
  const Exact eps = static_cast<Exact>(std::numeric_limits<A>::epsilon());
  const Exact least = static_cast<Exact>(std::numeric_limits<A>::min());
  const Index tokens = 9, k = 3;
  const RowMatrix<A> dweights_TK = data::random_matrix<A>(tokens, k, 33);
  for (A centre : {A(0), A(10), A(14), A(16), A(90), A(800), A(-50), A(-110), A(-900), A(-4000)}) {
    RowMatrix<A> logits_TE = data::random_matrix<A>(tokens, k, 34);
    logits_TE.array() += centre;
    for (ScoreFunction function : {ScoreFunction::sigmoid, ScoreFunction::sqrt_softplus}) {
      for (bool renormalise : {false, true}) {
        SCOPED_TRACE(static_cast<int>(function));
        const SelectionRule rule{k, {function, renormalise, 1}, {}, Competition::off()};
        const auto forward = scored_data::route<A>(logits_TE, rule);
        const Gradient<A> got = gradient(logits_TE, rule, forward, dweights_TK);
        for (Index t = 0; t < tokens; ++t) {
          const auto logit = [&](Index j) {
            return static_cast<Exact>(logits_TE(t, forward.ids_TK(t, j)));
          };
          const auto score = [&](Index j) {
            const auto slopes = exact_slopes(function, logit(j));
            return slopes.first / slopes.second;
          };
          Exact mean = 0, sum = 0, largest = 0;
          for (Index j = 0; j < k; ++j) sum += score(j);
          for (Index j = 0; j < k; ++j) {
            mean += score(j) / sum * static_cast<Exact>(dweights_TK(t, j));
            largest = std::max(largest, std::abs(static_cast<Exact>(dweights_TK(t, j))));
          }
          for (Index j = 0; j < k; ++j) {
            const auto slopes = exact_slopes(function, logit(j));
            const auto g = static_cast<Exact>(dweights_TK(t, j));
            const Exact slope = renormalise ? score(j) / sum * slopes.second : slopes.first;
            const Exact want = slope * (renormalise ? g - mean : g);
            ASSERT_LE(std::abs(static_cast<Exact>(got.dselected_TK(t, j)) - want),
                      30 * eps * (slope * largest + least))
                << centre;
          }
        }
      }
    }
  }
}

// With defaults this is softmax_backward, to the bit.
TYPED_TEST(RouteLogitsBackwardTest, DefaultsEqualSoftmaxBackward) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::special_matrix<A>(67, 9, 6);
  const RowMatrix<A> dweights_TK = data::random_matrix<A>(67, 3, 7);
  for (const Competition& competition : scored_data::all_competitions()) {
    const SelectionRule rule{3, {}, {}, competition};
    const auto forward = scored_data::route<A>(logits_TE, rule);
    RowMatrix<A> want_TK(67, 3);
    gatepro::softmax_backward(gatepro::strided_view(forward.weights_TK),
                              gatepro::strided_view(dweights_TK), gatepro::strided_view(want_TK));
    const Gradient<A> got = gradient(logits_TE, rule, forward, dweights_TK);
    EXPECT_TRUE(data::same_bits(got.dselected_TK, want_TK));
    EXPECT_TRUE((got.dlogits_TE.array() == 0).all());
  }
}

// 1 - sigmoid(l) is 0 in rounding, exp(-l) is not: the gradient keeps its digits.
TYPED_TEST(RouteLogitsBackwardTest, SaturatedSigmoidsKeepTheirGradient) {
  using A = TypeParam;
  RowMatrix<A> logits_TE(1, 4);
  logits_TE << 20, 40, 60, -60;
  const SelectionRule rule{4, {ScoreFunction::sigmoid, false, 1}, {}, Competition::off()};
  const auto forward = scored_data::route<A>(logits_TE, rule);
  const RowMatrix<A> ones = RowMatrix<A>::Ones(1, 4);
  const RowMatrix<A> got_TE = gradient(logits_TE, rule, forward, ones).total(forward.ids_TK);
  for (Index e = 0; e < 4; ++e) {
    const double size = std::abs(static_cast<double>(logits_TE(e)));
    const double want = std::exp(-size) / ((1 + std::exp(-size)) * (1 + std::exp(-size)));
    EXPECT_NEAR(static_cast<double>(got_TE(e)) / want, 1,
                8 * static_cast<double>(std::numeric_limits<A>::epsilon()));
  }
}

// Padding, losers and -inf: no gradient in, none out, whatever dweights holds there.
TYPED_TEST(RouteLogitsBackwardTest, NoWeightNoGradient) {
  using A = TypeParam;
  const A nan = data::marked_nan<A>(), inf = data::infinity<A>();
  const Index tokens = 41, experts = 6, top_k = 6;
  RowMatrix<A> logits_TE = data::random_matrix<A>(tokens, experts, 8);
  for (Index t = 0; t < tokens; t += 3) logits_TE(t, t % experts) = -inf;
  const auto is_padding = scored_data::padding(tokens, 4);
  Index losers = 0, minus_infinities = 0;
  for (const SelectionRule& rule : scored_data::rules_of(top_k, {})) {
    SCOPED_TRACE(scored_data::describe(rule));
    const auto forward = scored_data::route<A>(logits_TE, rule, {{}, is_padding});
    RowMatrix<A> dweights_TK = data::random_matrix<A>(tokens, top_k, 9);
    RowMatrix<A> spoilt_TK = dweights_TK;
    for (Index t = 0; t < tokens; ++t) {
      for (Index j = 0; j < top_k; ++j) {
        const bool padded = is_padding[static_cast<std::size_t>(t)] != 0;
        if (padded || forward.scores_TK(t, j) == 0) spoilt_TK(t, j) = j % 2 == 0 ? nan : inf;
      }
    }
    const Gradient<A> got = gradient(logits_TE, rule, forward, spoilt_TK, is_padding);
    const Gradient<A> want = gradient(logits_TE, rule, forward, dweights_TK, is_padding);
    ASSERT_TRUE(data::same_bits(got.dselected_TK, want.dselected_TK));
    ASSERT_TRUE(data::same_bits(got.dlogits_TE, want.dlogits_TE));
    const RowMatrix<A> total_TE = got.total(forward.ids_TK);
    for (Index t = 0; t < tokens; ++t) {
      if (is_padding[static_cast<std::size_t>(t)] != 0) {
        ASSERT_TRUE((total_TE.row(t).array() == 0).all());
        continue;
      }
      for (Index j = 0; j < top_k; ++j) {
        if (forward.scores_TK(t, j) != 0) continue;
        const Index e = forward.ids_TK(t, j);
        ASSERT_EQ(total_TE(t, e), 0);
        losers += logits_TE(t, e) > -inf ? 1 : 0;
        minus_infinities += logits_TE(t, e) > -inf ? 0 : 1;
      }
    }
  }
  EXPECT_GT(losers, 0);
  EXPECT_GT(minus_infinities, 0);
}

// Masked tokens get none, also if their forward did not know of the mask.
TYPED_TEST(RouteLogitsBackwardTest, PaddingCountsInTheBackwardAlone) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(9, 6, 23);
  const RowMatrix<A> dweights_TK = data::random_matrix<A>(9, 3, 24);
  const auto is_padding = scored_data::padding(9, 3);
  for (const SelectionRule& rule : scored_data::rules_of(3, {})) {
    const auto forward = scored_data::route<A>(logits_TE, rule);
    const Gradient<A> all = gradient(logits_TE, rule, forward, dweights_TK);
    const Gradient<A> got = gradient(logits_TE, rule, forward, dweights_TK, is_padding);
    for (Index t = 0; t < 9; ++t) {
      const bool padded = is_padding[static_cast<std::size_t>(t)] != 0;
      for (Index j = 0; j < 3; ++j) {
        EXPECT_EQ(got.dselected_TK(t, j), padded ? 0 : all.dselected_TK(t, j));
      }
      for (Index e = 0; e < 6; ++e) {
        EXPECT_EQ(got.dlogits_TE(t, e), padded ? 0 : all.dlogits_TE(t, e));
      }
    }
  }
}

// NaN tokens have NaN gradients, and only they.
TYPED_TEST(RouteLogitsBackwardTest, NonfiniteTokensShow) {
  using A = TypeParam;
  RowMatrix<A> logits_TE = data::random_matrix<A>(3, 4, 10);
  logits_TE(1, 2) = data::infinity<A>();
  const RowMatrix<A> dweights_TK = data::random_matrix<A>(3, 4, 11);
  for (const SelectionRule& rule : scored_data::rules_of(4, {})) {
    const auto forward = scored_data::route<A>(logits_TE, rule);
    const Gradient<A> got = gradient(logits_TE, rule, forward, dweights_TK);
    for (Index j = 0; j < 4; ++j) {
      EXPECT_FALSE(std::isnan(got.dselected_TK(0, j)) || std::isnan(got.dselected_TK(2, j)));
      EXPECT_TRUE(std::isnan(got.dselected_TK(1, j))) << scored_data::describe(rule);
    }
  }
}

// A NaN logit that was not selected takes no part in the softmax over all.
TYPED_TEST(RouteLogitsBackwardTest, UnselectedNanIsLeftOut) {
  using A = TypeParam;
  RowMatrix<A> logits_TE = data::random_matrix<A>(1, 5, 12);
  const RowMatrix<A> four_TE = logits_TE.leftCols(4);
  logits_TE(4) = data::marked_nan<A>();
  const RowMatrix<A> dweights_TK = data::random_matrix<A>(1, 2, 13);
  const SelectionRule rule{
      2, {ScoreFunction::softmax_before_top_k, false, 1}, {}, Competition::off()};
  const auto with_nan = scored_data::route<A>(logits_TE, rule);
  const auto without = scored_data::route<A>(four_TE, rule);
  EXPECT_TRUE(data::same_bits(with_nan.weights_TK, without.weights_TK));
  const RowMatrix<A> got_TE =
      gradient(logits_TE, rule, with_nan, dweights_TK).total(with_nan.ids_TK);
  const RowMatrix<A> want_TE = gradient(four_TE, rule, without, dweights_TK).total(without.ids_TK);
  const RowMatrix<A> first_four = got_TE.leftCols(4);
  EXPECT_TRUE(data::same_bits(first_four, want_TE));
  EXPECT_EQ(got_TE(4), 0);
}

// The gradient on all logits adds; the one on the selected overwrites.
TYPED_TEST(RouteLogitsBackwardTest, DenseGradientsAdd) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(21, 6, 14);
  const RowMatrix<A> dweights_TK = data::random_matrix<A>(21, 2, 15);
  const RowMatrix<A> start_TE = data::random_matrix<A>(21, 6, 16);
  for (const SelectionRule& rule : scored_data::rules_of(2, {})) {
    const auto forward = scored_data::route<A>(logits_TE, rule);
    const Gradient<A> from_zero = gradient(logits_TE, rule, forward, dweights_TK);
    RowMatrix<A> dlogits_TE = start_TE, dselected_TK(21, 2);
    auto memory = data::scratch(gatepro::route_logits_backward_workspace_bytes<A>(6, rule));
    gatepro::route_logits_backward<A>(
        {logits_TE}, scored_data::rivals_of(6), rule,
        gatepro::RecordedChoices<std::int32_t>{forward.ids_TK, forward.penalised_TK},
        {forward.scores_TK, dweights_TK, dselected_TK, dlogits_TE}, memory);
    EXPECT_TRUE(data::same_bits(dselected_TK, from_zero.dselected_TK));
    const RowMatrix<A> error_TE = dlogits_TE - start_TE - from_zero.dlogits_TE;
    EXPECT_LE(static_cast<double>(error_TE.cwiseAbs().maxCoeff()),
              2 * static_cast<double>(std::numeric_limits<A>::epsilon()));
    if (rule.scores.renormalise || rule.scores.function != ScoreFunction::softmax_before_top_k) {
      EXPECT_TRUE(data::same_bits(dlogits_TE, start_TE));
    }
  }
}

TYPED_TEST(RouteLogitsBackwardTest, BitsDoNotDependOnHowTheWorkIsCut) {
  using A = TypeParam;
  const Index tokens = 256 + 77;
  const RowMatrix<A> logits_TE = data::special_matrix<A>(tokens, 9, 17, 30);
  const RowMatrix<A> dweights_TK = data::random_matrix<A>(tokens, 4, 18);
  for (const SelectionRule& rule : scored_data::rules_of(4, {})) {
    const auto forward = scored_data::route<A>(logits_TE, rule);
    const Gradient<A> want = gradient(logits_TE, rule, forward, dweights_TK);
    const Gradient<A> got = gradient(logits_TE, rule, forward, dweights_TK, {}, ThreadExecutor(3));
    EXPECT_TRUE(data::same_bits(got.dselected_TK, want.dselected_TK));
    EXPECT_TRUE(data::same_bits(got.dlogits_TE, want.dlogits_TE));
    const RowMatrix<A> row = logits_TE.row(300), dweights = dweights_TK.row(300);
    const Gradient<A> alone = gradient(row, rule, scored_data::route<A>(row, rule), dweights);
    const RowMatrix<A> in_batch = want.dselected_TK.row(300);
    EXPECT_TRUE(data::same_bits(alone.dselected_TK, in_batch));
  }
}

// Without a record the competition decides once more, and the same.
TYPED_TEST(RouteLogitsBackwardTest, TheRecordIsOptional) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(33, 9, 19);
  const RowMatrix<A> dweights_TK = data::random_matrix<A>(33, 4, 20);
  for (const SelectionRule& rule : scored_data::rules_of(4, {})) {
    const auto forward = scored_data::route<A>(logits_TE, rule);
    const Gradient<A> want = gradient(logits_TE, rule, forward, dweights_TK);
    RowMatrix<A> dlogits_TE = RowMatrix<A>::Zero(33, 9), dselected_TK(33, 4);
    auto memory = data::scratch(gatepro::route_logits_backward_workspace_bytes<A>(9, rule));
    gatepro::route_logits_backward<A>({logits_TE}, scored_data::rivals_of(9), rule,
                                      gatepro::RecordedChoices<std::int32_t>{forward.ids_TK, {}},
                                      {forward.scores_TK, dweights_TK, dselected_TK, dlogits_TE},
                                      memory);
    EXPECT_TRUE(data::same_bits(dselected_TK, want.dselected_TK));
    EXPECT_TRUE(data::same_bits(dlogits_TE, want.dlogits_TE));
  }
}

TEST(RouteLogitsBackwardBadInput, DenseGradientAndViews) {
  const RowMatrix<float> logits_TE = data::random_matrix<float>(5, 6, 21);
  SelectionRule rule{2, {ScoreFunction::softmax_before_top_k, false, 1}, {}, Competition::off()};
  auto forward = scored_data::route<float>(logits_TE, rule);
  const RowMatrix<float> dweights_TK = data::random_matrix<float>(5, 2, 22);
  RowMatrix<float> dselected_TK = RowMatrix<float>::Constant(5, 2, 77);
  RowMatrix<float> dlogits_TE = RowMatrix<float>::Zero(5, 6);
  std::vector<std::uint8_t> is_padding;
  auto memory = data::scratch(1 << 20);
  const auto call = [&](const MatrixView<float>& dlogits) {
    gatepro::route_logits_backward<float>(
        {logits_TE, {}, data::optional(is_padding)}, gatepro::RivalTable(), rule,
        gatepro::RecordedChoices<std::int32_t>{forward.ids_TK},
        {forward.scores_TK, dweights_TK, dselected_TK, dlogits}, memory);
  };
  EXPECT_NO_THROW(call(dlogits_TE));
  dselected_TK.setConstant(77);
  expect_error([&] { call({}); },
               {"route_logits_backward", "a dlogits_TE: softmax_before_top_k reaches all experts"});
  expect_error([&] { call({dlogits_TE.data(), 5, 5}); }, {"dlogits_TE", "cols=5"});
  expect_error([&] { call({dselected_TK.data(), 5, 6}); }, {"outputs in different memory"});
  is_padding = {1, 0};
  expect_error([&] { call(dlogits_TE); }, {"is_padding_T", "size=2"});
  is_padding.clear();
  forward.ids_TK(4, 1) = 6;
  expect_error([&] { call(dlogits_TE); }, {"every id in [0, num_experts)", "id=6"});
  forward.ids_TK(4, 1) = 0;
  rule.competition = Competition::eliminate();
  expect_error([&] { call(dlogits_TE); }, {"partners of all experts"});
  rule.competition = Competition::off();
  memory.resize(10);
  expect_error([&] { call(dlogits_TE); }, {"workspace as large as its query says"});
  EXPECT_TRUE((dselected_TK.array() == 77).all());
}

}  // namespace
