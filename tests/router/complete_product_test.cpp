// SPDX-License-Identifier: MIT
// The complete router: all combinations of its features against a naive reference in double.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "support/complete_data.hpp"
#include "support/conversions.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/reference/complete.hpp"
#include "support/type_names.hpp"

namespace {

using complete_data::Batch;
using complete_data::zeros;
using data::random_matrix;
using data::to_reference;
using gatepro::CapacityRule;
using gatepro::ChoiceOrder;
using gatepro::Competition;
using gatepro::CompleteConfig;
using gatepro::CompleteRouter;
using gatepro::CountSource;
using gatepro::DropPolicy;
using gatepro::ForwardInputs;
using gatepro::GroupScore;
using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;

constexpr Index tokens = 7, experts = 8, top_k = 3;

std::vector<CompleteConfig> all_combinations() {
  std::vector<std::optional<CapacityRule>> capacities = {std::nullopt};
  for (DropPolicy policy :
       {DropPolicy::probability, DropPolicy::position, DropPolicy::choice_major}) {
    for (bool renormalise : {false, true}) {
      CapacityRule rule;
      rule.factor = 0.75;
      rule.policy = policy;
      rule.renormalise = renormalise;
      capacities.emplace_back(rule);
    }
  }
  const gatepro::GroupLimit groups[] = {{},
                                        {4, 2, GroupScore::share_of_top_k},
                                        {4, 2, GroupScore::top_1},
                                        {4, 2, GroupScore::top_2},
                                        {2, 1, GroupScore::best_n, 3}};
  std::vector<CompleteConfig> all;
  CompleteConfig config{{/*hidden_size=*/1, experts, top_k}};
  config.losses = {0.3, 0.2, 0.1, 0.05, CountSource::dispatched};
  for (ScoreFunction f : data::score_functions) {
    for (bool renormalise : {false, true}) {
      config.scores = {f, renormalise, 2.5};
      for (bool bias : {false, true}) {
        config.bias.enabled = bias;
        for (const auto& group : groups) {
          config.groups = group;
          for (const auto& capacity : capacities) {
            config.capacity = capacity;
            for (const Competition& competition :
                 {Competition::off(), Competition::penalty(0.7), Competition::eliminate()}) {
              config.competition = competition;
              for (CountSource counts : {CountSource::dispatched, CountSource::unpenalised}) {
                config.losses.counts = counts;
                config.choice = {};
                all.push_back(config);
                if (!renormalise) continue;
                config.choice.step = 0.125;
                const bool ranked = capacity && capacity->policy == DropPolicy::choice_major;
                if (!ranked) config.choice.order = ChoiceOrder::ascending_ids;
                all.push_back(config);
              }
            }
          }
        }
      }
    }
  }
  return all;
}

std::string name_of(const CompleteConfig& c) {
  std::string name = "f" + std::to_string(static_cast<int>(c.scores.function));
  name += c.scores.renormalise ? " renormalise" : "";
  name += c.bias.enabled ? " bias" : "";
  name += " groups " + std::to_string(c.groups.num_groups) + "/" +
          std::to_string(static_cast<int>(c.groups.score));
  name += " competition " + std::to_string(static_cast<int>(c.competition.mode));
  name += c.losses.counts == CountSource::unpenalised ? " unpenalised" : "";
  name += c.choice.step > 0 ? " rounded, corrected" : "";
  name += c.choice.order == ChoiceOrder::ascending_ids ? " by id" : "";
  if (c.capacity) {
    name += " drop " + std::to_string(static_cast<int>(c.capacity->policy));
    name += c.capacity->renormalise ? " renormalise" : "";
  }
  return name;
}

template <class A>
class CompleteProductTest : public testing::Test {
 public:
  using R = CompleteRouter<A>;

  CompleteProductTest()
      : logits_TE_(random_matrix<A>(tokens, experts, 11, 2)),
        dweights_TK_(random_matrix<A>(tokens, top_k, 12)),
        bias_E_(random_matrix<A>(1, experts, 13, 0.2)),
        correction_E_(random_matrix<A>(1, experts, 14, 0.2)) {}

  void run(const CompleteConfig& config, bool masked) {
    SCOPED_TRACE(name_of(config) + (masked ? " masked" : ""));
    const std::vector<std::uint8_t> padding = {0, 0, masked, 0, 0, masked, 0};
    ForwardInputs<> in;
    in.is_padding_T = padding;
    in.sequence_begin_S1 = sequences_;
    R router = trained_router(config);
    gatepro::RoutingBuffers<R> buffers(router, gatepro::BufferShape{tokens, 1, 3, true, true});
    auto out = buffers.view();
    for (Index t = 0; t < tokens; ++t) {
      std::copy_n(logits_TE_.row(t).data(), experts, out.logits_TE.row(t));
    }
    const auto report = router.forward_logits(in, out, buffers.workspace());

    const reference::Rules rules = rules_of(config);
    const reference::Matrix l_TE = to_reference(logits_TE_);
    const reference::Batch expected = reference::route(l_TE, rules, padding, config);
    const auto losses = reference::batch_losses(l_TE, expected, padding, sequences_, config);
    expect_forward(config, rules, l_TE, padding, expected, out, report);
    EXPECT_NEAR(report.losses.batch, losses.batch.value, 100 * eps);
    EXPECT_NEAR(report.losses.sequence, losses.sequence.value, 100 * eps);
    EXPECT_NEAR(report.losses.global, losses.global.value, 100 * eps);
    EXPECT_NEAR(report.losses.z, losses.z.value, 100 * eps);

    gatepro::BackwardInputs<A> more;
    more.dweights_TK = dweights_TK_;
    more.gradient_scale = loss_scale;
    RowMatrix<A> dlogits_TE = zeros<A>(tokens, experts);
    router.backward_logits({in, out, report}, more, dlogits_TE, buffers.workspace());
    expect_gradients(config, rules, l_TE, padding, expected, losses, dlogits_TE);
  }

