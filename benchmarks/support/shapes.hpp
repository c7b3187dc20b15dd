// SPDX-License-Identifier: MIT
// The sizes that are measured.
#ifndef GATEPRO_BENCHMARKS_SUPPORT_SHAPES_HPP
#define GATEPRO_BENCHMARKS_SUPPORT_SHAPES_HPP

#include <cstddef>
#include <string>
#include <vector>

namespace bench {

using Index = std::ptrdiff_t;

/// One size of the problem: T, H, E, K.
struct Shape {
  std::string name;  ///< How the keys of the summary call it.
  Index tokens = 0;
  Index hidden = 0;
  Index experts = 0;
  Index top_k = 0;
};

/// The shapes that have bars.
inline const Shape e8{"E8", 4096, 768, 8, 2};
inline const Shape e64{"E64", 4096, 2048, 64, 8};
inline const Shape e128{"E128", 4096, 2048, 128, 8};
inline const Shape e256{"E256", 4096, 4096, 256, 8};

inline std::vector<Shape> shapes_with_bars() { return {e8, e64, e128, e256}; }

/// Those, and a wide router, a small batch and a single token.
inline std::vector<Shape> all_shapes() {
  std::vector<Shape> shapes = shapes_with_bars();
  shapes.push_back({"E256_H7168", 2048, 7168, 256, 8});
  shapes.push_back({"E128_T512", 512, 2048, 128, 8});
  shapes.push_back({"E64_T1", 1, 2048, 64, 8});
  return shapes;
}

/// Routers of 8 to 512 experts, for what depends on E and K alone. With half of all experts
/// selected, many tokens run out of survivors.
inline std::vector<Shape> expert_sweep() {
  std::vector<Shape> shapes;
  for (Index experts = 8; experts <= 512; experts *= 2) {
    const Index top_k = experts < 32 ? experts / 4 : 8;
    shapes.push_back({"E" + std::to_string(experts), 4096, 2048, experts, top_k});
  }
  shapes.push_back({"E16_K8", 4096, 2048, 16, 8});
  return shapes;
}

}  // namespace bench

#endif  // GATEPRO_BENCHMARKS_SUPPORT_SHAPES_HPP
