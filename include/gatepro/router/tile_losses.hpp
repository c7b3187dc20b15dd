// SPDX-License-Identifier: MIT
// What losses take from the tokens of a forward while their logits are in cache.
#ifndef GATEPRO_ROUTER_TILE_LOSSES_HPP
#define GATEPRO_ROUTER_TILE_LOSSES_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/balance/share_sums.hpp"
#include "gatepro/router/complete_losses.hpp"
#include "gatepro/routing/routing_group.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// Fills share_sums_E and log_sum_exp_T of a forward's outputs, as an observer of its RoutingPass.
template <class A>
class TileLosses {
 public:
  TileLosses(Arena& arena, const CompleteConfig& config, int workers)
      : experts_(config.losses.any() ? config.num_experts : 0),
        function_(config.scores.function),
        sums_(arena, experts_, workers),
        scratch_(arena, workers, Carve{experts_}) {}

  /// Before a pass. Neither output needs to be given.
  void start(const VectorView<double>& share_sums_E, const VectorView<A>& log_sum_exp_T,
             const VectorView<const std::uint8_t>& is_padding_T) {
    share_sums_E_ = share_sums_E;
    log_sum_exp_T_ = log_sum_exp_T;
    is_padding_T_ = is_padding_T;
    if (share_sums_E.given()) sums_.clear();
  }

  void operator()(int worker, const typename Order<A>::Key* keys_EL,
                  const TokenRange& tokens) const {
    if (!share_sums_E_.given() && !log_sum_exp_T_.given()) return;
    const ScoreKernels<A>& kernel = score_kernels<A>();
    const Scratch mine = scratch_(worker);
    if (share_sums_E_.given()) {
      kernel.shares(keys_EL, experts_, function_, mine.shares_EL, nullptr, mine.log_sum_exp_L);
      sums_.add(worker, mine.shares_EL, [&](Index lane) {
        return lane < tokens.count && !is_masked(is_padding_T_, tokens.first + lane);
      });
    }
    if (!log_sum_exp_T_.given()) return;
    if (!share_sums_E_.given() || !is_softmax(function_)) {
      kernel.shares(keys_EL, experts_, ScoreFunction::softmax_before_top_k, nullptr, nullptr,
                    mine.log_sum_exp_L);
    }
    std::copy_n(mine.log_sum_exp_L, tokens.count, log_sum_exp_T_.data + tokens.first);
  }

  /// After it.
  void finish() const {
    if (share_sums_E_.given()) sums_.finish(share_sums_E_);
  }

 private:
  struct Scratch {
    A* shares_EL;
    A* log_sum_exp_L;
  };
  struct Carve {
    Index experts;
    Scratch operator()(Arena& arena) const {
      const Index lanes = kernels<A>().lanes;
      A* shares_EL = arena.take<A>(experts, lanes);
      return {shares_EL, arena.take<A>(lanes)};
    }
  };

  Index experts_;  ///< 0 if there are no losses.
  ScoreFunction function_;
  ShareSums<A> sums_;
  PerWorker<Carve> scratch_;
  VectorView<double> share_sums_E_{};
  VectorView<A> log_sum_exp_T_{};
  VectorView<const std::uint8_t> is_padding_T_{};
};

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTER_TILE_LOSSES_HPP