 private:
  static constexpr double eps = static_cast<double>(std::numeric_limits<A>::epsilon());
  static constexpr double loss_scale = 0.5;
  static constexpr double gradient_tolerance = sizeof(A) == 8 ? 1e-9 : 2e-5;

  /// Partners in pairs, and a bias, as a checkpoint brings them.
  R trained_router(const CompleteConfig& config) const {
    R router(config);
    gatepro::RouterState state = router.state();
    state.partners_EM = partners_;
    if (config.bias.enabled) state.expert_bias_E.assign(bias_E_.data(), bias_E_.data() + experts);
    if (config.choice.step > 0) {
      state.correction_bias_E.assign(correction_E_.data(), correction_E_.data() + experts);
    }
    router.restore(state);
    return router;
  }

  reference::Rules rules_of(const CompleteConfig& config) const {
    reference::Rules rules{
        {top_k, config.scores, config.groups, config.competition, config.choice}, {}, {}};
    double& lambda = rules.selection.competition.lambda;
    lambda = data::round_to<A>(lambda);
    if (config.bias.enabled) rules.bias_E.assign(bias_E_.data(), bias_E_.data() + experts);
    if (config.choice.step > 0) {
      rules.bias_E.resize(static_cast<std::size_t>(experts), 0.0);
      for (Index e = 0; e < experts; ++e) {
        double& bias = rules.bias_E[static_cast<std::size_t>(e)];
        bias = data::round_to<A>(bias + static_cast<double>(correction_E_(e)));
      }
    }
    for (int partner : partners_) rules.rivals.push_back({partner});
    return rules;
  }

  void expect_forward(const CompleteConfig& config, const reference::Rules& rules,
                      const reference::Matrix& l_TE, const reference::Mask& padding_T,
                      const reference::Batch& expected, const typename R::Routing& out,
                      const gatepro::CompleteReport& report) const {
    Index short_tokens = 0;
    for (std::size_t t = 0; t < l_TE.size(); ++t) {
      const reference::Token& token = expected.tokens_T[t];
      short_tokens += token.short_of_survivors ? 1 : 0;
      const auto weights = reference::final_weights(l_TE[t], t, expected, rules, padding_T, config);
      for (std::size_t j = 0; j < weights.size(); ++j) {
        const Index row = static_cast<Index>(t), col = static_cast<Index>(j);
        ASSERT_EQ(out.expert_ids_TK(row, col), token.ids[j]) << "token " << t << ", choice " << j;
        ASSERT_EQ(int{out.penalised_TK(row, col)}, token.penalised[j]);
        ASSERT_NEAR(static_cast<double>(out.weights_TK(row, col)), weights[j], 100 * eps);
        if (weights[j] == 0) {
          ASSERT_EQ(out.weights_TK(row, col), 0);
        }
        if (config.capacity) {
          ASSERT_EQ(out.kept_TK(row, col) != 0, expected.kept_TK[t][j]);
        }
      }
    }
    EXPECT_EQ(data::copy(out.tokens_per_expert_E), expected.counts_E);
    EXPECT_EQ(report.valid_tokens, expected.valid_tokens);
    EXPECT_EQ(report.tokens_short_of_survivors, short_tokens);
    EXPECT_EQ(report.nonfinite_rows, 0);
  }

  /// Differences of weights . dweights, and the gradients of the losses.
  void expect_gradients(const CompleteConfig& config, const reference::Rules& rules,
                        const reference::Matrix& l_TE, const reference::Mask& padding_T,
                        const reference::Batch& expected, const reference::BatchLosses& losses,
                        const RowMatrix<A>& dlogits_TE) const {
    for (std::size_t t = 0; t < l_TE.size(); ++t) {
      for (std::size_t e = 0; e < l_TE[t].size(); ++e) {
        const auto objective = [&](double offset) {
          reference::Row moved = l_TE[t];
          moved[e] += offset;
          const auto weights =
              reference::final_weights(moved, t, expected, rules, padding_T, config);
          return std::inner_product(weights.begin(), weights.end(),
                                    dweights_TK_.row(static_cast<Index>(t)).data(), 0.0);
        };
        double want = reference::derivative(objective, 5e-4);
        for (const auto* loss : {&losses.batch, &losses.sequence, &losses.global, &losses.z}) {
          want += loss_scale * loss->dlogits_TE[t][e];
        }
        const A actual = dlogits_TE(static_cast<Index>(t), static_cast<Index>(e));
        ASSERT_NEAR(static_cast<double>(actual), want, gradient_tolerance)
            << "token " << t << ", expert " << e;
        if (padding_T[t] != 0) {
          ASSERT_EQ(actual, 0);
        }
      }
    }
  }

  RowMatrix<A> logits_TE_, dweights_TK_, bias_E_, correction_E_;
  std::vector<std::int32_t> partners_ = {1, 0, 3, 2, 5, 4, 7, 6};
  std::vector<std::int64_t> sequences_ = {0, 2, 2, tokens};
};

using Accumulators = testing::Types<float, double>;
TYPED_TEST_SUITE(CompleteProductTest, Accumulators, TypeNames);

TYPED_TEST(CompleteProductTest, EveryCombinationMatchesTheReference) {
  for (const CompleteConfig& config : all_combinations()) {
    this->run(config, /*masked=*/false);
    this->run(config, /*masked=*/true);
    if (this->HasFailure()) return;  // one combination is enough to read
  }
}

}  // namespace
