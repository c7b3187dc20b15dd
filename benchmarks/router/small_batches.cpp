// SPDX-License-Identifier: MIT
// A forward of few tokens, serial and with OpenMP: two threads must not lose to one.
#include "support/ours.hpp"
#include "support/stages.hpp"

namespace bench {
namespace {

Contest prepare(const Shape& shape) {
  Contest contest;
  const GateInputs& inputs = contest.keep(GateInputs(shape));
  const std::size_t choices = area(shape.tokens, shape.top_k);
  Ids& ids = contest.keep(Ids(choices));
  Floats& weights = contest.keep(Floats(choices));
  const RouteJob job{shape, inputs.x_TH.data(), inputs.w_EH.data(), ids.data(), weights.data()};
  const auto penalty = gatepro::Competition::penalty(0.1);
  contest.add("gatepro", ours::route(job, penalty));
  if (ours::has_openmp()) contest.add("gatepro_openmp", ours::route(job, penalty, 2));
  return contest;
}

std::vector<Shape> shapes() {
  std::vector<Shape> shapes;
  for (const Shape& router :
       {Shape{"E8", 0, 768, 8, 2}, Shape{"E64", 0, 2048, 64, 8}, Shape{"E256", 0, 4096, 256, 8}}) {
    for (const Index tokens : {1, 16, 49, 96, 192, 384, 768}) {
      Shape shape = router;
      shape.tokens = tokens;
      shape.name += "_T" + std::to_string(tokens);
      shapes.push_back(shape);
    }
  }
  return shapes;
}

}  // namespace

Stage small_batches_stage() {
  return {"small_batches", shapes(), {"gatepro", "gatepro_openmp"}, prepare, [](Figures&) {}};
}

}  // namespace bench
