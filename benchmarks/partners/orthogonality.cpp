// SPDX-License-Identifier: MIT
// A refresh with an orthogonality loss of W and its gradient, beside the refresh alone.
#include <memory>

#include "gatepro/gatepro.hpp"
#include "support/inputs.hpp"
#include "support/stages.hpp"

namespace bench {
namespace {

/// Router weights, their gradient and what a refresh keeps.
struct Refreshed {
  explicit Refreshed(const Shape& s)
      : w_EH(random_floats(area(s.experts, s.hidden), 2)),
        dw_EH(w_EH.size()),
        weights_EH(w_EH.data(), s.experts, s.hidden),
        gradient_EH(dw_EH.data(), s.experts, s.hidden),
        cache(s.experts, gatepro::Pairing{}, gatepro::RefreshSchedule{}) {}

  Floats w_EH, dw_EH;
  gatepro::MatrixView<const float> weights_EH;
  gatepro::MatrixView<float> gradient_EH;
  gatepro::SimilarityCache<float> cache;
  std::int64_t step = 0;
};

Run refresh(Contest& contest, const Shape& shape, const gatepro::OrthogonalityRule& rule) {
  auto& mine = *contest.keep(std::make_unique<Refreshed>(shape));
  return [&mine, rule] {
    mine.cache.refresh_with_loss(mine.weights_EH, ++mine.step, rule, mine.gradient_EH);
  };
}

Contest prepare(const Shape& shape) {
  using gatepro::OrthogonalityKind;
  Contest contest;
  gatepro::OrthogonalityRule rule;
  contest.add("refresh", refresh(contest, shape, rule));
  rule.coefficient = 1e-6;  // the gradient adds up over all rounds
  contest.add("frobenius", refresh(contest, shape, rule));
  rule.kind = OrthogonalityKind::simbal;
  contest.add("simbal", refresh(contest, shape, rule));
  rule = {OrthogonalityKind::frobenius, 1e-6};
  rule.only_partners = true;
  contest.add("partner_orthogonality", refresh(contest, shape, rule));
  return contest;
}

const std::vector<std::string>& contestants() {
  static const std::vector<std::string> all = {"refresh", "frobenius", "simbal",
                                               "partner_orthogonality"};
  return all;
}

void summarise(Figures& figures) {
  for (const Shape& shape : {e64, e128, e256}) {
    const Samples samples = measure(prepare(shape), contestants(), many_rounds);
    for (const std::string& name : contestants()) {
      if (name == "refresh") continue;
      figures.add(over(name + "_over_refresh_" + shape.name, samples, name, "refresh", 1));
    }
  }
}

}  // namespace

Stage orthogonality_stage() {
  return {"orthogonality", {e64, e128, e256}, contestants(), prepare, summarise};
}

}  // namespace bench
