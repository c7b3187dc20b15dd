// SPDX-License-Identifier: MIT
// Metrics: what a routing did, and what its weights have become. They read, and change nothing.
//
//   counts per expert ──► load_metrics, LoadCounts          W ──► S ──► pairwise_similarity
//   ids               ──► Coactivation                      partners ──► partner_similarity,
//   logits, rivals    ──► count_margins ──► MarginCounts                 partner_graph, churn
//                                     └──► LambdaEstimate ──► lambda
//   PenaltyStatistics ──► penalty_shares
//
// Accumulators hold integers, which add up over micro-batches, threads, layers and ranks. Spectral
// entropy and the diagnosis of a whole run have pages of their own, spectral_entropy.hpp and
// diagnosis.hpp.
#ifndef GATEPRO_METRICS_HPP
#define GATEPRO_METRICS_HPP

#include "gatepro/metrics/coactivation.hpp"
#include "gatepro/metrics/lambda_estimate.hpp"
#include "gatepro/metrics/loads.hpp"
#include "gatepro/metrics/margins.hpp"
#include "gatepro/metrics/partner_graph.hpp"
#include "gatepro/metrics/penalty_shares.hpp"
#include "gatepro/metrics/similarity.hpp"

#endif  // GATEPRO_METRICS_HPP
