// SPDX-License-Identifier: MIT
// What a routing tells about its tokens.
#ifndef GATEPRO_ROUTING_REPORT_HPP
#define GATEPRO_ROUTING_REPORT_HPP

#include "gatepro/core/views.hpp"

namespace gatepro {

/// Tokens that need attention after a forward.
struct RoutingReport {
  Index nonfinite_rows =
      0;  ///< Their weights are quiet NaNs: a NaN or +inf was selected, or all
          ///< selected logits are -inf. Their ids are still distinct and in range.
  Index tokens_short_of_survivors = 0;  ///< Elimination: fewer than K survivors; losers filled in.
};

}  // namespace gatepro

#endif  // GATEPRO_ROUTING_REPORT_HPP
