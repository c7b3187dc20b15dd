// SPDX-License-Identifier: MIT
// Raw bytes choose shapes, options, inputs and the bits of every number of a complete router. A
// step then either throws gatepro::Error and moves no counter, or keeps its promises: distinct ids
// in range, as many as the settings allow, padding weighs 0, capacities hold, a recomputation and
// other workers give the same bits and count nothing twice.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <gatepro/router/complete_router.hpp>
#include <gatepro/setup.hpp>
#include <limits>
#include <vector>

#include "fuzz/fuzzing.hpp"
#include "support/executors.hpp"
#include "support/memory.hpp"

namespace {

using fuzzing::check;
using fuzzing::check_same;
using fuzzing::number;
using fuzzing::rarely;
using fuzzing::Values;
using gatepro::Index;
using Router = gatepro::CompleteRouter<float>;
using Buffers = gatepro::RoutingBuffers<Router>;

gatepro::CompleteConfig choose_config(FuzzedDataProvider& data) {
  gatepro::CompleteConfig c;
  const auto pick = [&data](std::initializer_list<double> values) {
    return values.begin()[data.ConsumeIntegralInRange<std::size_t>(0, values.size() - 1)];
  };
  const Index group_size = data.ConsumeIntegralInRange<Index>(1, 6);
  c.groups.num_groups = data.ConsumeIntegralInRange<Index>(1, 6);
  c.groups.groups_per_token = data.ConsumeIntegralInRange<Index>(1, c.groups.num_groups);
  c.groups.score = static_cast<gatepro::GroupScore>(data.ConsumeIntegralInRange(0, 3));
  c.groups.best = data.ConsumeIntegralInRange<Index>(0, group_size);
  c.num_experts = group_size * c.groups.num_groups;
  c.hidden_size = data.ConsumeIntegralInRange<Index>(1, 9);
  c.top_k = data.ConsumeIntegralInRange<Index>(1, std::min<Index>(8, c.num_experts));
  c.allow_zero_gradient = data.ConsumeBool();
  c.competition.mode = static_cast<gatepro::CompetitionMode>(data.ConsumeIntegralInRange(0, 2));
  c.competition.ties = static_cast<gatepro::TieRule>(data.ConsumeIntegralInRange(0, 1));
  c.competition.lambda = pick({1e-4, 0, 0.3, 1e4, 1e30});
  c.scores.function = static_cast<gatepro::ScoreFunction>(data.ConsumeIntegralInRange(0, 3));
  c.scores.renormalise = data.ConsumeBool();
  c.scores.scale = pick({1, 2.5, 1e-30, 1e30});
  c.bias = {data.ConsumeBool(), pick({1e-3, 0, 1, 1e30}), data.ConsumeBool()};
  c.quantile.enabled = data.ConsumeBool() && data.ConsumeBool();
  if (c.quantile.enabled) c.bias.enabled = data.ConsumeBool() && data.ConsumeBool();
  c.quantile.bins = data.ConsumeIntegralInRange<Index>(2, 40);
  c.quantile.reach = pick({1, 1e-30, 8, 1e30});
  c.quantile.memory = pick({0, 0.9});
  c.losses = {pick({0, 1e-2}), pick({0, 1e-2}), pick({0, 1e-2}), pick({0, 1e-3}),
              static_cast<gatepro::CountSource>(data.ConsumeIntegralInRange(0, 1))};
  if (data.ConsumeBool()) {
    gatepro::CapacityRule rule;
    rule.factor = pick({1, 0.3, 1e-9, 100, 1e300});
    rule.minimum = data.ConsumeIntegralInRange<Index>(0, 9);
    rule.alignment = data.ConsumeIntegralInRange<Index>(1, 9);
    rule.policy = static_cast<gatepro::DropPolicy>(data.ConsumeIntegralInRange(0, 2));
    rule.renormalise = data.ConsumeBool();
    c.capacity = rule;
  }
  if (data.ConsumeBool()) {
    const Index least = data.ConsumeIntegralInRange<Index>(0, c.top_k);
    c.fewer = gatepro::FewerChoices{pick({1, 0.5, 0.9, 1e-9}), 0, least};
    const double most = pick({0, 0.25, 1}) * static_cast<double>(c.top_k - least);
    if (data.ConsumeBool()) c.fewer->budget = static_cast<double>(least) + most;
  }
  c.noise.jitter = pick({0, 0, 0.01, 0.999});
  c.noise.logit_sigma = pick({0, 0, 0.1, 1e30});
  c.noise.seed = data.ConsumeIntegral<std::uint8_t>();
  c.choice.step = pick({0, 0, 0x1p-14, 0.125, 0x1p100});
  c.choice.order = static_cast<gatepro::ChoiceOrder>(data.ConsumeIntegralInRange(0, 1));
  c.adaptive_lambda = {pick({0, 0, 0.1, 1}), pick({1, 16})};
  c.logit_soft_cap = pick({0, 0, 30, 1e-3});
  // What groups say is not looked at where they are off.
  if (!c.groups.active()) c.groups.groups_per_token = data.ConsumeIntegralInRange<Index>(-1, 1);
  // Settings that may be refused.
  if (rarely(data)) c.top_k = data.ConsumeIntegral<std::int8_t>();
  if (rarely(data)) c.groups.num_groups = data.ConsumeIntegral<std::int8_t>();
  if (rarely(data)) c.groups.groups_per_token = data.ConsumeIntegral<std::int8_t>();
  if (rarely(data)) c.scores.scale = number(data);
  if (rarely(data)) c.choice.step = number(data);
  if (rarely(data) && c.fewer) c.fewer->top_p = number(data);
  if (rarely(data) && c.fewer) c.fewer->budget = number(data);
  if (rarely(data)) c.bias.update_rate = number(data);
  if (rarely(data)) c.quantile.bins = data.ConsumeIntegral<std::int8_t>();
  if (rarely(data)) c.quantile.reach = number(data);
  if (rarely(data)) c.quantile.memory = number(data);
  if (rarely(data)) c.losses.batch = number(data);
  if (rarely(data)) c.noise.jitter = number(data);
  if (rarely(data)) c.noise.logit_sigma = number(data);
  if (rarely(data)) c.adaptive_lambda.share = number(data);
  if (rarely(data)) c.logit_soft_cap = number(data);
  if (rarely(data) && c.capacity) c.capacity->factor = number(data);
  return c;
}

bool same_state(const gatepro::RouterState& a, const gatepro::RouterState& b) {
  return a.partners_EM == b.partners_EM && a.expert_bias_E == b.expert_bias_E &&
         a.bias_counts_E == b.bias_counts_E && a.correction_bias_E == b.correction_bias_E &&
         a.quantile_counts_EB == b.quantile_counts_EB && a.quantile_choices == b.quantile_choices &&
         a.balance_counts_E == b.balance_counts_E && a.balance_tokens == b.balance_tokens &&
         a.noise_position == b.noise_position && a.lambda_estimate == b.lambda_estimate &&
         a.lambda_counts == b.lambda_counts;
}

void check_routing(const gatepro::CompleteConfig& config, const gatepro::ForwardInputs<>& in,
                   const Router::Routing& out, const gatepro::CompleteReport& report) {
  const bool by_id = config.choice.order == gatepro::ChoiceOrder::ascending_ids;
  std::int64_t routed = 0;
  const Index most = in.top_k != 0 ? in.top_k : config.top_k;
  for (Index t = 0; t < out.expert_ids_TK.rows; ++t) {
    std::vector<bool> seen(static_cast<std::size_t>(config.num_experts));
    const bool padding = in.is_padding_T.given() && in.is_padding_T[t] != 0;
    for (Index j = 0; j < config.top_k; ++j) {
      if (out.expert_ids_TK(t, j) == -1) {
        const bool last = j + 1 == config.top_k || out.expert_ids_TK(t, j + 1) == -1;
        check(in.hash != nullptr || (last && (j >= most || (config.fewer && !padding))),
              "ids of -1 only where asked for");
        check((j < most && in.hash == nullptr) || out.weights_TK(t, j) == 0,
              "what was not chosen weighs nothing");
        check(in.hash == nullptr || !config.capacity || out.kept_TK(t, j) == 0,
              "a choice of none has no slot");
        continue;
      }
      check(j < most, "no more choices than the call allows");
      const auto id = static_cast<std::size_t>(out.expert_ids_TK(t, j));
      check(id < seen.size() && !seen[id], "distinct ids in range");
      seen[id] = true;
      check(!by_id || in.hash != nullptr || j == 0 ||
                out.expert_ids_TK(t, j - 1) < out.expert_ids_TK(t, j),
            "ids in their order");
      check(!padding || out.weights_TK(t, j) == 0, "padding weighs nothing");
      check(!padding || !config.capacity || out.kept_TK(t, j) == 0, "padding has no slot");
      routed += padding ? 0 : 1;
    }
  }
  check(routed == report.choices, "all choices are told");
  for (Index e = 0; e < config.num_experts; ++e) routed -= out.tokens_per_expert_E[e];
  check(routed == 0, "choices counted once");
  if (!config.capacity) return;
  check(report.capacity < report.valid_tokens + config.capacity->alignment,
        "no capacity above the number of tokens, aligned");
  check(report.capacity % config.capacity->alignment == 0, "an aligned capacity");
  for (Index e = 0; e < config.num_experts; ++e) {
    check(out.kept_per_expert_E[e] <= report.capacity, "no expert above its capacity");
  }
}

void run(FuzzedDataProvider& data) {
  const gatepro::CompleteConfig config = choose_config(data);
  Router router(config);
  const Index tokens = data.ConsumeIntegralInRange<Index>(0, 70);
  const LastWorkerFirst workers{data.ConsumeIntegralInRange(1, 4)};
  const bool refreshes = !rarely(data), bad_borders = rarely(data), pads = data.ConsumeBool();
  const bool evaluates = data.ConsumeBool(), corrects = data.ConsumeBool(),
             biased = data.ConsumeBool();
  const Index call_top_k = data.ConsumeIntegralInRange<Index>(rarely(data) ? -1 : 0, config.top_k);
  const bool hashes = data.ConsumeIntegralInRange(0, 3) == 1, bad_token_ids = rarely(data);
  gatepro::OrthogonalityRule rule;
  rule.kind = static_cast<gatepro::OrthogonalityKind>(data.ConsumeIntegralInRange(0, 1));
  rule.coefficient = rarely(data) ? number(data) : data.ConsumeIntegralInRange(0, 1);
  rule.groups = data.ConsumeIntegralInRange<Index>(1, 3);
  rule.only_partners = data.ConsumeBool();
  Values values(data);
  values.set_special_share(data.ConsumeIntegralInRange<std::uint64_t>(0, 40));
  const auto x_TH = values.matrix(tokens, config.hidden_size);
  const auto w_EH = values.matrix(config.num_experts, config.hidden_size);
  const auto dweights_TK = values.matrix(tokens, config.top_k);
  const auto bias = values.matrix(1, config.num_experts);
  const gatepro::BiasedWeights<float> weights{
      w_EH, biased ? gatepro::VectorView<const float>(bias.data(), bias.size())
                   : gatepro::VectorView<const float>()};
  gatepro::RowMatrix<float> pushed_EH = gatepro::RowMatrix<float>::Zero(w_EH.rows(), w_EH.cols());
  if (refreshes) {
    const auto apart = router.refresh_with_loss(w_EH, 0, rule, pushed_EH, workers);
    check(apart.loss >= 0, "an orthogonality loss that is a number");
    check(rule.kind == gatepro::OrthogonalityKind::simbal || apart.loss <= rule.coefficient * 1.001,
          "a mean of squared cosines");
  }
  if (corrects) {
    const auto correction_1E = values.matrix(1, config.num_experts);
    router.set_correction_bias({correction_1E.data(), config.num_experts});
  }

  std::vector<std::uint8_t> padding(static_cast<std::size_t>(tokens));
  for (auto& p : padding) p = values.next_bits() % 5 == 0 ? 1 : 0;
  std::vector<std::int64_t> begin = {0, 0};
  for (std::int64_t at = 0; at < tokens;) {
    at = std::min<std::int64_t>(tokens, at + static_cast<std::int64_t>(values.next_bits() % 30));
    begin.push_back(at);
  }
  if (bad_borders) begin.back() += 1;
  constexpr Index vocabulary = 11;
  gatepro::RowMatrix<std::int32_t> hashed_VK = ::data::copy<std::int32_t>(
      gatepro::random_hash_table(vocabulary, config.num_experts, config.top_k, 1).expert_ids());
  hashed_VK.row(3).setConstant(-1);
  hashed_VK(7, 0) = -1;
  const gatepro::HashTable table(config.num_experts, hashed_VK);
  std::vector<std::int64_t> token_ids(static_cast<std::size_t>(tokens));
  for (auto& id : token_ids) {
    id = static_cast<std::int64_t>(values.next_bits() % (vocabulary + (bad_token_ids ? 1 : 0)));
  }
  gatepro::RoutingRecord<> record;
  gatepro::ForwardInputs<> in;
  if (hashes) {
    in.hash = &table;
    in.token_ids_T = token_ids;
  }
  if (pads) in.is_padding_T = padding;
  in.sequence_begin_S1 = begin;
  in.record = &record;
  in.top_k = call_top_k;
  if (evaluates) in.pass = gatepro::Pass::evaluation;
  const Index sequences = static_cast<Index>(begin.size()) - 1;
  Buffers first(router, gatepro::BufferShape{tokens, workers.workers(), sequences, true, true});
  Buffers again(router, gatepro::BufferShape{tokens, 1, sequences, true, true});
  gatepro::RowMatrix<float> dx_TH = gatepro::RowMatrix<float>::Zero(tokens, x_TH.cols());
  gatepro::RowMatrix<float> dw_EH = gatepro::RowMatrix<float>::Zero(w_EH.rows(), w_EH.cols());
  auto other_dx_TH = dx_TH, other_dw_EH = dw_EH;

  const gatepro::RouterState before = router.state();
  try {
    router.forward(x_TH, weights, in, first, gatepro::NoReduce{}, workers);
  } catch (const gatepro::Error&) {
    check(same_state(router.state(), before), "an Error moves no counter");
    return;
  }
  check_routing(config, in, first.view(), first.report());
  const gatepro::RouterState counted = router.state();

  gatepro::ForwardInputs<> replayed = in;
  replayed.record = nullptr;
  replayed.replay = &record;
  if (in.pass == gatepro::Pass::training) replayed.pass = gatepro::Pass::recompute;
  router.forward(x_TH, weights, replayed, again);
  check(same_state(router.state(), counted), "nothing is counted twice");
  check_same(first.view().expert_ids_TK, again.view().expert_ids_TK, "ids again");
  check_same(first.view().weights_TK, again.view().weights_TK, "weights again");
  check_same(first.view().logits_TE, again.view().logits_TE, "logits again");

  std::vector<float> dbias_E(static_cast<std::size_t>(config.num_experts)), other_dbias_E = dbias_E;
  gatepro::GateGradients<float> gradients{dx_TH, dw_EH}, others{other_dx_TH, other_dw_EH};
  gradients.dbias_E = dbias_E;
  others.dbias_E = other_dbias_E;
  try {
    router.backward(x_TH, w_EH, in, first, {dweights_TK}, gradients, workers);
  } catch (const gatepro::Error&) {
    check(in.top_k == 1 || config.top_k == 1, "only constant weights have no backward");
    return;
  }
  router.backward(x_TH, w_EH, replayed, again, {dweights_TK}, others);
  check_same(gatepro::view(dx_TH), gatepro::view(other_dx_TH), "dX again");
  check_same(gatepro::view(dw_EH), gatepro::view(other_dw_EH), "dW again");
  check_same(gatepro::MatrixView(dbias_E.data(), 1, config.num_experts),
             gatepro::MatrixView(other_dbias_E.data(), 1, config.num_experts), "dc again");

  router.end_step();
  Router resumed(config);
  resumed.restore(router.state());
  check(same_state(resumed.state(), router.state()), "a state comes back");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  FuzzedDataProvider data(bytes, size);
  try {
    run(data);
  } catch (const gatepro::Error&) {
    // Bad settings or shapes: refused, which is right.
  }
  return 0;
}
