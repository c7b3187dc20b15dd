// SPDX-License-Identifier: MIT
// What differs between the arms of a comparison.
#ifndef TRAIN_MOE_ROUTING_HPP
#define TRAIN_MOE_ROUTING_HPP

#include <cstdint>
#include <gatepro/router/complete_options.hpp>

namespace train_moe {

/// The steps at which competition starts and stops; 0: never.
struct Swaps {
  std::int64_t on_at = 0;
  std::int64_t off_at = 0;
};

/// True if there is competition at `step`. Each swap holds until the other one; before the first,
/// the competition is what that swap ends.
inline bool competes_at(const Swaps& swaps, std::int64_t step) {
  const auto& [on, off] = swaps;
  const bool on_passed = on > 0 && step >= on;
  const bool off_passed = off > 0 && step >= off;
  if (on_passed && off_passed) return on > off;
  if (on_passed || off_passed) return on_passed;
  return on == 0 || (off > 0 && off < on);
}

/// How a layer routes. Off: plain top-k.
struct Routing {
  Routing() { config.competition = gatepro::Competition::off(); }

  /// The router's settings. Sizes are the run's.
  gatepro::CompleteConfig config{};
  /// The partners of the initial weights stay.
  bool frozen_partners = false;
  /// Partners are those whose outputs, not whose router rows, are most similar.
  bool output_partners = false;
  /// Steps between two choices of partners; 0: the run's.
  std::int64_t refresh_every = 0;
  /// A refresh looks at rows that turned, only.
  bool lazy_refresh = false;
  /// Of a token's K choices, the best that count; 0: all.
  gatepro::Index choices = 0;
  /// Other than the run's.
  Swaps swaps{};
  /// A loss that keeps the router's rows apart.
  gatepro::OrthogonalityRule apart{};
  /// The router starts from orthogonal rows, as long as random ones are.
  bool orthogonal_start = false;
  /// A random table chooses the experts of each byte; the router only weighs.
  bool hash = false;
  /// The logits have a learned bias, which starts at 0.
  bool gate_bias = false;
  /// Logits are rounded to bfloat16 before they decide.
  bool bf16_logits = false;
};

/// The same, with new partners every so many steps where the routing does not say otherwise.
inline Routing refreshed(Routing routing, std::int64_t refresh_every) {
  using gatepro::RefreshSchedule;
  RefreshSchedule& refresh = routing.config.refresh;
  refresh =
      RefreshSchedule::every(routing.refresh_every > 0 ? routing.refresh_every : refresh_every);
  if (routing.frozen_partners) refresh = RefreshSchedule::frozen();
  if (routing.lazy_refresh) refresh = refresh.lazily();
  return routing;
}

}  // namespace train_moe

#endif  // TRAIN_MOE_ROUTING_HPP
