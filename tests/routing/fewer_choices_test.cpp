// SPDX-License-Identifier: MIT
// Tokens that make fewer than K choices, by a threshold or within a budget: against sorts in
// double, and against weigh_choices to the bit.
#include <gatepro/routing/fewer_choices.hpp>
#include <gatepro/routing/weigh_choices.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "support/bits.hpp"
#include "support/conversions.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/reference/routing.hpp"
#include "support/scored_data.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::Competition;
using gatepro::FewerChoices;
using gatepro::GroupLimit;
using gatepro::GroupScore;
using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;
using gatepro::SelectionRule;
using scored_data::Bytes;
using scored_data::Extras;
using Borders = std::vector<std::int64_t>;

template <class A>
struct Routed {
  scored_data::Outcome<A, std::int32_t> outcome;
  RowMatrix<A> choice_values_TK;

  gatepro::RoutingView<A> view() {
    auto view = outcome.view();
    view.choice_values_TK = choice_values_TK;
    return view;
  }
};

template <class A>
Routed<A> route_all(const RowMatrix<A>& logits_TE, const SelectionRule& rule,
                    const Extras& extras = {}) {
  const Index tokens = logits_TE.rows(), experts = logits_TE.cols();
  Routed<A> routed{{tokens, rule.top_k, experts},
                   RowMatrix<A>::Constant(tokens, rule.top_k, A(77))};
  const std::vector<A> bias(extras.bias.begin(), extras.bias.end());
  auto memory = data::scratch(gatepro::route_logits_workspace_bytes<A>(experts, rule));
  routed.outcome.report =
      gatepro::route_logits({logits_TE, data::optional(bias), data::optional(extras.is_padding)},
                            scored_data::rivals_of(experts), rule, routed.view(), memory);
  return routed;
}

template <class A, class Executor = gatepro::SerialExecutor>
void keep_fewer(const RowMatrix<A>& logits_TE, const SelectionRule& rule, const FewerChoices& fewer,
                const Borders& begin, Routed<A>& routed, const Extras& extras = {},
                const Executor& executor = {}) {
  auto memory =
      data::scratch(gatepro::keep_fewer_choices_workspace_bytes<A>(rule.top_k, executor.workers()));
  routed.outcome.report = gatepro::keep_fewer_choices(
      gatepro::RoutingInputs<A>{logits_TE, {}, data::optional(extras.is_padding)}, rule, fewer,
      begin, routed.view(), memory, executor);
}

std::vector<FewerChoices> all_fewer() {
  return {{0.5},     {0.3, 0, 2}, {0.3, 0, 0},    {1, 2.5},     {1, 1.2, 0},
          {1, 3, 3}, {1, 4, 1},   {0.8, 1.75, 1}, {0.6, 2.2, 0}};
}

SelectionRule best_first(SelectionRule rule) {
  rule.choice.order = gatepro::ChoiceOrder::best_first;
  return rule;
}

/// How many choices the reference keeps, of tokens with numbers for scores.
std::vector<std::size_t> kept_by_reference(const std::vector<reference::Token>& tokens,
                                           const SelectionRule& rule, const FewerChoices& fewer,
                                           const Borders& begin,
                                           const std::vector<std::uint8_t>& is_padding) {
  const auto top_k = static_cast<std::size_t>(rule.top_k);
  const auto least = static_cast<std::size_t>(fewer.least);
  std::vector<std::size_t> kept(tokens.size(), top_k);
  const auto ignored = [&](std::size_t t) { return !is_padding.empty() && is_padding[t] != 0; };
  for (std::size_t t = 0; t < tokens.size() && fewer.top_p < 1; ++t) {
    if (ignored(t)) continue;
    const reference::Row& scores = tokens[t].scores;
    const bool softmax = rule.scores.function == ScoreFunction::softmax_after_top_k ||
                         rule.scores.function == ScoreFunction::softmax_before_top_k;
    const double total = softmax ? 1 : std::accumulate(scores.begin(), scores.end(), 0.0);
    double sum = 0;
    kept[t] = 0;
    while (kept[t] < top_k && (sum < fewer.top_p * total || kept[t] < least)) {
      sum += scores[kept[t]++];
    }
  }
  if (fewer.budget == 0) return kept;
  struct Candidate {
    double value;
    std::size_t token, rank;
  };
  for (std::size_t s = 0; s + 1 < begin.size(); ++s) {
    std::vector<Candidate> candidates;
    double valid = 0, open = 0;
    for (auto t = static_cast<std::size_t>(begin[s]); t < static_cast<std::size_t>(begin[s + 1]);
         ++t) {
      if (ignored(t)) continue;
      valid += 1;
      for (std::size_t j = 0; j < kept[t]; ++j) {
        const auto e = static_cast<std::size_t>(tokens[t].ids[j]);
        const auto& contest = tokens[t].contest;
        const double value =
            contest.out[e] ? -std::numeric_limits<double>::infinity() : contest.choice[e];
        if (j < least) {
          open -= 1;
        } else {
          candidates.push_back({value, t, j});
        }
      }
      kept[t] = std::min(kept[t], least);
    }
    open += std::floor(fewer.budget * valid + 1e-9);
    std::stable_sort(candidates.begin(), candidates.end(),
                     [](const Candidate& a, const Candidate& b) { return a.value > b.value; });
    for (std::size_t i = 0; i < candidates.size() && static_cast<double>(i) < open; ++i) {
      EXPECT_EQ(candidates[i].rank, kept[candidates[i].token]++) << "not a prefix";
    }
  }
  return kept;
}

