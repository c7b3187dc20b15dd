// SPDX-License-Identifier: MIT
// Raw bytes choose shapes, strides, options, partners and the bits of every number. A step of the
// router then either throws gatepro::Error and writes nothing, or keeps its promises: distinct ids
// in range, the rules for NaN, weights that sum to one, and the same bits fused, stage by stage, in
// two batches and with any number of workers.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <gatepro/gatepro.hpp>
#include <limits>
#include <vector>

#include "fuzz/fuzzing.hpp"
#include "support/executors.hpp"

namespace {

using fuzzing::check;
using fuzzing::number;
using fuzzing::rarely;
using fuzzing::same;
using fuzzing::Values;
using gatepro::Index;
using gatepro::MatrixView;
using gatepro::StridedView;

/// A matrix in a heap block of exactly its size, so that any step outside is seen.
template <class T>
class Matrix {
 public:
  Matrix(Index rows, Index cols, Index row_stride)
      : memory_(static_cast<std::size_t>(
            rows == 0 ? 0 : (rows - 1) * std::max(row_stride, cols) + cols)),
        view_(memory_.data(), rows, cols, row_stride) {
    // A canary: not a value that any result has.
    std::fill_n(reinterpret_cast<unsigned char*>(memory_.data()), memory_.size() * sizeof(T), 0x5a);
  }
  void fill(Values& values) {
    for (T& value : memory_) value = values.next<T>();
  }
  const MatrixView<T>& view() const { return view_; }
  T operator()(Index r, Index c) const { return view_(r, c); }
  bool untouched() const {
    const auto* bytes = reinterpret_cast<const unsigned char*>(memory_.data());
    return std::all_of(bytes, bytes + memory_.size() * sizeof(T),
                       [](unsigned char byte) { return byte == 0x5a; });
  }

 private:
  std::vector<T> memory_;
  MatrixView<T> view_;
};

template <class T>
void check_same(const Matrix<T>& a, const Matrix<T>& b, const char* promise) {
  fuzzing::check_same(a.view(), b.view(), promise);
}

/// Outputs of one forward and backward of `tokens`.
template <class A>
struct Results {
  Results(Index tokens, Index hidden, Index experts, Index top_k, Index gap)
      : ids(tokens, top_k, top_k + gap),
        weights(tokens, top_k, top_k + gap),
        logits(tokens, experts, experts + gap),
        dx(tokens, hidden, hidden + gap),
        dw(experts, hidden, hidden + gap) {}
  Matrix<std::int32_t> ids;
  Matrix<A> weights, logits, dx, dw;
  gatepro::RoutingReport report;
};

template <class X, class W>
class Step {
 public:
  using A = gatepro::accumulator_t<X, W>;
  using Router = gatepro::Router<X, W>;

  Step(FuzzedDataProvider& data, const gatepro::RouterConfig& config)
      : router_(config),
        tokens_(data.ConsumeIntegralInRange<Index>(0, 70)),
        gap_(data.ConsumeIntegralInRange<Index>(0, 3)),
        x_(tokens_, config.hidden_size, choose_stride(data, config.hidden_size)),
        w_(config.num_experts, config.hidden_size, choose_stride(data, config.hidden_size)),
        dweights_(tokens_, config.top_k, config.top_k + gap_),
        dlogits_(tokens_, config.num_experts, config.num_experts + gap_),
        use_logits_(data.ConsumeBool()),
        dense_(data.ConsumeBool()),
        workers_(data.ConsumeIntegralInRange(1, 5)) {
    cut_ = data.ConsumeIntegralInRange<Index>(0, tokens_);
    missing_bytes_ = rarely(data) ? 1 : 0;
    set_partners_ = data.ConsumeBool();
    no_partners_ = rarely(data);
    Values values(data);
    values.set_special_share(data.ConsumeIntegralInRange<std::uint64_t>(0, 40));
    x_.fill(values);
    w_.fill(values);
    dweights_.fill(values);
    dlogits_.fill(values);
    choose_partners(values);
  }

