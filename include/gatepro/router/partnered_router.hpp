// SPDX-License-Identifier: MIT
// What all routers share: their settings, their partners, and when these are refreshed.
#ifndef GATEPRO_ROUTER_PARTNERED_ROUTER_HPP
#define GATEPRO_ROUTER_PARTNERED_ROUTER_HPP

#include <cstdint>

#include "gatepro/gate/logits.hpp"
#include "gatepro/partners/similarity_cache.hpp"
#include "gatepro/router/config.hpp"
#include "gatepro/routing/active_competition.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// All settings but those that SimilarityCache checks.
template <class A>
void check_router_config(const Checks& checks, const RouterConfig& config) {
  checks.need(config.hidden_size >= 1, "hidden_size >= 1", {{"hidden_size", config.hidden_size}});
  checks.num_experts(config.num_experts);
  checks.top_k(config.top_k, config.num_experts);
  check_competition<A>(checks, config.competition);
  packed_size<A>(config.num_experts, config.hidden_size);
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Base of Router and CompleteRouter. `A` is the type of logits, `W` that of router weights,
/// `Config` is RouterConfig or adds to it.
///
/// `refresh`, `set_partners` and the setters write, and must not run beside other calls on the same
/// router. One that was moved from refuses all calls until it is assigned.
template <class A, class W, class Config>
class PartneredRouter {
 public:
  /// The settings.
  const Config& config() const {
    check_not_moved_from();
    return config_;
  }

  /// The arithmetic of forwards from tokens: the one wanted, as far as the machine has it.
  GateArithmetic gate_arithmetic() const {
    return gatepro::gate_arithmetic(config().gate_arithmetic, config_.num_experts);
  }

  /// Changes when partners are recomputed. Throws Error for an interval below 1.
  void set_refresh_schedule(const RefreshSchedule& schedule) {
    check_not_moved_from();
    cache_.set_schedule(schedule);
    config_.refresh = schedule;
  }

  /// Recomputes partners from w_EH (E x H) if that is due at optimizer step `step`; true if it was.
  /// Call it after each optimizer step. Throws and allocates as SimilarityCache::refresh does.
  template <class Executor = SerialExecutor>
  bool refresh(MatrixView<const W> w_EH, std::int64_t step, const Executor& executor = {}) {
    check_weights("Router::refresh", w_EH);
    return cache_.refresh(w_EH, step, executor);
  }

  /// Recomputes partners from w_EH (E x H) at once. Throws and allocates as
  /// SimilarityCache::refresh_now does.
  template <class Executor = SerialExecutor>
  void refresh_now(MatrixView<const W> w_EH, std::int64_t step, const Executor& executor = {}) {
    check_weights("Router::refresh", w_EH);
    cache_.refresh_now(w_EH, step, executor);
  }

  /// What refresh does, and the loss of `rule` on w_EH, whose gradient is added to dw_EH (E x H, or
  /// not given): see SimilarityCache::refresh_with_loss. Call it once a step, with the weights that
  /// the step's forwards use and after dw_EH was set to zeros.
  template <class Executor = SerialExecutor>
  OrthogonalityReport refresh_with_loss(MatrixView<const W> w_EH, std::int64_t step,
                                        const OrthogonalityRule& rule, MatrixView<A> dw_EH,
                                        const Executor& executor = {}) {
    check_weights("Router::refresh", w_EH);
    return cache_.refresh_with_loss(w_EH, step, rule, dw_EH, executor);
  }

  /// Takes partners from outside; see SimilarityCache::set_partners.
  void set_partners(StridedView<const std::int32_t> partners_EM, std::int64_t step) {
    check_not_moved_from();
    cache_.set_partners(partners_EM, step);
  }

  /// The similarities and partners.
  const SimilarityCache<accumulator_t<W>>& similarity_cache() const {
    check_not_moved_from();
    return cache_;
  }

 protected:
  /// `config` has been checked.
  explicit PartneredRouter(const Config& config)
      : config_(config), cache_(config.num_experts, config.pairing, config.refresh) {}

  /// The settings are still there in a router that was moved from; the rest is not.
  void check_not_moved_from() const {
    detail::need(cache_.num_experts() > 0, "Router", "a router that was not moved from");
  }

  /// Changes the competition for all later forwards: on, off, lambda, elimination. Off, or lambda =
  /// 0, routes bit for bit like a router without partners. Throws Error for a lambda that is
  /// negative or not finite.
  void set_competition(const Competition& competition) {
    check_not_moved_from();
    detail::check_competition<A>("Router", competition);
    config_.competition = competition;
  }

  /// Throws Error unless they are E x H.
  void check_weights(const detail::Checks& checks, const MatrixView<const W>& w_EH) const {
    checks.matrix("w_EH", w_EH, config().num_experts, config_.hidden_size);
  }
  /// The same for weights with a bias.
  void check_weights(const detail::Checks& checks, const BiasedWeights<W, A>& weights) const {
    detail::check_biased_weights(checks, weights, config().num_experts, config_.hidden_size);
  }
  /// The same for weights packed before.
  void check_weights(const detail::Checks& checks, const PackedWeights<A>& weights) const {
    detail::need(weights.num_experts() == config().num_experts &&
                     weights.hidden_size() == config_.hidden_size,
                 checks.where(), "packed weights of num_experts x hidden_size",
                 {{"rows", weights.num_experts()}, {"cols", weights.hidden_size()}});
    checks.need(weights.arithmetic() == gate_arithmetic(),
                "weights packed for the router's gate_arithmetic");
  }

 private:
  Config config_;
  SimilarityCache<accumulator_t<W>> cache_;
};

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_ROUTER_PARTNERED_ROUTER_HPP
