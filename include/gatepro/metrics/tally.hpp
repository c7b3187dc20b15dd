// SPDX-License-Identifier: MIT
// What all accumulators of metrics are: integers that add up.
#ifndef GATEPRO_METRICS_TALLY_HPP
#define GATEPRO_METRICS_TALLY_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "gatepro/balance/balance_counts.hpp"

namespace gatepro {
inline namespace GATEPRO_ABI {

/// Base of LoadCounts, Coactivation and MarginCounts, the `Derived` that it is told: counts over
/// any tokens. Those of micro-batches, threads, layers and ranks add up as integers, so that one
/// big batch gives the same bits however it was cut.
///
/// Const calls may run concurrently; the others must be alone. Allocates when made, and in the
/// first all_reduce. One that was moved from holds nothing, and refuses all calls but `counts`.
template <class Derived>
class Tally {
 public:
  /// All integers: what a checkpoint keeps. Valid until the object goes.
  VectorView<const std::int64_t> counts() const { return counts_; }

  /// Takes the integers of a checkpoint. Throws Error for another number of them, or a negative
  /// one, before any change.
  void restore(VectorView<const std::int64_t> counts) {
    detail::check_counts(Derived::name, "counts", counts, size());
    std::copy(counts.data, counts.data + counts.size, counts_.begin());
  }

  /// Adds the counts of other tokens. Throws Error for another number of experts, or a sum beyond
  /// int64, before any change.
  void merge(const Derived& other) { merge(other.counts()); }
  /// The same for integers as `counts` gives them. Throws Error for a negative one, too.
  void merge(VectorView<const std::int64_t> counts) {
    const detail::Checks checks(Derived::name);
    detail::check_counts(checks, "counts", counts, size());
    detail::add_counts(checks, counts, counts_);
  }

  /// Replaces all counts by their sums over ranks; see NoReduce. Throws Error for a hook that
  /// leaves a negative count behind, and what it throws, before any change.
  template <class Reduce>
  void all_reduce(const Reduce& reduce) {
    detail::check_reduce<Reduce>();
    check_not_moved_from();
    spare_ = counts_;  // so that a failure changes nothing
    detail::reduce_counts(Derived::name, reduce, spare_);
    counts_.swap(spare_);
  }

  /// Forgets everything.
  void reset() {
    check_not_moved_from();
    std::fill(counts_.begin(), counts_.end(), std::int64_t{0});
  }

 protected:
  /// So many zeros.
  explicit Tally(Index size) : counts_(static_cast<std::size_t>(size)) {}

  /// Their number.
  Index size() const {
    check_not_moved_from();
    return static_cast<Index>(counts_.size());
  }
  /// Pointer to count `i`.
  std::int64_t* at(Index i) {
    check_not_moved_from();
    return counts_.data() + i;
  }
  /// The same, to read.
  const std::int64_t* at(Index i) const {
    check_not_moved_from();
    return counts_.data() + i;
  }

 private:
  void check_not_moved_from() const {
    detail::need(!counts_.empty(), Derived::name, "counts that were not moved from");
  }

  std::vector<std::int64_t> counts_;
  std::vector<std::int64_t> spare_;
};

}  // namespace GATEPRO_ABI

namespace detail {
inline namespace GATEPRO_ABI {

/// The argument, which counts experts.
inline Index checked_experts(const Checks& checks, Index num_experts) {
  checks.num_experts(num_experts);
  return num_experts;
}

/// part / whole, or 0 of nothing.
inline double share_of(double part, double whole) { return whole > 0 ? part / whole : 0; }
inline double share_of(std::int64_t part, std::int64_t whole) {
  return share_of(static_cast<double>(part), static_cast<double>(whole));
}

}  // namespace GATEPRO_ABI
}  // namespace detail
}  // namespace gatepro

#endif  // GATEPRO_METRICS_TALLY_HPP
