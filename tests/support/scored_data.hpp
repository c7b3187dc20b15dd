// SPDX-License-Identifier: MIT
// Rules, runs and comparisons that the tests of scored routing share.
#ifndef GATEPRO_TESTS_SUPPORT_SCORED_DATA_HPP
#define GATEPRO_TESTS_SUPPORT_SCORED_DATA_HPP

#include <gatepro/routing/route_logits.hpp>

#include <cmath>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "support/bits.hpp"
#include "support/conversions.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/reference/partners.hpp"
#include "support/reference/routing.hpp"

namespace scored_data {

using gatepro::Competition;
using gatepro::GroupLimit;
using gatepro::GroupScore;
using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;
using gatepro::SelectionRule;
using Bytes = RowMatrix<std::uint8_t>;

inline std::vector<Competition> all_competitions() {
  constexpr auto ties_lose = gatepro::TieRule::higher_id_loses;
  return {Competition::off(),
          Competition::penalty(0.3),
          Competition::eliminate(),
          {gatepro::CompetitionMode::penalty, 0.3, ties_lose},
          {gatepro::CompetitionMode::eliminate, 0, ties_lose}};
}

/// Every way from scores to weights, with every competition, for groups as given; two ways also by
/// rounded scores, of which many tie, and in order of ids.
inline std::vector<SelectionRule> rules_of(Index top_k, const GroupLimit& groups) {
  std::vector<SelectionRule> rules;
  for (ScoreFunction function : data::score_functions) {
    for (const Competition& competition : all_competitions()) {
      for (const gatepro::ScoreRule& scores :
           {gatepro::ScoreRule{function, false, 1}, gatepro::ScoreRule{function, true, 2.5},
            gatepro::ScoreRule{function, true, 2.5, gatepro::Renormalisation::published}}) {
        rules.push_back({top_k, scores, groups, competition});
      }
      rules.push_back({top_k, {function, true, 2.5}, groups, competition, {0.0625}});
      rules.push_back({top_k,
                       {function, false, 1},
                       groups,
                       competition,
                       {0, gatepro::ChoiceOrder::ascending_ids}});
    }
  }
  return rules;
}

inline std::string describe(const SelectionRule& rule) {
  std::ostringstream text;
  text << "function " << static_cast<int>(rule.scores.function) << ", renormalise "
       << rule.scores.renormalise << static_cast<int>(rule.scores.renormalisation) << ", scale "
       << rule.scores.scale << ", competition " << static_cast<int>(rule.competition.mode) << ", K "
       << rule.top_k << ", groups " << rule.groups.num_groups << "/" << rule.groups.groups_per_token
       << " by " << static_cast<int>(rule.groups.score) << "/" << rule.groups.best << ", step "
       << rule.choice.step << ", order " << static_cast<int>(rule.choice.order);
  return text.str();
}

/// Each expert's partner is the next but one, so that rivals are in other groups, too.
inline RowMatrix<std::int32_t> partners_of(Index experts) {
  RowMatrix<std::int32_t> partners_E1(experts, 1);
  for (Index e = 0; e < experts; ++e) {
    partners_E1(e) = static_cast<std::int32_t>((e + (e % 3 == 0 ? 1 : 2)) % experts);
  }
  return partners_E1;
}
inline gatepro::RivalTable rivals_of(Index experts) {
  const RowMatrix<std::int32_t> partners_E1 = partners_of(experts);
  return {gatepro::strided_view(partners_E1), false};
}
inline reference::Ids reference_rivals_of(Index experts) {
  const RowMatrix<std::int32_t> partners_E1 = partners_of(experts);
  reference::Ids partners;
  for (Index e = 0; e < experts; ++e) partners.push_back({partners_E1(e)});
  return reference::rivals(partners, false);
}

/// Everything that route_logits writes. It starts as garbage.
template <class A, class Id>
struct Outcome {
  Outcome(Index tokens, Index top_k, Index experts)
      : ids_TK(RowMatrix<Id>::Constant(tokens, top_k, Id(77))),
        weights_TK(RowMatrix<A>::Constant(tokens, top_k, A(77))),
        scores_TK(RowMatrix<A>::Constant(tokens, top_k, A(77))),
        penalised_TK(Bytes::Constant(tokens, top_k, 77)),
        tokens_per_expert_E(static_cast<std::size_t>(experts), 77) {}

  gatepro::RoutingView<A, Id> view() {
    return {ids_TK, weights_TK, tokens_per_expert_E, {}, scores_TK, penalised_TK};
  }

