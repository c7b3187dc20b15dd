// SPDX-License-Identifier: MIT
// From logits to experts and weights. gatepro also applies the penalty, its peers do not.
#include <algorithm>

#include "peers/peer.hpp"
#include "support/ours.hpp"
#include "support/stages.hpp"

namespace bench {
namespace {

const std::vector<std::pair<std::string, Pattern>>& hard_patterns() {
  static const std::vector<std::pair<std::string, Pattern>> patterns{
      {"gatepro_all_ties", Pattern::all_ties},
      {"gatepro_bf16_rounded", Pattern::bf16_rounded},
      {"gatepro_duplicated", Pattern::duplicated},
      {"gatepro_sorted", Pattern::sorted}};
  return patterns;
}

Contest prepare(const Shape& shape) {
  Contest contest;
  const std::size_t choices = area(shape.tokens, shape.top_k);
  const Floats& logits = contest.keep(pattern_logits(Pattern::gaussian, shape));
  Ids& ids = contest.keep(Ids(choices));
  Floats& weights = contest.keep(Floats(choices));
  const SelectJob job{shape, logits.data(), ids.data(), weights.data()};

  // What the peers do is gatepro's routing without competition.
  ours::select(job, gatepro::Competition::off())();
  const auto add_peer = [&](const std::string& name, const Peer& peer) {
    if (peer.select == nullptr) return;
    Ids& their_ids = contest.keep(Ids(choices));
    Floats& their_weights = contest.keep(Floats(choices));
    const Run run =
        peer.select(SelectJob{shape, logits.data(), their_ids.data(), their_weights.data()});
    run();
    const std::string what = "selection " + shape.name + " " + name;
    expect_same_choice(what, logits, shape.experts, shape.top_k, their_ids, ids, 0);
    expect_close(what, their_weights, weights, 1e-6f);
    contest.add(name, run);
  };
  add_peer("partial_sort", peers::partial_sort);
  add_peer("full_sort", peers::full_sort);
  add_peer("k_scans", peers::k_scans);
  add_peer("torch", peers::torch);

  const gatepro::Competition penalty{};
  contest.add("gatepro", ours::select(job, penalty));
  if (ours::has_openmp()) contest.add("gatepro_openmp", ours::select(job, penalty, 2));
  for (const auto& [name, pattern] : hard_patterns()) {
    SelectJob hard = job;
    hard.logits_TE = contest.keep(pattern_logits(pattern, shape)).data();
    contest.add(name, ours::select(hard, penalty));
  }
  return contest;
}

void summarise(Figures& figures) {
  for (const Shape& shape : {e64, e128, e256}) {
    const Contest contest = prepare(shape);
    const Samples peers =
        measure(contest, {"gatepro", "partial_sort", "k_scans", "torch"}, many_rounds);
    for (const char* peer : {"partial_sort", "k_scans", "torch"}) {
      figures.add(versus("select_vs_" + std::string(peer) + "_" + shape.name, peers, "gatepro",
                         peer, shape.tokens));
    }

    std::vector<std::string> contestants{"gatepro"};
    for (const auto& pattern : hard_patterns()) contestants.push_back(pattern.first);
    const Samples patterns = measure(contest, contestants, many_rounds);
    Figure worst{""};
    for (const auto& pattern : hard_patterns()) {
      const Figure figure = over("select_worst_over_gaussian_" + shape.name, patterns,
                                 pattern.first, "gatepro", shape.tokens);
      if (worst.value && *worst.value >= *figure.value) continue;
      worst = figure;
      worst.note = pattern.first;
    }
    figures.add(worst);
  }
}

}  // namespace

Stage selection_stage() {
  std::vector<std::string> contestants{"gatepro",   "gatepro_openmp", "partial_sort",
                                       "full_sort", "k_scans",        "torch"};
  for (const auto& pattern : hard_patterns()) contestants.push_back(pattern.first);
  return {"selection", shapes_with_bars(), contestants, prepare, summarise};
}

}  // namespace bench
