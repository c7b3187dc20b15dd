// SPDX-License-Identifier: MIT
// How gatepro does the jobs. `threads` above 1 takes the OpenMP executor.
#ifndef GATEPRO_BENCHMARKS_SUPPORT_OURS_HPP
#define GATEPRO_BENCHMARKS_SUPPORT_OURS_HPP

#include "gatepro/router/config.hpp"
#include "support/inputs.hpp"
#include "support/jobs.hpp"

namespace bench {
namespace ours {

/// True if there is an OpenMP executor.
bool has_openmp();
/// The instruction set in use.
const char* instruction_set();

/// gate_logits, which packs W too.
Run gate(const GateJob& job, int threads = 1);
/// The same with tokens in bfloat16.
Run gate_bf16(const GateJob& job);
/// The same with tokens and weights in bfloat16, by dot products of pairs; null where the machine
/// or the instruction set has none.
Run gate_bf16_dot(const GateJob& job);
/// The same with tokens in half.
Run gate_half(const GateJob& job);

/// Router::forward_logits, with random partners.
Run select(const SelectJob& job, const gatepro::Competition& competition, int threads = 1);
/// route_logits without competition: softmax over all experts before the choice, and DeepSeek-V3's.
Run select_after_softmax(const SelectJob& job);
Run select_deepseek(const DeepSeekJob& job);
/// Router::forward, with the partners of w_EH.
Run route(const RouteJob& job, const gatepro::Competition& competition, int threads = 1);

/// apply_competition: the penalty of the job, or elimination, as a stage of its own.
Run compete(const CompeteJob& job, gatepro::CompetitionMode mode);

/// Router::refresh_now, as the schedule has it: at once, or lazily.
Run refresh(const RefreshJob& job, int threads = 1);
Run refresh_lazily(const RefreshJob& job);

/// Router::backward after a forward.
Run route_backward(const RouteBackwardJob& job, int threads = 1);
/// gate_backward_tokens and gate_backward_weights, with the gradient of the selected logits and, if
/// the job has one, a dense gradient.
Run gate_backward(const GateBackwardJob& job, const Ids& ids_TK, const Floats& dselected_TK);

}  // namespace ours
}  // namespace bench

#endif  // GATEPRO_BENCHMARKS_SUPPORT_OURS_HPP
