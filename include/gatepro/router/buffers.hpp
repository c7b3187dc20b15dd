// SPDX-License-Identifier: MIT
// Owns the results of a forward and the scratch of a router.
#ifndef GATEPRO_ROUTER_BUFFERS_HPP
#define GATEPRO_ROUTER_BUFFERS_HPP

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "gatepro/core/checks.hpp"
#include "gatepro/core/workspace.hpp"
#include "gatepro/router/config.hpp"
#include "gatepro/routing/view.hpp"

namespace gatepro {

/// What sizes outputs and workspaces besides the settings.
struct BufferShape {
  Index tokens = 0;     ///< The most tokens of a forward.
  Workers workers = 1;  ///< The most workers of an executor, or the executor.
  Index sequences = 1;  ///< The most sequences of a forward; read where a sequence loss is on.
  /// Router: T x E logits among the outputs. CompleteRouter always has them.
  bool keep_logits = false;
  /// T x K marks of who had lost among the outputs: Router if asked, CompleteRouter also where its
  /// gradients need them. A forward that fills a RoutingRecord needs them.
  bool keep_penalised = false;
};

namespace detail {
inline namespace GATEPRO_ABI {

inline void check_buffer_shape(const Checks& checks, const BufferShape& shape) {
  checks.need(shape.tokens >= 0, "max_tokens >= 0", {{"max_tokens", shape.tokens}});
  checks.need(shape.workers >= 1, "workers >= 1", {{"workers", shape.workers.count}});
  checks.need(shape.sequences >= 1, "sequences >= 1", {{"sequences", shape.sequences}});
}

/// Takes `shape.tokens` rows of `cols` elements, viewed as `tokens` rows.
template <class T>
MatrixView<T> take_rows(Arena& arena, const BufferShape& shape, Index tokens, Index cols) {
  const Index size =
      checked_product("RoutingBuffers", "max_tokens within the address space", cols, shape.tokens);
  return {arena.take<T>(size), tokens, cols};
}

/// Divides memory for shape.tokens tokens into outputs of `tokens` tokens: where an output starts
/// does not depend on `tokens`.
template <class A, class Id>
void carve_outputs(Arena& arena, const RouterConfig& config, const BufferShape& shape, Index tokens,
                   RoutingView<A, Id>& out) {
  out.expert_ids_TK = take_rows<Id>(arena, shape, tokens, config.top_k);
  out.weights_TK = take_rows<A>(arena, shape, tokens, config.top_k);
  out.tokens_per_expert_E = {arena.take<std::int64_t>(config.num_experts), config.num_experts};
  if (shape.keep_logits) out.logits_TE = take_rows<A>(arena, shape, tokens, config.num_experts);
  if (shape.keep_penalised) {
    out.penalised_TK = take_rows<std::uint8_t>(arena, shape, tokens, config.top_k);
  }
}

/// Bytes of the outputs of shape.tokens tokens, at any alignment.
template <class Routing, class Config>
std::size_t outputs_bytes(const Config& config, const BufferShape& shape) {
  check_buffer_shape("RoutingBuffers", shape);
  return measure([&](Arena& arena) {
    Routing out;
    carve_outputs(arena, config, shape, shape.tokens, out);
  });
}

/// These outputs, in `memory`.
template <class Routing, class Config>
Routing outputs_in(const Config& config, const BufferShape& shape, Workspace memory) {
  Arena arena("outputs", memory, outputs_bytes<Routing>(config, shape));
  Routing out;
  carve_outputs(arena, config, shape, shape.tokens, out);
  return out;
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// Owns the results of a forward and the workspace of a router, for those who want one line.
///
/// `RoutingBuffers buffers(router, max_tokens)` allocates once; forwards and backwards of up to
/// max_tokens tokens through it allocate nothing. One at a time. What was moved from throws Error
/// until it is given other buffers.
template <class R>
class RoutingBuffers {
 public:
  /// The scalar of weights and logits.
  using Accumulator = typename R::Accumulator;
  /// The type of expert ids.
  using ExpertId = typename R::ExpertId;
  /// Views of the results of a forward.
  using Routing = typename R::Routing;
  /// What a forward returns.
  using Report = typename R::Report;

  /// Memory for what `shape` says. Throws Error for negative sizes, and what the allocator throws.
  RoutingBuffers(const R& router, const BufferShape& shape)
      : config_(router.config()), shape_(shape) {
    // First, because these queries refuse sizes that no memory has.
    const std::size_t scratch = router.workspace_bytes(shape);
    outputs_.resize(router.outputs_bytes(shape) / sizeof(Line) + 1);
    workspace_.resize(scratch);
    resize(shape.tokens);
  }
  /// The same for up to `max_tokens` tokens and the workers of an executor, or a number of workers.
  /// A bool is none: that does not compile.
  RoutingBuffers(const R& router, Index max_tokens, Workers workers = 1)
      : RoutingBuffers(router, BufferShape{max_tokens, workers}) {}

  /// Sets T for the calls that follow; an Error above max_tokens. Allocates nothing.
  void resize(Index tokens) {
    check_tokens(tokens);
    tokens_ = tokens;
  }

  /// Where a forward writes and a backward reads. Set `statistics` of the copy to ask for them.
  Routing view() { return view(tokens_); }
  /// The same for `tokens` tokens, whatever T is set; an Error above max_tokens. All views start at
  /// the same addresses.
  Routing view(Index tokens) { return outputs(tokens); }
  /// Scratch for forward and backward.
  Workspace workspace() {
    check_not_moved_from();
    return workspace_;
  }

  /// T x K ids of the last forward, as RoutingView::expert_ids_TK.
  MatrixView<const ExpertId> expert_ids_TK() const { return whole(outputs(tokens_).expert_ids_TK); }
  /// T x K weights of the last forward.
  MatrixView<const Accumulator> weights_TK() const { return whole(outputs(tokens_).weights_TK); }
  /// E counts of the last forward.
  VectorView<const std::int64_t> tokens_per_expert_E() const {
    return outputs(tokens_).tokens_per_expert_E;
  }
  /// T x E logits of the last forward; not given unless they are kept.
  MatrixView<const Accumulator> logits_TE() const { return outputs(tokens_).logits_TE; }

  /// What the last forward through these buffers returned.
  const Report& report() const { return report_; }
  /// Set by forward, and to be set after forward_logits: T becomes the report's.
  void set_report(const Report& report) {
    resize(report.tokens);
    report_ = report;
  }

 private:
  /// The unit of memory: outputs start at the same offsets wherever it is.
  struct alignas(64) Line {
    std::byte bytes[64];
  };

  void check_not_moved_from() const {
    detail::need(!outputs_.empty(), "RoutingBuffers", "buffers that were not moved from");
  }

  void check_tokens(Index tokens) const {
    check_not_moved_from();
    detail::need(tokens >= 0 && tokens <= shape_.tokens, "RoutingBuffers",
                 "0 <= tokens <= max_tokens", {{"tokens", tokens}, {"max_tokens", shape_.tokens}});
  }

  template <class T>
  static MatrixView<const T> whole(const StridedView<T>& view) {
    return {view.data, view.rows, view.cols};
  }

  Routing outputs(Index tokens) const {
    check_tokens(tokens);
    auto* base = const_cast<Line*>(outputs_.data());  // const only through the const accessors
    detail::Arena arena = detail::Arena::at(base->bytes);
    Routing out;
    carve_outputs(arena, config_, shape_, tokens, out);
    return out;
  }

  typename R::Config config_;
  BufferShape shape_;
  Index tokens_ = 0;
  Report report_;
  std::vector<Line> outputs_;
  std::vector<std::byte> workspace_;
};

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_ROUTER_BUFFERS_HPP