template <class A>
class FewerChoicesTest : public ::testing::Test {};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(FewerChoicesTest, Scalars, TypeNames);

TYPED_TEST(FewerChoicesTest, MatchesTheReference) {
  using A = TypeParam;
  const Index tokens = 43, experts = 12, top_k = 4;
  const Borders begin{0, 16, 16, 17, 36, tokens};
  const RowMatrix<A> logits_TE = data::random_matrix<A>(tokens, experts, 3) * A(2);
  const double tolerance = 40 * static_cast<double>(std::numeric_limits<A>::epsilon());
  for (const Extras& extras : {Extras{}, Extras{scored_data::random_bias(experts, 0.3, 1),
                                                scored_data::padding(tokens, 5)}}) {
    for (const GroupLimit& groups : {GroupLimit{}, GroupLimit{3, 2, GroupScore::top_2}}) {
      for (const SelectionRule& rule : scored_data::rules_of(top_k, groups)) {
        SCOPED_TRACE(scored_data::describe(rule));
        std::vector<reference::Token> whole;
        for (Index t = 0; t < tokens; ++t) {
          whole.push_back(
              scored_data::expected<A, std::int32_t>(logits_TE, t, best_first(rule), extras));
        }
        const Routed<A> routed = route_all(logits_TE, best_first(rule), extras);
        for (const FewerChoices& fewer : all_fewer()) {
          SCOPED_TRACE(testing::Message()
                       << "top_p " << fewer.top_p << ", budget " << fewer.budget);
          Routed<A> got = routed;
          keep_fewer(logits_TE, rule, fewer, begin, got, extras);
          const auto kept = kept_by_reference(whole, rule, fewer, begin, extras.is_padding);
          std::vector<std::int64_t> counts(static_cast<std::size_t>(experts), 0);
          std::int64_t choices = 0;
          for (Index t = 0; t < tokens; ++t) {
            const auto row = static_cast<std::size_t>(t);
            auto ids = whole[row].ids;
            ids.resize(kept[row]);
            if (rule.choice.order == gatepro::ChoiceOrder::ascending_ids) {
              std::sort(ids.begin(), ids.end());
            }
            const bool masked = !extras.is_padding.empty() && extras.is_padding[row] != 0;
            const auto want = reference::weigh(whole[row].contest, ids, rule, masked);
            for (Index j = 0; j < top_k; ++j) {
              const auto i = static_cast<std::size_t>(j);
              const bool made = i < kept[row];
              ASSERT_EQ(got.outcome.ids_TK(t, j), made ? ids[i] : -1) << t << ", " << j;
              ASSERT_EQ(got.outcome.penalised_TK(t, j), made ? want.penalised[i] : 0);
              scored_data::expect_close(static_cast<double>(got.outcome.weights_TK(t, j)),
                                        made ? want.weights[i] : 0, tolerance);
              scored_data::expect_close(static_cast<double>(got.outcome.scores_TK(t, j)),
                                        made ? want.scores[i] : 0, tolerance);
              if (made && !masked) {
                ++counts[static_cast<std::size_t>(ids[i])];
                ++choices;
              }
            }
          }
          EXPECT_EQ(got.outcome.tokens_per_expert_E, counts);
          EXPECT_EQ(got.outcome.report.choices, choices);
          EXPECT_EQ(got.outcome.report.tokens, tokens);
        }
      }
    }
  }
}

