// SPDX-License-Identifier: MIT
// The complete router: all combinations of its features against a naive reference in double, and
// with the defaults the plain router, bit for bit.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "support/bits.hpp"
#include "support/complete_data.hpp"
#include "support/conversions.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/ids.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/reference/complete.hpp"
#include "support/routing_data.hpp"
#include "support/type_names.hpp"

namespace {

using complete_data::Outcome;
using complete_data::zeros;
using data::random_matrix;
using data::same_bits;
using data::to_reference;
using gatepro::CapacityRule;
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

// ---- The whole product ---------------------------------------------------------------------

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
        bias_E_(random_matrix<A>(1, experts, 13, 0.2)) {}

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
    router.restore(state);
    return router;
  }

  reference::Rules rules_of(const CompleteConfig& config) const {
    reference::Rules rules{{top_k, config.scores, config.groups, config.competition}, {}, {}};
    double& lambda = rules.selection.competition.lambda;
    lambda = data::round_to<A>(lambda);
    if (config.bias.enabled) rules.bias_E.assign(bias_E_.data(), bias_E_.data() + experts);
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

  RowMatrix<A> logits_TE_, dweights_TK_, bias_E_;
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

// ---- The defaults ----------------------------------------------------------------------------

template <class Scalars>
class CompleteDefaultsTest : public testing::Test {};
using InputTypes =
    testing::Types<Inputs<float, float>, Inputs<double, double>, Inputs<gatepro::bfloat16, float>>;
TYPED_TEST_SUITE(CompleteDefaultsTest, InputTypes, InputNames);

TYPED_TEST(CompleteDefaultsTest, AreThePlainRouterBitForBit) {
  using X = typename TypeParam::X;
  using W = typename TypeParam::W;
  using R = CompleteRouter<X, W>;
  using A = typename R::Accumulator;
  constexpr Index T = 300, H = 24, E = 20, K = 4;
  const auto x_TH = random_matrix<X>(T, H, 1);
  const auto w_EH = random_matrix<W>(E, H, 2);
  const auto dweights_TK = random_matrix<A>(T, K, 3);
  const auto dw_EH = random_matrix<A>(E, H, 4);
  for (const Competition& competition : {Competition::off(), Competition::penalty(1e-4),
                                         Competition::penalty(0.5), Competition::eliminate()}) {
    gatepro::RouterConfig config{H, E, K};
    config.competition = competition;
    gatepro::Router<X, W> plain(config);
    R complete({config});
    plain.refresh(w_EH, 0);
    complete.refresh(w_EH, 0);

    const auto expected = routing_data::forward(plain, x_TH, w_EH);
    const auto gradients =
        routing_data::backward(plain, x_TH, w_EH, expected, dweights_TK, RowMatrix<A>(),
                               routing_data::Gradients<A>{zeros<A>(T, H), dw_EH});
    const Outcome<R> actual =
        complete_data::step(complete, x_TH, w_EH, {}, dweights_TK, RowMatrix<A>(dw_EH));
    EXPECT_TRUE(same_bits(actual.ids_TK, expected.ids_TK));
    EXPECT_TRUE(same_bits(actual.weights_TK, expected.weights_TK));
    EXPECT_TRUE(same_bits(actual.logits_TE, expected.logits_TE));
    EXPECT_EQ(actual.counts_E, expected.tokens_per_expert_E);
    EXPECT_EQ(actual.report.tokens_short_of_survivors, expected.report.tokens_short_of_survivors);
    EXPECT_TRUE(same_bits(actual.dx_TH, gradients.dx_TH));
    EXPECT_TRUE(same_bits(actual.dw_EH, gradients.dw_EH));
  }
}

TEST(CompleteRouter, CompetitionIsSwitchedAtRunTime) {
  const auto x_TH = random_matrix<float>(40, 8, 1);
  const auto w_EH = random_matrix<float>(6, 8, 2);
  CompleteConfig config{{8, 6, 2}};
  config.scores.function = ScoreFunction::sigmoid;
  config.competition = Competition::off();
  CompleteRouter<float> never(config), switched(config);
  switched.refresh(w_EH, 0);
  const auto off = complete_data::forward(never, x_TH, w_EH);
  switched.set_competition(Competition::eliminate());
  EXPECT_FALSE(same_bits(complete_data::forward(switched, x_TH, w_EH).weights_TK, off.weights_TK));
  switched.set_competition(Competition::penalty(0));
  EXPECT_TRUE(same_bits(complete_data::forward(switched, x_TH, w_EH).weights_TK, off.weights_TK));
}

// ---- How the work is cut ---------------------------------------------------------------------

TEST(CompleteRouter, BitsDoNotDependOnTheExecutor) {
  constexpr Index T = 700, H = 16, E = 12, K = 3;
  const auto x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  const auto dweights_TK = random_matrix<float>(T, K, 3);
  const std::vector<std::int64_t> sequences = {0, 100, 101, T};
  ForwardInputs<> in;
  in.sequence_begin_S1 = sequences;
  const auto run = [&](const auto& executor) {
    CompleteRouter<float> router(complete_data::full_config(H, E, K));
    router.refresh(w_EH, 0);
    return complete_data::step(router, x_TH, w_EH, in, dweights_TK, zeros<float>(E, H), {},
                               gatepro::NoReduce{}, executor);
  };
  const auto serial = run(gatepro::SerialExecutor{});
  complete_data::expect_same_outcome(run(ThreadExecutor(3)), serial);
  complete_data::expect_same_outcome(run(LastWorkerFirst(5)), serial);
}

/// Tokens at the places of `keep`, others full of what must not matter.
RowMatrix<float> spread(const RowMatrix<float>& m, const std::vector<std::uint8_t>& padding) {
  RowMatrix<float> result = RowMatrix<float>::Constant(static_cast<Index>(padding.size()), m.cols(),
                                                       std::numeric_limits<float>::quiet_NaN());
  Index from = 0;
  for (std::size_t t = 0; t < padding.size(); ++t) {
    if (padding[t] == 0) result.row(static_cast<Index>(t)) = m.row(from++);
  }
  return result;
}

/// A batch with padding that holds NaNs is the batch without it, the trainer's own gradients too.
void expect_inert_padding(CompleteConfig config, Index H, Index E) {
  const Index K = config.top_k;
  std::vector<std::uint8_t> padding(50);
  for (std::size_t t = 0; t < 20; ++t) padding[(t * t + t / 2) % 50] = 1;
  const Index padded = static_cast<Index>(padding.size());
  const Index masked = std::count(padding.begin(), padding.end(), 1);
  const auto short_x_TH = random_matrix<float>(padded - masked, H, 1);
  const auto short_dweights_TK = random_matrix<float>(padded - masked, K, 3);
  const auto short_dlogits_TE = random_matrix<float>(padded - masked, E, 4);
  const auto dlogits_TE = spread(short_dlogits_TE, padding);
  const auto w_EH = random_matrix<float>(E, H, 2);
  CompleteRouter<float> without(config), with(config);
  without.refresh(w_EH, 0);
  with.refresh(w_EH, 0);
  const std::vector<std::int64_t> one_sequence = {0, short_x_TH.rows()};
  const std::vector<std::int64_t> padded_sequence = {0, padded};
  ForwardInputs<> in, padded_in;
  in.sequence_begin_S1 = one_sequence;
  padded_in.sequence_begin_S1 = padded_sequence;
  padded_in.is_padding_T = padding;
  gatepro::BackwardInputs<float> more, padded_more;
  more.dlogits_TE = short_dlogits_TE;
  padded_more.dlogits_TE = dlogits_TE;
  const auto expected = complete_data::step(without, short_x_TH, w_EH, in, short_dweights_TK,
                                            zeros<float>(E, H), more);
  const auto actual =
      complete_data::step(with, spread(short_x_TH, padding), w_EH, padded_in,
                          spread(short_dweights_TK, padding), zeros<float>(E, H), padded_more);
  without.end_step();
  with.end_step();
  Index from = 0;
  for (Index t = 0; t < padded; ++t) {
    if (padding[static_cast<std::size_t>(t)] != 0) {
      EXPECT_EQ(actual.weights_TK.row(t), zeros<float>(1, K));
      EXPECT_EQ(actual.dx_TH.row(t), zeros<float>(1, H));
      continue;
    }
    EXPECT_TRUE(same_bits<float>(actual.weights_TK.row(t), expected.weights_TK.row(from)));
    EXPECT_TRUE(same_bits<float>(actual.dx_TH.row(t), expected.dx_TH.row(from)));
    EXPECT_TRUE(same_bits<std::int32_t>(actual.ids_TK.row(t), expected.ids_TK.row(from)));
    if (config.capacity) {
      EXPECT_TRUE(same_bits<std::uint8_t>(actual.kept_TK.row(t), expected.kept_TK.row(from)));
    }
    ++from;
  }
  EXPECT_TRUE(same_bits(actual.dw_EH, expected.dw_EH));
  EXPECT_EQ(actual.counts_E, expected.counts_E);
  EXPECT_EQ(actual.kept_E, expected.kept_E);
  EXPECT_EQ(actual.totals, expected.totals);
  EXPECT_EQ(actual.report.capacity, expected.report.capacity);
  EXPECT_EQ(actual.report.dropped_choices, expected.report.dropped_choices);
  const auto near = [](double a, double b) { EXPECT_NEAR(a, b, 1e-12 * b); };
  near(actual.report.losses.batch, expected.report.losses.batch);
  near(actual.report.losses.sequence, expected.report.losses.sequence);
  near(actual.report.losses.global, expected.report.losses.global);
  near(actual.report.losses.z, expected.report.losses.z);
  EXPECT_EQ(with.state().expert_bias_E, without.state().expert_bias_E);
}

TEST(CompleteRouter, PaddingInfluencesNothing) {
  constexpr Index H = 16, E = 12, K = 3;
  CompleteConfig full = complete_data::full_config(H, E, K);
  full.noise = {};  // noise depends on the position
  CompleteConfig all_logits{{H, E, K}};
  all_logits.scores.function = ScoreFunction::softmax_before_top_k;
  for (const CompleteConfig& config : {full, all_logits, CompleteConfig{{H, E, K}}}) {
    expect_inert_padding(config, H, E);
  }
}

/// The gradient of the logits of padding stays as it was, whatever comes in.
// The dense gradient of a padded token is zero, and zero times infinity is not.
TEST(CompleteRouter, PaddingGetsNoTokenGradientFromInfiniteWeights) {
  constexpr Index T = 5, H = 6, E = 8, K = 2;
  auto w_EH = random_matrix<float>(E, H, 2);
  const auto x_TH = spread(random_matrix<float>(3, H, 1), {0, 1, 0, 1, 0});
  const std::vector<std::uint8_t> padding{0, 1, 0, 1, 0};
  const RowMatrix<float> dweights_TK = random_matrix<float>(T, K, 3);
  CompleteConfig config{{H, E, K}};
  config.losses.z = 1e-3;
  CompleteRouter<float> router(config);
  router.refresh(w_EH, 0);
  gatepro::RoutingBuffers<CompleteRouter<float>> buffers(router, T);
  ForwardInputs<> in;
  in.is_padding_T = padding;
  router.forward(x_TH, w_EH, in, buffers);
  w_EH(3, 2) = std::numeric_limits<float>::infinity();
  RowMatrix<float> dx_TH = RowMatrix<float>::Constant(T, H, 77);
  router.backward(x_TH, w_EH, in, buffers, {dweights_TK}, {dx_TH, {}});
  for (Index t : {1, 3}) EXPECT_TRUE((dx_TH.row(t).array() == 77).all()) << t;
  for (Index t : {0, 2, 4}) EXPECT_FALSE((dx_TH.row(t).array() == 77).any()) << t;
}

TEST(CompleteRouter, PaddingGetsNoLogitGradient) {
  constexpr Index T = 5, H = 6, E = 8, K = 2;
  const auto w_EH = random_matrix<float>(E, H, 2);
  const auto x_TH = spread(random_matrix<float>(3, H, 1), {0, 1, 0, 1, 0});
  const std::vector<std::uint8_t> padding{0, 1, 0, 1, 0};
  const auto nan_TE = spread(random_matrix<float>(3, E, 3), padding);
  const auto nan_TK = spread(random_matrix<float>(3, K, 3), padding);
  for (double z : {0.0, 1e-3}) {
    CompleteConfig config{{H, E, K}};
    config.losses.z = z;
    CompleteRouter<float> router(config);
    router.refresh(w_EH, 0);
    gatepro::RoutingBuffers<CompleteRouter<float>> buffers(router, T);
    ForwardInputs<> in;
    in.is_padding_T = padding;
    router.forward(x_TH, w_EH, in, buffers);
    gatepro::BackwardInputs<float> more;
    more.dweights_TK = nan_TK;
    more.dlogits_TE = nan_TE;
    RowMatrix<float> dlogits_TE = RowMatrix<float>::Constant(T, E, 77);
    router.backward_logits({in, buffers.view(), buffers.report()}, more, dlogits_TE,
                           buffers.workspace());
    for (Index t = 0; t < T; ++t) {
      const bool untouched = (dlogits_TE.row(t).array() == 77).all();
      EXPECT_EQ(untouched, padding[static_cast<std::size_t>(t)] != 0);
      EXPECT_TRUE(dlogits_TE.row(t).allFinite());
    }
  }
}

// ---- A whole layer ---------------------------------------------------------------------------

/// Tokens to experts and back; expert e multiplies by e + 1.
struct Layer {
  using R = CompleteRouter<double>;
  static constexpr Index T = 24, H = 6, E = 8, K = 3;

  Layer(const RowMatrix<double>& x, const RowMatrix<double>& w)
      : x_TH(x), w_EH(w), router(config()) {
    router.refresh(w_EH, 0);
    padding[5] = padding[17] = 1;
    in.is_padding_T = padding;
    in.sequence_begin_S1 = sequences;
    report = router.forward(x_TH, w_EH, in, buffers);
    const auto out = buffers.view();
    gatepro::DispatchPlan<std::int32_t> plan;
    plan.offsets_E1 = offsets_E1;
    plan.token_of_row_N = token_of_row_N;
    plan.choice_of_row_N = choice_of_row_N;
    plan.row_TK = {row_TK.data(), T, K};
    auto memory = data::scratch(gatepro::plan_dispatch_workspace_bytes(E));
    rows = gatepro::plan_dispatch(gatepro::Choices{out.expert_ids_TK, in.is_padding_T, out.kept_TK},
                                  E, gatepro::DispatchRule{}, plan, memory);
    sent_NH.resize(rows, H);
    gatepro::permute(gatepro::VectorView<const std::int32_t>(token_of_row_N.data(), rows), x_TH,
                     gatepro::view(sent_NH));
    scale_by_expert(sent_NH, returned_NH);
    y_TH = zeros<double>(T, H);
    gatepro::combine(plan.row_TK, out.weights_TK, gatepro::view(returned_NH), gatepro::view(y_TH));
  }

  static CompleteConfig config() {
    CompleteConfig config = complete_data::full_config(H, E, K);
    config.competition = Competition::penalty(0.3);
    config.losses = {0.3, 0.2, 0.1, 0.05, CountSource::dispatched};
    return config;
  }
  void scale_by_expert(const RowMatrix<double>& from, RowMatrix<double>& to) const {
    to = from;
    for (Index e = 0; e < E; ++e) {
      for (auto r = offsets_E1[static_cast<std::size_t>(e)];
           r < offsets_E1[static_cast<std::size_t>(e) + 1]; ++r) {
        to.row(r) *= static_cast<double>(e + 1);
      }
    }
  }
  /// sum of y dy + losses.
  double objective(const RowMatrix<double>& dy_TH) const {
    return y_TH.cwiseProduct(dy_TH).sum() + report.losses.sum();
  }
  void backward(const RowMatrix<double>& dy_TH, RowMatrix<double>& dx_TH,
                RowMatrix<double>& dw_EH) {
    const auto out = buffers.view();
    const gatepro::StridedView<const std::int32_t> row(row_TK.data(), T, K, K, 1);
    RowMatrix<double> dweights_TK = zeros<double>(T, K), dreturned_NH = zeros<double>(rows, H);
    gatepro::combine_backward_weights(row, gatepro::view(returned_NH), dy_TH,
                                      gatepro::strided_view(dweights_TK));
    gatepro::combine_backward_rows(
        gatepro::VectorView<const std::int32_t>(choice_of_row_N.data(), rows), out.weights_TK,
        dy_TH, gatepro::view(dreturned_NH));
    RowMatrix<double> dsent_NH;
    scale_by_expert(dreturned_NH, dsent_NH);
    gatepro::permute_backward(row, dsent_NH, gatepro::view(dx_TH));
    router.backward(x_TH, w_EH, in, buffers, {dweights_TK}, {dx_TH, dw_EH});
  }

  RowMatrix<double> x_TH, w_EH, sent_NH, returned_NH, y_TH;
  std::vector<std::uint8_t> padding = std::vector<std::uint8_t>(T, 0);
  std::vector<std::int64_t> sequences = {0, 10, T};
  R router;
  gatepro::RoutingBuffers<R> buffers{router, gatepro::BufferShape{T, 1, 2}};
  ForwardInputs<> in;
  gatepro::CompleteReport report;
  std::vector<std::int64_t> offsets_E1 = std::vector<std::int64_t>(E + 1);
  std::vector<std::int32_t> token_of_row_N = std::vector<std::int32_t>(T * K);
  std::vector<std::int32_t> choice_of_row_N = std::vector<std::int32_t>(T * K);
  std::vector<std::int32_t> row_TK = std::vector<std::int32_t>(T * K);
  Index rows = 0;
};

TEST(CompleteRouter, GradientsOfAWholeLayerMatchDifferences) {
  const auto x_TH = random_matrix<double>(Layer::T, Layer::H, 7);
  const auto w_EH = random_matrix<double>(Layer::E, Layer::H, 2);
  const auto dy_TH = random_matrix<double>(Layer::T, Layer::H, 3);
  Layer layer(x_TH, w_EH);
  ASSERT_GT(layer.report.dropped_choices, 0) << "the test needs drops";
  RowMatrix<double> dx_TH = zeros<double>(Layer::T, Layer::H);
  RowMatrix<double> dw_EH = zeros<double>(Layer::E, Layer::H);
  layer.backward(dy_TH, dx_TH, dw_EH);
  const auto expect_near = [&](bool of_x, Index r, Index c, double actual) {
    const auto objective = [&](double offset) {
      RowMatrix<double> moved[] = {x_TH, w_EH};
      moved[of_x ? 0 : 1](r, c) += offset;
      return Layer(moved[0], moved[1]).objective(dy_TH);
    };
    const double expected = reference::derivative(objective, 1e-4);
    EXPECT_NEAR(actual, expected, 1e-9 * std::max(1.0, std::abs(expected))) << r << ", " << c;
  };
  for (Index t = 0; t < Layer::T; t += 3)
    expect_near(true, t, t % Layer::H, dx_TH(t, t % Layer::H));
  for (Index e = 0; e < Layer::E; ++e) expect_near(false, e, e % Layer::H, dw_EH(e, e % Layer::H));
}

/// Megatron-LM's test_aux_loss: without a gradient from the weights only the losses move the
/// router.
TEST(CompleteRouter, OnlyLossesMoveTheRouterWhenNothingElseDoes) {
  constexpr Index T = 20, H = 6, E = 8, K = 2;
  const auto x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  for (int loss = 0; loss < 5; ++loss) {
    CompleteConfig config{{H, E, K}};
    config.scores.function = ScoreFunction::softmax_before_top_k;
    double* coefficients[] = {&config.losses.batch, &config.losses.sequence, &config.losses.global,
                              &config.losses.z};
    if (loss < 4) *coefficients[loss] = 0.1;
    CompleteRouter<float> router(config);
    router.refresh(w_EH, 0);
    const std::vector<std::int64_t> sequences = {0, T};
    ForwardInputs<> in;
    in.sequence_begin_S1 = sequences;
    const auto outcome =
        complete_data::step(router, x_TH, w_EH, in, zeros<float>(T, K), zeros<float>(E, H));
    EXPECT_EQ(outcome.dw_EH.cwiseAbs().maxCoeff() > 0, loss < 4);
    EXPECT_EQ(outcome.dx_TH.cwiseAbs().maxCoeff() > 0, loss < 4);
    EXPECT_EQ(outcome.report.losses.sum() > 0, loss < 4);
  }
}

/// Borders that no loss asks for take no memory.
TEST(CompleteRouter, WorkspaceIsForTheLossesThatAreOn) {
  constexpr Index T = 4096, H = 4, E = 256;
  CompleteConfig config{{H, E, 2}};
  config.competition = Competition::off();
  std::vector<std::int64_t> sequences(T + 1);
  std::iota(sequences.begin(), sequences.end(), 0);
  ForwardInputs<> in;
  in.sequence_begin_S1 = sequences;
  const auto x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  const auto dweights_TK = random_matrix<float>(T, 2, 3);
  RowMatrix<float> dx_TH = zeros<float>(T, H), dw_EH = zeros<float>(E, H);
  for (const gatepro::LossRule& losses :
       {gatepro::LossRule{}, gatepro::LossRule{1, 0, 1, 0, gatepro::CountSource::unpenalised},
        gatepro::LossRule{0, 0, 0, 1, gatepro::CountSource::dispatched}}) {
    config.losses = losses;
    CompleteRouter<float> router(config);
    EXPECT_EQ(router.workspace_bytes({T, 1, T}), router.workspace_bytes({T}));
    gatepro::RoutingBuffers buffers(router, T);
    router.forward(x_TH, w_EH, in, buffers);
    router.backward(x_TH, w_EH, in, buffers, {dweights_TK}, {dx_TH, dw_EH});
  }
  config.losses.sequence = 1;
  const CompleteRouter<float> router(config);
  EXPECT_GT(router.workspace_bytes({T, 1, T}), router.workspace_bytes({T}));
}

TEST(CompleteRouter, NoTokensAreNoFault) {
  gatepro::CompleteConfig config{{16, 8, 2}};
  config.competition = gatepro::Competition::eliminate();
  config.losses.batch = 1e-2;
  config.losses.z = 1e-3;
  config.capacity = gatepro::CapacityRule{};
  gatepro::CompleteRouter<float> router(config);
  gatepro::RoutingBuffers buffers(router, 4);
  const RowMatrix<float> none(0, 16), w_EH = random_matrix<float>(8, 16, 1), no_weights(0, 2);
  RowMatrix<float> dx_TH(0, 16), dw_EH = RowMatrix<float>::Zero(8, 16);
  router.refresh(w_EH, 0);
  const auto& report = router.forward(none, w_EH, {}, buffers);
  EXPECT_EQ(report.losses.z, 0);
  EXPECT_EQ(report.losses.batch, 0);
  router.backward(none, w_EH, {}, buffers, {no_weights}, {dx_TH, dw_EH});
  EXPECT_TRUE(dw_EH.isZero(0));
}

TEST(CompleteRouter, LogitsFromOutsideGiveTheSameBits) {
  constexpr Index T = 50, H = 6, E = 8, K = 3;
  const auto x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  CompleteConfig config = complete_data::full_config(H, E, K);
  config.noise.jitter = 0;
  config.losses.sequence = 0;
  CompleteRouter<float> router(config), same(config);
  router.refresh(w_EH, 0);
  same.refresh(w_EH, 0);
  const auto expected = complete_data::forward(router, x_TH, w_EH);
  gatepro::RoutingBuffers buffers(same, T);
  auto memory = data::scratch(gatepro::gate_logits_workspace_bytes<float, float>(E, H));
  gatepro::gate_logits(gatepro::view(x_TH), gatepro::view(w_EH), buffers.view().logits_TE, memory);
  buffers.set_report(same.forward_logits({}, buffers.view(), buffers.workspace()));
  complete_data::expect_same_outcome(complete_data::outcome_of(buffers), expected);
}

TEST(CompleteRouter, ForcedRoutingsAreBalanced) {
  constexpr Index T = 64, H = 6, E = 8, K = 2;
  RowMatrix<float> x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  x_TH.rowwise() += 3 * w_EH.row(0);  // everybody likes expert 0
  CompleteConfig config{{H, E, K}};
  config.scores.function = ScoreFunction::sigmoid;
  config.noise.seed = 3;
  const auto violation = [&](gatepro::ForcedRouting forced, gatepro::Pass pass) {
    config.noise.forced = forced;
    CompleteRouter<float> router(config);
    router.refresh(w_EH, 0);
    ForwardInputs<> in;
    in.pass = pass;
    const auto outcome = complete_data::forward(router, x_TH, w_EH, in);
    EXPECT_TRUE(data::valid_ids(outcome.ids_TK, E));
    return gatepro::max_violation(outcome.counts_E);
  };
  using gatepro::ForcedRouting;
  using gatepro::Pass;
  const double free = violation(ForcedRouting::none, Pass::training);
  EXPECT_GT(free, 2);
  EXPECT_EQ(violation(ForcedRouting::round_robin, Pass::training), 0);
  EXPECT_LT(violation(ForcedRouting::random, Pass::training), 0.8);
  EXPECT_EQ(violation(ForcedRouting::round_robin, Pass::evaluation), free);
}

/// A bias, rivals and logits that all want something else.
TEST(CompleteRouter, WhatIsForcedIgnoresWhatSteers) {
  constexpr Index T = 4096, H = 6, E = 16, K = 2;
  const auto x_TH = random_matrix<float>(T, H, 1);
  const auto w_EH = random_matrix<float>(E, H, 2);
  std::vector<std::uint8_t> padding(T);
  for (std::size_t t = 0; t < padding.size(); ++t) padding[t] = t / 8 % 4 == 0;
  ForwardInputs<> in;
  in.is_padding_T = padding;
  for (const auto forced : {gatepro::ForcedRouting::random, gatepro::ForcedRouting::round_robin}) {
    for (ScoreFunction function : {ScoreFunction::softmax_before_top_k, ScoreFunction::sigmoid}) {
      for (const gatepro::GroupLimit& groups :
           {gatepro::GroupLimit{}, gatepro::GroupLimit{4, 2, GroupScore::top_2}}) {
        CompleteConfig plain{{H, E, K}};
        plain.competition = Competition::off();
        plain.scores.function = function;
        plain.groups = groups;
        plain.noise.forced = forced;
        CompleteConfig steered = plain;
        steered.competition = Competition::eliminate();
        steered.bias.enabled = true;
        CompleteRouter<float> expected(plain), router(steered), without_partners(steered);
        gatepro::RouterState state = router.state();
        for (Index e = 0; e < E; ++e) {
          state.partners_EM.push_back(e == 0 ? 1 : 0);
          state.expert_bias_E[static_cast<std::size_t>(e)] = static_cast<double>(e - E / 2);
        }
        router.restore(state);
        const auto dweights_TK = random_matrix<float>(T, K, 3);
        const auto step = [&](CompleteRouter<float>& r) {
          return complete_data::step(r, x_TH, w_EH, in, dweights_TK, zeros<float>(E, H));
        };
        const auto outcome = step(router);
        complete_data::expect_same_outcome(outcome, step(expected));
        step(without_partners);
        // 384 tokens on average, with a deviation of 18.
        for (const std::int64_t count : outcome.counts_E) EXPECT_LT(std::abs(count - 384), 110);
        router.end_step();
        EXPECT_EQ(router.state().expert_bias_E, state.expert_bias_E);
        // An evaluation is the router's own.
        in.pass = gatepro::Pass::evaluation;
        EXPECT_FALSE(same_bits(complete_data::forward(router, x_TH, w_EH, in).ids_TK,
                               complete_data::forward(expected, x_TH, w_EH, in).ids_TK));
        in.pass = gatepro::Pass::training;
      }
    }
  }
}

/// Few tokens per rank: the ranks together reach every expert, equally often.
TEST(CompleteRouter, RanksTakeTurnsInARoundRobin) {
  struct Shape {
    Index tokens, experts, top_k, ranks;
    std::uint64_t first_seed;
  };
  for (const Shape& s : {Shape{16, 256, 8, 64, 0}, Shape{16, 256, 8, 64, 12345678901234567890U},
                         Shape{7, 30, 4, 6, 5}, Shape{1, 8, 1, 5, 3}, Shape{300, 8, 3, 2, 9}}) {
    std::vector<std::int64_t> counts_E(static_cast<std::size_t>(s.experts));
    CompleteConfig config{{4, s.experts, s.top_k}};
    config.competition = Competition::off();
    config.noise.forced = gatepro::ForcedRouting::round_robin;
    std::vector<CompleteRouter<float>> routers;
    for (Index rank = 0; rank < s.ranks; ++rank) {
      config.noise.seed = s.first_seed + static_cast<std::uint64_t>(rank);
      routers.emplace_back(config);
    }
    const auto x_TH = random_matrix<float>(s.tokens, 4, 1);
    const auto w_EH = random_matrix<float>(s.experts, 4, 2);
    for (int forward = 0; forward < 3; ++forward) {
      std::fill(counts_E.begin(), counts_E.end(), std::int64_t{0});
      for (CompleteRouter<float>& router : routers) {
        const auto outcome = complete_data::forward(router, x_TH, w_EH);
        EXPECT_TRUE(data::valid_ids(outcome.ids_TK, s.experts));
        for (std::size_t e = 0; e < counts_E.size(); ++e) counts_E[e] += outcome.counts_E[e];
      }
      const auto ends = std::minmax_element(counts_E.begin(), counts_E.end());
      EXPECT_LE(*ends.second - *ends.first, 1) << "E = " << s.experts << ", forward " << forward;
    }
  }
}

TEST(CompleteRouter, BadSettingsAndInputsAreRefused) {
  const CompleteConfig good = complete_data::full_config(6, 8, 3);
  const auto refused = [&](const auto& spoil, const char* rule) {
    CompleteConfig bad = good;
    spoil(bad);
    expect_error([&] { CompleteRouter<float> router(bad); }, {rule});
  };
  refused([](auto& c) { c.top_k = 9; }, "1 <= top_k <= num_experts");
  refused([](auto& c) { c.hidden_size = 0; }, "hidden_size >= 1");
  refused([](auto& c) { c.competition = Competition::penalty(-1); }, "lambda");
  refused([](auto& c) { c.groups.num_groups = 3; }, "multiple of num_groups");
  refused(
      [](auto& c) {
        c.groups = {4, 4, GroupScore::share_of_top_k};
      },
      "groups_per_token <= top_k");
  refused([](auto& c) { c.scores.scale = 0; }, "scale");
  refused([](auto& c) { c.bias.update_rate = -1; }, "update_rate");
  refused([](auto& c) { c.bias.update_rate = 1e39; }, "update_rate");
  refused([](auto& c) { c.losses.z = -1; }, "loss coefficients");
  refused([](auto& c) { c.losses.batch = std::nan(""); }, "loss coefficients");
  refused([](auto& c) { c.capacity->factor = 0; }, "factor");
  refused([](auto& c) { c.noise.jitter = 1; }, "jitter");
  refused([](auto& c) { c.noise.logit_sigma = -1; }, "logit_sigma");

  constexpr Index T = 10;
  CompleteRouter<float> router(good);
  const auto x_TH = random_matrix<float>(T, 6, 1);
  const auto w_EH = random_matrix<float>(8, 6, 2);
  const auto dweights_TK = random_matrix<float>(T, 3, 3);
  const std::vector<std::int64_t> sequences = {0, T};
  const std::vector<std::uint8_t> short_padding(T - 1);
  ForwardInputs<> in;
  in.sequence_begin_S1 = sequences;
  gatepro::RoutingBuffers buffers(router, T);
  const auto state = router.state();
  const auto forward = [&](const ForwardInputs<>& inputs) {
    return [&, inputs] { router.forward(x_TH, w_EH, inputs, buffers); };
  };
  expect_error(forward(in), {"partners"});
  router.refresh(w_EH, 0);
  expect_error(forward({}), {"sequence_begin_S1"});
  ForwardInputs<> bad = in;
  bad.is_padding_T = short_padding;
  expect_error(forward(bad), {"is_padding_T"});
  bad = in;
  bad.tokens_in_mean = -1;
  expect_error(forward(bad), {"tokens_in_mean"});
  auto out = buffers.view();
  expect_error(
      [&] {
        router.forward(x_TH, w_EH, in, out, gatepro::Workspace(buffers.workspace().data, 100));
      },
      {"workspace"});
  out.kept_TK = {};
  expect_error([&] { router.forward(x_TH, w_EH, in, out, buffers.workspace()); }, {"kept_TK"});
  EXPECT_EQ(router.state().noise_position, state.noise_position) << "no counter moved";

  forward(in)();
  RowMatrix<float> dx_TH = zeros<float>(T, 6), dw_EH = zeros<float>(8, 6);
  ForwardInputs<> other = in;
  other.pass = gatepro::Pass::evaluation;
  expect_error(
      [&] {
        router.backward(x_TH, w_EH, other, buffers, {dweights_TK}, {dx_TH, dw_EH});
      },
      {"the same forward"});
  EXPECT_EQ(dx_TH, zeros<float>(T, 6));
}

/// Megatron-LM#894: softmax over one expert teaches the router nothing.
TEST(CompleteRegression, OneNormalisedExpertWithoutALossIsRefused) {
  const auto x_TH = random_matrix<float>(10, 6, 1);
  const auto w_EH = random_matrix<float>(8, 6, 2);
  for (bool renormalise : {false, true}) {
    for (ScoreFunction f : {ScoreFunction::softmax_after_top_k, ScoreFunction::sigmoid}) {
      for (double z : {0.0, 1e-3}) {
        CompleteConfig config{{6, 8, 1}};
        config.scores = {f, renormalise, 1};
        config.losses.z = z;
        CompleteRouter<float> router(config);
        router.refresh(w_EH, 0);
        const auto step = [&] {
          complete_data::step(router, x_TH, w_EH, {}, RowMatrix<float>(x_TH.leftCols(1)),
                              zeros<float>(8, 6));
        };
        const bool constant = renormalise || f == ScoreFunction::softmax_after_top_k;
        if (constant && z == 0) {
          expect_error(step, {"constant"});
        } else {
          step();
        }
      }
    }
  }
}

/// CapacityRule::renormalise changes no token that lost nothing, so that one expert still learns.
TEST(CompleteRegression, RenormalisationLeavesTokensAloneThatLostNothing) {
  const auto x_TH = random_matrix<float>(10, 6, 1);
  const auto w_EH = random_matrix<float>(8, 6, 2);
  const auto dweights_TK = random_matrix<float>(10, 2, 3);
  for (Index k : {1, 2}) {
    CompleteConfig config{{6, 8, k}};
    config.scores.function = ScoreFunction::sigmoid;
    config.capacity = CapacityRule{/*factor=*/8};
    const auto run = [&](bool renormalise) {
      config.capacity->renormalise = renormalise;
      CompleteRouter<float> router(config);
      router.refresh(w_EH, 0);
      return complete_data::step(router, x_TH, w_EH, {}, RowMatrix<float>(dweights_TK.leftCols(k)),
                                 zeros<float>(8, 6));
    };
    const auto got = run(true);
    EXPECT_EQ(got.report.dropped_choices, 0);
    EXPECT_GT(got.dw_EH.cwiseAbs().maxCoeff(), 0);
    complete_data::expect_same_outcome(got, run(false));
  }
}

/// A choice that was never made is not lost.
TEST(CompleteRegression, RenormalisationLeavesTokensAloneThatChoseLess) {
  constexpr Index T = 200, K = 3, E = 8;
  CompleteConfig config{{6, E, K}};
  config.scores.function = ScoreFunction::sigmoid;
  config.capacity = CapacityRule{/*factor=*/E};
  gatepro::RoutingRecord<> record;
  record.tokens = T;
  record.top_k = K;
  record.penalised_TK.resize(T * K);
  for (std::int32_t t = 0; t < T; ++t) {
    const std::int32_t none = t % 5 == 0 ? -1 : t % 8;
    record.expert_ids_TK.insert(record.expert_ids_TK.end(), {none, (t + 3) % 8, -1});
  }
  record.expert_ids_TK[1] = -1;  // a token that chose nothing
  gatepro::ForwardInputs<> in;
  in.replay = &record;
  const auto run = [&](bool renormalise) {
    config.capacity->renormalise = renormalise;
    CompleteRouter<float> router(config);
    const auto w_EH = random_matrix<float>(E, 6, 2);
    router.refresh(w_EH, 0);
    return complete_data::step(router, random_matrix<float>(T, 6, 1), w_EH, in,
                               random_matrix<float>(T, K, 3), zeros<float>(E, 6));
  };
  const auto got = run(true);
  EXPECT_EQ(got.report.dropped_choices, 0);
  EXPECT_EQ(got.report.tokens_without_expert, 0);
  complete_data::expect_same_outcome(got, run(false));
}

/// docs/migration.md, moe_pad_expert_input_to_capacity: buffers of E x capacity rows, aligned.
TEST(CompleteRouter, CapacityIsWhatAlignedBuffersNeed) {
  constexpr Index E = 4, K = 2;
  CompleteConfig config{{6, E, K}};
  config.capacity = CapacityRule{/*factor=*/4, /*minimum=*/0, /*alignment=*/8};
  CompleteRouter<float> router(config);
  const auto w_EH = random_matrix<float>(E, 6, 2);
  router.refresh(w_EH, 0);
  for (Index T : {0, 1, 13, 100}) {
    const auto got = complete_data::forward(router, random_matrix<float>(T, 6, 1), w_EH);
    gatepro::DispatchRule rule;
    rule.alignment = config.capacity->alignment;
    rule.rows_per_expert = got.report.capacity;
    const Index rows = gatepro::max_dispatch_rows(T, E, K, rule);
    std::vector<std::int32_t> token_of_row(static_cast<std::size_t>(rows));
    gatepro::DispatchPlan<> plan;
    plan.token_of_row_N = token_of_row;
    std::vector<std::byte> memory(gatepro::plan_dispatch_workspace_bytes(E));
    EXPECT_EQ(gatepro::plan_dispatch(
                  gatepro::Choices{
                      gatepro::strided_view(got.ids_TK), {}, gatepro::strided_view(got.kept_TK)},
                  E, rule, plan, memory),
              E * got.report.capacity);
    EXPECT_EQ(got.report.capacity % 8, 0);
    EXPECT_EQ(got.report.dropped_choices, 0);
  }
}

// ---- Bugs that users of other stacks reported --------------------------------------------------

/// vllm#39391, sglang#30079: a NaN logit row gave experts twice, or none.
TEST(CompleteRegression, NanRowsGiveDistinctIdsInRange) {
  constexpr Index T = 9, E = 8, K = 3;
  for (ScoreFunction f : data::score_functions) {
    CompleteConfig config = complete_data::full_config(4, E, K);
    config.scores.function = f;
    config.noise = {};
    config.losses = {};
    CompleteRouter<float> router(config);
    const auto w_EH = random_matrix<float>(E, 4, 1);
    router.refresh(w_EH, 0);
    gatepro::RoutingBuffers buffers(router, T);
    auto out = buffers.view();
    const auto logits_TE = random_matrix<float>(T, E, 2);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (Index t = 0; t < T; ++t) {
      for (Index e = 0; e < E; ++e)
        out.logits_TE(t, e) = t == 4 || e < t - 4 ? nan : logits_TE(t, e);
    }
    router.forward_logits({}, out, buffers.workspace());
    const auto ids_TK = data::copy<std::int32_t>(out.expert_ids_TK);
    EXPECT_TRUE(data::valid_ids(ids_TK, E));
    for (Index j = 0; j < K; ++j) {
      // A choice that was dropped weighs 0 whatever it held.
      EXPECT_TRUE(std::isnan(out.weights_TK(4, j)) || out.kept_TK(4, j) == 0);
      EXPECT_FALSE(std::isnan(out.weights_TK(0, j)));
    }
  }
}

/// transformers#45440, vllm#13474: experts of masked groups got the score 0, which beats a
/// negative one.
TEST(CompleteRegression, MaskedGroupsNeverBeatNegativeBias) {
  constexpr Index T = 20, E = 8, K = 4;
  CompleteConfig config{{4, E, K}};
  config.competition = Competition::off();
  config.scores.function = ScoreFunction::sigmoid;
  config.bias.enabled = true;
  for (GroupScore score : {GroupScore::share_of_top_k, GroupScore::top_2}) {
    config.groups = {4, 2, score};
    CompleteRouter<float> router(config);
    gatepro::RouterState state = router.state();
    state.expert_bias_E.assign(E, -5);  // every choice value is negative
    router.restore(state);
    gatepro::RoutingBuffers buffers(router, T);
    auto out = buffers.view();
    const auto logits_TE = random_matrix<float>(T, E, 2);
    for (Index t = 0; t < T; ++t) std::copy_n(logits_TE.row(t).data(), E, out.logits_TE.row(t));
    router.forward_logits({}, out, buffers.workspace());
    for (Index t = 0; t < T; ++t) {
      std::vector<bool> used(4, false);
      for (Index j = 0; j < K; ++j) {
        used[static_cast<std::size_t>(out.expert_ids_TK(t, j) / 2)] = true;
      }
      EXPECT_EQ(std::count(used.begin(), used.end(), true), 2) << "token " << t;
    }
  }
}

// ---- Statistics -------------------------------------------------------------------------------

struct Observed {
  static constexpr Index T = 83, H = 6, E = 8, K = 3;
  RowMatrix<float> x_TH = random_matrix<float>(T, H, 1);
  RowMatrix<float> w_EH = random_matrix<float>(E, H, 2);
  std::vector<std::uint8_t> is_padding = std::vector<std::uint8_t>(T, 0);

  template <class R, class... In>
  gatepro::PenaltyStatistics operator()(R& router, const In&... in) const {
    gatepro::RoutingBuffers<R> buffers(router, gatepro::BufferShape{T, 1, 1, true, true});
    gatepro::PenaltyStatistics statistics;
    auto out = buffers.view();
    out.statistics = &statistics;
    router.forward(x_TH, w_EH, in..., out, buffers.workspace());
    return statistics;
  }
};

TEST(CompleteStatistics, AreThoseOfThePlainRouter) {
  const Observed observe;
  for (const Competition& competition : {Competition::penalty(0.3), Competition::eliminate()}) {
    const gatepro::RouterConfig config{Observed::H, Observed::E, Observed::K, competition};
    gatepro::Router<float> plain(config);
    CompleteConfig complete_config{config};
    CompleteRouter<float> complete(complete_config);
    complete_config.bias.enabled = true;  // of zeros, which takes another way
    CompleteRouter<float> biased(complete_config);
    plain.refresh(observe.w_EH, 0);
    complete.refresh(observe.w_EH, 0);
    biased.refresh(observe.w_EH, 0);
    const auto want = observe(plain);
    EXPECT_GT(want.tokens_changed, 0);
    EXPECT_GT(want.penalised_pairs, 0);
    for (const auto& got :
         {observe(complete, ForwardInputs<>()), observe(biased, ForwardInputs<>())}) {
      EXPECT_EQ(got.tokens, want.tokens);
      EXPECT_EQ(got.penalised_pairs, want.penalised_pairs);
      EXPECT_EQ(got.tied_pairs, want.tied_pairs);
      EXPECT_EQ(got.penalties_lost_in_rounding, want.penalties_lost_in_rounding);
      EXPECT_EQ(got.tokens_changed, want.tokens_changed);
      EXPECT_EQ(got.tokens_short_of_survivors, want.tokens_short_of_survivors);
      EXPECT_EQ(got.partnered_selections, want.partnered_selections);
      EXPECT_EQ(got.coactivations, want.coactivations);
      EXPECT_EQ(got.unpenalised_coactivations, want.unpenalised_coactivations);
    }
  }
}

// Who would be chosen without a penalty follows from the same scores, bias and groups.
TEST(CompleteStatistics, CountChangesUnderEveryRule) {
  Observed observe;
  for (Index t = 0; t < Observed::T; t += 5) observe.is_padding[static_cast<std::size_t>(t)] = 1;
  ForwardInputs<> in;
  in.is_padding_T = observe.is_padding;
  CompleteConfig config{{Observed::H, Observed::E, Observed::K, Competition::penalty(0.3)}};
  config.groups = {4, 2, GroupScore::top_2};
  for (ScoreFunction function : {ScoreFunction::softmax_before_top_k, ScoreFunction::sigmoid,
                                 ScoreFunction::sqrt_softplus}) {
    config.scores = {function, true, 2};
    CompleteRouter<float> router(config);
    router.refresh(observe.w_EH, 0);
    const auto statistics = observe(router, in);
    const auto chosen_with = [&](const Competition& competition) {
      router.set_competition(competition);
      gatepro::RoutingBuffers<CompleteRouter<float>> buffers(router, Observed::T);
      router.forward(observe.x_TH, observe.w_EH, in, buffers);
      std::vector<std::set<int>> sets(Observed::T);
      for (Index t = 0; t < Observed::T; ++t) {
        for (Index j = 0; j < Observed::K; ++j) {
          sets[static_cast<std::size_t>(t)].insert(buffers.expert_ids_TK()(t, j));
        }
      }
      return sets;
    };
    const auto with = chosen_with(config.competition), without = chosen_with(Competition::off());
    std::int64_t valid = 0, changed = 0;
    for (std::size_t t = 0; t < with.size(); ++t) {
      if (observe.is_padding[t] != 0) continue;
      ++valid;
      changed += with[t] != without[t] ? 1 : 0;
    }
    EXPECT_GT(changed, 0);
    EXPECT_EQ(statistics.tokens, valid);
    EXPECT_EQ(statistics.tokens_changed, changed) << static_cast<int>(function);
  }
}

TEST(CompleteStatistics, AreRefusedWhereThePenaltyHadNoPart) {
  const Observed observe;
  CompleteConfig config{{Observed::H, Observed::E, Observed::K}};
  CompleteRouter<float> router(config);
  router.refresh(observe.w_EH, 0);
  gatepro::RoutingRecord<> record;
  ForwardInputs<> in;
  in.record = &record;
  EXPECT_NO_THROW(observe(router, in));
  in.record = nullptr;
  in.replay = &record;
  expect_error([&] { observe(router, in); }, {"CompleteRouter::forward", "no statistics"});
  config.noise.forced = gatepro::ForcedRouting::round_robin;
  CompleteRouter<float> forced(config);
  forced.refresh(observe.w_EH, 0);
  expect_error([&] { observe(forced, ForwardInputs<>()); }, {"no statistics"});
}

// A record tells who had lost, so the forward must find that out.
TEST(CompleteRouter, RecordsNeedMarksOfWhoLost) {
  const Observed data;
  CompleteConfig config{{Observed::H, Observed::E, Observed::K}};
  CompleteRouter<float> router(config);
  router.refresh(data.w_EH, 0);
  gatepro::RoutingBuffers buffers(router, Observed::T);
  EXPECT_FALSE(buffers.view().penalised_TK.given());
  EXPECT_NO_THROW(router.forward(data.x_TH, data.w_EH, {}, buffers));
  gatepro::RoutingRecord<> record;
  ForwardInputs<> in;
  in.record = &record;
  expect_error([&] { router.forward(data.x_TH, data.w_EH, in, buffers); },
               {"CompleteRouter::forward", "penalised_TK"});
  config.scores.function = ScoreFunction::sigmoid;
  CompleteRouter<float> sigmoid(config);
  EXPECT_TRUE(gatepro::RoutingBuffers(sigmoid, 1).view().penalised_TK.given());
}

// Nobody loses among choices that are made up.
TEST(CompleteRouter, ForcedChoicesHaveNoLosers) {
  const Observed data;
  CompleteConfig config{{Observed::H, Observed::E, Observed::K}};
  config.noise.forced = gatepro::ForcedRouting::round_robin;
  CompleteRouter<float> router(config);
  router.refresh(data.w_EH, 0);
  gatepro::RoutingBuffers buffers(router, gatepro::BufferShape{Observed::T, 1, 1, true, true});
  const auto marks_TK = buffers.view().penalised_TK;
  for (Index t = 0; t < Observed::T; ++t) {
    for (Index j = 0; j < Observed::K; ++j) marks_TK(t, j) = 77;
  }
  router.forward(data.x_TH, data.w_EH, {}, buffers);
  for (Index t = 0; t < Observed::T; ++t) {
    for (Index j = 0; j < Observed::K; ++j) ASSERT_EQ(int{marks_TK(t, j)}, 0);
  }
}

// What a record says of drops is of the forward that filled it last.
TEST(CompleteRouter, RecordsOfDroplessForwardsHaveNoCapacity) {
  const Observed data;
  CompleteConfig config{{Observed::H, Observed::E, Observed::K}};
  CompleteRouter<float> router(config);
  router.refresh(data.w_EH, 0);
  gatepro::RoutingBuffers buffers(router, gatepro::BufferShape{Observed::T, 1, 1, true, true});
  gatepro::RoutingRecord<> record;
  record.capacity = 5;
  ForwardInputs<> in;
  in.record = &record;
  router.forward(data.x_TH, data.w_EH, in, buffers);
  EXPECT_FALSE(record.capacity.has_value());
}

TEST(CompleteRouter, PackedWeightsGiveTheSameBits) {
  const Observed data;
  CompleteConfig config{{Observed::H, Observed::E, Observed::K}};
  config.noise.logit_sigma = 0.2;
  CompleteRouter<float> router(config), other(config);
  router.refresh(data.w_EH, 0);
  other.refresh(data.w_EH, 0);
  gatepro::RoutingBuffers<CompleteRouter<float>> want(router, Observed::T), got(other, Observed::T);
  router.forward(data.x_TH, data.w_EH, {}, want);
  const gatepro::PackedWeights<float> packed(gatepro::view(data.w_EH));
  other.forward(data.x_TH, packed, {}, got.view(), got.workspace());
  EXPECT_TRUE(same_bits(complete_data::outcome_of(got).logits_TE,
                        complete_data::outcome_of(want).logits_TE));
  EXPECT_TRUE(same_bits(complete_data::outcome_of(got).weights_TK,
                        complete_data::outcome_of(want).weights_TK));
  const gatepro::PackedWeights<float> wrong(gatepro::view(data.x_TH));
  expect_error([&] { other.forward(data.x_TH, wrong, {}, got.view(), got.workspace()); },
               {"CompleteRouter::forward", "packed weights of num_experts x hidden_size"});
}

}  // namespace
