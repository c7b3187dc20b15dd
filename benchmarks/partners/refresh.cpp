// SPDX-License-Identifier: MIT
// Similarity and partners of the router weights, beside one forward of the router.
#include <cmath>

#include "peers/peer.hpp"
#include "support/ours.hpp"
#include "support/stages.hpp"

namespace bench {
namespace {

/// The E x E cosines as plainly as can be, to compare choices of partners with.
Floats cosines(const Floats& w_EH, const Shape& shape) {
  const auto dot = [&](Index i, Index j) {
    const float* a = w_EH.data() + i * shape.hidden;
    const float* b = w_EH.data() + j * shape.hidden;
    double sum = 0;
    for (Index h = 0; h < shape.hidden; ++h) sum += double{a[h]} * double{b[h]};
    return sum;
  };
  Floats cosines_EE;
  std::vector<double> norms;
  for (Index i = 0; i < shape.experts; ++i) norms.push_back(std::sqrt(dot(i, i)));
  for (Index i = 0; i < shape.experts; ++i) {
    for (Index j = 0; j < shape.experts; ++j) {
      const double lengths =
          norms[static_cast<std::size_t>(i)] * norms[static_cast<std::size_t>(j)];
      cosines_EE.push_back(static_cast<float>(dot(i, j) / lengths));
    }
  }
  return cosines_EE;
}

Contest prepare(const Shape& shape) {
  Contest contest;
  const GateInputs& inputs = contest.keep(GateInputs(shape));
  const auto experts = static_cast<std::size_t>(shape.experts);
  Ids& partners = contest.keep(Ids(experts));
  const RefreshJob job{shape, inputs.w_EH.data(), partners.data()};
  const Run gatepro = ours::refresh(job);
  gatepro();
  contest.add("gatepro", gatepro);
  if (ours::has_openmp()) contest.add("gatepro_openmp", ours::refresh(job, 2));
  if (peers::eigen.refresh != nullptr) {
    Ids& theirs = contest.keep(Ids(experts));
    const Run eigen = peers::eigen.refresh(RefreshJob{shape, inputs.w_EH.data(), theirs.data()});
    eigen();
    expect_same_choice("refresh " + shape.name + " eigen", cosines(inputs.w_EH, shape),
                       shape.experts, 1, theirs, partners, 1e-6f);
    contest.add("eigen", eigen);
  }

  Ids& ids = contest.keep(Ids(area(shape.tokens, shape.top_k)));
  Floats& weights = contest.keep(Floats(area(shape.tokens, shape.top_k)));
  contest.add("gatepro_forward", ours::route({shape, inputs.x_TH.data(), inputs.w_EH.data(),
                                              ids.data(), weights.data()},
                                             gatepro::Competition{}));
  return contest;
}

void summarise(Figures& figures) {
  for (const Shape& shape : {e64, e128, e256}) {
    const Samples samples =
        measure(prepare(shape), {"gatepro", "gatepro_forward", "eigen"}, many_rounds);
    figures.add(
        over("refresh_over_forward_" + shape.name, samples, "gatepro", "gatepro_forward", 1));
    figures.add(versus("refresh_vs_eigen_" + shape.name, samples, "gatepro", "eigen", 1));
  }
}

}  // namespace

Stage refresh_stage() {
  return {"refresh",
          shapes_with_bars(),
          {"gatepro", "gatepro_openmp", "eigen", "gatepro_forward"},
          prepare,
          summarise};
}

}  // namespace bench