// Also for values that are none, and for shares that no number holds.
TYPED_TEST(FewerChoicesTest, WeighsAsWeighChoicesToTheBit) {
  using A = TypeParam;
  const Index tokens = 256 + 21, experts = 12, top_k = 5;
  const Borders begin{0, 100, 100, tokens};
  const Extras extras{scored_data::random_bias(experts, 0.3, 1), scored_data::padding(tokens, 7)};
  for (const Index special_every : {2, 9, 1000000}) {
    const RowMatrix<A> logits_TE = data::special_matrix<A>(tokens, experts, 2, special_every);
    for (const SelectionRule& rule : scored_data::rules_of(top_k, {3, 2, GroupScore::top_2})) {
      SCOPED_TRACE(scored_data::describe(rule));
      const Routed<A> routed = route_all(logits_TE, best_first(rule), extras);
      for (const FewerChoices& fewer : all_fewer()) {
        Routed<A> got = routed;
        keep_fewer(logits_TE, rule, fewer, begin, got, extras);
        scored_data::Outcome<A, std::int32_t> want = got.outcome;
        gatepro::RoutingView<A> out;
        out.weights_TK = want.weights_TK;
        out.scores_TK = want.scores_TK;
        out.tokens_per_expert_E = want.tokens_per_expert_E;
        auto memory = data::scratch(gatepro::weigh_choices_workspace_bytes<A>(experts, rule));
        want.report = gatepro::weigh_choices(
            {logits_TE, {}, data::optional(extras.is_padding)}, scored_data::rivals_of(experts),
            rule,
            gatepro::RecordedChoices<std::int32_t>{got.outcome.ids_TK, got.outcome.penalised_TK},
            out, memory);
        scored_data::expect_same(got.outcome, want);
        EXPECT_EQ(got.outcome.report.choices, want.report.choices);
      }
    }
  }
}

TYPED_TEST(FewerChoicesTest, ABudgetIsKeptForAnyBits) {
  using A = TypeParam;
  const Index tokens = 64, experts = 9, top_k = 4;
  const RowMatrix<A> logits_TE = data::special_matrix<A>(tokens, experts, 5, 3);
  for (const SelectionRule& rule : scored_data::rules_of(top_k, {})) {
    const Routed<A> routed = route_all(logits_TE, best_first(rule));
    Routed<A> got = routed;
    keep_fewer(logits_TE, rule, {1, 1.5, 1}, {0, tokens}, got);
    std::int64_t made = 0, numbers = 0;
    for (Index t = 0; t < tokens; ++t) {
      const bool number = !std::isnan(routed.outcome.scores_TK(t, 0));
      Index left = 0;
      for (Index j = 0; j < top_k; ++j) {
        const bool is_made = got.outcome.ids_TK(t, j) >= 0;
        EXPECT_EQ(is_made, left == j && is_made) << "not a prefix";
        left += is_made ? 1 : 0;
      }
      EXPECT_GE(left, 1);
      EXPECT_TRUE(number || left == top_k) << "a token without scores keeps all";
      numbers += number ? 1 : 0;
      made += number ? left : 0;
    }
    EXPECT_EQ(made, numbers * 3 / 2) << scored_data::describe(rule);
  }
}

// A total order: value, lower token, lower id.
TYPED_TEST(FewerChoicesTest, TiesGoToLowerTokensThenLowerIds) {
  using A = TypeParam;
  const Index tokens = 5, experts = 6, top_k = 3;
  const RowMatrix<A> logits_TE = RowMatrix<A>::Zero(tokens, experts);
  for (const ScoreFunction function : data::score_functions) {
    const SelectionRule rule{top_k, {function, true, 1}, {}, Competition::off()};
    Routed<A> got = route_all(logits_TE, best_first(rule));
    keep_fewer(logits_TE, rule, {1, 1.6, 0}, {0, tokens}, got);
    RowMatrix<std::int32_t> want_TK(tokens, top_k);
    want_TK << 0, 1, 2, 0, 1, 2, 0, 1, -1, -1, -1, -1, -1, -1, -1;
    EXPECT_EQ(got.outcome.ids_TK, want_TK);
    Routed<A> one_each = route_all(logits_TE, best_first(rule));
    keep_fewer(logits_TE, rule, {1, 1.6, 1}, {0, tokens}, one_each);
    want_TK << 0, 1, 2, 0, 1, -1, 0, -1, -1, 0, -1, -1, 0, -1, -1;
    EXPECT_EQ(one_each.outcome.ids_TK, want_TK);
    EXPECT_EQ(one_each.outcome.report.choices, 8);
  }
}

