// SPDX-License-Identifier: MIT
// All of gatepro but gatepro/openmp.hpp, which needs OpenMP.
#ifndef GATEPRO_GATEPRO_HPP
#define GATEPRO_GATEPRO_HPP

#include "gatepro/balance_counts.hpp"
#include "gatepro/capacity.hpp"
#include "gatepro/competition.hpp"
#include "gatepro/cosine_similarity.hpp"
#include "gatepro/count_unpenalised.hpp"
#include "gatepro/detail/simd/dispatch.hpp"
#include "gatepro/dispatch_plan.hpp"
#include "gatepro/error.hpp"
#include "gatepro/executor.hpp"
#include "gatepro/expert_bias.hpp"
#include "gatepro/gate_backward.hpp"
#include "gatepro/gate_logits.hpp"
#include "gatepro/load_balancing_loss.hpp"
#include "gatepro/loss_weight.hpp"
#include "gatepro/noise.hpp"
#include "gatepro/options.hpp"
#include "gatepro/partner_pairing.hpp"
#include "gatepro/penalty_statistics.hpp"
#include "gatepro/permute.hpp"
#include "gatepro/router.hpp"
#include "gatepro/routing.hpp"
#include "gatepro/scalar.hpp"
#include "gatepro/scored_replay.hpp"
#include "gatepro/scored_routing.hpp"
#include "gatepro/similarity_cache.hpp"
#include "gatepro/softmax.hpp"
#include "gatepro/tokens_per_expert.hpp"
#include "gatepro/top_k.hpp"
#include "gatepro/version.hpp"
#include "gatepro/views.hpp"
#include "gatepro/workspace.hpp"
#include "gatepro/z_loss.hpp"

#endif  // GATEPRO_GATEPRO_HPP
