// SPDX-License-Identifier: MIT
// A fixed bias of the choice beside the one that moves.
#ifndef GATEPRO_ROUTER_CORRECTION_BIAS_HPP
#define GATEPRO_ROUTER_CORRECTION_BIAS_HPP

#include <vector>

#include "gatepro/core/checks.hpp"
#include "gatepro/routing/selection_checks.hpp"

namespace gatepro {
namespace detail {
inline namespace GATEPRO_ABI {

/// The fixed bias, and its sum with the moving one, so that a choice adds one number as without it.
template <class A>
class CorrectionBias {
 public:
  bool given() const { return !values_.empty(); }
  /// Not given for none.
  VectorView<const A> values() const {
    return given() ? VectorView<const A>(values_) : VectorView<const A>();
  }
  /// Of the last `set` or `follow`.
  VectorView<const A> sums() const { return sums_; }

  /// Takes the values; none if not given. Throws before any change.
  void set(const Checks& checks, const VectorView<const A>& bias_E,
           const VectorView<const A>& moving_E) {
    checks.optional_vector("bias_E", bias_E, moving_E.size);
    check_bias_values(checks, "bias_E", bias_E);
    std::vector<A> values(bias_E.data, bias_E.data + bias_E.size), sums(values.size());
    values_.swap(values);
    sums_.swap(sums);
    follow(moving_E);
  }

  /// The moving bias has these values.
  void follow(const VectorView<const A>& moving_E) noexcept {
    Index e = 0;
    for (A& sum : sums_) {
      sum = moving_E[e] + values_[static_cast<std::size_t>(e)];
      ++e;
    }
  }

 private:
  std::vector<A> values_;  // empty for none
  std::vector<A> sums_;    // as many
};

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_ROUTER_CORRECTION_BIAS_HPP
