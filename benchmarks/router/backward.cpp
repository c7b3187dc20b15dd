// SPDX-License-Identifier: MIT
// Gradients to tokens and router weights. All contestants add to gradients that are there already.
#include "peers/peer.hpp"
#include "support/ours.hpp"
#include "support/stages.hpp"

namespace bench {
namespace {

/// The gradients that one contestant adds to.
struct Gradients {
  explicit Gradients(const Shape& shape)
      : dx_TH(area(shape.tokens, shape.hidden)), dw_EH(area(shape.experts, shape.hidden)) {}
  Floats dx_TH;
  Floats dw_EH;
};

void expect_same_gradients(const std::string& what, const Gradients& a, const Gradients& b,
                           double tolerance) {
  expect_near(what + " dx", a.dx_TH, b.dx_TH, tolerance);
  expect_near(what + " dw", a.dw_EH, b.dw_EH, tolerance);
}

/// `dense_TE` plus the gradients of the selected logits.
Floats merged(Floats dense_TE, const Shape& shape, const Ids& ids_TK, const Floats& dselected_TK) {
  for (std::size_t i = 0; i < ids_TK.size(); ++i) {
    const Index row = static_cast<Index>(i) / shape.top_k;
    dense_TE[static_cast<std::size_t>(row * shape.experts + ids_TK[i])] += dselected_TK[i];
  }
  return dense_TE;
}

Contest prepare(const Shape& shape) {
  Contest contest;
  const GateInputs& inputs = contest.keep(GateInputs(shape));
  const std::size_t choices = area(shape.tokens, shape.top_k);
  const std::size_t logits = area(shape.tokens, shape.experts);
  const auto new_gradients = [&]() -> Gradients& { return contest.keep(Gradients(shape)); };

  // The router: from the gradient of its weights.
  const Floats& dweights = contest.keep(random_floats(choices, 6));
  const auto route_job = [&](Gradients& into) {
    return RouteBackwardJob{shape,           inputs.x_TH.data(), inputs.w_EH.data(),
                            dweights.data(), into.dx_TH.data(),  into.dw_EH.data()};
  };
  Gradients& ours_route = new_gradients();
  const Run gatepro = ours::route_backward(route_job(ours_route));
  gatepro();
  contest.add("gatepro", gatepro);
  if (peers::torch.route_backward != nullptr) {
    Gradients& theirs = new_gradients();
    const Run torch = peers::torch.route_backward(route_job(theirs));
    torch();
    // A handful of tokens, whose last choice is decided by rounding, have another gradient.
    expect_same_gradients("backward " + shape.name + " torch", theirs, ours_route, 0.03);
    contest.add("torch", torch);
  }
  if (ours::has_openmp()) {
    contest.add("gatepro_openmp", ours::route_backward(route_job(new_gradients()), 2));
  }

  // The gate alone: from the gradient of the logits, sparse or dense. To a product they cost the
  // same.
  Ids& ids = contest.keep(Ids(choices));
  Floats& weights = contest.keep(Floats(choices));
  ours::route({shape, inputs.x_TH.data(), inputs.w_EH.data(), ids.data(), weights.data()},
              gatepro::Competition::off())();
  const Floats& dselected = contest.keep(random_floats(choices, 7, 0.1f));
  const Floats& dense = contest.keep(random_floats(logits, 8, 0.1f));
  const auto gate_job = [&](const float* dlogits_TE, Gradients& into) {
    return GateBackwardJob{shape,      inputs.x_TH.data(), inputs.w_EH.data(),
                           dlogits_TE, into.dx_TH.data(),  into.dw_EH.data()};
  };
  const auto add_gate = [&](const std::string& name, const float* dlogits_TE,
                            const Floats& all_dlogits_TE) {
    Gradients& mine = new_gradients();
    const Run run = ours::gate_backward(gate_job(dlogits_TE, mine), ids, dselected);
    run();
    contest.add(name, run);
    if (peers::openblas.gate_backward == nullptr) return;
    Gradients& theirs = new_gradients();
    const Run openblas = peers::openblas.gate_backward(gate_job(all_dlogits_TE.data(), theirs));
    openblas();
    expect_same_gradients("backward " + shape.name + " openblas against " + name, theirs, mine,
                          1e-5);
    contest.add("openblas", openblas);
  };
  const Floats& sparse_dlogits = contest.keep(merged(Floats(logits), shape, ids, dselected));
  const Floats& dense_dlogits = contest.keep(merged(dense, shape, ids, dselected));
  add_gate("gatepro_sparse", nullptr, sparse_dlogits);
  add_gate("gatepro_dense", dense.data(), dense_dlogits);
  return contest;
}

void summarise(Figures& figures) {
  for (const Shape& shape : {e64, e128, e256}) {
    const Samples samples =
        measure(prepare(shape), {"gatepro", "torch", "gatepro_sparse", "gatepro_dense", "openblas"},
                many_rounds);
    const auto add = [&](const std::string& key, const char* ours, const char* peer) {
      figures.add(versus(key + shape.name, samples, ours, peer, shape.tokens));
    };
    add("backward_vs_torch_", "gatepro", "torch");
    add("backward_vs_dense_openblas_", "gatepro_sparse", "openblas");
    add("backward_dense_vs_openblas_", "gatepro_dense", "openblas");
  }
}

}  // namespace

Stage backward_stage() {
  return {"backward",
          all_shapes(),
          {"gatepro", "gatepro_openmp", "torch", "gatepro_sparse", "gatepro_dense", "openblas"},
          prepare,
          summarise};
}

}  // namespace bench
