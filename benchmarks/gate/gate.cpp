// SPDX-License-Identifier: MIT
// The gating logits: one matrix product, weights packed in each call.
#include "peers/peer.hpp"
#include "support/machine.hpp"
#include "support/ours.hpp"
#include "support/stages.hpp"

namespace bench {
namespace {

// A logit of standard deviation 1 is a sum whose rounding errors stay far below this.
constexpr float tolerance = 1e-4f;

Contest prepare(const Shape& shape) {
  Contest contest;
  const GateInputs& inputs = contest.keep(GateInputs(shape));
  const auto new_logits = [&]() -> Floats& {
    return contest.keep(Floats(area(shape.tokens, shape.experts)));
  };
  const auto job_into = [&](Floats& logits) {
    return GateJob{shape, inputs.x_TH.data(), inputs.w_EH.data(), logits.data()};
  };

  Floats& logits = new_logits();
  const Run gatepro = ours::gate(job_into(logits));
  gatepro();
  contest.add("gatepro", gatepro);
  contest.add("gatepro_bf16", ours::gate_bf16(job_into(new_logits())));
  if (const Run dot = ours::gate_bf16_dot(job_into(new_logits())))
    contest.add("gatepro_bf16_dot", dot);
  contest.add("gatepro_half", ours::gate_half(job_into(new_logits())));
  if (ours::has_openmp()) contest.add("gatepro_openmp", ours::gate(job_into(new_logits()), 2));

  const auto add_peer = [&](const std::string& name, const Peer& peer) {
    if (peer.gate == nullptr) return;
    Floats& theirs = new_logits();
    const Run run = peer.gate(job_into(theirs));
    run();
    expect_close("gate " + shape.name + " " + name, theirs, logits, tolerance);
    contest.add(name, run);
  };
  add_peer("eigen", peers::eigen);
  add_peer("openblas", peers::openblas);
  add_peer("onednn", peers::onednn);
  add_peer("onednn_sgemm", peers::onednn_sgemm);
  contest.add("fma_peak", fma_peak());
  return contest;
}

void summarise(Figures& figures) {
  for (const Shape& shape : shapes_with_bars()) {
    const Contest contest = prepare(shape);
    const Samples samples =
        measure(contest, {"gatepro", "eigen", "openblas", "onednn", "onednn_sgemm", "fma_peak"},
                many_rounds);
    const double work = 2.0 * static_cast<double>(shape.tokens * shape.hidden * shape.experts);
    const double peak_runs = work / fma_peak_operations();
    const auto fraction_of_peak = [&](const std::string& name) -> std::optional<double> {
      const auto runs = samples.ratio("fma_peak", name);
      if (!runs) return std::nullopt;
      return *runs * peak_runs;
    };

    Figure fraction{"gemm_fraction_of_peak_" + shape.name, fraction_of_peak("gatepro")};
    fraction.ours = *samples.seconds("gatepro") / static_cast<double>(shape.tokens);
    fraction.against = *samples.seconds("fma_peak") * peak_runs / static_cast<double>(shape.tokens);
    fraction.fraction_of_peak = fraction.value;
    figures.add(fraction);
    for (const char* peer : {"openblas", "onednn", "onednn_sgemm", "eigen"}) {
      Figure figure = versus("gemm_vs_" + std::string(peer) + "_" + shape.name, samples, "gatepro",
                             peer, shape.tokens);
      if (const auto theirs = fraction_of_peak(peer)) {
        figure.fraction_of_peak = *fraction.value;
        figure.note += "peer at " + std::to_string(static_cast<int>(*theirs * 100)) + " % of peak";
      }
      figures.add(figure);
    }
  }
  const Samples samples = measure(
      prepare(e128), {"gatepro", "gatepro_bf16", "gatepro_bf16_dot", "gatepro_half", "fma_peak"},
      most_rounds);
  figures.add(over("bf16_vs_f32_E128", samples, "gatepro", "gatepro_bf16", e128.tokens));
  figures.add(
      excused(over("bf16_dot_vs_f32_E128", samples, "gatepro", "gatepro_bf16_dot", e128.tokens),
              "no AVX512_BF16 in this set"));
  figures.add(over("half_vs_f32_E128", samples, "gatepro", "gatepro_half", e128.tokens));
  const double peak = fma_peak_operations() / *samples.seconds("fma_peak");
  figures.remark("FMA peak " + std::to_string(static_cast<int>(peak / 1e9)) + " GF/s\n\n");
}

}  // namespace

Stage gate_stage() {
  return {"gate",
          all_shapes(),
          {"gatepro", "gatepro_openmp", "gatepro_bf16", "gatepro_bf16_dot", "gatepro_half", "eigen",
           "openblas", "onednn", "onednn_sgemm"},
          prepare,
          summarise};
}

}  // namespace bench
