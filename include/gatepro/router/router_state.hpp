// SPDX-License-Identifier: MIT
// What a checkpoint needs of a router, as plain data.
#ifndef GATEPRO_ROUTER_ROUTER_STATE_HPP
#define GATEPRO_ROUTER_ROUTER_STATE_HPP

#include <cstdint>
#include <vector>

namespace gatepro {

/// Everything that training has changed in a CompleteRouter: CompleteRouter::state makes one,
/// CompleteRouter::restore takes it back. A resumed run gives the bits of the run that was not
/// interrupted, under every refresh schedule.
///
/// Settings are not part of it: the trainer makes the router from the same config. Neither is the
/// similarity matrix: no forward reads it, and the next refresh makes it anew. Empty arrays mean
/// "has none": no partners yet, a bias of zeros, nothing counted. The members may be written to any
/// file format; integers and doubles hold every value exactly.
struct RouterState {
  std::vector<std::int32_t> partners_EM;    ///< E x m ids, row-major; empty before a refresh.
  std::int64_t partners_step = 0;           ///< The step of the last refresh or set_partners.
  std::vector<double> expert_bias_E;        ///< E, or empty without a bias.
  std::vector<std::int64_t> bias_counts_E;  ///< Tokens per expert since the last bias step.
  std::vector<double> correction_bias_E;    ///< E: the fixed bias, or empty without one.
  /// E x (1 + bins), row-major, since the last bias step; empty without any. See QuantileRule.
  std::vector<std::int64_t> quantile_counts_EB;
  std::int64_t quantile_choices = 0;           ///< That the tokens of these counts made.
  std::vector<std::int64_t> balance_counts_E;  ///< Accumulated since the last end_step.
  std::int64_t balance_tokens = 0;             ///< The same for tokens.
  std::vector<double> lambda_estimate;         ///< LambdaEstimate::estimate, if lambda adapts.
  std::vector<std::int64_t> lambda_counts;     ///< LambdaEstimate::counts since the last end_step.
  std::int64_t noise_position = 0;  ///< Tokens that have drawn noise: the next one draws here.
};

}  // namespace gatepro

#endif  // GATEPRO_ROUTER_ROUTER_STATE_HPP
