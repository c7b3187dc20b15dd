// SPDX-License-Identifier: MIT
// What differs between the arms of a comparison.
#ifndef TRAIN_MOE_ROUTING_HPP
#define TRAIN_MOE_ROUTING_HPP

#include <cstdint>
#include <gatepro/router/complete_options.hpp>

namespace train_moe {

/// How a layer routes. Off: plain top-k.
struct Routing {
  Routing() { config.competition = gatepro::Competition::off(); }

  /// The router's settings. Sizes and refreshes are the run's.
  gatepro::CompleteConfig config{};
  /// The partners of the initial weights stay.
  bool frozen_partners = false;
};

/// The same, with new partners every so many steps unless they are frozen.
inline Routing refreshed(Routing routing, std::int64_t refresh_every) {
  routing.config.refresh = routing.frozen_partners ? gatepro::RefreshSchedule::frozen()
                                                   : gatepro::RefreshSchedule::every(refresh_every);
  return routing;
}

}  // namespace train_moe

#endif  // TRAIN_MOE_ROUTING_HPP
