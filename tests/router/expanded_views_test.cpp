// SPDX-License-Identifier: MIT
// What frameworks hand over without a copy: one row, column or value in the place of all (strides
// of 0), and matrices without elements, whose strides mean nothing.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "support/bits.hpp"
#include "support/errors.hpp"
#include "support/inputs.hpp"

namespace {

using data::random_matrix;
using data::same_bits;
using gatepro::Index;
using gatepro::MatrixView;
using gatepro::RowMatrix;
using gatepro::strided_view;
using gatepro::StridedView;
using gatepro::view;

constexpr Index tokens = 53, hidden = 40, top_k = 2;

/// One row, seen `rows` times.
template <class T>
MatrixView<const T> expanded(const RowMatrix<T>& row, Index rows) {
  return {row.data(), rows, row.cols(), 0};
}

/// Its copies.
template <class T>
RowMatrix<T> copied(const RowMatrix<T>& row, Index rows) {
  return row.replicate(rows, 1);
}

template <class X>
class ExpandedViews : public testing::Test {};
using Scalars = testing::Types<float, double, gatepro::bfloat16>;
TYPED_TEST_SUITE(ExpandedViews, Scalars, );

/// What a forward and a backward write.
template <class R>
struct Results {
  using A = typename R::Accumulator;
  RowMatrix<std::int32_t> ids_TK{tokens, top_k};
  RowMatrix<A> weights_TK{tokens, top_k}, dx_TH, dw_EH;
};

template <class R, class X>
Results<R> run(const R& router, MatrixView<const X> x_TH, MatrixView<const X> w_EH,
               const gatepro::WeightGradients<typename R::Accumulator>& incoming) {
  using A = typename R::Accumulator;
  Results<R> got;
  const Index experts = router.config().num_experts;
  got.dx_TH = RowMatrix<A>::Zero(tokens, hidden);
  got.dw_EH = RowMatrix<A>::Zero(experts, hidden);
  gatepro::RoutingBuffers<R> buffers(router, tokens);
  router.forward(x_TH, w_EH, buffers);
  router.backward(x_TH, w_EH, buffers, incoming, {got.dx_TH, got.dw_EH});
  for (Index t = 0; t < tokens; ++t) {
    for (Index j = 0; j < top_k; ++j) {
      got.ids_TK(t, j) = buffers.expert_ids_TK()(t, j);
      got.weights_TK(t, j) = buffers.weights_TK()(t, j);
    }
  }
  return got;
}

template <class R>
void expect_same(const Results<R>& got, const Results<R>& want) {
  EXPECT_EQ(got.ids_TK, want.ids_TK);
  EXPECT_TRUE(same_bits(got.weights_TK, want.weights_TK));
  EXPECT_TRUE(same_bits(got.dx_TH, want.dx_TH));
  EXPECT_TRUE(same_bits(got.dw_EH, want.dw_EH));
}

TYPED_TEST(ExpandedViews, GiveTheBitsOfTheirCopies) {
  using Router = gatepro::Router<TypeParam>;
  using A = typename Router::Accumulator;
  for (const Index experts : {3, 8, 70}) {
    Router router(gatepro::RouterConfig{hidden, experts, top_k});
    const auto w = random_matrix<TypeParam>(experts, hidden, 1);
    router.refresh_now(view(w), 0);
    const auto x = random_matrix<TypeParam>(tokens, hidden, 2);
    const auto token = random_matrix<TypeParam>(1, hidden, 3);
    const auto dlogits = random_matrix<A>(1, experts, 4);
    const auto dweights = random_matrix<A>(1, top_k, 5);
    const RowMatrix<A> dweights_TK = copied(dweights, tokens);
    const RowMatrix<A> ones = RowMatrix<A>::Ones(tokens, top_k);
    const RowMatrix<A> dlogits_TE = copied(dlogits, tokens);
    const RowMatrix<TypeParam> same_TH = copied(token, tokens);

    const StridedView<const A> expanded_row(dweights.data(), tokens, top_k, 0, 1);
    expect_same(run<Router, TypeParam>(router, x, w, {expanded_row}),
                run<Router, TypeParam>(router, x, w, {dweights_TK}));
    const A one = 1;
    const StridedView<const A> all_ones(&one, tokens, top_k, 0, 0);  // of sum().backward()
    expect_same(run<Router, TypeParam>(router, x, w, {all_ones, expanded(dlogits, tokens)}),
                run<Router, TypeParam>(router, x, w, {ones, dlogits_TE}));
    expect_same(run<Router, TypeParam>(router, expanded(token, tokens), w, {dweights_TK}),
                run<Router, TypeParam>(router, same_TH, w, {dweights_TK}));
  }
}

TYPED_TEST(ExpandedViews, OfRouterWeightsAreOneExpert) {
  using Router = gatepro::Router<TypeParam>;
  using A = typename Router::Accumulator;
  for (const Index experts : {3, 8, 70}) {
    const auto row = random_matrix<TypeParam>(1, hidden, 1);
    const auto x = random_matrix<TypeParam>(tokens, hidden, 2);
    const auto dweights = random_matrix<A>(tokens, top_k, 5);
    const RowMatrix<TypeParam> w_EH = copied(row, experts);
    Router router(gatepro::RouterConfig{hidden, experts, top_k});
    router.refresh_now(view(w_EH), 0);
    const auto want = run<Router, TypeParam>(router, x, w_EH, {dweights});
    router.refresh_now(expanded(row, experts), 1);
    expect_same(run<Router, TypeParam>(router, x, expanded(row, experts), {dweights}), want);
  }
}

TEST(ExpandedViewsOfLogits, GiveTheBitsOfTheirCopies) {
  constexpr Index experts = 20;
  const auto row = random_matrix<float>(1, experts, 1);
  gatepro::Router<float> router(gatepro::RouterConfig{hidden, experts, top_k});
  const auto w = random_matrix<float>(experts, hidden, 2);
  router.refresh_now(view(w), 0);
  gatepro::RoutingBuffers<gatepro::Router<float>> got(router, tokens), want(router, tokens);
  router.forward_logits(expanded(row, tokens), got.view(), got.workspace());
  const RowMatrix<float> logits_TE = copied(row, tokens);
  router.forward_logits(logits_TE, want.view(), want.workspace());
  for (Index t = 0; t < tokens; ++t) {
    for (Index j = 0; j < top_k; ++j) {
      EXPECT_EQ(got.expert_ids_TK()(t, j), want.expert_ids_TK()(t, j));
      EXPECT_EQ(got.weights_TK()(t, j), want.weights_TK()(t, j));
    }
  }
}

TEST(ExpandedViewsOfRows, GiveTheBitsOfTheirCopies) {
  constexpr Index experts = 5;
  RowMatrix<std::int32_t> ids_TK(tokens, top_k), row_TK(tokens, top_k);
  for (Index t = 0; t < tokens; ++t) {
    for (Index j = 0; j < top_k; ++j) ids_TK(t, j) = static_cast<std::int32_t>((t + j) % experts);
  }
  std::vector<std::int32_t> choices(tokens * top_k);
  std::vector<std::byte> memory(gatepro::plan_dispatch_workspace_bytes(experts));
  gatepro::DispatchPlan<> plan;
  plan.row_TK = row_TK;
  plan.choice_of_row_N = choices;
  gatepro::plan_dispatch(gatepro::Choices{view(ids_TK)}, experts, {}, plan, memory);
  const auto dy = random_matrix<float>(1, hidden, 1);
  const auto rows_NH = random_matrix<float>(tokens * top_k, hidden, 2);
  const RowMatrix<float> dy_TH = copied(dy, tokens);
  const auto weights_TK = random_matrix<float>(tokens, top_k, 3);

  const auto drows = [&](MatrixView<const float> gradient) {
    RowMatrix<float> drows_NH = RowMatrix<float>::Zero(tokens * top_k, hidden);
    gatepro::combine_backward_rows(plan.choice_of_row_N, weights_TK, gradient, view(drows_NH));
    return drows_NH;
  };
  EXPECT_TRUE(same_bits(drows(expanded(dy, tokens)), drows(dy_TH)));
  const auto dweights = [&](MatrixView<const float> gradient) {
    RowMatrix<float> dweights_TK = RowMatrix<float>::Zero(tokens, top_k);
    gatepro::combine_backward_weights(plan.row_TK, view(rows_NH), gradient,
                                      strided_view(dweights_TK));
    return dweights_TK;
  };
  EXPECT_TRUE(same_bits(dweights(expanded(dy, tokens)), dweights(dy_TH)));
}

TEST(ExpandedViewsWhereWritten, AreRefused) {
  const auto weights = random_matrix<float>(tokens, top_k, 1);
  RowMatrix<float> dlogits = random_matrix<float>(tokens, top_k, 2);
  const auto before = dlogits;
  for (const auto& [row, col] : {std::pair<Index, Index>{0, 0}, {0, 1}, {1, 0}}) {
    const StridedView<float> out(dlogits.data(), tokens, top_k, row, col);
    expect_error([&] { gatepro::softmax_backward<float>(weights, weights, out); },
                 {"dselected_logits_TK", "strides that keep its elements apart"});
  }
  const StridedView<const float> sliding(weights.data(), tokens - 1, top_k, 1, 1);
  expect_error(
      [&] {
        gatepro::softmax_backward<float>(sliding, sliding,
                                         strided_view(dlogits).middle_rows(0, tokens - 1));
      },
      {"weights_TK", "strides", "row_stride=1"});
  EXPECT_TRUE(same_bits(dlogits, before));
}

// The element behind an expanded view is memory like any other.
TEST(ExpandedViewsWhereWritten, ShareMemory) {
  const auto weights = random_matrix<float>(tokens, top_k, 1);
  RowMatrix<float> memory = random_matrix<float>(tokens, 3, 2);
  const auto before = memory;
  const StridedView<float> out(memory.data(), tokens, top_k, 3, 1);
  const auto backward = [&](const float* one) {
    gatepro::softmax_backward<float>(weights, StridedView<const float>(one, tokens, top_k, 0, 0),
                                     out);
  };
  expect_error([&] { backward(&memory(7, 1)); }, {"dselected_logits_TK", "dweights_TK", "overlap"});
  EXPECT_TRUE(same_bits(memory, before));
  EXPECT_NO_THROW(backward(&memory(7, 2)));  // in a gap between rows
}

// torch hands a [0, K] gradient over with strides {0, 0}, and a null.
TEST(ViewsWithoutElements, MayHaveAnyStrides) {
  constexpr Index experts = 5;
  gatepro::Router<float> router(gatepro::RouterConfig{hidden, experts, top_k});
  const auto w = random_matrix<float>(experts, hidden, 1);
  router.refresh_now(view(w), 0);
  RowMatrix<float> dw = RowMatrix<float>::Ones(experts, hidden);
  const RowMatrix<float> before = dw;
  gatepro::RoutingBuffers<gatepro::Router<float>> buffers(router, 1);
  float memory[2] = {};
  for (float* somewhere : {memory, static_cast<float*>(nullptr)}) {
    const MatrixView<float> none_TH(somewhere, 0, hidden, 0), none_TE(somewhere, 0, experts, -3);
    const StridedView<float> none_TK(somewhere, 0, top_k, 0, 0);
    std::int32_t* ids = somewhere != nullptr ? reinterpret_cast<std::int32_t*>(memory) : nullptr;
    gatepro::RoutingView<float> out{{ids, 0, top_k, 0, 0}, none_TK};
    out.logits_TE = none_TE;
    EXPECT_NO_THROW(router.forward(none_TH, w, out, buffers.workspace()));
    EXPECT_NO_THROW(router.backward(none_TH, w, {out.expert_ids_TK, none_TK}, {none_TK, none_TE},
                                    {none_TH, dw}, buffers.workspace()));
    std::vector<std::byte> scratch(gatepro::plan_dispatch_workspace_bytes(experts));
    gatepro::DispatchPlan<> plan;
    plan.row_TK = out.expert_ids_TK;
    EXPECT_EQ(
        gatepro::plan_dispatch(gatepro::Choices{out.expert_ids_TK}, experts, {}, plan, scratch), 0);
  }
  EXPECT_EQ(dw, before);
}

}  // namespace
