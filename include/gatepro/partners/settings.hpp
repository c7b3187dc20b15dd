// SPDX-License-Identifier: MIT
// Who competes with whom, when that is found out, and how far rows are kept apart: plain data.
#ifndef GATEPRO_PARTNERS_SETTINGS_HPP
#define GATEPRO_PARTNERS_SETTINGS_HPP

#include <cstdint>
#include <optional>

#include "gatepro/core/views.hpp"

namespace gatepro {

/// Who competes with whom. The default is the paper's rule; the rest are its open ablations.
struct Pairing {
  Index partners_per_expert = 1;  ///< m: the m most similar experts are rivals. 1 <= m <= E - 1.
  double min_similarity = -1;     ///< tau: a pair competes iff S >= tau; in [-1, 1], -1 for all.
  bool both_sides = false;        ///< The loser of {i, j*(i)} pays, whoever named whom.
  /// Whether the cache stores S, E x E, beside the partners. If not set: if E <= 8192, where S
  /// takes 256 MiB in float.
  std::optional<bool> keep_similarity{};

  /// The answer for E experts.
  GATEPRO_ALWAYS_INLINE constexpr bool keeps_similarity(Index num_experts) const {
    return keep_similarity.value_or(num_experts <= 8192);
  }
};

/// When the similarity cache recomputes itself from the router weights.
struct RefreshSchedule {
  /// The kinds of schedule.
  enum class Kind {
    every_n_steps,  ///< Due from `interval` steps after the last refresh.
    on_demand,      ///< Never due: the trainer calls refresh_now or set_partners.
    frozen,         ///< Due once, while there are no partners.
  };
  Kind kind = Kind::every_n_steps;  ///< The kind.
  std::int64_t interval = 1;        ///< n of every_n_steps, in optimizer steps; >= 1.
  /// A refresh that is due looks how far the rows of W have turned, and recomputes only those whose
  /// partners could have changed. The partners are always those of a full refresh; S is not kept.
  bool lazy = false;

  /// Due at each new step.
  GATEPRO_ALWAYS_INLINE static constexpr RefreshSchedule every_step() {
    return {Kind::every_n_steps, 1};
  }
  /// Due when `n` steps have passed since the last refresh.
  GATEPRO_ALWAYS_INLINE static constexpr RefreshSchedule every(std::int64_t n) {
    return {Kind::every_n_steps, n};
  }
  /// Refreshed by explicit calls only.
  GATEPRO_ALWAYS_INLINE static constexpr RefreshSchedule on_demand() {
    return {Kind::on_demand, 1};
  }
  /// Refreshed at the first call, then kept.
  GATEPRO_ALWAYS_INLINE static constexpr RefreshSchedule frozen() { return {Kind::frozen, 1}; }
  /// The same schedule, but lazy.
  GATEPRO_ALWAYS_INLINE constexpr RefreshSchedule lazily() const { return {kind, interval, true}; }
};

/// What an orthogonality loss adds up, over the ordered pairs (i, j) of rows of W.
enum class OrthogonalityKind {
  /// The mean of (C_ij - delta_ij)^2 with C_ij = <w_i, w_j> / (|w_i| |w_j|), as ERNIE 4.5 has it.
  /// The length of a row plays no part.
  frobenius,
  /// The sum of |<w_i, w_j> - delta_ij|: SimBal (Omi et al. 2025, arXiv 2506.14038). The diagonal
  /// pulls lengths to 1.
  simbal,
};

/// A loss that turns rows of W away from each other: the rival of a competition. Off by default.
struct OrthogonalityRule {
  OrthogonalityKind kind = OrthogonalityKind::frobenius;  ///< What is added up.
  double coefficient = 0;     ///< c, finite and >= 0. 0 turns the loss off: nothing is read.
  double gradient_scale = 1;  ///< Multiplies the gradient, but not the value. Finite.
  /// G, a divisor of E: only rows of one group are compared. Group g holds those from g E / G on.
  Index groups = 1;
  /// frobenius divides by the number of pairs i != j, instead of that of all pairs.
  bool mean_over_others = false;
  /// Only the pairs (i, partner of i) of a table are compared, each as often as it stands there; no
  /// diagonal. frobenius divides by their number. Needs groups = 1.
  bool only_partners = false;

  /// False if there is no such loss.
  GATEPRO_ALWAYS_INLINE constexpr bool active() const { return coefficient > 0; }
};

}  // namespace gatepro

#endif  // GATEPRO_PARTNERS_SETTINGS_HPP
