// SPDX-License-Identifier: MIT
// Routers with GateArithmetic::bf16_dot: the gate's logits of that arithmetic, routed as any others
// are, and gradients that know nothing of it.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <limits>

#include "support/bits.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/routing_data.hpp"

namespace {

using data::same_bits;
using gatepro::bfloat16;
using gatepro::GateArithmetic;
using gatepro::Index;
using gatepro::RowMatrix;
using Brains = RowMatrix<bfloat16>;
using Floats = RowMatrix<float>;
using Router = gatepro::Router<bfloat16>;
using CompleteRouter = gatepro::CompleteRouter<bfloat16>;

constexpr Index tokens = 101, hidden = 515, experts = 40, top_k = 4;

gatepro::CompleteConfig config_of(GateArithmetic arithmetic) {
  gatepro::CompleteConfig config;
  config.hidden_size = hidden;
  config.num_experts = experts;
  config.top_k = top_k;
  config.competition = gatepro::Competition::eliminate();
  config.gate_arithmetic = arithmetic;
  return config;
}

class Bf16DotRouter : public testing::Test {
 protected:
  Bf16DotRouter() {
    router.refresh_now(w_EH, 0);
    widened.refresh_now(w_EH, 0);
  }

  Floats logits(GateArithmetic arithmetic) const {
    Floats logits_TE(tokens, experts);
    auto memory =
        data::scratch(gatepro::gate_logits_workspace_bytes<bfloat16, bfloat16>(experts, hidden));
    gatepro::gate_logits(gatepro::view(x_TH), gatepro::view(w_EH), gatepro::view(logits_TE), memory,
                         gatepro::SerialExecutor{}, arithmetic);
    return logits_TE;
  }

  Brains x_TH = data::random_matrix<bfloat16>(tokens, hidden, 1);
  Brains w_EH = data::random_matrix<bfloat16>(experts, hidden, 2);
  Router router{config_of(GateArithmetic::bf16_dot)};
  Router widened{config_of(GateArithmetic::widened)};
};

TEST_F(Bf16DotRouter, SaysWhatItUses) {
  EXPECT_EQ(router.gate_arithmetic(), gatepro::gate_arithmetic(GateArithmetic::bf16_dot, experts));
  EXPECT_EQ(widened.gate_arithmetic(), GateArithmetic::widened);
  EXPECT_EQ(Router({hidden, 8, 2}).gate_arithmetic(), GateArithmetic::widened);
}

TEST_F(Bf16DotRouter, RoutesTheLogitsOfItsArithmetic) {
  const auto outcome = routing_data::forward(router, x_TH, w_EH);
  EXPECT_TRUE(same_bits(outcome.logits_TE, logits(GateArithmetic::bf16_dot)));
  routing_data::expect_reference_routing(router, outcome);
  expect_same_outcome(routing_data::forward(router, x_TH, w_EH, ThreadExecutor(3)), outcome);
  const gatepro::PackedWeights<float> packed(gatepro::view(w_EH), GateArithmetic::bf16_dot);
  expect_same_outcome(routing_data::forward(router, x_TH, packed), outcome);

  const auto plain = routing_data::forward(widened, x_TH, w_EH);
  EXPECT_TRUE(same_bits(plain.logits_TE, logits(GateArithmetic::widened)));
  // The two differ if there are two.
  EXPECT_EQ(plain.logits_TE == outcome.logits_TE,
            router.gate_arithmetic() == GateArithmetic::widened);
}

TEST_F(Bf16DotRouter, CompleteRouterAgreesToTheBit) {
  const auto expected = routing_data::forward(router, x_TH, w_EH);
  CompleteRouter complete(config_of(GateArithmetic::bf16_dot));
  complete.refresh_now(w_EH, 0);
  EXPECT_EQ(complete.gate_arithmetic(), router.gate_arithmetic());
  gatepro::RoutingBuffers buffers(complete, tokens);
  complete.forward(x_TH, w_EH, {}, buffers);
  EXPECT_TRUE(same_bits(data::copy<float>(buffers.logits_TE()), expected.logits_TE));
  EXPECT_TRUE(same_bits(data::copy<std::int32_t>(buffers.expert_ids_TK()), expected.ids_TK));
  EXPECT_TRUE(same_bits(data::copy<float>(buffers.weights_TK()), expected.weights_TK));
}

TEST_F(Bf16DotRouter, GradientsAreThoseOfTheSameChoices) {
  const auto outcome = routing_data::forward(router, x_TH, w_EH);
  const auto dweights_TK = data::random_matrix<float>(tokens, top_k, 3);
  const auto dlogits_TE = data::random_matrix<float>(tokens, experts, 4);
  const routing_data::Gradients<float> start{Floats::Zero(tokens, hidden),
                                             Floats::Zero(experts, hidden)};
  for (const Floats& dense_TE : {Floats(), dlogits_TE}) {
    const auto ours =
        routing_data::backward(router, x_TH, w_EH, outcome, dweights_TK, dense_TE, start);
    const auto plain = [&] {
      routing_data::Outcome<Router> same(widened, tokens);
      same.ids_TK = outcome.ids_TK;
      same.weights_TK = outcome.weights_TK;
      return routing_data::backward(widened, x_TH, w_EH, same, dweights_TK, dense_TE, start);
    }();
    EXPECT_TRUE(same_bits(ours.dx_TH, plain.dx_TH));
    EXPECT_TRUE(same_bits(ours.dw_EH, plain.dw_EH));
  }
}

TEST_F(Bf16DotRouter, NonfiniteTokensAreReported) {
  x_TH(7, 3) = std::numeric_limits<bfloat16>::quiet_NaN();
  x_TH(50, hidden - 1) = std::numeric_limits<bfloat16>::infinity();
  x_TH(99, 0) = (std::numeric_limits<bfloat16>::max)();
  x_TH(99, 1) = (std::numeric_limits<bfloat16>::max)();
  w_EH.col(0).setConstant(bfloat16(2));
  w_EH.col(1).setConstant(bfloat16(2));
  const auto outcome = routing_data::forward(router, x_TH, w_EH);
  EXPECT_EQ(outcome.report.nonfinite_rows, 3);
  routing_data::expect_reference_routing(router, outcome);
}

TEST_F(Bf16DotRouter, RefusesWhatDoesNotFit) {
  const auto config = config_of(GateArithmetic::bf16_dot);
  const auto refuses = [&](const auto& make) {
    expect_error(make, {"Router", "bfloat16 tokens and router weights"});
  };
  refuses([&] { gatepro::Router<float>{config}; });
  refuses([&] { gatepro::Router<bfloat16, float>{config}; });
  refuses([&] { gatepro::CompleteRouter<float>{config}; });

  const gatepro::PackedWeights<float> plain(gatepro::view(w_EH));
  const gatepro::PackedWeights<float> pairs(gatepro::view(w_EH), GateArithmetic::bf16_dot);
  if (router.gate_arithmetic() == GateArithmetic::widened) return;
  const char* rule = "weights packed for the router's gate_arithmetic";
  expect_error([&] { routing_data::forward(router, x_TH, plain); }, {"Router::forward", rule});
  expect_error([&] { routing_data::forward(widened, x_TH, pairs); }, {"Router::forward", rule});
}

}  // namespace
