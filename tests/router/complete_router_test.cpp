// SPDX-License-Identifier: MIT
// The complete router: with the defaults the plain router, bit for bit; and calls as users make
// them.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <vector>

#include "support/bits.hpp"
#include "support/complete_data.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/routing_data.hpp"
#include "support/type_names.hpp"

namespace {

using complete_data::Batch;
using complete_data::Outcome;
using complete_data::zeros;
using data::random_matrix;
using data::same_bits;
using gatepro::CapacityRule;
using gatepro::Competition;
using gatepro::CompleteConfig;
using gatepro::CompleteRouter;
using gatepro::CountSource;
using gatepro::ForwardInputs;
using gatepro::GroupScore;
using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::ScoreFunction;

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

TEST(CompleteRouter, PackedWeightsGiveTheSameBits) {
  const Batch data;
  CompleteConfig config{{Batch::H, Batch::E, Batch::K}};
  config.noise.logit_sigma = 0.2;
  CompleteRouter<float> router(config), other(config);
  router.refresh(data.w_EH, 0);
  other.refresh(data.w_EH, 0);
  gatepro::RoutingBuffers<CompleteRouter<float>> want(router, Batch::T), got(other, Batch::T);
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

// A record tells who had lost, so the forward must find that out.
TEST(CompleteRouter, RecordsNeedMarksOfWhoLost) {
  const Batch data;
  CompleteConfig config{{Batch::H, Batch::E, Batch::K}};
  CompleteRouter<float> router(config);
  router.refresh(data.w_EH, 0);
  gatepro::RoutingBuffers buffers(router, Batch::T);
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

// What a record says of drops is of the forward that filled it last.
TEST(CompleteRouter, RecordsOfDroplessForwardsHaveNoCapacity) {
  const Batch data;
  CompleteConfig config{{Batch::H, Batch::E, Batch::K}};
  CompleteRouter<float> router(config);
  router.refresh(data.w_EH, 0);
  gatepro::RoutingBuffers buffers(router, gatepro::BufferShape{Batch::T, 1, 1, true, true});
  gatepro::RoutingRecord<> record;
  record.capacity = 5;
  ForwardInputs<> in;
  in.record = &record;
  router.forward(data.x_TH, data.w_EH, in, buffers);
  EXPECT_FALSE(record.capacity.has_value());
}

}  // namespace