// 1.15 times 100 is below 115 in double.
TYPED_TEST(FewerChoicesTest, TheRoundingOfABudgetCostsNoChoice) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(100, 6, 7);
  const SelectionRule rule{2, {}, {}, Competition::off()};
  Routed<A> got = route_all(logits_TE, rule);
  keep_fewer(logits_TE, rule, {1, 1.15, 1}, {0, 100}, got);
  EXPECT_EQ(got.outcome.report.choices, 115);
}

TYPED_TEST(FewerChoicesTest, DoesNotDependOnExecutorsOrHowSequencesAreCut) {
  using A = TypeParam;
  const Index tokens = 700, experts = 16, top_k = 4;
  const Borders begin{0, 130, 400, 401, tokens};
  const Extras extras{{}, scored_data::padding(tokens, 6)};
  const RowMatrix<A> logits_TE = data::random_matrix<A>(tokens, experts, 8) * A(2);
  const SelectionRule rule{top_k, {ScoreFunction::sigmoid, true, 2}, {}, Competition::eliminate()};
  for (const FewerChoices& fewer : all_fewer()) {
    Routed<A> whole = route_all(logits_TE, best_first(rule), extras);
    keep_fewer(logits_TE, rule, fewer, begin, whole, extras);
    Routed<A> threads = route_all(logits_TE, best_first(rule), extras);
    keep_fewer(logits_TE, rule, fewer, begin, threads, extras, ThreadExecutor(3));
    scored_data::expect_same(whole.outcome, threads.outcome);
    for (std::size_t s = 0; s + 1 < begin.size(); ++s) {
      const Index first = static_cast<Index>(begin[s]);
      const Index count = static_cast<Index>(begin[s + 1]) - first;
      const RowMatrix<A> part_TE = logits_TE.middleRows(first, count);
      const Extras mask{
          {}, {extras.is_padding.begin() + first, extras.is_padding.begin() + first + count}};
      Routed<A> part = route_all(part_TE, best_first(rule), mask);
      keep_fewer(part_TE, rule, fewer, {0, count}, part, mask);
      EXPECT_TRUE(
          data::same_bits(part.outcome.ids_TK,
                          RowMatrix<std::int32_t>(whole.outcome.ids_TK.middleRows(first, count))));
      EXPECT_TRUE(data::same_bits(part.outcome.weights_TK,
                                  RowMatrix<A>(whole.outcome.weights_TK.middleRows(first, count))));
    }
  }
}

TYPED_TEST(FewerChoicesTest, OffChangesNothing) {
  using A = TypeParam;
  const RowMatrix<A> logits_TE = data::special_matrix<A>(50, 8, 9, 7);
  for (const SelectionRule& rule : scored_data::rules_of(3, {})) {
    const auto want = scored_data::route<A>(logits_TE, rule);
    Routed<A> got = route_all(logits_TE, best_first(rule));
    keep_fewer(logits_TE, rule, {}, {}, got);
    scored_data::expect_same(got.outcome, want);
    EXPECT_EQ(got.outcome.report.choices, 150);
    EXPECT_EQ(want.report.choices, 150);
  }
}

// Scores that underflow to 0 do not look as if a threshold was reached.
TYPED_TEST(FewerChoicesTest, ScoresOfZeroReachNoThreshold) {
  using A = TypeParam;
  RowMatrix<A> logits_TE(1, 3);
  logits_TE << A(-2000), A(-2001), A(-2002);
  const SelectionRule rule{3, {ScoreFunction::sigmoid, true, 1}, {}, Competition::off()};
  Routed<A> got = route_all(logits_TE, best_first(rule));
  ASSERT_EQ(got.outcome.scores_TK(0, 0), 0);
  keep_fewer(logits_TE, rule, {0.5}, {}, got);
  EXPECT_EQ(got.outcome.report.choices, 3);
}

