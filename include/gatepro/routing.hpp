// SPDX-License-Identifier: MIT
// Routing: from the logits of a token to its experts and their weights (GatePro eq. 2-4, 7-8).
//
//   logits ─► competition ─► scores, bias, groups ─► top-k ─► weights ─► padding ─► counts
//                                                      └─► gradients of the logits, backwards
//
// All of it is local to a token: a group of tokens stands in the lanes of vectors, one token a
// lane, so that no step is horizontal. Each step is also a stage of its own, for trainers that put
// something of theirs in between. Experts rank by one total order: allowed, not NaN, survivor
// before loser, larger value, lower id.
#ifndef GATEPRO_ROUTING_HPP
#define GATEPRO_ROUTING_HPP

#include "gatepro/routing/competition.hpp"
#include "gatepro/routing/count_unpenalised.hpp"
#include "gatepro/routing/fewer_choices.hpp"
#include "gatepro/routing/forced_routing.hpp"
#include "gatepro/routing/hash_routing.hpp"
#include "gatepro/routing/penalty_statistics.hpp"
#include "gatepro/routing/route_logits.hpp"
#include "gatepro/routing/route_logits_backward.hpp"
#include "gatepro/routing/routing_record.hpp"
#include "gatepro/routing/rules.hpp"
#include "gatepro/routing/softmax.hpp"
#include "gatepro/routing/tokens_per_expert.hpp"
#include "gatepro/routing/top_k.hpp"
#include "gatepro/routing/view.hpp"
#include "gatepro/routing/weigh_choices.hpp"

#endif  // GATEPRO_ROUTING_HPP
