// SPDX-License-Identifier: MIT
// The whole router, from tokens to experts and weights. gatepro also applies the penalty, its peers
// do not.
#include "peers/peer.hpp"
#include "support/machine.hpp"
#include "support/ours.hpp"
#include "support/stages.hpp"

namespace bench {
namespace {

/// A product of one library, then a selection.
Run gate_then_select(const Peer& product, const Peer& selection, const RouteJob& job,
                     float* logits_TE) {
  return [gate = product.gate(GateJob{job.shape, job.x_TH, job.w_EH, logits_TE}),
          select = selection.select(SelectJob{job.shape, logits_TE, job.ids_TK, job.weights_TK})] {
    gate();
    select();
  };
}

Contest prepare(const Shape& shape) {
  Contest contest;
  const std::size_t choices = area(shape.tokens, shape.top_k);
  const GateInputs& inputs = contest.keep(GateInputs(shape));
  Floats& logits = contest.keep(Floats(area(shape.tokens, shape.experts)));
  Ids& ids = contest.keep(Ids(choices));
  Floats& weights = contest.keep(Floats(choices));
  const auto job_into = [&](Ids& into_ids, Floats& into_weights) {
    return RouteJob{shape, inputs.x_TH.data(), inputs.w_EH.data(), into_ids.data(),
                    into_weights.data()};
  };
  const RouteJob job = job_into(ids, weights);

  const Run off = ours::route(job, gatepro::Competition::off());
  const Run gate = ours::gate({shape, inputs.x_TH.data(), inputs.w_EH.data(), logits.data()});
  off();
  gate();
  // The peers' logits differ by rounding, so they may order near-equal experts differently.
  const auto add_peer = [&](const std::string& name, const auto& prepare_peer) {
    Ids& their_ids = contest.keep(Ids(choices));
    Floats& their_weights = contest.keep(Floats(choices));
    const Run run = prepare_peer(job_into(their_ids, their_weights));
    run();
    const std::string what = "router " + shape.name + " " + name;
    expect_same_choice(what, logits, shape.experts, shape.top_k, their_ids, ids, 1e-4f);
    expect_close(what, their_weights, weights, 1e-4f);
    contest.add(name, run);
  };
  Floats& their_logits = contest.keep(Floats(logits.size()));
  if (peers::torch.route != nullptr) add_peer("torch", peers::torch.route);
  if (peers::eigen.gate != nullptr) {
    add_peer("eigen_partial_sort", [&](const RouteJob& their_job) {
      return gate_then_select(peers::eigen, peers::partial_sort, their_job, their_logits.data());
    });
  }
  if (peers::openblas.gate != nullptr) {
    add_peer("openblas_full_sort", [&](const RouteJob& their_job) {
      return gate_then_select(peers::openblas, peers::full_sort, their_job, their_logits.data());
    });
  }

  const gatepro::Competition penalty{};
  contest.add("gatepro", ours::route(job, penalty));
  contest.add("gatepro_off", off);
  contest.add("gatepro_eliminate", ours::route(job, gatepro::Competition::eliminate()));
  contest.add("gatepro_gate_only", gate);
  if (ours::has_openmp()) contest.add("gatepro_openmp", ours::route(job, penalty, 2));
  return contest;
}

/// Best round with one thread through best round with two, if nobody else needs a processor.
Figure two_threads() {
  constexpr double most_busy = 0.1;  // of a processor
  Figure figure{"openmp_2_threads_E128"};
  const Contest contest = prepare(e128);
  const double busy_before = processors_busy_elsewhere();
  const Samples samples = measure(contest, {"gatepro", "gatepro_openmp"}, many_rounds, Clock::wall);
  const double busy_after = processors_busy_elsewhere();
  if (!samples.best("gatepro_openmp")) {
    figure.note = "OpenMP is missing";
    return figure;
  }
  figure = versus(figure.name, samples, "gatepro_openmp", "gatepro", e128.tokens);
  figure.value = *samples.best("gatepro") / *samples.best("gatepro_openmp");
  if (busy_before > most_busy || busy_after > most_busy) {
    figure.value.reset();
    figure.excused = true;
    figure.note = "machine busy, load average " + load_average();
  }
  return figure;
}

void summarise(Figures& figures) {
  for (const Shape& shape : shapes_with_bars()) {
    const Contest contest = prepare(shape);
    const Samples near_one =
        measure(contest, {"gatepro", "gatepro_off", "gatepro_gate_only"}, most_rounds);
    figures.add(over("router_over_gemm_" + shape.name, near_one, "gatepro", "gatepro_gate_only",
                     shape.tokens));
    figures.add(
        over("penalty_overhead_" + shape.name, near_one, "gatepro", "gatepro_off", shape.tokens));
    figures.add(nanoseconds("router_ns_" + shape.name, near_one.seconds("gatepro"), shape.tokens));
    const Samples peers = measure(contest, {"gatepro", "torch", "eigen_partial_sort"}, many_rounds);
    for (const char* peer : {"torch", "eigen_partial_sort"}) {
      figures.add(versus("router_vs_" + std::string(peer) + "_" + shape.name, peers, "gatepro",
                         peer, shape.tokens));
    }
  }
  figures.add(two_threads());
}

}  // namespace

Stage router_stage() {
  return {"router",
          all_shapes(),
          {"gatepro", "gatepro_openmp", "gatepro_off", "gatepro_eliminate", "gatepro_gate_only",
           "torch", "eigen_partial_sort", "openblas_full_sort"},
          prepare,
          summarise};
}

}  // namespace bench