TYPED_TEST(FewerChoicesTest, ChoiceValuesAreWhatTheChoiceWentBy) {
  using A = TypeParam;
  const Index tokens = 41, experts = 12, top_k = 5;
  const RowMatrix<A> logits_TE = data::random_matrix<A>(tokens, experts, 3) * A(2);
  const Extras extras{scored_data::random_bias(experts, 0.3, 1), {}};
  const double eps = static_cast<double>(std::numeric_limits<A>::epsilon());
  for (const SelectionRule& rule : scored_data::rules_of(top_k, {3, 2, GroupScore::top_2})) {
    SCOPED_TRACE(scored_data::describe(rule));
    const Routed<A> got = route_all(logits_TE, best_first(rule), extras);
    for (Index t = 0; t < tokens; ++t) {
      const auto want =
          scored_data::expected<A, std::int32_t>(logits_TE, t, best_first(rule), extras);
      for (Index j = 0; j < top_k; ++j) {
        const auto e = static_cast<std::size_t>(want.ids[static_cast<std::size_t>(j)]);
        const double value =
            want.contest.out[e] ? -std::numeric_limits<double>::infinity() : want.contest.choice[e];
        scored_data::expect_close(static_cast<double>(got.choice_values_TK(t, j)), value, 8 * eps);
      }
    }
  }
}

TEST(FewerChoicesBadInput, IsRefused) {
  const RowMatrix<float> logits_TE = data::random_matrix<float>(4, 6, 6);
  const SelectionRule rule{2, {}, {}, Competition::penalty(0.1)};
  const Borders begin{0, 4};
  const auto with = [&](const FewerChoices& fewer, const Borders& borders = {0, 4}) {
    return [&, fewer, borders] {
      Routed<float> routed = route_all(logits_TE, best_first(rule));
      keep_fewer(logits_TE, rule, fewer, borders, routed);
    };
  };
  EXPECT_NO_THROW(with({0.5, 1.5, 1})());
  const double nan = std::numeric_limits<double>::quiet_NaN();
  expect_error(with({0}), {"keep_fewer_choices", "0 < top_p <= 1", "top_p=0"});
  expect_error(with({1.5}), {"0 < top_p <= 1", "top_p=1.5"});
  expect_error(with({nan}), {"0 < top_p <= 1"});
  expect_error(with({1, 0, 3}), {"0 <= least <= top_k", "least=3", "top_k=2"});
  expect_error(with({1, 0, -1}), {"0 <= least <= top_k", "least=-1"});
  expect_error(with({1, 0.5, 1}), {"least <= budget <= top_k", "budget=0.5"});
  expect_error(with({1, 2.5, 1}), {"least <= budget <= top_k", "budget=2.5"});
  expect_error(with({1, nan, 0}), {"least <= budget <= top_k"});
  expect_error(with({1, 1}, {}), {"sequence_begin_S1"});
  expect_error(with({1, 1}, {0, 3}), {"sequence_begin_S1 from 0 to the number of tokens"});

  const auto with_view = [&](auto change) {
    return [&, change] {
      Routed<float> routed = route_all(logits_TE, best_first(rule));
      auto view = routed.view();
      change(routed, view);
      auto memory = data::scratch(gatepro::keep_fewer_choices_workspace_bytes<float>(2));
      gatepro::keep_fewer_choices(gatepro::RoutingInputs<float>{logits_TE}, rule,
                                  FewerChoices{0.5, 1.5}, begin, view, memory);
    };
  };
  SelectionRule by_id = rule;
  by_id.choice.order = gatepro::ChoiceOrder::ascending_ids;
  expect_error([&] { route_all(logits_TE, by_id); },
               {"route_logits", "choices best first, not by id, for choice_values_TK"});
  using View = gatepro::RoutingView<float>;
  expect_error(with_view([](auto&, View& view) { view.scores_TK = {}; }), {"scores_TK"});
  expect_error(with_view([](auto&, View& view) { view.penalised_TK = {}; }), {"penalised_TK"});
  expect_error(with_view([](auto&, View& view) { view.choice_values_TK = {}; }),
               {"choice_values_TK"});
  expect_error(with_view([](auto&, View& view) { view.choice_values_TK = view.scores_TK; }),
               {"overlap"});
  expect_error(with_view([](auto& routed, View&) { routed.outcome.ids_TK(1, 1) = 6; }),
               {"expert_ids_TK", "every id in [0, num_experts), or -1 for none", "id=6"});
  expect_error(with_view([](auto& routed, View&) { routed.outcome.ids_TK(2, 0) = -2; }),
               {"expert_ids_TK", "id=-2", "row=2"});
  expect_error(
      [&] {
        Routed<float> routed = route_all(logits_TE, best_first(rule));
        gatepro::keep_fewer_choices(gatepro::RoutingInputs<float>{logits_TE}, rule, FewerChoices{},
                                    begin, routed.view(), gatepro::Workspace());
      },
      {"workspace"});
}

}  // namespace
