// SPDX-License-Identifier: MIT
// The end of a sum: in its own type or, rounded once, in one of 16 bits.
#ifndef GATEPRO_GATE_ROUNDING_HPP
#define GATEPRO_GATE_ROUNDING_HPP

#include <type_traits>

#include "gatepro/core/views.hpp"
#include "gatepro/kernels/dispatch.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// Puts sums that were made beside a row into it. Those made in it stand there already.
template <class A, class D>
void end_sums([[maybe_unused]] const A* sums, [[maybe_unused]] Index cols,
              [[maybe_unused]] D* row) {
  if constexpr (!std::is_same_v<A, D>) narrow_kernels<D>().narrow(sums, cols, row);
}

/// One of them.
template <class D, class A>
D rounded_to(A sum) {
  if constexpr (std::is_same_v<A, D>) {
    return sum;
  } else {
    D rounded;
    end_sums(&sum, 1, &rounded);
    return rounded;
  }
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_GATE_ROUNDING_HPP
