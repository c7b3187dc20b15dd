// SPDX-License-Identifier: MIT
// A lazy refresh beside a full one, while the router weights walk at random.
#include <memory>
#include <stdexcept>

#include "support/ours.hpp"
#include "support/stages.hpp"

namespace bench {
namespace {

/// Router weights that move by `size` times their length with each step.
class Walk {
 public:
  Walk(const Shape& shape, float size)
      : size_(size),
        w_EH_(random_floats(area(shape.experts, shape.hidden), 2)),
        steps_(random_floats(w_EH_.size() + offsets, 3)) {}

  const float* weights() const { return w_EH_.data(); }

  void step() {
    start_ = (start_ + 311) % offsets;
    const float size = start_ % 2 == 0 ? size_ : -size_;
    const float* step = steps_.data() + start_;
    for (float& w : w_EH_) w += size * *step++;
  }

 private:
  /// Steps are runs of the same numbers, which start so near that no two rows share any.
  static constexpr std::size_t offsets = 1021;
  float size_;
  Floats w_EH_;
  Floats steps_;
  std::size_t start_ = 0;
};

constexpr float slow = 1e-4f, fast = 1e-2f;

/// Both refreshes of the same walk.
struct Refreshes {
  Refreshes(const Shape& shape, float size)
      : walk(shape, size),
        full_partners(static_cast<std::size_t>(shape.experts)),
        lazy_partners(full_partners),
        full(ours::refresh({shape, walk.weights(), full_partners.data()})),
        lazy(ours::refresh_lazily({shape, walk.weights(), lazy_partners.data()})) {}
  Walk walk;
  Ids full_partners, lazy_partners;
  Run full, lazy;
};

/// Each contestant takes the steps of the walk, which "walk" alone takes too.
Contest prepare(const Shape& shape) {
  Contest contest;
  const auto refreshes = std::make_shared<Refreshes>(shape, slow);
  contest.add("walk", [refreshes] { refreshes->walk.step(); });
  contest.add("full", [refreshes] { refreshes->walk.step(), refreshes->full(); });
  contest.add("lazy", [refreshes] { refreshes->walk.step(), refreshes->lazy(); });
  return contest;
}

double seconds_of(const Run& run) {
  const double start = seconds_now(Clock::thread);
  run();
  return seconds_now(Clock::thread) - start;
}

/// Seconds of a refresh, without the steps. A sample is the mean over so many steps that the rare
/// full searches of the lazy refresh have their share.
Samples measure_walk(const Shape& shape, float size) {
  constexpr int steps = 48;
  Refreshes refreshes(shape, size);
  Samples samples;
  for (int round = rounds_to_run(many_rounds); round > 0; --round) {
    double full = 0, lazy = 0;
    for (int step = 0; step < steps; ++step) {
      refreshes.walk.step();
      if (step % 2 == 0) full += seconds_of(refreshes.full);
      lazy += seconds_of(refreshes.lazy);
      if (step % 2 == 1) full += seconds_of(refreshes.full);
      if (refreshes.lazy_partners != refreshes.full_partners) {
        throw std::runtime_error("lazy_refresh " + shape.name + ": other partners");
      }
    }
    samples.append("full", full / steps);
    samples.append("lazy", lazy / steps);
  }
  return samples;
}

void summarise(Figures& figures) {
  for (const Shape& shape : {e64, e128, e256}) {
    figures.add(
        over("lazy_over_full_refresh_" + shape.name, measure_walk(shape, slow), "lazy", "full", 1));
    figures.add(over("lazy_fast_over_full_refresh_" + shape.name, measure_walk(shape, fast), "lazy",
                     "full", 1));
  }
}

}  // namespace

Stage lazy_refresh_stage() {
  return {"lazy_refresh", {e64, e128, e256}, {"walk", "full", "lazy"}, prepare, summarise};
}

}  // namespace bench
