// SPDX-License-Identifier: MIT
// Selections that models and engines in use have, beside the same in plain loops: softmax over all
// experts before the choice, and DeepSeek-V3's. Nobody competes.
#include <cmath>

#include "peers/peer.hpp"
#include "support/ours.hpp"
#include "support/stages.hpp"

namespace bench {
namespace {

/// Where one contestant writes.
struct Choices {
  explicit Choices(const Shape& shape)
      : ids(area(shape.tokens, shape.top_k)), weights(ids.size()) {}
  Ids ids;
  Floats weights;
};

SelectJob job_into(const Shape& shape, const Floats& logits, Choices& choices) {
  return {shape, logits.data(), choices.ids.data(), choices.weights.data()};
}

/// What the choice of DeepSeek-V3 goes by: sigmoids plus the bias.
Floats choice_values(const Floats& logits_TE, const Floats& bias_E) {
  Floats values(logits_TE.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = 1 / (1 + std::exp(-logits_TE[i])) + bias_E[i % bias_E.size()];
  }
  return values;
}

/// Both runs, after the choices of the one are found to be those of the other, by `values_TE`.
void add_pair(Contest& contest, const std::string& name, const Shape& shape,
              const Floats& values_TE, const Run& gatepro, const Choices& ours, const Run& peer,
              const Choices& theirs) {
  gatepro();
  peer();
  const std::string what = name + " " + shape.name;
  expect_same_choice(what, values_TE, shape.experts, shape.top_k, theirs.ids, ours.ids, 1e-6f);
  expect_close(what, theirs.weights, ours.weights, 1e-6f);
  contest.add("gatepro_" + name, gatepro);
  contest.add("plain_" + name, peer);
}

Contest prepare(const Shape& shape) {
  Contest contest;
  const Floats& logits = contest.keep(pattern_logits(Pattern::gaussian, shape));
  const auto job = [&](Choices& choices) { return job_into(shape, logits, choices); };

  Choices& ours = contest.keep(Choices(shape));
  Choices& theirs = contest.keep(Choices(shape));
  add_pair(contest, "softmax_before", shape, logits, ours::select_after_softmax(job(ours)), ours,
           peers::published.select_after_softmax(job(theirs)), theirs);

  const Floats& bias =
      contest.keep(random_floats(static_cast<std::size_t>(shape.experts), 9, 0.1f));
  Choices& our_groups = contest.keep(Choices(shape));
  Choices& their_groups = contest.keep(Choices(shape));
  add_pair(contest, "deepseek", shape, choice_values(logits, bias),
           ours::select_deepseek({job(our_groups), bias.data()}), our_groups,
           peers::published.select_deepseek({job(their_groups), bias.data()}), their_groups);
  return contest;
}

const std::vector<std::string>& contestants() {
  static const std::vector<std::string> names{"gatepro_softmax_before", "plain_softmax_before",
                                              "gatepro_deepseek", "plain_deepseek"};
  return names;
}

void summarise(Figures& figures) {
  for (const Shape& shape : {e64, e128, e256}) {
    const Samples samples = measure(prepare(shape), contestants(), many_rounds);
    for (const std::string name : {"softmax_before", "deepseek"}) {
      figures.add(versus(name + "_vs_partial_sort_" + shape.name, samples, "gatepro_" + name,
                         "plain_" + name, shape.tokens));
    }
  }
}

}  // namespace

Stage published_stage() {
  return {"published", {e64, e128, e256}, contestants(), prepare, summarise};
}

}  // namespace bench
