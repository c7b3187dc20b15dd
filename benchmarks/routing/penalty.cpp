// SPDX-License-Identifier: MIT
// What competition costs: within the selection, as a stage of its own, and as the plain loop that
// it would be without either. The selection has 256 tokens, whose logits stay in the cache, as in
// the whole router; a pass of its own has all tokens, as it would, and enough of them that no
// branch predictor can learn them by heart.
#include <cstdio>

#include "peers/peer.hpp"
#include "support/ours.hpp"
#include "support/stages.hpp"

namespace bench {
namespace {

Shape resident(Shape shape) {
  shape.tokens = 256;
  return shape;
}

void add_fused(const Shape& shape, Contest& contest) {
  const std::size_t choices = area(shape.tokens, shape.top_k);
  const Floats& logits = contest.keep(pattern_logits(Pattern::gaussian, shape));
  Ids& ids = contest.keep(Ids(choices));
  Floats& weights = contest.keep(Floats(choices));
  const SelectJob job{shape, logits.data(), ids.data(), weights.data()};
  contest.add("fused_off", ours::select(job, gatepro::Competition::off()));
  contest.add("fused_penalty", ours::select(job, gatepro::Competition{}));
  contest.add("fused_eliminate", ours::select(job, gatepro::Competition::eliminate()));
}

void add_separate(const Shape& shape, Contest& contest) {
  const Floats& logits = contest.keep(pattern_logits(Pattern::gaussian, shape));
  const Ids& partners = contest.keep(random_partners(shape.experts));
  const auto compete_into = [&](Floats& penalised) {
    const auto lambda = static_cast<float>(gatepro::Competition{}.lambda);
    return CompeteJob{shape, logits.data(), partners.data(), lambda, penalised.data()};
  };
  Floats& penalised = contest.keep(Floats(logits.size()));
  Floats& eliminated = contest.keep(Floats(logits.size()));
  Floats& naive_penalised = contest.keep(Floats(logits.size()));
  const Run separate = ours::compete(compete_into(penalised), gatepro::CompetitionMode::penalty);
  const Run naive = peers::naive.compete(compete_into(naive_penalised));
  separate();
  naive();
  expect_close("penalty " + shape.name + " naive", naive_penalised, penalised, 0);
  contest.add("separate_penalty", separate);
  contest.add("separate_eliminate",
              ours::compete(compete_into(eliminated), gatepro::CompetitionMode::eliminate));
  contest.add("naive_penalty", naive);
}

Contest prepare(const Shape& shape) {
  Contest contest;
  add_fused(resident(shape), contest);
  add_separate(shape, contest);
  return contest;
}

const std::vector<std::string>& contestants() {
  static const std::vector<std::string> names{"fused_off",          "fused_penalty",
                                              "fused_eliminate",    "separate_penalty",
                                              "separate_eliminate", "naive_penalty"};
  return names;
}

/// Time of the whole router without competition, by which the cost is divided.
double router_seconds_per_token(const Shape& shape) {
  const Samples samples = measure(router_stage().prepare(shape), {"gatepro_off"}, 9);
  return *samples.seconds("gatepro_off") / static_cast<double>(shape.tokens);
}

/// Lines of the microbenchmark: costs per token in ns, in percent of the selection without
/// competition and in percent of the whole router without it.
std::string cost_lines(const Shape& shape, const Samples& samples) {
  const auto fused = static_cast<double>(resident(shape).tokens);
  const auto separate = static_cast<double>(shape.tokens);
  const double selection = *samples.seconds("fused_off") / fused;
  const double router = router_seconds_per_token(shape);
  std::string lines;
  const auto add = [&](const char* what, double cost) {
    char line[128];
    std::snprintf(line, sizeof line, "%-7s %-20s %9.2f %12.1f %9.3f\n", shape.name.c_str(), what,
                  cost * 1e9, 100 * cost / selection, 100 * cost / router);
    lines += line;
  };
  for (const char* mode : {"fused_penalty", "fused_eliminate"}) {
    add(mode, *samples.difference(mode, "fused_off") / fused);
  }
  for (const char* pass : {"separate_penalty", "separate_eliminate", "naive_penalty"}) {
    add(pass, *samples.seconds(pass) / separate);
  }
  return lines;
}

void summarise(Figures& figures) {
  figures.remark(
      "cost of competition, per token\n"
      "                                  ns  % selection  % router\n");
  for (const Shape& shape : expert_sweep()) {
    const Index tokens = resident(shape).tokens;
    const Samples samples = measure(prepare(shape), contestants(), most_rounds);
    for (const std::string mode : {"penalty", "eliminate"}) {
      const std::string fused = "fused_" + mode;
      figures.add(over(mode + "_over_select_" + shape.name, samples, fused, "fused_off", tokens));
      figures.add(
          nanoseconds(mode + "_ns_" + shape.name, samples.difference(fused, "fused_off"), tokens));
    }
    figures.add(versus("separate_penalty_vs_naive_" + shape.name, samples, "separate_penalty",
                       "naive_penalty", shape.tokens));
    figures.add(nanoseconds("select_ns_" + shape.name, samples.seconds("fused_penalty"), tokens));
    figures.remark(cost_lines(shape, samples));
  }
}

}  // namespace

Stage penalty_stage() { return {"penalty", expert_sweep(), contestants(), prepare, summarise}; }

}  // namespace bench
