// SPDX-License-Identifier: MIT
#include "support/ours.hpp"

#include <cstddef>
#include <memory>

#include "gatepro/gatepro.hpp"
#include "support/build.hpp"
#include "support/executors.hpp"

namespace bench {
namespace ours {
namespace {

using gatepro::MatrixView;
using gatepro::StridedView;
using Router = gatepro::Router<float>;
using Memory = std::vector<std::byte>;

/// What a Run keeps alive; each Run has scratch of its own.
std::shared_ptr<Memory> memory(std::size_t bytes) { return std::make_shared<Memory>(bytes); }

gatepro::RouterConfig config_of(const Shape& s, const gatepro::Competition& competition) {
  gatepro::RouterConfig config{s.hidden, s.experts, s.top_k};
  config.competition = competition;
  return config;
}

/// A router with its buffers.
struct Routed {
  Routed(const Shape& s, const gatepro::Competition& competition, int threads)
      : router(config_of(s, competition)), buffers(router, s.tokens, threads) {}
  Router router;
  gatepro::RoutingBuffers<Router> buffers;
};

/// What `keep` owns must outlive the run.
template <class X, class W>
Run gate_of(const GateJob& job, const X* x, const W* w, std::shared_ptr<const void> keep,
            int threads, gatepro::GateArithmetic arithmetic = gatepro::GateArithmetic::widened) {
  const Shape& s = job.shape;
  const MatrixView<const X> x_TH(x, s.tokens, s.hidden);
  const MatrixView<const W> w_EH(w, s.experts, s.hidden);
  const MatrixView<float> logits_TE(job.logits_TE, s.tokens, s.experts);
  const auto scratch =
      memory(gatepro::gate_logits_workspace_bytes<X, W>(s.experts, s.hidden, threads));
  return [=] {
    static_cast<void>(keep);
    with_executor(threads, [&](const auto& executor) {
      gatepro::gate_logits(x_TH, w_EH, logits_TE, *scratch, executor, arithmetic);
    });
  };
}

template <class To>
std::vector<To> rounded(const float* values, std::size_t count) {
  std::vector<To> result;
  for (std::size_t i = 0; i < count; ++i) result.push_back(static_cast<To>(values[i]));
  return result;
}

Run refresh_by(const gatepro::RefreshSchedule& schedule, const RefreshJob& job, int threads) {
  const Shape& s = job.shape;
  const auto router = std::make_shared<Router>(config_of(s, {}));
  router->set_refresh_schedule(schedule);
  const MatrixView<const float> w_EH(job.w_EH, s.experts, s.hidden);
  return [job, router, w_EH, threads] {
    with_executor(threads, [&](const auto& executor) { router->refresh_now(w_EH, 0, executor); });
    std::copy_n(router->similarity_cache().partners().data, job.shape.experts, job.partners_E);
  };
}

/// route_logits by a rule; bias_E may be null.
Run select_by_rule(const SelectJob& job, const gatepro::SelectionRule& rule, const float* bias_E) {
  const Shape& s = job.shape;
  const auto scratch = memory(gatepro::route_logits_workspace_bytes<float>(s.experts, rule));
  const auto tokens_per_expert =
      std::make_shared<std::vector<std::int64_t>>(static_cast<std::size_t>(s.experts));
  gatepro::RoutingInputs<float> in{{job.logits_TE, s.tokens, s.experts}};
  if (bias_E != nullptr) in.expert_bias_E = {bias_E, s.experts};
  gatepro::RoutingView<float> out;
  out.expert_ids_TK = {job.ids_TK, s.tokens, s.top_k};
  out.weights_TK = {job.weights_TK, s.tokens, s.top_k};
  out.tokens_per_expert_E = *tokens_per_expert;
  return [rule, scratch, tokens_per_expert, in, out] {
    gatepro::route_logits(in, gatepro::RivalTable{}, rule, out, *scratch);
  };
}

/// With tokens rounded to Narrow.
template <class Narrow>
Run gate_narrow(const GateJob& job) {
  const auto x_TH = std::make_shared<std::vector<Narrow>>(
      rounded<Narrow>(job.x_TH, area(job.shape.tokens, job.shape.hidden)));
  return gate_of(job, x_TH->data(), job.w_EH, x_TH, 1);
}

}  // namespace

bool has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

const char* instruction_set() { return gatepro::instruction_set(); }

Run gate(const GateJob& job, int threads) {
  return gate_of(job, job.x_TH, job.w_EH, nullptr, threads);
}

Run gate_bf16(const GateJob& job) { return gate_narrow<gatepro::bfloat16>(job); }

Run gate_bf16_dot(const GateJob& job) {
  using gatepro::bfloat16;
  const Shape& s = job.shape;
  const auto wanted = gatepro::GateArithmetic::bf16_dot;
  if (gatepro::gate_arithmetic(wanted, s.experts) != wanted) return nullptr;
  struct Rounded {
    std::vector<bfloat16> x_TH, w_EH;
  };
  const auto inputs =
      std::make_shared<Rounded>(Rounded{rounded<bfloat16>(job.x_TH, area(s.tokens, s.hidden)),
                                        rounded<bfloat16>(job.w_EH, area(s.experts, s.hidden))});
  return gate_of(job, inputs->x_TH.data(), inputs->w_EH.data(), inputs, 1, wanted);
}

Run gate_half(const GateJob& job) { return gate_narrow<gatepro::half>(job); }

Run select(const SelectJob& job, const gatepro::Competition& competition, int threads) {
  const Shape& s = job.shape;
  const auto routed = std::make_shared<Routed>(s, competition, threads);
  const Ids partners = random_partners(s.experts);
  routed->router.set_partners({partners.data(), s.experts, 1}, 0);
  const MatrixView<const float> logits_TE(job.logits_TE, s.tokens, s.experts);
  return [job, routed, logits_TE, threads] {
    auto out = routed->buffers.view();
    out.expert_ids_TK = {job.ids_TK, job.shape.tokens, job.shape.top_k};
    out.weights_TK = {job.weights_TK, job.shape.tokens, job.shape.top_k};
    with_executor(threads, [&](const auto& executor) {
      routed->router.forward_logits(logits_TE, out, routed->buffers.workspace(), executor);
    });
  };
}

Run select_after_softmax(const SelectJob& job) {
  gatepro::SelectionRule rule{job.shape.top_k};
  rule.scores.function = gatepro::ScoreFunction::softmax_before_top_k;
  rule.competition = gatepro::Competition::off();
  return select_by_rule(job, rule, nullptr);
}

Run select_deepseek(const DeepSeekJob& job) {
  gatepro::SelectionRule rule{job.shape.top_k};
  rule.scores = {gatepro::ScoreFunction::sigmoid, /*renormalise=*/true, DeepSeekJob::scale};
  rule.groups = {DeepSeekJob::groups, DeepSeekJob::groups_per_token, gatepro::GroupScore::top_2};
  rule.competition = gatepro::Competition::off();
  return select_by_rule(job, rule, job.bias_E);
}

Run route(const RouteJob& job, const gatepro::Competition& competition, int threads) {
  return builds::ours.route(job, competition, threads);
}

Run compete(const CompeteJob& job, gatepro::CompetitionMode mode) {
  const Shape& s = job.shape;
  const gatepro::RivalTable rivals(StridedView<const std::int32_t>(job.partners_E, s.experts, 1),
                                   /*both_sides=*/false);
  const MatrixView<const float> logits_TE(job.logits_TE, s.tokens, s.experts);
  const MatrixView<float> penalised_TE(job.penalised_TE, s.tokens, s.experts);
  const auto scratch = memory(gatepro::apply_competition_workspace_bytes<float>(s.experts));
  const auto losers = std::make_shared<std::vector<std::uint8_t>>();
  MatrixView<std::uint8_t> loser_TE;
  if (mode == gatepro::CompetitionMode::eliminate) {
    losers->resize(area(s.tokens, s.experts));
    loser_TE = {losers->data(), s.tokens, s.experts};
  }
  const gatepro::Competition competition{mode, static_cast<double>(job.lambda)};
  return [=] {
    gatepro::apply_competition(logits_TE, rivals, competition, penalised_TE, loser_TE, *scratch);
    static_cast<void>(losers);
  };
}

Run refresh(const RefreshJob& job, int threads) { return refresh_by({}, job, threads); }

Run refresh_lazily(const RefreshJob& job) {
  return refresh_by(gatepro::RefreshSchedule::every_step().lazily(), job, 1);
}

Run route_backward(const RouteBackwardJob& job, int threads) {
  const Shape& s = job.shape;
  const auto routed = std::make_shared<Routed>(s, gatepro::Competition::off(), threads);
  const MatrixView<const float> x_TH(job.x_TH, s.tokens, s.hidden);
  const MatrixView<const float> w_EH(job.w_EH, s.experts, s.hidden);
  const StridedView<const float> dweights_TK(job.dweights_TK, s.tokens, s.top_k);
  const MatrixView<float> dx_TH(job.dx_TH, s.tokens, s.hidden);
  const MatrixView<float> dw_EH(job.dw_EH, s.experts, s.hidden);
  routed->router.forward(x_TH, w_EH, routed->buffers);
  return [=] {
    with_executor(threads, [&](const auto& executor) {
      routed->router.backward(x_TH, w_EH, routed->buffers, {dweights_TK}, {dx_TH, dw_EH}, executor);
    });
  };
}

Run gate_backward(const GateBackwardJob& job, const Ids& ids_TK, const Floats& dselected_TK) {
  return builds::ours.gate_backward(job, ids_TK, dselected_TK);
}

}  // namespace ours
}  // namespace bench
