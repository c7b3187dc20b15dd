// SPDX-License-Identifier: MIT
// The settings with which CompleteRouter is the router of a published model. docs/published.md
// shows them, cut out of this file.
#ifndef GATEPRO_TESTS_ROUTER_PUBLISHED_ROUTERS_HPP
#define GATEPRO_TESTS_ROUTER_PUBLISHED_ROUTERS_HPP

#include <gatepro/gatepro.hpp>

namespace published {

using namespace gatepro;

// GatePro itself is off in all of them: switch it on with
//   config.competition = Competition::eliminate();  // or any other, then or while training

inline CompleteConfig mixtral_8x7b() {
  return {{/*hidden_size=*/4096, /*num_experts=*/8, /*top_k=*/2, Competition::off()}};
}

inline CompleteConfig dbrx() { return {{6144, 16, 4, Competition::off()}}; }

inline CompleteConfig qwen3_moe_30b() { return {{2048, 128, 8, Competition::off()}}; }

inline CompleteConfig qwen3_moe_235b() { return {{4096, 128, 8, Competition::off()}}; }

inline CompleteConfig hunyuan_a13b() { return {{4096, 64, 8, Competition::off()}}; }

inline CompleteConfig olmoe_1b_7b() {
  CompleteConfig config{{2048, 64, 8, Competition::off()}};
  config.scores.function = ScoreFunction::softmax_before_top_k;
  config.losses.batch = 0.01;
  config.losses.z = 0.001;
  return config;
}

inline CompleteConfig jamba() {
  CompleteConfig config{{4096, 16, 2, Competition::off()}};
  config.scores.function = ScoreFunction::softmax_before_top_k;
  return config;
}

inline CompleteConfig deepseek_v2() {
  CompleteConfig config{{5120, 160, 6, Competition::off()}};
  config.scores.function = ScoreFunction::softmax_before_top_k;
  config.scores.scale = 16;
  config.groups = {/*num_groups=*/8, /*groups_per_token=*/3, GroupScore::top_1};
  return config;
}

inline CompleteConfig deepseek_v3() {
  CompleteConfig config{{7168, 256, 8, Competition::off()}};
  config.scores = {ScoreFunction::sigmoid, /*renormalise=*/true, /*scale=*/2.5,
                   Renormalisation::published};
  config.groups = {8, 4, GroupScore::top_2};
  config.bias.enabled = true;  // moved while training; e_score_correction_bias of a checkpoint
  return config;
}

inline CompleteConfig kimi_k2() {
  CompleteConfig config{{7168, 384, 8, Competition::off()}};
  config.scores = {ScoreFunction::sigmoid, true, 2.827, Renormalisation::published};
  config.bias.enabled = true;
  return config;
}

inline CompleteConfig glm_4_5() {
  CompleteConfig config{{5120, 160, 8, Competition::off()}};
  config.scores = {ScoreFunction::sigmoid, true, 2.5, Renormalisation::published};
  config.bias.enabled = true;
  return config;
}

inline CompleteConfig glm_4_5_air() {
  CompleteConfig config{{4096, 128, 8, Competition::off()}};
  config.scores = {ScoreFunction::sigmoid, true, 1, Renormalisation::published};
  config.bias.enabled = true;
  return config;
}

inline CompleteConfig gpt_oss_120b() { return {{2880, 128, 4, Competition::off()}}; }

inline CompleteConfig llama_4_maverick() {
  CompleteConfig config{{5120, 128, 1, Competition::off()}};
  config.scores.function = ScoreFunction::sigmoid;
  return config;
}

inline CompleteConfig ernie_4_5_21b() {
  CompleteConfig config{{2560, 64, 6, Competition::off()}};
  config.scores.function = ScoreFunction::softmax_before_top_k;
  config.scores.renormalise = true;
  config.bias.enabled = true;
  return config;
}

}  // namespace published

#endif  // GATEPRO_TESTS_ROUTER_PUBLISHED_ROUTERS_HPP
