// SPDX-License-Identifier: MIT
// What consumers that do not read ids and weights cost: dense probabilities and maps (Megatron-LM,
// InfiniTrain, TransformerEngine), and rows sorted by expert. Beside them stands the scan of the
// map that InfiniTrain's dispatcher makes to sort them itself. Microseconds of 1000 tokens are
// nanoseconds per token.
#include <stdexcept>

#include "gatepro/gatepro.hpp"
#include "support/stages.hpp"

namespace bench {
namespace {

using Numbers = std::vector<std::int64_t>;
using Bytes = std::vector<std::uint8_t>;

/// A routing of random logits, and what is made of it.
struct Memory {
  explicit Memory(const Shape& s)
      : ids_TK(area(s.tokens, s.top_k)),
        weights_TK(ids_TK.size()),
        probs_TE(area(s.tokens, s.experts)),
        map_TE(probs_TE.size()),
        bits_TB(area(s.tokens, (s.experts + 7) / 8)),
        counts_E(std::size_t(s.experts)),
        token_of_row_N(ids_TK.size()),
        in_probs_N(ids_TK.size()),
        scratch(gatepro::plan_dispatch_workspace_bytes(s.experts)) {
    gatepro::RouterConfig config{s.hidden, s.experts, s.top_k};
    config.competition = gatepro::Competition::off();
    const gatepro::Router<float, float, std::int64_t> router(config);
    const Floats logits = pattern_logits(Pattern::gaussian, s);
    std::vector<std::byte> workspace(router.forward_workspace_bytes());
    gatepro::RoutingView<float, std::int64_t> out;
    out.expert_ids_TK = {ids_TK.data(), s.tokens, s.top_k};
    out.weights_TK = {weights_TK.data(), s.tokens, s.top_k};
    router.forward_logits({logits.data(), s.tokens, s.experts}, out, workspace);
  }

  gatepro::Choices<const std::int64_t> choices(const Shape& s) const {
    return {{ids_TK.data(), s.tokens, s.top_k}};
  }
  void densely(const Shape& s, const gatepro::DenseRouting<float>& dense) const {
    gatepro::dense_routing<const std::int64_t, float>(
        choices(s), s.experts, {weights_TK.data(), s.tokens, s.top_k}, dense);
  }

  Numbers ids_TK;
  Floats weights_TK, probs_TE;
  Bytes map_TE, bits_TB;
  Numbers counts_E, token_of_row_N, in_probs_N;
  std::vector<std::byte> scratch;
};

/// A dispatcher's own sorting, by the columns of the map.
void scan_map(const Shape& s, const Bytes& map_TE, Numbers& tokens, Numbers& in_probs) {
  tokens.clear();
  in_probs.clear();
  for (Index e = 0; e < s.experts; ++e) {
    for (Index t = 0; t < s.tokens; ++t) {
      if (map_TE[std::size_t(t * s.experts + e)] == 0) continue;
      tokens.push_back(t);
      in_probs.push_back(t * s.experts + e);
    }
  }
}

Contest prepare(const Shape& s) {
  Contest contest;
  auto& memory = contest.keep(Memory(s));
  const auto probs = [&memory, s] {
    return gatepro::MatrixView<float>(memory.probs_TE.data(), s.tokens, s.experts);
  };
  contest.add("probs_and_bytes", [&memory, s, probs] {
    memory.densely(s, {probs(), {memory.map_TE.data(), s.tokens, s.experts}});
  });
  contest.add("probs_and_bits", [&memory, s, probs] {
    memory.densely(s, {probs(), {}, {memory.bits_TB.data(), s.tokens, (s.experts + 7) / 8}});
  });
  contest.add("plan", [&memory, s] {
    gatepro::DispatchPlan<std::int64_t> plan;
    plan.tokens_per_expert_E = memory.counts_E;
    plan.token_of_row_N = memory.token_of_row_N;
    plan.flat_index_of_row_N = memory.in_probs_N;
    gatepro::plan_dispatch(memory.choices(s), s.experts, {}, plan, memory.scratch);
  });
  auto& tokens = contest.keep(Numbers());
  auto& in_probs = contest.keep(Numbers());
  contest.add("scan_of_bytes",
              [&memory, s, &tokens, &in_probs] { scan_map(s, memory.map_TE, tokens, in_probs); });
  (*contest.find("probs_and_bytes"))();
  (*contest.find("plan"))();
  (*contest.find("scan_of_bytes"))();
  if (tokens != memory.token_of_row_N || in_probs != memory.in_probs_N) {
    throw std::runtime_error("conversion " + s.name + ": the scan sorts otherwise than the plan");
  }
  return contest;
}

}  // namespace

Stage conversion_stage() {
  return {"conversion",
          {{"E8", 1000, 1, 8, 2}, {"E64", 1000, 1, 64, 8}, {"E128", 1000, 1, 128, 8}},
          {"probs_and_bytes", "probs_and_bits", "plan", "scan_of_bytes"},
          prepare,
          [](Figures&) {}};
}

}  // namespace bench