  void run() {
    Results<A> whole = results(tokens_);
    try {
      forward(whole, 0, tokens_, workers_, missing_bytes_);
    } catch (const gatepro::Error&) {
      check(whole.ids.untouched() && whole.weights.untouched() && whole.logits.untouched(),
            "an Error writes nothing");
      return;
    }
    check_weights(whole);
    check_stages(whole);
    start_gradients(whole, 0);
    try {
      backward(whole, 0, tokens_, workers_);
    } catch (const gatepro::Error&) {
      Results<A> fresh = results(tokens_);
      start_gradients(fresh, 0);
      check_same(whole.dx, fresh.dx, "an Error adds nothing to dX");
      check_same(whole.dw, fresh.dw, "an Error adds nothing to dW");
      return;
    }
    check_batches(whole);
  }

 private:
  /// Rows with a gap; now and then rows that overlap.
  static Index choose_stride(FuzzedDataProvider& data, Index cols) {
    const Index gap = data.ConsumeIntegralInRange<Index>(0, 5);
    return rarely(data) ? cols - 1 : cols + gap;
  }

  void choose_partners(Values& values) {
    const Index experts = w_.view().rows;
    if (no_partners_) return;  // then competition is an Error
    if (set_partners_) {
      const Index m = router_.config().pairing.partners_per_expert;
      std::vector<std::int32_t> table(static_cast<std::size_t>(experts * m));
      // Rarely an id that is out of range.
      for (auto& id : table) {
        id = static_cast<std::int32_t>(values.next_bits() % static_cast<std::uint64_t>(experts));
        if (values.next_bits() % 2000 == 0) id = static_cast<std::int32_t>(values.next_bits());
      }
      router_.set_partners({table.data(), experts, m}, 0);
    } else {
      router_.refresh_now(w_.view(), 0, workers_);
    }
  }

  Results<A> results(Index tokens) const {
    const gatepro::RouterConfig& c = router_.config();
    return Results<A>(tokens, c.hidden_size, c.num_experts, c.top_k, gap_);
  }

  /// Routes `count` tokens from `first` into the first rows of `to`.
  void forward(Results<A>& to, Index first, Index count, const LastWorkerFirst& workers,
               std::size_t missing_bytes) const {
    typename Router::Routing out;
    out.expert_ids_TK = to.ids.view();
    out.weights_TK = to.weights.view();
    std::vector<std::byte> memory(router_.forward_workspace_bytes(workers.workers()) -
                                  missing_bytes);
    const auto x = x_.view().middle_rows(first, count);
    out.logits_TE = to.logits.view();
    to.report = router_.forward(x, w_.view(), out, memory, workers);
    if (!use_logits_) return;
    // Again from the logits, which must not change anything.
    Results<A> again = results(count);
    out.expert_ids_TK = again.ids.view();
    out.weights_TK = again.weights.view();
    out.logits_TE = {};
    gatepro::PenaltyStatistics statistics;
    out.statistics = &statistics;
    std::vector<std::int64_t> counts(static_cast<std::size_t>(w_.view().rows));
    out.tokens_per_expert_E = counts;
    again.report = router_.forward_logits(to.logits.view(), out, memory, workers);
    check_same(again.ids, to.ids, "ids from logits");
    check_same(again.weights, to.weights, "weights from logits");
    check(again.report.nonfinite_rows == to.report.nonfinite_rows, "NaN rows from logits");
    check(statistics.tokens == count, "tokens counted once");
    check(statistics.tokens_short_of_survivors == to.report.tokens_short_of_survivors,
          "tokens short of survivors");
    std::int64_t total = 0;
    for (std::int64_t n : counts) total += n;
    check(total == count * router_.config().top_k, "choices counted once");
  }

  void start_gradients(Results<A>& to, Index first) const {
    for (Index t = 0; t < to.dx.view().rows; ++t) {
      for (Index h = 0; h < to.dx.view().cols; ++h) {
        to.dx.view()(t, h) = static_cast<A>((first + t) % 7) - static_cast<A>(h % 3);
      }
    }
    for (Index e = 0; e < to.dw.view().rows; ++e) {
      for (Index h = 0; h < to.dw.view().cols; ++h) to.dw.view()(e, h) = static_cast<A>(e - h);
    }
  }

  void backward(Results<A>& to, Index first, Index count, const LastWorkerFirst& workers) const {
    std::vector<std::byte> memory(router_.backward_workspace_bytes(count, workers.workers()));
    MatrixView<const A> dlogits;
    if (dense_) dlogits = dlogits_.view().middle_rows(first, count);
    router_.backward(x_.view().middle_rows(first, count), w_.view(),
                     {StridedView<std::int32_t>(to.ids.view()), StridedView<A>(to.weights.view())},
                     {StridedView<A>(dweights_.view().middle_rows(first, count)), dlogits},
                     {to.dx.view(), to.dw.view()}, memory, workers);
  }

