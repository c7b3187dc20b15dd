// SPDX-License-Identifier: MIT
// The routers of published models: each by its settings, against its own formula in double, without
// GatePro and with it.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "router/published_routers.hpp"
#include "support/complete_data.hpp"
#include "support/conversions.hpp"
#include "support/inputs.hpp"
#include "support/reference/partners.hpp"
#include "support/reference/published.hpp"

namespace {

using gatepro::Competition;
using gatepro::CompleteConfig;
using gatepro::Index;
using reference::Row;
using reference::published::Choice;

/// A model: its settings, and one token's choice by the model's own code.
struct Model {
  std::string name;
  CompleteConfig settings;
  std::function<Choice(const Row& logits, const Row& bias)> choose;
  bool has_gate_bias = false;
};

std::ostream& operator<<(std::ostream& out, const Model& model) { return out << model.name; }

std::vector<Model> models() {
  using namespace reference::published;
  const auto plain = [](auto f, std::size_t k) {
    return [f, k](const Row& logits, const Row&) { return f(logits, k); };
  };
  const auto grouped = [](std::size_t groups, std::size_t kept, double scale) {
    return [=](const Row& logits, const Row& bias) {
      return noaux_tc(logits, bias, groups, kept, 8, scale);
    };
  };
  return {
      {"Mixtral8x7B", ::published::mixtral_8x7b(), plain(softmax_top_k_normalised, 2)},
      {"Dbrx", ::published::dbrx(), plain(softmax_top_k_normalised, 4)},
      {"Olmoe1B7B", ::published::olmoe_1b_7b(), plain(softmax_top_k, 8)},
      {"Qwen3Moe30B", ::published::qwen3_moe_30b(), plain(softmax_top_k_normalised, 8)},
      {"Qwen3Moe235B", ::published::qwen3_moe_235b(), plain(softmax_top_k_normalised, 8)},
      {"DeepSeekV2", ::published::deepseek_v2(),
       [](const Row& logits, const Row&) {
         return reference::published::deepseek_v2(logits, 6, 16);
       }},
      {"DeepSeekV3", ::published::deepseek_v3(), grouped(8, 4, 2.5)},
      {"KimiK2", ::published::kimi_k2(), grouped(1, 1, 2.827)},
      {"Glm45", ::published::glm_4_5(), grouped(1, 1, 2.5)},
      {"Glm45Air", ::published::glm_4_5_air(), grouped(1, 1, 1)},
      {"GptOss120B", ::published::gpt_oss_120b(), plain(top_k_softmax, 4), true},
      {"Llama4Maverick", ::published::llama_4_maverick(), plain(llama_4, 1)},
      {"Jamba", ::published::jamba(), plain(softmax_top_k, 2)},
      {"Ernie45", ::published::ernie_4_5_21b(),
       [](const Row& logits, const Row& bias) { return ernie_4_5(logits, bias, 6); }},
      {"HunyuanA13B", ::published::hunyuan_a13b(), plain(hunyuan, 8)},
  };
}

class PublishedRouterTest : public testing::TestWithParam<Model> {};
INSTANTIATE_TEST_SUITE_P(, PublishedRouterTest, testing::ValuesIn(models()),
                         [](const auto& instance) { return instance.param.name; });

/// Tokens, router weights, a bias of the logits and one for the choice. Fewer columns than the
/// models have: a logit is a logit.
struct Batch {
  static constexpr Index T = 512, H = 48;

  explicit Batch(const CompleteConfig& config, bool has_gate_bias = false)
      : x_TH(data::random_matrix<double>(T, H, 1)),
        w_EH(data::random_matrix<double>(config.num_experts, H, 2, 0.5)) {
    const auto bias = data::random_matrix<double>(1, config.num_experts, 3, 0.1);
    for (Index e = 0; e < config.num_experts; ++e) {
      bias_E.push_back(config.bias.enabled ? bias(0, e) : 0);
      gate_bias_E.push_back(has_gate_bias ? 10 * bias(0, e) : 0);
    }
  }

  Row logits(Index t) const {
    Row logits;
    for (Index e = 0; e < w_EH.rows(); ++e) {
      logits.push_back(x_TH.row(t).dot(w_EH.row(e)) + gate_bias_E[static_cast<std::size_t>(e)]);
    }
    return logits;
  }

  gatepro::RowMatrix<double> x_TH, w_EH;
  Row bias_E, gate_bias_E;
};

/// GatePro eq. 7 and 8.
Row compete(const Row& logits, const reference::Ids& partners, double lambda) {
  Row result = logits;
  for (std::size_t e = 0; e < logits.size(); ++e) {
    if (logits[e] < reference::published::at(logits, partners[e][0])) result[e] -= lambda;
  }
  return result;
}

/// Without GatePro, with a small penalty, and with one that puts every loser behind all survivors.
TEST_P(PublishedRouterTest, IsTheModelsOwnWithAndWithoutGatePro) {
  for (const double lambda : {0.0, 0.3, 40.0}) {
    CompleteConfig config = GetParam().settings;
    config.hidden_size = Batch::H;
    config.competition = Competition::penalty(lambda);
    const Batch batch(config, GetParam().has_gate_bias);
    gatepro::CompleteRouter<double> router(config);
    router.refresh(batch.w_EH, 0);
    if (config.bias.enabled) {
      gatepro::RouterState state = router.state();
      state.expert_bias_E = batch.bias_E;
      router.restore(state);
    }
    gatepro::RoutingBuffers buffers(router, Batch::T);
    router.forward(batch.x_TH, {batch.w_EH, batch.gate_bias_E}, {}, buffers);
    const auto routed = complete_data::outcome_of(buffers);
    const auto partners = reference::pair_partners(
        reference::cosine_similarity(data::to_reference(batch.w_EH)), config.pairing);
    for (Index t = 0; t < Batch::T; ++t) {
      SCOPED_TRACE("lambda " + std::to_string(lambda) + ", token " + std::to_string(t));
      const Choice expected =
          GetParam().choose(compete(batch.logits(t), partners, lambda), batch.bias_E);
      for (Index j = 0; j < config.top_k; ++j) {
        const auto slot = static_cast<std::size_t>(j);
        ASSERT_EQ(routed.ids_TK(t, j), expected.ids[slot]);
        ASSERT_NEAR(routed.weights_TK(t, j), expected.weights[slot],
                    1e-12 * (1 + expected.weights[slot]));
      }
    }
  }
}

/// Of Phi-3.5-MoE the experts are those of top-2, its weights are not: they are shares among the
/// logits near the best, and near depends on the magnitude of the logits.
TEST(PublishedRouter, OfPhi35TheExpertsAreExactAndTheWeightsAreNot) {
  CompleteConfig config{{Batch::H, 16, 2, Competition::off()}};
  const Batch batch(config);
  gatepro::CompleteRouter<double> router(config);
  const auto routed = complete_data::forward(router, batch.x_TH, batch.w_EH);
  int other_weights = 0;
  for (Index t = 0; t < Batch::T; ++t) {
    const Choice expected = reference::published::sparsemixer(batch.logits(t), 2, 0.01);
    for (Index j = 0; j < 2; ++j) {
      const auto slot = static_cast<std::size_t>(j);
      ASSERT_EQ(routed.ids_TK(t, j), expected.ids[slot]);
      other_weights += std::abs(routed.weights_TK(t, j) - expected.weights[slot]) > 1e-3;
    }
  }
  EXPECT_GT(other_weights, Batch::T / 2);
}

}  // namespace
