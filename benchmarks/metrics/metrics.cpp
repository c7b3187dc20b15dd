// SPDX-License-Identifier: MIT
// What the metrics of a step cost, beside the selection and the refresh that they look at.
#include <memory>

#include "gatepro/gatepro.hpp"
#include "gatepro/spectral_entropy.hpp"
#include "support/inputs.hpp"
#include "support/stages.hpp"

namespace bench {
namespace {

gatepro::RouterConfig config_of(const Shape& s) { return {s.hidden, s.experts, s.top_k}; }

/// A routed batch, and room for what is counted of it.
struct Routed {
  explicit Routed(const Shape& s)
      : logits(pattern_logits(Pattern::gaussian, s)),
        w(random_floats(area(s.experts, s.hidden), 2)),
        logits_TE(logits.data(), s.tokens, s.experts),
        w_EH(w.data(), s.experts, s.hidden),
        router(config_of(s)),
        buffers(router, s.tokens),
        loads(s.experts),
        pairs(s.experts),
        top_pairs(20),
        workspace(gatepro::count_margins_workspace_bytes<float>(s.experts, s.top_k)) {
    router.refresh(w_EH, 0);
    select();
    pairs.add(choices());
  }

  void select() { router.forward_logits(logits_TE, buffers.view(), buffers.workspace()); }
  gatepro::Choices<const std::int32_t> choices() const { return {buffers.expert_ids_TK()}; }
  const gatepro::SimilarityCache<float>& cache() const { return router.similarity_cache(); }

  Floats logits, w;
  gatepro::MatrixView<const float> logits_TE, w_EH;
  gatepro::Router<float> router;
  gatepro::RoutingBuffers<gatepro::Router<float>> buffers;
  gatepro::LoadCounts loads;
  gatepro::Coactivation pairs;
  gatepro::MarginCounts margins;
  std::vector<gatepro::CoactivatedPair> top_pairs;
  std::vector<std::byte> workspace;
  std::int64_t step = 0;
  double result = 0;  // so that nothing is left out
};

Contest prepare(const Shape& s) {
  Contest contest;
  auto& mine = *contest.keep(std::make_unique<Routed>(s));
  contest.add("selection", [&mine] { mine.select(); });
  contest.add("refresh", [&mine] { mine.router.refresh_now(mine.w_EH, ++mine.step); });
  contest.add("loads", [&mine] {
    mine.loads.add(mine.buffers.tokens_per_expert_E());
    mine.result += mine.loads.metrics().gini;
  });
  contest.add("coactivation", [&mine] { mine.pairs.add(mine.choices()); });
  contest.add("top_pairs", [&mine] {
    mine.pairs.top_pairs(gatepro::VectorView<gatepro::CoactivatedPair>(mine.top_pairs));
  });
  contest.add("margins", [&mine, s] {
    gatepro::count_margins(mine.logits_TE, mine.cache().rivals(), {s.top_k}, {}, mine.margins,
                           mine.workspace);
  });
  contest.add("pairwise_similarity", [&mine] {
    mine.result += gatepro::pairwise_similarity(mine.cache().similarity()).mean;
  });
  contest.add("entropy_of_S",
              [&mine] { mine.result += gatepro::spectral_entropy(mine.cache().similarity()); });
  contest.add("entropy_of_W", [&mine] {
    mine.result += gatepro::spectral_entropy(mine.w_EH, gatepro::Spectrum::singular_values);
  });
  return contest;
}

}  // namespace

Stage metrics_stage() {
  return {"metrics",
          {e64, e128, e256},
          {"selection", "refresh", "loads", "coactivation", "top_pairs", "margins",
           "pairwise_similarity", "entropy_of_S", "entropy_of_W"},
          prepare,
          [](Figures&) {}};  // docs/metrics.md has the times
}

}  // namespace bench
