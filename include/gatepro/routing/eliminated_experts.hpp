// SPDX-License-Identifier: MIT
// Which experts of each token elimination has put last.
#ifndef GATEPRO_ROUTING_ELIMINATED_EXPERTS_HPP
#define GATEPRO_ROUTING_ELIMINATED_EXPERTS_HPP

#include <cstdint>

#include "gatepro/core/views.hpp"

namespace gatepro {

/// The experts that select_top_k ranks after all others, in the caller's memory. apply_competition
/// returns it: empty unless the mode is elimination, since the losers of a penalty have paid and
/// are not eliminated. A mask does not convert to it, so that one of losers is not taken for it.
class EliminatedExperts {
 public:
  /// Nobody.
  constexpr EliminatedExperts() = default;
  /// Those whose byte is not 0. mask_TE: T x E.
  GATEPRO_ALWAYS_INLINE explicit constexpr EliminatedExperts(
      const MatrixView<const std::uint8_t>& mask_TE)
      : mask_TE_(mask_TE) {}

  /// True if there is a mask.
  GATEPRO_ALWAYS_INLINE constexpr bool given() const { return mask_TE_.given(); }
  /// T x E bytes, or not given if nobody is eliminated.
  GATEPRO_ALWAYS_INLINE constexpr const MatrixView<const std::uint8_t>& mask_TE() const {
    return mask_TE_;
  }

 private:
  MatrixView<const std::uint8_t> mask_TE_{};
};

}  // namespace gatepro

#endif  // GATEPRO_ROUTING_ELIMINATED_EXPERTS_HPP