  void check_weights(const Results<A>& whole) const {
    const Index top_k = router_.config().top_k;
    Index nonfinite = 0;
    for (Index t = 0; t < tokens_; ++t) {
      std::vector<bool> seen(static_cast<std::size_t>(w_.view().rows));
      A sum = 0;
      for (Index j = 0; j < top_k; ++j) {
        const std::int32_t id = whole.ids(t, j);
        check(id >= 0 && id < w_.view().rows, "ids in range");
        check(!seen[static_cast<std::size_t>(id)], "distinct ids");
        seen[static_cast<std::size_t>(id)] = true;
        const A weight = whole.weights(t, j);
        check(std::isnan(weight) == std::isnan(whole.weights(t, 0)), "all or no weights are NaN");
        check(std::isnan(weight) || (weight >= 0 && weight <= 1), "weights in [0, 1]");
        sum += weight;
      }
      nonfinite += std::isnan(sum) ? 1 : 0;
      check(std::isnan(sum) ||
                std::abs(sum - 1) <= static_cast<A>(4 + top_k) * std::numeric_limits<A>::epsilon(),
            "weights sum to one");
    }
    check(whole.report.nonfinite_rows == nonfinite, "NaN rows are counted");
  }

  /// The same results from the stages, with other numbers of workers.
  void check_stages(const Results<A>& whole) const {
    const gatepro::RouterConfig& c = router_.config();
    const Index experts = c.num_experts;
    Results<A> staged = results(tokens_);
    Matrix<A> penalised(tokens_, experts, experts), selected(tokens_, c.top_k, c.top_k);
    Matrix<std::uint8_t> losers(tokens_, experts, experts + gap_);
    const StridedView<std::int32_t> ids = staged.ids.view();
    const StridedView<A> selected_TK = selected.view(), weights_TK = staged.weights.view();
    std::vector<std::byte> memory(
        gatepro::gate_logits_workspace_bytes<X, W>(experts, c.hidden_size, 2));
    gatepro::gate_logits(x_.view(), w_.view(), staged.logits.view(), memory, LastWorkerFirst{2});
    check_same(staged.logits, whole.logits, "logits stage by stage");
    memory = std::vector<std::byte>(gatepro::apply_competition_workspace_bytes<A>(experts, 3));
    const auto eliminated = gatepro::apply_competition(
        staged.logits.view(), router_.similarity_cache().rivals(), c.competition, penalised.view(),
        losers.view(), memory, LastWorkerFirst{3});
    memory = std::vector<std::byte>(gatepro::select_top_k_workspace_bytes<A>(experts, c.top_k, 2));
    const Index short_tokens = gatepro::select_top_k(penalised.view(), eliminated, ids, selected_TK,
                                                     memory, LastWorkerFirst{2});
    memory = std::vector<std::byte>(gatepro::softmax_selected_workspace_bytes<A>(c.top_k));
    const Index nonfinite = gatepro::softmax_selected(selected_TK, weights_TK, memory);
    check_same(staged.ids, whole.ids, "ids stage by stage");
    check_same(staged.weights, whole.weights, "weights stage by stage");
    check(short_tokens == whole.report.tokens_short_of_survivors, "short tokens stage by stage");
    check(nonfinite == whole.report.nonfinite_rows, "NaN rows stage by stage");
    for (Index t = 0; t < tokens_; ++t) {
      bool nan = false, all_minus_inf = true;
      for (Index j = 0; j < c.top_k; ++j) {
        const A logit = selected(t, j);
        nan = nan || std::isnan(logit) || logit == std::numeric_limits<A>::infinity();
        all_minus_inf = all_minus_inf && logit == -std::numeric_limits<A>::infinity();
      }
      check(std::isnan(whole.weights(t, 0)) == (nan || all_minus_inf), "the rule for NaN weights");
    }
  }

