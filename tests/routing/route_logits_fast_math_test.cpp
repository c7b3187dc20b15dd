// SPDX-License-Identifier: MIT
// Scored routing built with -Ofast: ids stay valid, the rules for NaN weights hold, and the numbers
// are right to 1e-5. Special values are made and recognised by their bits.
#include <gatepro/routing/route_logits.hpp>

#include <vector>

#include "support/bits.hpp"
#include "support/ids.hpp"
#include "support/inputs.hpp"
#include "support/scored_data.hpp"

#if !defined(__FAST_MATH__)
#error "this test is about -Ofast"
#endif

namespace {

using gatepro::Competition;
using gatepro::GroupLimit;
using gatepro::GroupScore;
using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;
using gatepro::SelectionRule;
using scored_data::Extras;

bool is_inf(const float& value) {
  return data::bits_of(std::abs(value)) == data::bits_of(data::infinity<float>());
}
bool is_negative(const float& value) { return data::bits_of(value) >> 31 != 0; }

const GroupLimit all_groups[] = {{}, {4, 2, GroupScore::top_2}, {3, 2, GroupScore::share_of_top_k}};

TEST(RouteLogitsFastMath, NumbersAreRight) {
  const RowMatrix<float> logits_TE = data::random_matrix<float>(101, 12, 1) * 3.0F;
  for (const Extras& extras : {Extras{}, Extras{scored_data::random_bias(12, 0.3, 2), {}}}) {
    for (const GroupLimit& groups : all_groups) {
      for (const SelectionRule& rule : scored_data::rules_of(5, groups)) {
        SCOPED_TRACE(scored_data::describe(rule));
        const auto got = scored_data::route<float>(logits_TE, rule, extras);
        for (Index t = 0; t < logits_TE.rows(); ++t) {
          const auto want = scored_data::expected<float, std::int32_t>(logits_TE, t, rule, extras);
          for (Index j = 0; j < 5; ++j) {
            const auto i = static_cast<std::size_t>(j);
            ASSERT_EQ(static_cast<int>(got.ids_TK(t, j)), want.ids[i]) << t;
            ASSERT_NEAR(static_cast<double>(got.weights_TK(t, j)), want.weights[i], 1e-5) << t;
          }
        }
      }
    }
  }
}

/// True if the rules make token t's weights NaN, given its choice.
bool expect_nan(const RowMatrix<float>& logits_TE, Index t, const SelectionRule& rule,
                const scored_data::Outcome<float, std::int32_t>& got) {
  const bool eliminate = rule.competition.mode == gatepro::CompetitionMode::eliminate;
  bool any_number = false;
  for (Index j = 0; j < rule.top_k; ++j) {
    const float& logit = logits_TE(t, got.ids_TK(t, j));
    if (data::is_nan(logit) || (is_inf(logit) && !is_negative(logit))) return true;
    any_number = any_number || !(is_inf(logit) || (eliminate && got.penalised_TK(t, j) != 0));
  }
  for (Index e = 0; e < logits_TE.cols(); ++e) {
    const float& logit = logits_TE(t, e);
    const bool plus_infinity = is_inf(logit) && !is_negative(logit);
    if (rule.scores.function == ScoreFunction::softmax_before_top_k && plus_infinity) return true;
  }
  return !any_number;
}

TEST(RouteLogitsFastMath, IdsAreValidAndNansFollowTheRules) {
  const Index tokens = 203, experts = 12, top_k = 5;
  const RowMatrix<float> logits_TE = data::special_matrix<float>(tokens, experts, 3, 4);
  for (const GroupLimit& groups : all_groups) {
    for (const SelectionRule& rule : scored_data::rules_of(top_k, groups)) {
      SCOPED_TRACE(scored_data::describe(rule));
      const auto got = scored_data::route<float>(logits_TE, rule);
      ASSERT_TRUE(data::valid_ids(got.ids_TK, experts));
      Index nonfinite = 0;
      for (Index t = 0; t < tokens; ++t) {
        const bool want_nan = expect_nan(logits_TE, t, rule, got);
        nonfinite += want_nan ? 1 : 0;
        for (Index j = 0; j < top_k; ++j) {
          ASSERT_EQ(data::is_nan(got.weights_TK(t, j)), want_nan) << t;
        }
      }
      ASSERT_EQ(got.report.nonfinite_rows, nonfinite);
    }
  }
}

}  // namespace
