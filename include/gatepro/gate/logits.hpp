// SPDX-License-Identifier: MIT
// Stage: gating logits, X times the transpose of W (GatePro eq. 1).
#ifndef GATEPRO_GATE_LOGITS_HPP
#define GATEPRO_GATE_LOGITS_HPP

#include <algorithm>
#include <type_traits>
#include <vector>

#include "gatepro/core/checks.hpp"
#include "gatepro/core/workspace.hpp"
#include "gatepro/gate/arithmetic.hpp"
#include "gatepro/gate/biased_weights.hpp"
#include "gatepro/gate/packing.hpp"
#include "gatepro/gate/pairs.hpp"

namespace gatepro {
namespace detail {

/// Scratch of a worker that gates tiles.
template <class A>
struct GateScratch {
  A* logits_TE = nullptr;  ///< tile_tokens x padded experts.
  A* widened = nullptr;    ///< tile_tokens x depth_block, unless X is A.
};

inline namespace GATEPRO_ABI {

template <class X, class A>
GateScratch<A> carve_gate(Arena& arena, Index experts) {
  GateScratch<A> scratch;
  scratch.logits_TE = arena.take<A>(tile_tokens, padded_experts<A>(experts));
  if constexpr (!std::is_same_v<X, A>) scratch.widened = arena.take<A>(tile_tokens * depth_block);
  return scratch;
}

/// Copies the logits of a tile to the caller's rows.
template <class A>
void store_logits(const A* tile_TE, const MatrixView<A>& logits_TE) {
  const Index stride = padded_experts<A>(logits_TE.cols);
  for (Index t = 0; t < logits_TE.rows; ++t) {
    std::copy_n(tile_TE + t * stride, logits_TE.cols, logits_TE.row(t));
  }
}

/// Tokens of a tile: tile_tokens, or fewer to give each worker as many tiles, but not so few that
/// reading W takes longer than the products. Bits do not depend on it.
inline Index tile_rows(Index tokens, Index workers) {
  if (workers == 1) return tile_tokens;
  constexpr Index kernel_rows = 6, least_rows = tile_tokens / 2;
  const Index round = workers * tile_tokens;
  const Index tiles = std::max<Index>(1, (tokens + round - 1) / round) * workers;
  const Index share = (tokens + tiles - 1) / tiles;
  const Index rows = (share + kernel_rows - 1) / kernel_rows * kernel_rows;
  return std::clamp(rows, least_rows, tile_tokens);
}

/// How many of `workers` the product with E x H weights keeps busy. Each reads all of W, which
/// takes about as long as the products of a tile.
template <class Executor>
int gate_workers(const Executor& executor, int workers, Index tokens, Index experts, Index hidden) {
  return useful_workers(executor, workers, {tokens - tile_tokens, experts, hidden});
}

/// All tiles of X against packed weights. `finish(worker, first_token, count, tile_TE)` gets each
/// tile of logits while it is in cache.
template <class X, class A, class Scratch, class Executor, class Finish>
void for_each_gated_tile(const MatrixView<const X>& x_TH, const PackedView<A>& packed,
                         const Scratch& scratch, const Executor& executor, int workers,
                         const Finish& finish) {
  const Index stride = padded_experts<A>(packed.experts);
  const Index rows = tile_rows(x_TH.rows, workers);
  const Index tiles = (x_TH.rows + rows - 1) / rows;
  for_each_block(executor, workers, tiles, [&](int worker, Index tile) {
    const Index first = tile * rows;
    const Index count = (std::min)(rows, x_TH.rows - first);
    const GateScratch<A> mine = scratch(worker);
    gate_packed_tile<X, A>(x_TH.middle_rows(first, x_TH.rows - first), count, packed, mine.widened,
                           mine.logits_TE, stride);
    if (packed.bias != nullptr) add_packed_bias(packed, count, mine.logits_TE, stride);
    finish(worker, first, count, static_cast<const A*>(mine.logits_TE));
  });
}

template <class X, class A, class Executor>
void gate_into(const MatrixView<const X>& x_TH, const PackedView<A>& packed,
               const MatrixView<A>& logits_TE, Arena& arena, const Executor& executor,
               int workers) {
  const auto carve = [&](Arena& a) { return carve_gate<X, A>(a, packed.experts); };
  const PerWorker scratch(arena, workers, carve);
  const int busy = gate_workers(executor, workers, x_TH.rows, packed.experts, packed.hidden);
  for_each_gated_tile(x_TH, packed, scratch, executor, busy,
                      [&](int, Index first, Index count, const A* tile_TE) {
                        store_logits(tile_TE, logits_TE.middle_rows(first, count));
                      });
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Router weights, rearranged once for many forwards. W is never cached silently: whoever keeps a
/// PackedWeights decides when to pack again. Reading is thread-safe; packing is not. One that was
/// moved from is empty, 0 x 0, and refused by all that would read it.
template <class A>
class PackedWeights {
 public:
  /// Packs `w_EH` (E x H). Allocates E * H elements, E rounded up to a vector. An Error for a view
  /// without data or with rows that overlap, and for a `wanted` that the scalars do not allow.
  template <class W>
  explicit PackedWeights(MatrixView<W> w_EH, GateArithmetic wanted = GateArithmetic::widened) {
    pack(w_EH, wanted);
  }
  /// The same with a bias of the logits, which is packed with them.
  template <class W>
  explicit PackedWeights(const BiasedWeights<W, A>& weights,
                         GateArithmetic wanted = GateArithmetic::widened) {
    pack(weights, wanted);
  }

  /// Packs again, for weights of any shape; allocates only if they are larger. On an Error the old
  /// weights stay.
  template <class W>
  void pack(MatrixView<W> w_EH, GateArithmetic wanted = GateArithmetic::widened) {
    pack(BiasedWeights<detail::value_t<W>, A>{w_EH}, wanted);
  }
  /// The same with a bias of the logits. Packed again without one, they have none.
  template <class W>
  void pack(const BiasedWeights<W, A>& weights, GateArithmetic wanted = GateArithmetic::widened) {
    using Token = std::conditional_t<std::is_same_v<A, float>, W, A>;  // the narrowest yet
    detail::check_input_scalars<W, W>();
    static_assert(std::is_same_v<accumulator_t<W, A>, A>,
                  "gatepro: packed weights must hold W without loss");
    const auto& [w_EH, bias_E] = weights;
    const detail::Checks checks("PackedWeights");
    detail::check_gate_arithmetic<Token, W>(checks, wanted);
    checks.num_experts(w_EH.rows);
    detail::check_biased_weights(checks, weights, w_EH.rows, w_EH.cols);
    const std::size_t lines = lines_for(detail::packed_size<A>(w_EH.rows, w_EH.cols));
    const Index bias_size = bias_E.given() ? detail::packed_bias_size<A>(w_EH.rows) : 0;
    lines_.resize((std::max<std::size_t>)(1, lines + lines_for(bias_size)));
    const auto packed =
        detail::pack_for<Token>(wanted, w_EH, lines_.data()->values, SerialExecutor{}, 1);
    if (bias_E.given()) detail::pack_bias(bias_E, lines_[lines].values);
    bias_line_ = lines;
    has_bias_ = bias_E.given();
    experts_ = w_EH.rows;
    hidden_ = w_EH.cols;
    pair_gate_ = packed.pair_gate;
  }

  /// E.
  Index num_experts() const { return lines_.empty() ? 0 : experts_; }
  /// H.
  Index hidden_size() const { return lines_.empty() ? 0 : hidden_; }
  /// True if a bias of the logits is packed with them.
  bool has_bias() const { return !lines_.empty() && has_bias_; }
  /// The arithmetic that they are packed for: as far as the machine has it, the one wanted.
  GateArithmetic arithmetic() const {
    return pair_gate_ == nullptr ? GateArithmetic::widened : GateArithmetic::bf16_dot;
  }
  /// The packed elements, for the library's own stages; num_experts() >= 1.
  detail::PackedView<A> packed() const {
    return {lines_.data()->values, experts_, hidden_, pair_gate_,
            has_bias_ ? lines_[bias_line_].values : nullptr};
  }

 private:
  static constexpr std::size_t per_line = 64 / sizeof(A);
  /// A cache line: vectors that cross two of them would be loaded at half the speed.
  struct alignas(64) Line {
    A values[per_line];
  };

  static std::size_t lines_for(Index elements) {
    return (static_cast<std::size_t>(elements) + per_line - 1) / per_line;
  }

  std::vector<Line> lines_;  // at least one, unless moved from; the bias begins a line
  std::size_t bias_line_ = 0;
  bool has_bias_ = false;
  Index experts_ = 0;
  Index hidden_ = 0;
  detail::PairGate<A> pair_gate_ = nullptr;
};

/// Bytes of workspace for gate_logits with unpacked weights of E x H, or with PackedWeights.
template <class X, class W>
std::size_t gate_logits_workspace_bytes(Index num_experts, Index hidden_size, Workers workers = 1) {
  detail::Checks("gate_logits").query_experts(num_experts);
  using A = accumulator_t<X, W>;
  return detail::measure([&](detail::Arena& arena) {
    arena.take<A>(detail::packed_size<A>(num_experts, hidden_size));
    arena.take<A>(detail::packed_bias_size<A>(num_experts));
    const auto carve = [&](detail::Arena& a) { return detail::carve_gate<X, A>(a, num_experts); };
    detail::PerWorker(arena, workers, carve);
  });
}

/// logits_TE = x_TH W^T (GatePro eq. 1), plus a bias if there is one, with weights packed before.
///
/// x_TH: T x H tokens of float, double, bfloat16 or half. logits_TE: T x E in A, overwritten; zeros
/// if H = 0.
/// Each logit is one chain of fused multiply-adds over ascending h where the instruction set has
/// them; GateArithmetic has another. Its bits depend on the token and the expert only, not on T,
/// threads or position, and 16-bit input gives those of its widened float. Error
/// |logit - exact| <= c sqrt(H) eps |x| |w|.
///
/// Throws Error on a shape, stride, null or workspace that does not fit, before any write. Cost:
/// 2 T E H operations, no allocation. Concurrent calls need workspaces of their own.
template <class X, class A, class Executor = SerialExecutor>
void gate_logits(MatrixView<X> x_TH, const PackedWeights<A>& weights, MatrixView<A> logits_TE,
                 Workspace workspace, const Executor& executor = {}) {
  using Token = detail::value_t<X>;
  detail::check_input_scalars<Token, A>();
  const detail::Checks checks("gate_logits");
  checks.need(weights.num_experts() >= 1, "packed weights that were not moved from");
  checks.need(weights.arithmetic() == GateArithmetic::widened || std::is_same_v<Token, bfloat16>,
              "bfloat16 tokens for weights that are packed for GateArithmetic::bf16_dot");
  checks.matrix("x_TH", x_TH, x_TH.rows, weights.hidden_size());
  checks.matrix("logits_TE", logits_TE, x_TH.rows, weights.num_experts());
  checks.overlaps(detail::output("logits_TE", logits_TE), detail::output("workspace", workspace),
                  detail::input("x_TH", x_TH));
  const int workers = checks.workers(executor);
  detail::Arena arena(
      checks.where(), workspace,
      gate_logits_workspace_bytes<Token, A>(weights.num_experts(), weights.hidden_size(), workers));
  detail::gate_into<Token, A>(x_TH, weights.packed(), logits_TE, arena, executor, workers);
}

/// logits_TE = x_TH w_EH^T + bias_E: packs `weights` into the workspace, then as above. `wanted` is
/// an Error if it does not fit the scalars.
template <class X, class W, class A, class Executor = SerialExecutor>
void gate_logits(MatrixView<X> x_TH, const BiasedWeights<W, A>& weights, MatrixView<A> logits_TE,
                 Workspace workspace, const Executor& executor = {},
                 GateArithmetic wanted = GateArithmetic::widened) {
  using Token = detail::value_t<X>;
  detail::check_input_scalars<Token, W>();
  static_assert(std::is_same_v<A, accumulator_t<Token, W>>,
                "gatepro: logits are double if X or W is, else float");
  const auto& [w_EH, bias_E] = weights;
  const detail::Checks checks("gate_logits");
  detail::check_gate_arithmetic<Token, W>(checks, wanted);
  checks.num_experts(w_EH.rows);
  checks.matrix("x_TH", x_TH, x_TH.rows, x_TH.cols);
  detail::check_biased_weights(checks, weights, w_EH.rows, x_TH.cols);
  checks.matrix("logits_TE", logits_TE, x_TH.rows, w_EH.rows);
  checks.overlaps(detail::output("logits_TE", logits_TE), detail::output("workspace", workspace),
                  detail::input("x_TH", x_TH), detail::input("w_EH", w_EH),
                  detail::input("bias_E", bias_E));
  const int workers = checks.workers(executor);
  detail::Arena arena(checks.where(), workspace,
                      gate_logits_workspace_bytes<Token, W>(w_EH.rows, w_EH.cols, workers));
  A* memory = arena.take<A>(detail::packed_size<A>(w_EH.rows, w_EH.cols));
  A* bias = arena.take<A>(detail::packed_bias_size<A>(w_EH.rows));
  const int busy = detail::gate_workers(executor, workers, x_TH.rows, w_EH.rows, w_EH.cols);
  auto packed = detail::pack_for<Token>(wanted, w_EH, memory, executor, busy);
  packed.bias = detail::pack_bias(bias_E, bias);
  detail::gate_into<Token, A>(x_TH, packed, logits_TE, arena, executor, workers);
}

/// The same without a bias: logits_TE = x_TH w_EH^T (GatePro eq. 1).
template <class X, class W, class A, class Executor = SerialExecutor>
void gate_logits(MatrixView<X> x_TH, MatrixView<W> w_EH, MatrixView<A> logits_TE,
                 Workspace workspace, const Executor& executor = {},
                 GateArithmetic wanted = GateArithmetic::widened) {
  gate_logits(x_TH, BiasedWeights<detail::value_t<W>, A>{w_EH}, logits_TE, workspace, executor,
              wanted);
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_GATE_LOGITS_HPP