  RowMatrix<Id> ids_TK;
  RowMatrix<A> weights_TK;
  RowMatrix<A> scores_TK;
  Bytes penalised_TK;
  std::vector<std::int64_t> tokens_per_expert_E;
  gatepro::RoutingReport report;
};

/// Bias and padding of a batch; empty for none.
struct Extras {
  std::vector<double> bias;
  std::vector<std::uint8_t> is_padding;
};

template <class A, class Id = std::int32_t, class Executor = gatepro::SerialExecutor>
Outcome<A, Id> route(const RowMatrix<A>& logits_TE, const SelectionRule& rule,
                     const Extras& extras = {}, const Executor& executor = {}) {
  const Index experts = logits_TE.cols();
  Outcome<A, Id> outcome(logits_TE.rows(), rule.top_k, experts);
  const std::vector<A> bias(extras.bias.begin(), extras.bias.end());
  auto memory =
      data::scratch(gatepro::route_logits_workspace_bytes<A>(experts, rule, executor.workers()));
  outcome.report =
      gatepro::route_logits({logits_TE, data::optional(bias), data::optional(extras.is_padding)},
                            rivals_of(experts), rule, outcome.view(), memory, executor);
  return outcome;
}

/// The reference's view of token t.
template <class A, class Id>
reference::Token expected(const RowMatrix<A>& logits_TE, Index t, SelectionRule rule,
                          const Extras& extras) {
  rule.competition.lambda = data::round_to<A>(rule.competition.lambda);
  reference::Row row, bias;
  for (Index e = 0; e < logits_TE.cols(); ++e) row.push_back(static_cast<double>(logits_TE(t, e)));
  for (double b : extras.bias) bias.push_back(data::round_to<A>(b));
  const bool is_padding =
      !extras.is_padding.empty() && extras.is_padding[static_cast<std::size_t>(t)] != 0;
  return reference::route(row, reference_rivals_of(logits_TE.cols()), rule, bias, is_padding,
                          data::round_to<A>);
}

/// NaN for NaN, 0 for 0, else close.
inline void expect_close(double got, double want, double tolerance) {
  ASSERT_EQ(std::isnan(got), std::isnan(want));
  if (std::isnan(want)) return;
  if (std::isinf(want)) {
    ASSERT_EQ(got, want);
  } else {
    ASSERT_NEAR(got, want, tolerance * std::max(1.0, std::abs(want)));
  }
  if (want == 0) {
    ASSERT_EQ(got, 0);
  }
}

/// Everything as the reference has it.
template <class A, class Id>
void expect_reference(const RowMatrix<A>& logits_TE, const SelectionRule& rule,
                      const Extras& extras, const Outcome<A, Id>& got) {
  const double tolerance = 40 * static_cast<double>(std::numeric_limits<A>::epsilon());
  std::vector<std::int64_t> counts(static_cast<std::size_t>(logits_TE.cols()), 0);
  Index nonfinite = 0, short_tokens = 0;
  for (Index t = 0; t < logits_TE.rows(); ++t) {
    SCOPED_TRACE("token " + std::to_string(t));
    const reference::Token want = expected<A, Id>(logits_TE, t, rule, extras);
    nonfinite += want.nonfinite ? 1 : 0;
    short_tokens += want.short_of_survivors ? 1 : 0;
    const bool is_padding =
        !extras.is_padding.empty() && extras.is_padding[static_cast<std::size_t>(t)] != 0;
    for (Index j = 0; j < rule.top_k; ++j) {
      const auto i = static_cast<std::size_t>(j);
      ASSERT_EQ(static_cast<int>(got.ids_TK(t, j)), want.ids[i]) << "choice " << j;
      ASSERT_EQ(static_cast<int>(got.penalised_TK(t, j)), want.penalised[i]) << "choice " << j;
      expect_close(static_cast<double>(got.scores_TK(t, j)), want.scores[i], tolerance);
      expect_close(static_cast<double>(got.weights_TK(t, j)), want.weights[i], tolerance);
      if (!is_padding) ++counts[static_cast<std::size_t>(want.ids[i])];
    }
    if (::testing::Test::HasFatalFailure()) return;
  }
  EXPECT_EQ(got.tokens_per_expert_E, counts);
  EXPECT_EQ(got.report.nonfinite_rows, nonfinite);
  EXPECT_EQ(got.report.tokens_short_of_survivors, short_tokens);
}

template <class A, class Id>
void expect_same(const Outcome<A, Id>& a, const Outcome<A, Id>& b) {
  EXPECT_TRUE(data::same_bits(a.ids_TK, b.ids_TK));
  EXPECT_TRUE(data::same_bits(a.weights_TK, b.weights_TK));
  EXPECT_TRUE(data::same_bits(a.scores_TK, b.scores_TK));
  EXPECT_TRUE(data::same_bits(a.penalised_TK, b.penalised_TK));
  EXPECT_EQ(a.tokens_per_expert_E, b.tokens_per_expert_E);
  EXPECT_EQ(a.report.nonfinite_rows, b.report.nonfinite_rows);
  EXPECT_EQ(a.report.tokens_short_of_survivors, b.report.tokens_short_of_survivors);
}

/// One value per expert, uniform in [-size, size).
inline std::vector<double> random_bias(Index experts, double size, std::uint64_t seed) {
  std::vector<double> bias;
  for (Index e = 0; e < experts; ++e) {
    bias.push_back(size * data::random_uniform(seed, static_cast<std::uint64_t>(e)));
  }
  return bias;
}

/// Every `every`-th token is padding.
inline std::vector<std::uint8_t> padding(Index tokens, Index every) {
  std::vector<std::uint8_t> is_padding(static_cast<std::size_t>(tokens), 0);
  for (Index t = every - 1; t < tokens; t += every) is_padding[static_cast<std::size_t>(t)] = 3;
  return is_padding;
}

}  // namespace scored_data

#endif  // GATEPRO_TESTS_SUPPORT_SCORED_DATA_HPP
