// SPDX-License-Identifier: MIT
// Raw bytes choose shapes, options, inputs and the bits of every number of a complete router. A
// step then either throws gatepro::Error and moves no counter, or keeps its promises: distinct ids
// in range, padding weighs 0, capacities hold, a recomputation and other workers give the same bits
// and count nothing twice.
#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <gatepro/router/complete_router.hpp>
#include <limits>
#include <vector>

namespace {

using gatepro::Index;
using Router = gatepro::CompleteRouter<float>;
using Buffers = gatepro::CompleteBuffers<Router>;

void check(bool ok, const char* promise) {
  if (ok) return;
  std::fprintf(stderr, "broken promise: %s\n", promise);
  std::abort();
}

/// True now and then; never for the zeros that a short input ends in.
bool rarely(FuzzedDataProvider& data) { return data.ConsumeIntegral<std::uint8_t>() == 0x33; }

double number(FuzzedDataProvider& data) {
  const auto bits = data.ConsumeIntegral<std::uint64_t>();
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// The last of several workers goes first.
struct Workers {
  int count = 1;
  int workers() const { return count; }
  template <class Body>
  void run(int n, Body body) const {
    for (int w = n - 1; w >= 0; --w) body(w);
  }
};

/// Numbers from a seed; one in `special_share` is special.
class Values {
 public:
  explicit Values(FuzzedDataProvider& data)
      : state_(data.ConsumeIntegral<std::uint64_t>()),
        special_share_(data.ConsumeIntegralInRange<std::uint64_t>(0, 40)) {}
  std::uint64_t bits() {
    state_ = state_ * 6364136223846793005U + 1442695040888963407U;
    return state_ ^ (state_ >> 33);
  }
  float next() {
    using Limits = std::numeric_limits<float>;
    const float special[] = {
        Limits::quiet_NaN(),  Limits::infinity(), -Limits::infinity(), 0.0F, -0.0F,
        Limits::denorm_min(), Limits::max(),      -Limits::max(),      1.0F};
    const std::uint64_t draw = bits();
    if (special_share_ != 0 && draw % special_share_ == 0) return special[draw / 64 % 9];
    return static_cast<float>(draw >> 40) / 8388608.0F - 1;
  }
  gatepro::RowMatrix<float> matrix(Index rows, Index cols) {
    gatepro::RowMatrix<float> m(rows, cols);
    for (Index i = 0; i < rows * cols; ++i) m.data()[i] = next();
    return m;
  }

 private:
  std::uint64_t state_;
  std::uint64_t special_share_;
};

gatepro::CompleteConfig choose_config(FuzzedDataProvider& data) {
  gatepro::CompleteConfig c;
  const auto pick = [&data](std::initializer_list<double> values) {
    return values.begin()[data.ConsumeIntegralInRange<std::size_t>(0, values.size() - 1)];
  };
  const Index group_size = data.ConsumeIntegralInRange<Index>(1, 6);
  c.groups.num_groups = data.ConsumeIntegralInRange<Index>(1, 6);
  c.groups.groups_per_token = data.ConsumeIntegralInRange<Index>(1, c.groups.num_groups);
  c.groups.score = static_cast<gatepro::GroupScore>(data.ConsumeIntegralInRange(0, 2));
  c.groups.best = data.ConsumeIntegralInRange<Index>(0, group_size);
  c.router.num_experts = group_size * c.groups.num_groups;
  c.router.hidden_size = data.ConsumeIntegralInRange<Index>(1, 9);
  c.router.top_k = data.ConsumeIntegralInRange<Index>(1, std::min<Index>(8, c.router.num_experts));
  c.router.allow_zero_gradient = data.ConsumeBool();
  c.router.competition.mode =
      static_cast<gatepro::CompetitionMode>(data.ConsumeIntegralInRange(0, 2));
  c.router.competition.ties = static_cast<gatepro::TieRule>(data.ConsumeIntegralInRange(0, 1));
  c.router.competition.lambda = pick({1e-4, 0, 0.3, 1e4, 1e30});
  c.scores.function = static_cast<gatepro::ScoreFunction>(data.ConsumeIntegralInRange(0, 3));
  c.scores.renormalise = data.ConsumeBool();
  c.scores.scale = pick({1, 2.5, 1e-30, 1e30});
  c.bias = {data.ConsumeBool(), pick({1e-3, 0, 1, 1e30}), data.ConsumeBool()};
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
  c.noise.jitter = pick({0, 0, 0.01, 0.999});
  c.noise.logit_sigma = pick({0, 0, 0.1, 1e30});
  c.noise.seed = data.ConsumeIntegral<std::uint8_t>();
  // Settings that may be refused.
  if (rarely(data)) c.router.top_k = data.ConsumeIntegral<std::int8_t>();
  if (rarely(data)) c.groups.num_groups = data.ConsumeIntegral<std::int8_t>();
  if (rarely(data)) c.groups.groups_per_token = data.ConsumeIntegral<std::int8_t>();
  if (rarely(data)) c.scores.scale = number(data);
  if (rarely(data)) c.bias.update_rate = number(data);
  if (rarely(data)) c.losses.batch = number(data);
  if (rarely(data)) c.noise.jitter = number(data);
  if (rarely(data)) c.noise.logit_sigma = number(data);
  if (rarely(data) && c.capacity) c.capacity->factor = number(data);
  return c;
}

template <class T>
bool same(const T& a, const T& b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (std::isnan(a) && std::isnan(b)) return true;
  }
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

template <class View>
void check_same(const View& a, const View& b, const char* promise) {
  for (Index r = 0; r < a.rows; ++r) {
    for (Index c = 0; c < a.cols; ++c) check(same(a(r, c), b(r, c)), promise);
  }
}

bool same_state(const gatepro::RouterState& a, const gatepro::RouterState& b) {
  return a.partners_EM == b.partners_EM && a.expert_bias_E == b.expert_bias_E &&
         a.bias_counts_E == b.bias_counts_E && a.balance_counts_E == b.balance_counts_E &&
         a.balance_tokens == b.balance_tokens && a.noise_position == b.noise_position;
}

void check_routing(const gatepro::CompleteConfig& config, const gatepro::ForwardInputs<>& in,
                   const Router::Routing& out, const gatepro::CompleteReport& report) {
  std::int64_t routed = 0;
  for (Index t = 0; t < out.expert_ids_TK.rows; ++t) {
    std::vector<bool> seen(static_cast<std::size_t>(config.router.num_experts));
    const bool padding = in.is_padding_T.given() && in.is_padding_T[t] != 0;
    for (Index j = 0; j < config.router.top_k; ++j) {
      const auto id = static_cast<std::size_t>(out.expert_ids_TK(t, j));
      check(id < seen.size() && !seen[id], "distinct ids in range");
      seen[id] = true;
      check(!padding || out.weights_TK(t, j) == 0, "padding weighs nothing");
      check(!padding || !config.capacity || out.kept_TK(t, j) == 0, "padding has no slot");
      routed += padding ? 0 : 1;
    }
  }
  for (Index e = 0; e < config.router.num_experts; ++e) routed -= out.tokens_per_expert_E[e];
  check(routed == 0, "choices counted once");
  if (!config.capacity) return;
  check(report.capacity < report.valid_tokens + config.capacity->alignment,
        "no capacity above the number of tokens, aligned");
  check(report.capacity % config.capacity->alignment == 0, "an aligned capacity");
  for (Index e = 0; e < config.router.num_experts; ++e) {
    check(out.kept_per_expert_E[e] <= report.capacity, "no expert above its capacity");
  }
}

void run(FuzzedDataProvider& data) {
  const gatepro::CompleteConfig config = choose_config(data);
  Router router(config);
  const Index tokens = data.ConsumeIntegralInRange<Index>(0, 70);
  const Workers workers{data.ConsumeIntegralInRange(1, 4)};
  Values values(data);
  const auto x_TH = values.matrix(tokens, config.router.hidden_size);
  const auto w_EH = values.matrix(config.router.num_experts, config.router.hidden_size);
  const auto dweights_TK = values.matrix(tokens, config.router.top_k);
  if (!rarely(data)) router.refresh(w_EH, 0);

  std::vector<std::uint8_t> padding(static_cast<std::size_t>(tokens));
  for (auto& p : padding) p = values.bits() % 5 == 0 ? 1 : 0;
  std::vector<std::int64_t> begin = {0, 0};
  for (std::int64_t at = 0; at < tokens;) {
    at = std::min<std::int64_t>(tokens, at + static_cast<std::int64_t>(values.bits() % 30));
    begin.push_back(at);
  }
  if (rarely(data)) begin.back() += 1;
  gatepro::RoutingRecord<> record;
  gatepro::ForwardInputs<> in;
  if (data.ConsumeBool()) in.is_padding_T = padding;
  in.sequence_begin_S1 = begin;
  in.record = &record;
  if (data.ConsumeBool()) in.pass = gatepro::Pass::evaluation;
  const Index sequences = static_cast<Index>(begin.size()) - 1;
  Buffers first(router, tokens, workers.count, sequences);
  Buffers again(router, tokens, 1, sequences);
  gatepro::RowMatrix<float> dx_TH = gatepro::RowMatrix<float>::Zero(tokens, x_TH.cols());
  gatepro::RowMatrix<float> dw_EH = gatepro::RowMatrix<float>::Zero(w_EH.rows(), w_EH.cols());
  auto other_dx_TH = dx_TH, other_dw_EH = dw_EH;

  const gatepro::RouterState before = router.state();
  try {
    router.forward(x_TH, w_EH, in, first, gatepro::NoReduce{}, workers);
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
  router.forward(x_TH, w_EH, replayed, again);
  check(same_state(router.state(), counted), "nothing is counted twice");
  check_same(first.view().expert_ids_TK, again.view().expert_ids_TK, "ids again");
  check_same(first.view().weights_TK, again.view().weights_TK, "weights again");
  check_same(first.view().logits_TE, again.view().logits_TE, "logits again");

  router.backward(x_TH, w_EH, in, first, dweights_TK, {}, dx_TH, dw_EH, workers);
  router.backward(x_TH, w_EH, replayed, again, dweights_TK, {}, other_dx_TH, other_dw_EH);
  check_same(gatepro::view(dx_TH), gatepro::view(other_dx_TH), "dX again");
  check_same(gatepro::view(dw_EH), gatepro::view(other_dw_EH), "dW again");

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
