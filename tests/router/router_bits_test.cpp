// SPDX-License-Identifier: MIT
// Bits do not depend on how the work is cut: threads, executor, ranges of tokens, experts and
// columns, fused or stage by stage, strides, which outputs are wanted. One test per way to cut.
#include <gatepro/gatepro.hpp>
#ifdef _OPENMP
#include <gatepro/openmp.hpp>
#endif

#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "support/bits.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/routing_data.hpp"
#include "support/type_names.hpp"

#if defined(_OPENMP) && defined(__clang__)
// libomp keeps its threads until the end of the process, which the leak sanitizer takes for a leak.
extern "C" const char* __lsan_default_suppressions() { return "leak:libomp"; }
#endif

namespace {

using data::random_matrix;
using data::same_bits;
using data::scratch;
using gatepro::Competition;
using gatepro::ExpertRange;
using gatepro::Index;
using gatepro::MatrixView;
using gatepro::RowMatrix;
using gatepro::SerialExecutor;
using gatepro::StridedView;
using routing_data::expect_same_outcome;
using routing_data::expect_same_report;

/// One type for all executors, so that each stage is compiled once.
struct AnyExecutor {
  enum class Kind { serial, threads, openmp };
  Kind kind = Kind::serial;
  int threads = 1;

  int workers() const { return threads; }
  template <class Body>
  void run(int count, Body body) const {
    if (kind == Kind::serial) SerialExecutor{}.run(count, body);
    if (kind == Kind::threads) ThreadExecutor(threads).run(count, body);
#ifdef _OPENMP
    if (kind == Kind::openmp) gatepro::OpenMPExecutor(threads).run(count, body);
#endif
  }
};

std::vector<AnyExecutor> executors() {
  std::vector<AnyExecutor> all;
  for (int threads : {1, 2, 3, 7, 16}) {
    all.push_back({AnyExecutor::Kind::serial, threads});
    all.push_back({AnyExecutor::Kind::threads, threads});
#ifdef _OPENMP
    all.push_back({AnyExecutor::Kind::openmp, threads});
#endif
  }
  return all;
}

/// Where a batch is cut: at odd places, and around the sizes of vectors, tiles and blocks.
std::vector<std::pair<Index, Index>> token_ranges(Index tokens) {
  std::vector<std::pair<Index, Index>> ranges;
  Index first = 0;
  for (Index end : {1, 3, 51, 52, 100, 355, 360}) {
    if (end < tokens) ranges.emplace_back(first, end - first), first = end;
  }
  ranges.emplace_back(first, tokens - first);
  return ranges;
}

struct Sizes {
  Index tokens, hidden, experts, top_k;
};

/// Few experts, and many; one depth block, and more; more tokens than a chunk of the backward.
const Sizes all_sizes[] = {{389, 70, 19, 3}, {130, 530, 5, 2}, {70, 24, 40, 8}};

template <class Scalars>
class RouterBits : public testing::Test {
 public:
  using Token = typename Scalars::X;
  using Weight = typename Scalars::W;
  using Result = gatepro::accumulator_t<Token, Weight>;
  using TestedRouter = gatepro::Router<Token, Weight>;
  using Outcome = routing_data::Outcome<TestedRouter>;
  using Gradients = routing_data::Gradients<Result>;

  struct Case {
    TestedRouter router;
    RowMatrix<Token> x_TH;
    RowMatrix<Weight> w_EH;
    RowMatrix<Result> dweights_TK;
    RowMatrix<Result> dlogits_TE;
    Gradients start;

    Outcome forward(const AnyExecutor& executor = {}) const {
      return routing_data::forward(router, x_TH, w_EH, executor);
    }
    Gradients backward(const Outcome& outcome, bool dense, const AnyExecutor& executor = {}) const {
      return routing_data::backward(router, x_TH, w_EH, outcome, dweights_TK,
                                    dense ? dlogits_TE : RowMatrix<Result>(), start, executor);
    }
  };

