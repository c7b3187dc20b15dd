// SPDX-License-Identifier: MIT
// Stage: losses that keep the rows of W apart, functions of their cosines, and the gradient to W.
#ifndef GATEPRO_PARTNERS_ORTHOGONALITY_LOSS_HPP
#define GATEPRO_PARTNERS_ORTHOGONALITY_LOSS_HPP

#include <algorithm>
#include <cstdint>

#include "gatepro/partners/orthogonality_pass.hpp"
#include "gatepro/partners/partner_orthogonality.hpp"

namespace gatepro {

/// What an orthogonality loss found.
struct OrthogonalityReport {
  double loss = 0;          ///< Its value.
  SimilarityReport rows{};  ///< Rows without a direction; zeros if the loss is off.
};

namespace detail {
inline namespace GATEPRO_ABI {

inline void check_orthogonality_rule(const Checks& checks, const OrthogonalityRule& rule,
                                     Index experts) {
  checks.need(is_finite(rule.coefficient) && rule.coefficient >= 0,
              "orthogonality coefficient finite and >= 0", {{"coefficient", rule.coefficient}});
  checks.need(is_finite(rule.gradient_scale), "orthogonality gradient_scale finite",
              {{"gradient_scale", rule.gradient_scale}});
  checks.need(rule.groups >= 1 && experts % rule.groups == 0,
              "orthogonality groups >= 1 that divide num_experts",
              {{"groups", rule.groups}, {"num_experts", experts}});
  checks.need(rule.groups == 1 || !rule.only_partners,
              "orthogonality groups = 1 with only_partners", {{"groups", rule.groups}});
}

/// The loss over a table of partners, on checked arguments.
template <class W, class A, class Executor>
OrthogonalityReport partner_orthogonality(const MatrixView<const W>& w_EH,
                                          const StridedView<const std::int32_t>& partners_EM,
                                          const OrthogonalityRule& rule, const MatrixView<A>& dw_EH,
                                          Arena& arena, const Executor& executor, int workers) {
  const auto rows = carve_normed_rows<A>(arena, w_EH.rows, w_EH.cols);
  const PartnerOrthogonality<A> pass(arena, rule, partners_EM, rows, dw_EH);
  const double loss = pass.run(w_EH, executor, workers);
  return {loss, similarity_report(rows)};
}

/// The loss over all pairs, on checked arguments.
template <class W, class A, class Executor>
OrthogonalityReport dense_orthogonality(const MatrixView<const W>& w_EH,
                                        const OrthogonalityRule& rule, const MatrixView<A>& dw_EH,
                                        Arena& arena, const Executor& executor, int workers) {
  const auto rows = carve_normed_rows<A>(arena, w_EH.rows, w_EH.cols);
  const OrthogonalityPass<A> pass(arena, rule, rows, dw_EH, workers);
  for_each_cosine_tile<W>(
      w_EH, rows, arena, executor, workers,
      [&](int worker, const CosineTile<A>& tile) { pass.take(worker, tile); }, pass.pairs());
  return {pass.value(), similarity_report(rows)};
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Bytes of workspace for orthogonality_loss of E x H weights with a gradient in D; m: partners per
/// expert of a table, if there is one.
template <class D>
std::size_t orthogonality_loss_workspace_bytes(Index num_experts, Index hidden_size, Index m,
                                               Workers workers = 1) {
  detail::Checks("orthogonality_loss").query_experts(num_experts);
  return detail::measure([&](detail::Arena& arena) {
    const auto rows = detail::carve_normed_rows<D>(arena, num_experts, hidden_size);
    const OrthogonalityRule rule;
    detail::PartnerOrthogonality<D>(arena, rule, {nullptr, num_experts, m}, rows, {});
    detail::OrthogonalityPass<D>(arena, rule, rows, {}, workers);
    const auto carve = [&](detail::Arena& a) { return detail::carve_gate<D, D>(a, num_experts); };
    detail::PerWorker(arena, workers, carve);
  });
}

/// A loss that keeps the rows of W apart: see OrthogonalityRule. Returns its value, and adds the
/// gradient to dw_EH.
///
/// With ŵ = w / |w|, n the number of pairs that a mean is over, and s = gradient_scale:
/// * frobenius: L = c / n sum (C_ij - delta_ij)^2, dL/dw_i = s 4 c / n (g_i - <g_i, ŵ_i> ŵ_i) /
/// |w_i|
///   with g_i = sum over j != i of C_ij ŵ_j;
/// * simbal: L = c sum |<w_i, w_j> - delta_ij|, dL/dw_i = s 2 c sum over j of
///   sign(<w_i, w_j> - delta_ij) w_j, with sign(0) = 0.
///
/// w_EH: E x H router weights. partners_EM: E x m ids, i in row i for "none"; read with
/// rule.only_partners, else it may be not given. dw_EH: E x H in double if W is, else in float or
/// double, added to; or not given. Sums and values are in D; L is summed in double.
///
/// A row without a direction has no gradient. A zero row is orthogonal to all, and to simbal its
/// length is 1 off; a row with a NaN or infinity takes no part at all, nor in n. Rows are scaled by
/// powers of two first, so that frobenius neither overflows nor loses digits for very small and
/// very large ones. Its gradient is as large as 1 / |w_i|, and that of simbal as the sum of all
/// rows: an element that has no number in D is infinite, with its sign, and spoils no other. The
/// value of simbal is infinite where its sum leaves the range of double.
///
/// Throws Error for the rule, a shape, stride, null, id or workspace that does not fit, before any
/// write. Cost: about E^2 H operations for the value, as cosine_similarity; with a gradient three
/// times that; E m H with only_partners. No allocation, and no E x E matrix. Thread-safe. Bits do
/// not depend on the executor.
template <class W, class D, class Executor = SerialExecutor>
OrthogonalityReport orthogonality_loss(MatrixView<W> w_EH,
                                       StridedView<const std::int32_t> partners_EM,
                                       const OrthogonalityRule& rule, MatrixView<D> dw_EH,
                                       Workspace workspace, const Executor& executor = {}) {
  using Weight = detail::value_t<W>;
  static_assert(std::is_same_v<D, accumulator_t<Weight, D>>,
                "gatepro: gradients to W are double if W is, else float or double");
  const detail::Checks checks("orthogonality_loss");
  const Index experts = w_EH.rows;
  detail::check_similarity_weights(checks, w_EH);
  detail::check_orthogonality_rule(checks, rule, experts);
  checks.optional_matrix("dw_EH", dw_EH, experts, w_EH.cols);
  if (rule.only_partners) {
    checks.strided("partners_EM", partners_EM, experts, partners_EM.cols);
    checks.ids("partners_EM", partners_EM, experts);
  }
  checks.overlaps(detail::output("dw_EH", dw_EH), detail::output("workspace", workspace),
                  detail::input("w_EH", w_EH), detail::input("partners_EM", partners_EM));
  const int workers = checks.workers(executor);
  const Index m = rule.only_partners ? partners_EM.cols : 0;
  detail::Arena arena(checks.where(), workspace,
                      orthogonality_loss_workspace_bytes<D>(experts, w_EH.cols, m, workers));
  if (!rule.active()) return {};
  const MatrixView<const Weight> weights_EH(w_EH);
  if (rule.only_partners) {
    return detail::partner_orthogonality<Weight>(weights_EH, partners_EM, rule, dw_EH, arena,
                                                 executor, workers);
  }
  return detail::dense_orthogonality<Weight>(weights_EH, rule, dw_EH, arena, executor, workers);
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_PARTNERS_ORTHOGONALITY_LOSS_HPP