  /// The same results in two batches, on one worker.
  void check_batches(const Results<A>& whole) const {
    Results<A> first = results(cut_), second = results(tokens_ - cut_);
    forward(first, 0, cut_, LastWorkerFirst{1}, 0);
    forward(second, cut_, tokens_ - cut_, LastWorkerFirst{1}, 0);
    start_gradients(first, 0);
    backward(first, 0, cut_, LastWorkerFirst{1});
    start_gradients(second, cut_);
    for (Index e = 0; e < w_.view().rows; ++e) {
      std::copy_n(first.dw.view().row(e), w_.view().cols, second.dw.view().row(e));
    }
    backward(second, cut_, tokens_ - cut_, LastWorkerFirst{1});
    check_same(second.dw, whole.dw, "dW in two batches");
    for (Index t = 0; t < tokens_; ++t) {
      const Results<A>& part = t < cut_ ? first : second;
      const Index row = t < cut_ ? t : t - cut_;
      for (Index j = 0; j < router_.config().top_k; ++j) {
        check(part.ids(row, j) == whole.ids(t, j), "ids in two batches");
        check(same(part.weights(row, j), whole.weights(t, j)), "weights in two batches");
      }
      for (Index e = 0; e < w_.view().rows; ++e) {
        check(same(part.logits(row, e), whole.logits(t, e)), "logits in two batches");
      }
      for (Index h = 0; h < w_.view().cols; ++h) {
        check(same(part.dx(row, h), whole.dx(t, h)), "dX in two batches");
      }
    }
  }

  Router router_;
  Index tokens_, gap_;
  Matrix<X> x_;
  Matrix<W> w_;
  Matrix<A> dweights_, dlogits_;
  bool use_logits_, dense_;
  LastWorkerFirst workers_;
  Index cut_ = 0;
  std::size_t missing_bytes_ = 0;
  bool set_partners_ = false, no_partners_ = false;
};

gatepro::RouterConfig choose_config(FuzzedDataProvider& data) {
  gatepro::RouterConfig config;
  config.num_experts = data.ConsumeIntegralInRange<Index>(1, 40);
  config.hidden_size = data.ConsumeIntegralInRange<Index>(1, 12);
  if (rarely(data)) config.hidden_size *= 53;  // several depth blocks
  config.top_k = data.ConsumeIntegralInRange<Index>(1, std::min<Index>(config.num_experts, 12));
  config.pairing.partners_per_expert = data.ConsumeIntegralInRange<Index>(
      1, std::max<Index>(1, std::min<Index>(config.num_experts - 1, 4)));
  config.pairing.both_sides = data.ConsumeBool();
  config.pairing.keep_similarity = data.ConsumeBool();
  const double lambdas[] = {1e-4, 0, 0.3, 1e4, 1e30};
  const double thresholds[] = {-1, 0, 0.5, 1};
  config.competition.mode =
      static_cast<gatepro::CompetitionMode>(data.ConsumeIntegralInRange(0, 2));
  config.competition.ties = static_cast<gatepro::TieRule>(data.ConsumeIntegralInRange(0, 1));
  config.competition.lambda = lambdas[data.ConsumeIntegralInRange(0, 4)];
  config.pairing.min_similarity = thresholds[data.ConsumeIntegralInRange(0, 3)];
  config.allow_zero_gradient = data.ConsumeBool();
  // Settings that may be refused.
  if (rarely(data)) config.num_experts = data.ConsumeIntegral<std::int8_t>();
  if (rarely(data)) config.hidden_size = data.ConsumeIntegral<std::int8_t>();
  if (rarely(data)) config.top_k = data.ConsumeIntegral<std::int8_t>();
  if (rarely(data)) config.pairing.partners_per_expert = data.ConsumeIntegral<std::int8_t>();
  if (rarely(data)) config.competition.lambda = number(data);
  if (rarely(data)) config.pairing.min_similarity = number(data);
  return config;
}

template <class X, class W>
void run_step(FuzzedDataProvider& data) {
  const gatepro::RouterConfig config = choose_config(data);
  try {
    Step<X, W> step(data, config);
    step.run();
  } catch (const gatepro::Error&) {
    // Bad settings, partners or shapes: refused, which is right.
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  FuzzedDataProvider data(bytes, size);
  if (data.ConsumeIntegralInRange(0, 3) == 3) {
    run_step<gatepro::half, double>(data);
  } else {
    run_step<float, float>(data);
  }
  return 0;
}