  static Case make(const Sizes& s, const Competition& competition) {
    gatepro::RouterConfig config{s.hidden, s.experts, s.top_k};
    config.competition = competition;
    config.pairing = {2, -1, true};
    Case c{TestedRouter(config),
           random_matrix<Token>(s.tokens, s.hidden, 1),
           random_matrix<Weight>(s.experts, s.hidden, 2, 0.3),
           random_matrix<Result>(s.tokens, s.top_k, 3),
           random_matrix<Result>(s.tokens, s.experts, 4),
           {random_matrix<Result>(s.tokens, s.hidden, 5),
            random_matrix<Result>(s.experts, s.hidden, 6)}};
    // Gradients of zero are skipped, however the work is cut.
    for (Index t = 0; t < s.tokens; t += 3) c.dlogits_TE.row(t).setZero();
    c.router.refresh(c.w_EH, 0);
    return c;
  }

  static std::vector<Case> cases() {
    std::vector<Case> all;
    for (const Sizes& s : all_sizes) {
      all.push_back(make(s, Competition::penalty(0.25)));
      all.push_back(make(s, Competition::eliminate()));
    }
    return all;
  }
};

using AllInputs =
    testing::Types<Inputs<float, float>, Inputs<gatepro::bfloat16, float>, Inputs<double, double>>;
TYPED_TEST_SUITE(RouterBits, AllInputs, InputNames);

TYPED_TEST(RouterBits, Executors) {
  for (const auto& c : TestFixture::cases()) {
    const auto whole = c.forward();
    for (const AnyExecutor& executor : executors()) {
      SCOPED_TRACE(executor.threads);
      expect_same_outcome(c.forward(executor), whole);
      for (bool dense : {false, true}) {
        const auto one = c.backward(whole, dense);
        const auto many = c.backward(whole, dense, executor);
        EXPECT_TRUE(same_bits(many.dx_TH, one.dx_TH));
        EXPECT_TRUE(same_bits(many.dw_EH, one.dw_EH));
      }
    }
  }
}

TYPED_TEST(RouterBits, RefreshedPartners) {
  for (const auto& c : TestFixture::cases()) {
    const auto expected = c.router.similarity_cache().similarity();
    for (const AnyExecutor& executor : executors()) {
      auto router = c.router;
      router.refresh_now(gatepro::view(c.w_EH), 1, executor);
      const auto actual = router.similarity_cache().similarity();
      for (Index e = 0; e < c.w_EH.rows(); ++e) {
        ASSERT_TRUE(std::equal(actual.row(e), actual.row(e) + actual.cols, expected.row(e)));
      }
      ASSERT_EQ(router.similarity_cache().partners_changed(), 0);
    }
  }
}

TYPED_TEST(RouterBits, ConsecutiveBatches) {
  using R = typename TestFixture::TestedRouter;
  for (const auto& c : TestFixture::cases()) {
    const auto whole = c.forward();
    typename TestFixture::Outcome parts(c.router, c.x_TH.rows());
    parts.tokens_per_expert_E.assign(parts.tokens_per_expert_E.size(), 0);
    for (bool dense : {false, true}) {
      auto gradients = c.start;
      for (const auto& [first, count] : token_ranges(c.x_TH.rows())) {
        const RowMatrix<typename TestFixture::Token> x = c.x_TH.middleRows(first, count);
        const auto part = routing_data::forward<R>(c.router, x, c.w_EH, AnyExecutor{});
        const auto added = routing_data::backward(
            c.router, x, c.w_EH, part,
            RowMatrix<typename TestFixture::Result>(c.dweights_TK.middleRows(first, count)),
            RowMatrix<typename TestFixture::Result>(
                c.dlogits_TE.middleRows(dense ? first : 0, dense ? count : 0)),
            {gradients.dx_TH.middleRows(first, count), gradients.dw_EH}, AnyExecutor{});
        gradients.dx_TH.middleRows(first, count) = added.dx_TH;
        gradients.dw_EH = added.dw_EH;
        if (dense) continue;
        parts.ids_TK.middleRows(first, count) = part.ids_TK;
        parts.weights_TK.middleRows(first, count) = part.weights_TK;
        parts.logits_TE.middleRows(first, count) = part.logits_TE;
        parts.statistics += part.statistics;
        parts.report.nonfinite_rows += part.report.nonfinite_rows;
        parts.report.tokens_short_of_survivors += part.report.tokens_short_of_survivors;
        for (std::size_t e = 0; e < parts.tokens_per_expert_E.size(); ++e) {
          parts.tokens_per_expert_E[e] += part.tokens_per_expert_E[e];
        }
      }
      const auto expected = c.backward(whole, dense);
      EXPECT_TRUE(same_bits(gradients.dx_TH, expected.dx_TH));
      EXPECT_TRUE(same_bits(gradients.dw_EH, expected.dw_EH));
    }
    expect_same_outcome(parts, whole);
  }
}

TYPED_TEST(RouterBits, EachTokenAlone) {
  const auto c = TestFixture::make(all_sizes[2], Competition::eliminate());
  const auto whole = c.forward();
  for (Index t = 0; t < c.x_TH.rows(); ++t) {
    const RowMatrix<typename TestFixture::Token> x = c.x_TH.row(t);
    const auto one = routing_data::forward(c.router, x, c.w_EH, AnyExecutor{});
    ASSERT_TRUE(same_bits<std::int32_t>(one.ids_TK, whole.ids_TK.row(t)));
    ASSERT_TRUE(same_bits<typename TestFixture::Result>(one.weights_TK, whole.weights_TK.row(t)));
    ASSERT_TRUE(same_bits<typename TestFixture::Result>(one.logits_TE, whole.logits_TE.row(t)));
  }
}

// What is not asked for changes nothing in the rest.
TYPED_TEST(RouterBits, OptionalOutputs) {
  for (const auto& c : TestFixture::cases()) {
    const auto whole = c.forward();
    for (int wanted = 0; wanted < 8; ++wanted) {
      typename TestFixture::Outcome part(c.router, c.x_TH.rows());
      auto out = part.view();
      if ((wanted & 1) == 0) out.tokens_per_expert_E = {};
      if ((wanted & 2) == 0) out.logits_TE = {};
      if ((wanted & 4) == 0) out.statistics = nullptr;
      auto memory = scratch(c.router.forward_workspace_bytes());
      part.report = c.router.forward(c.x_TH, c.w_EH, out, memory, AnyExecutor{});
      if ((wanted & 1) == 0) part.tokens_per_expert_E = whole.tokens_per_expert_E;
      if ((wanted & 2) == 0) part.logits_TE = whole.logits_TE;
      if ((wanted & 4) == 0) part.statistics = whole.statistics;
      expect_same_outcome(part, whole);
    }
  }
}

TYPED_TEST(RouterBits, GivenLogits) {
  for (const auto& c : TestFixture::cases()) {
    const auto whole = c.forward();
    expect_same_outcome(routing_data::forward_logits(c.router, whole.logits_TE, AnyExecutor{}),
                        whole);
  }
}

TYPED_TEST(RouterBits, PackedWeights) {
  using A = typename TestFixture::Result;
  for (const auto& c : TestFixture::cases()) {
    const gatepro::PackedWeights<A> packed(gatepro::view(c.w_EH));
    typename TestFixture::Outcome outcome(c.router, c.x_TH.rows());
    auto memory = scratch(c.router.forward_workspace_bytes());
    outcome.report = c.router.forward(c.x_TH, packed, outcome.view(), memory, AnyExecutor{});
    expect_same_outcome(outcome, c.forward());
  }
}

// The stages one after the other, each on ranges of tokens, cut and spread differently.
TYPED_TEST(RouterBits, StageByStage) {
  using A = typename TestFixture::Result;
  for (const auto& c : TestFixture::cases()) {
    const gatepro::RouterConfig& config = c.router.config();
    const Index tokens = c.x_TH.rows();
    const Index experts = config.num_experts;
    const AnyExecutor executor{AnyExecutor::Kind::threads, 3};
    const int workers = executor.workers();
    typename TestFixture::Outcome staged(c.router, tokens);
    RowMatrix<A> penalised(tokens, experts), selected(tokens, config.top_k);
    RowMatrix<std::uint8_t> losers(tokens, experts);
    std::vector<std::byte> memory;

    memory = scratch(gatepro::gate_logits_workspace_bytes<typename TestFixture::Token,
                                                          typename TestFixture::Weight>(
        experts, config.hidden_size, workers));
    gatepro::gate_logits(gatepro::view(c.x_TH), gatepro::view(c.w_EH),
                         gatepro::view(staged.logits_TE), memory, executor);
    for (const auto& [first, count] : token_ranges(tokens)) {
      memory = scratch(gatepro::apply_competition_workspace_bytes<A>(experts, workers));
      const auto penalised_range = gatepro::view(penalised).middle_rows(first, count);
      const auto loser_range = gatepro::view(losers).middle_rows(first, count);
      const auto eliminated =
          gatepro::apply_competition(gatepro::view(staged.logits_TE).middle_rows(first, count),
                                     c.router.similarity_cache().rivals(), config.competition,
                                     penalised_range, loser_range, memory, executor);
      memory = scratch(gatepro::select_top_k_workspace_bytes<A>(experts, config.top_k, workers));
      staged.report.tokens_short_of_survivors += gatepro::select_top_k(
          penalised_range, eliminated,
          gatepro::strided_view(staged.ids_TK).middle_rows(first, count),
          gatepro::strided_view(selected).middle_rows(first, count), memory, executor);
    }
    memory = scratch(gatepro::softmax_selected_workspace_bytes<A>(config.top_k, workers));
    staged.report.nonfinite_rows =
        gatepro::softmax_selected(gatepro::strided_view(selected),
                                  gatepro::strided_view(staged.weights_TK), memory, executor);
    staged.tokens_per_expert_E.assign(staged.tokens_per_expert_E.size(), 0);
    gatepro::add_tokens_per_expert(gatepro::strided_view(staged.ids_TK),
                                   staged.tokens_per_expert_E);

    const auto fused = c.forward();
    staged.statistics = fused.statistics;  // no stage counts them
    expect_same_outcome(staged, fused);
  }
}

// The stages of the backward, dW cut by experts and by columns, dX by tokens.
TYPED_TEST(RouterBits, BackwardStageByStage) {
  using A = typename TestFixture::Result;
  for (const auto& c : TestFixture::cases()) {
    const auto outcome = c.forward();
    const Index tokens = c.x_TH.rows();
    const Index experts = c.w_EH.rows();
    const Index hidden = c.w_EH.cols();
    const auto ids = gatepro::strided_view(outcome.ids_TK);
    RowMatrix<A> dselected(tokens, ids.cols);
    gatepro::softmax_backward(gatepro::strided_view(outcome.weights_TK),
                              gatepro::strided_view(c.dweights_TK),
                              gatepro::strided_view(dselected));
    for (bool dense : {false, true}) {
      MatrixView<const A> dlogits;
      if (dense) dlogits = c.dlogits_TE;
      const AnyExecutor executor{AnyExecutor::Kind::threads, 2};
      auto staged = c.start;
      auto memory = scratch(gatepro::gate_backward_tokens_workspace_bytes<A>(experts, 2));
      for (const auto& [first, count] : token_ranges(tokens)) {
        gatepro::gate_backward_tokens(gatepro::Choices{ids.middle_rows(first, count)},
                                      {gatepro::strided_view(dselected).middle_rows(first, count),
                                       dense ? dlogits.middle_rows(first, count) : dlogits},
                                      gatepro::view(c.w_EH),
                                      gatepro::view(staged.dx_TH).middle_rows(first, count), memory,
                                      executor);
      }
      memory =
          scratch(gatepro::gate_backward_weights_workspace_bytes<A>(tokens, experts, ids.cols, 2));
      const Index cut_expert = experts / 3;
      const Index cut_col = hidden / 2 + 3;
      for (const ExpertRange range : {ExpertRange{cut_expert, experts}, ExpertRange{0, cut_expert},
                                      ExpertRange{cut_expert, cut_expert}}) {
        for (const auto& [first, cols] :
             {std::pair<Index, Index>{0, cut_col}, {cut_col, hidden - cut_col}}) {
          gatepro::gate_backward_weights(
              gatepro::Choices{ids}, {gatepro::strided_view(dselected), dlogits},
              gatepro::view(c.x_TH).middle_cols(first, cols),
              gatepro::view(staged.dw_EH).middle_cols(first, cols), memory, executor, range);
        }
      }
      const auto fused = c.backward(outcome, dense);
      EXPECT_TRUE(same_bits(staged.dx_TH, fused.dx_TH));
      EXPECT_TRUE(same_bits(staged.dw_EH, fused.dw_EH));
    }
  }
}

/// A matrix inside a larger one, whose gaps hold `gap`.
template <class T>
class Strided {
 public:
  Strided(const RowMatrix<T>& m, Index extra, T gap)
      : memory_(RowMatrix<T>::Constant(m.rows(), m.cols() + extra, gap)),
        cols_(m.cols()),
        gap_(gap) {
    memory_.leftCols(cols_) = m;
  }
  MatrixView<T> view() { return {memory_.data(), memory_.rows(), cols_, memory_.cols()}; }
  RowMatrix<T> matrix() const { return memory_.leftCols(cols_); }
  bool gaps_untouched() const {
    const RowMatrix<T> gaps = memory_.rightCols(memory_.cols() - cols_);
    return same_bits(gaps, RowMatrix<T>(RowMatrix<T>::Constant(gaps.rows(), gaps.cols(), gap_)));
  }

