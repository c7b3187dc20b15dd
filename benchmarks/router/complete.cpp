// SPDX-License-Identifier: MIT
// What the features of the complete router cost: forwards over logits that are given, each with one
// feature switched on, beside the plain router. With 1000 tokens, microseconds per run are
// nanoseconds per token.
#include "gatepro/gatepro.hpp"
#include "support/stages.hpp"

namespace bench {
namespace {

using Complete = gatepro::CompleteRouter<float>;
using Config = gatepro::CompleteConfig;

/// A feature, and how to switch it on.
struct Feature {
  std::string name;
  void (*enable)(Config&);
};

const std::vector<Feature>& features() {
  static const std::vector<Feature> all = {
      {"complete", [](Config&) {}},
      {"softmax_before",
       [](Config& c) { c.scores.function = gatepro::ScoreFunction::softmax_before_top_k; }},
      {"sigmoid",
       [](Config& c) {
         c.scores = {gatepro::ScoreFunction::sigmoid, /*renormalise=*/true, 1};
       }},
      {"bias", [](Config& c) { c.bias.enabled = true; }},
      {"quantile", [](Config& c) { c.quantile.enabled = true; }},
      {"groups",
       [](Config& c) {
         c.groups = {8, 4, gatepro::GroupScore::top_2};
       }},
      {"deepseek",
       [](Config& c) {
         c.scores = {gatepro::ScoreFunction::sigmoid, /*renormalise=*/true, 2.5};
         c.bias.enabled = true;
         c.groups = {8, 4, gatepro::GroupScore::top_2};
       }},
      {"batch_loss", [](Config& c) { c.losses.batch = 0.01; }},
      {"z_loss", [](Config& c) { c.losses.z = 0.001; }},
      {"capacity", [](Config& c) { c.capacity = gatepro::CapacityRule{}; }},
      {"quantised", [](Config& c) { c.choice.step = 0x1p-14; }},
      {"ascending_ids", [](Config& c) { c.choice.order = gatepro::ChoiceOrder::ascending_ids; }},
      {"soft_cap", [](Config& c) { c.logit_soft_cap = 30; }},
      {"top_p",
       [](Config& c) {
         c.fewer.emplace();
         c.fewer->top_p = 0.8;
       }},
      {"adaptive_lambda", [](Config& c) { c.adaptive_lambda.share = 0.1; }},
  };
  return all;
}

/// A complete router with its buffers.
struct Routed {
  explicit Routed(const Shape& s, const Config& config)
      : router(config), buffers(router, s.tokens) {}
  Complete router;
  gatepro::RoutingBuffers<Complete> buffers;
};

Config config_of(const Shape& s) {
  Config config{{s.hidden, s.experts, s.top_k}};
  config.competition = gatepro::Competition::penalty(0.1);
  return config;
}

Run route(Contest& contest, const Shape& s, const Feature& feature, const Floats& logits,
          const Ids& partners) {
  Config config = config_of(s);
  feature.enable(config);
  auto& routed = *contest.keep(std::make_unique<Routed>(s, config));
  routed.router.set_partners({partners.data(), s.experts, 1}, 0);
  std::copy(logits.begin(), logits.end(), routed.buffers.view().logits_TE.data);
  return [&routed] {
    routed.router.forward_logits({}, routed.buffers.view(), routed.buffers.workspace());
  };
}

struct PlainRouted {
  PlainRouted(const Shape& s, const gatepro::RouterConfig& config)
      : router(config), buffers(router, s.tokens) {}
  gatepro::Router<float> router;
  gatepro::RoutingBuffers<gatepro::Router<float>> buffers;
};

PlainRouted& plain_router(Contest& contest, const Shape& s, const Ids& partners) {
  auto& routed = *contest.keep(std::make_unique<PlainRouted>(s, config_of(s)));
  routed.router.set_partners({partners.data(), s.experts, 1}, 0);
  return routed;
}

Run route_plainly(PlainRouted& routed, const Shape& s, const Floats& logits) {
  const gatepro::MatrixView<const float> logits_TE(logits.data(), s.tokens, s.experts);
  return [&routed, logits_TE] {
    routed.router.forward_logits(logits_TE, routed.buffers.view(), routed.buffers.workspace());
  };
}

/// The plan of a dispatch, after a forward.
Run plan(Contest& contest, const Shape& s, PlainRouted& routed) {
  auto& row_TK = contest.keep(Ids(area(s.tokens, s.top_k)));
  auto& scratch =
      contest.keep(std::vector<std::byte>(gatepro::plan_dispatch_workspace_bytes(s.experts)));
  return [&, s] {
    gatepro::DispatchPlan<> plan;
    plan.row_TK = {row_TK.data(), s.tokens, s.top_k};
    const gatepro::StridedView<const std::int32_t> ids_TK = routed.buffers.expert_ids_TK();
    gatepro::plan_dispatch(gatepro::Choices{ids_TK}, s.experts, gatepro::DispatchRule{}, plan,
                           scratch);
  };
}

Contest prepare(const Shape& shape) {
  Contest contest;
  const auto& logits = contest.keep(pattern_logits(Pattern::gaussian, shape));
  const Ids& partners = contest.keep(random_partners(shape.experts));
  PlainRouted& plain = plain_router(contest, shape, partners);
  const Run router = route_plainly(plain, shape, logits);
  router();
  contest.add("router", router);
  for (const Feature& feature : features()) {
    contest.add(feature.name, route(contest, shape, feature, logits, partners));
  }
  contest.add("dispatch_plan", plan(contest, shape, plain));
  return contest;
}

std::vector<std::string> contestants() {
  std::vector<std::string> names = {"router"};
  for (const Feature& feature : features()) names.push_back(feature.name);
  names.push_back("dispatch_plan");
  return names;
}

const std::vector<Shape>& shapes() {
  static const std::vector<Shape> all = {
      {"E64", 1000, 64, 64, 8}, {"E128", 1000, 64, 128, 8}, {"E256", 1000, 64, 256, 8}};
  return all;
}

void summarise(Figures& figures) {
  for (const Shape& shape : shapes()) {
    const Samples samples = measure(prepare(shape), contestants(), many_rounds);
    for (const Feature& feature : features()) {
      const std::string figure = feature.name == "complete" ? "complete_off_over_router_select_"
                                                            : feature.name + "_over_select_";
      figures.add(over(figure + shape.name, samples, feature.name, "router", shape.tokens));
    }
  }
}

}  // namespace

Stage complete_stage() { return {"complete", shapes(), contestants(), prepare, summarise}; }

}  // namespace bench
