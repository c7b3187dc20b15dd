// SPDX-License-Identifier: MIT
// gatepro alone, over the scalars and sizes that the bars leave out: where is it slow? With 1000
// tokens, microseconds per run are nanoseconds per token.
#include "gatepro/gatepro.hpp"
#include "support/stages.hpp"

namespace bench {
namespace {

using gatepro::MatrixView;
using Memory = std::vector<std::byte>;

template <class To>
std::vector<To> converted(const Floats& values) {
  std::vector<To> result;
  for (const float value : values) result.push_back(static_cast<To>(value));
  return result;
}

/// gate_logits from X and W in their own scalars.
template <class X, class W, class A>
Run gate(Contest& contest, const Shape& s, const GateInputs& inputs) {
  const auto& x = contest.keep(converted<X>(inputs.x_TH));
  const auto& w = contest.keep(converted<W>(inputs.w_EH));
  auto& logits = contest.keep(std::vector<A>(area(s.tokens, s.experts)));
  auto& scratch =
      contest.keep(Memory(gatepro::gate_logits_workspace_bytes<X, A>(s.experts, s.hidden)));
  return [&, s] {
    gatepro::gate_logits(MatrixView<const X>(x.data(), s.tokens, s.hidden),
                         MatrixView<const W>(w.data(), s.experts, s.hidden),
                         MatrixView<A>(logits.data(), s.tokens, s.experts), scratch);
  };
}

/// A router with its buffers.
template <class A>
struct Routed {
  Routed(const Shape& s, const gatepro::RouterConfig& config)
      : router(config), buffers(router, s.tokens) {}
  gatepro::Router<A> router;
  gatepro::RoutingBuffers<gatepro::Router<A>> buffers;
};

/// Router::forward_logits with the penalty.
template <class A>
Run select(Contest& contest, const Shape& s) {
  gatepro::RouterConfig config{s.hidden, s.experts, s.top_k};
  auto& routed = *contest.keep(std::make_unique<Routed<A>>(s, config));
  const Ids& partners = contest.keep(random_partners(s.experts));
  routed.router.set_partners({partners.data(), s.experts, 1}, 0);
  const auto& logits = contest.keep(converted<A>(pattern_logits(Pattern::gaussian, s)));
  return [&, s] {
    routed.router.forward_logits(MatrixView<const A>(logits.data(), s.tokens, s.experts),
                                 routed.buffers.view(), routed.buffers.workspace());
  };
}

Contest prepare(const Shape& shape) {
  using gatepro::bfloat16;
  using gatepro::half;
  Contest contest;
  const GateInputs& inputs = contest.keep(GateInputs(shape));
  contest.add("gate", gate<float, float, float>(contest, shape, inputs));
  contest.add("gate_bf16", gate<bfloat16, bfloat16, float>(contest, shape, inputs));
  contest.add("gate_half", gate<half, half, float>(contest, shape, inputs));
  contest.add("gate_double", gate<double, double, double>(contest, shape, inputs));
  contest.add("select", select<float>(contest, shape));
  contest.add("select_double", select<double>(contest, shape));
  return contest;
}

/// Experts that fill no vector or panel, many experts, and other numbers of choices.
std::vector<Shape> shapes() {
  std::vector<Shape> shapes;
  for (const Index experts : {8, 17, 60, 64, 96, 160, 257, 1024, 4096}) {
    shapes.push_back({"E" + std::to_string(experts), 1000, 2048, experts, 8});
  }
  for (const Index top_k : {1, 2, 4, 6, 9, 16, 32}) {
    shapes.push_back({"E128_K" + std::to_string(top_k), 1000, 2048, 128, top_k});
  }
  return shapes;
}

}  // namespace

Stage limits_stage() {
  return {"limits",
          shapes(),
          {"gate", "gate_bf16", "gate_half", "gate_double", "select", "select_double"},
          prepare,
          [](Figures&) {}};
}

}  // namespace bench