 private:
  RowMatrix<T> memory_;
  Index cols_;
  T gap_;
};

// Rows with gaps everywhere, planes of choices, a workspace at an odd address: the gaps hold NaN
// and stay as they are.
TYPED_TEST(RouterBits, StridesAndAlignment) {
  using X = typename TestFixture::Token;
  using W = typename TestFixture::Weight;
  using A = typename TestFixture::Result;
  const A nan = std::numeric_limits<A>::quiet_NaN();
  const auto x_nan = static_cast<X>(nan);
  const auto w_nan = static_cast<W>(nan);
  for (const auto& c : TestFixture::cases()) {
    const Index tokens = c.x_TH.rows();
    const Index top_k = c.router.config().top_k;
    const auto whole = c.forward();
    Strided<X> x(c.x_TH, 3, x_nan);
    Strided<W> w(c.w_EH, 5, w_nan);
    Strided<A> logits(whole.logits_TE, 7, nan);
    typename TestFixture::Outcome planes(c.router, tokens);
    auto out = planes.view();
    out.expert_ids_TK = {planes.ids_TK.data(), tokens, top_k, 1, tokens};
    out.weights_TK = {planes.weights_TK.data(), tokens, top_k, 1, tokens};
    out.logits_TE = logits.view();
    auto memory = scratch(
        std::max(c.router.forward_workspace_bytes(), c.router.backward_workspace_bytes(tokens)) +
        1);
    const gatepro::Workspace odd(memory.data() + 1, memory.size() - 1);
    planes.report = c.router.forward(x.view(), w.view(), out, odd, AnyExecutor{});
    const StridedView<std::int32_t> ids = out.expert_ids_TK;
    const StridedView<A> weights = out.weights_TK;
    for (Index t = 0; t < tokens; ++t) {
      for (Index j = 0; j < top_k; ++j) {
        ASSERT_EQ(ids(t, j), whole.ids_TK(t, j));
        ASSERT_EQ(weights(t, j), whole.weights_TK(t, j));
      }
    }
    EXPECT_TRUE(same_bits(logits.matrix(), whole.logits_TE));
    EXPECT_TRUE(logits.gaps_untouched());
    expect_same_report(planes.report, whole.report);

    for (bool dense : {false, true}) {
      Strided<A> dlogits(c.dlogits_TE, 2, nan);
      Strided<A> dx(c.start.dx_TH, 9, nan);
      Strided<A> dw(c.start.dw_EH, 11, nan);
      const Eigen::Matrix<A, Eigen::Dynamic, Eigen::Dynamic> dweights = c.dweights_TK;  // columns
      c.router.backward(x.view(), w.view(), {ids, weights},
                        {dweights, dense ? dlogits.view() : MatrixView<A>()},
                        {dx.view(), dw.view()}, odd, AnyExecutor{});
      const auto expected = c.backward(whole, dense);
      EXPECT_TRUE(same_bits(dx.matrix(), expected.dx_TH));
      EXPECT_TRUE(same_bits(dw.matrix(), expected.dw_EH));
      EXPECT_TRUE(dx.gaps_untouched());
      EXPECT_TRUE(dw.gaps_untouched());
    }
  }
}

// 16-bit tokens and weights give the bits of their widened floats.
TYPED_TEST(RouterBits, WidenedInput) {
  using A = typename TestFixture::Result;
  const auto c = TestFixture::make(all_sizes[0], Competition::eliminate());
  const auto wide = RouterBits<Inputs<A, A>>::make(all_sizes[0], Competition::eliminate());
  auto copy = wide;
  copy.x_TH = c.x_TH.template cast<A>();
  copy.w_EH = c.w_EH.template cast<A>();
  copy.router.refresh_now(gatepro::view(copy.w_EH), 1, SerialExecutor{});
  const auto narrow = c.forward();
  const auto widened = copy.forward();
  EXPECT_TRUE(same_bits(narrow.ids_TK, widened.ids_TK));
  EXPECT_TRUE(same_bits(narrow.weights_TK, widened.weights_TK));
  EXPECT_TRUE(same_bits(narrow.logits_TE, widened.logits_TE));
  const auto from_narrow = c.backward(narrow, true);
  const auto from_wide = copy.backward(widened, true);
  EXPECT_TRUE(same_bits(from_narrow.dx_TH, from_wide.dx_TH));
  EXPECT_TRUE(same_bits(from_narrow.dw_EH, from_wide.dw_EH));
}

// The type of the ids is only how they are stored.
TEST(RouterBitsOfIds, EveryIdType) {
  const auto x = random_matrix<float>(100, 30, 7);
  const auto w = random_matrix<float>(11, 30, 8);
  const gatepro::RouterConfig config{30, 11, 4};
  gatepro::Router<float> narrow(config);
  gatepro::Router<float, float, std::int64_t> wide(config);
  gatepro::Router<float, float, std::uint64_t> unsigned_wide(config);
  narrow.refresh(w, 0);
  wide.refresh(w, 0);
  unsigned_wide.refresh(w, 0);
  const auto expected = routing_data::forward(narrow, x, w, AnyExecutor{});
  const auto a = routing_data::forward(wide, x, w, AnyExecutor{});
  const auto b = routing_data::forward(unsigned_wide, x, w, AnyExecutor{});
  EXPECT_TRUE(a.ids_TK.cast<std::int32_t>() == expected.ids_TK);
  EXPECT_TRUE(b.ids_TK.cast<std::int32_t>() == expected.ids_TK);
  EXPECT_TRUE(same_bits(a.weights_TK, expected.weights_TK));
  EXPECT_TRUE(same_bits(b.weights_TK, expected.weights_TK));
}

// An executor is asked to run nothing where there is nothing to do.
TEST(RouterBitsOfExecutors, NoTokens) {
  const RowMatrix<float> x(0, 600);
  const auto w = random_matrix<float>(4, 600, 9);
  gatepro::Router<float> router({600, 4, 2});
  router.refresh(w, 0);
  for (const AnyExecutor& executor : executors()) {
    const auto outcome = routing_data::forward(router, x, w, executor);
    routing_data::forward_logits(router, RowMatrix<float>(0, 4), executor);
    const routing_data::Gradients<float> start{RowMatrix<float>(0, 600), w};
    const auto gradients = routing_data::backward(router, x, w, outcome, RowMatrix<float>(0, 2),
                                                  RowMatrix<float>(), start, executor);
    EXPECT_TRUE(same_bits(gradients.dw_EH, w));
  }
}

}  // namespace
