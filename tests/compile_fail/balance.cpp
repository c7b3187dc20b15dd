// SPDX-License-Identifier: MIT
// What balancing must not accept: 16 bits for its bias, and hooks that cannot sum int64 counts.
#include <gatepro/balance/balance_counts.hpp>
#include <gatepro/balance/expert_bias.hpp>

#if defined(FAULT_bfloat16_bias)
using Bias = gatepro::bfloat16;
#else
using Bias = float;
#endif

struct Sum {
#if defined(FAULT_reduce_hook)
  void operator()(float*, gatepro::Index) const {}
#else
  void operator()(std::int64_t*, gatepro::Index) const {}
#endif
};

void step(gatepro::BalanceAccumulator& sums, const gatepro::BalanceCounts& batch) {
  gatepro::ExpertBias<Bias> bias(4);
  bias.accumulate(batch.tokens_per_expert_E);
  bias.step(Sum(), 1e-3);
  sums.add(batch, Sum());
}
