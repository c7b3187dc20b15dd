// SPDX-License-Identifier: MIT
// Offsets beyond 2^31 and 2^32 elements, on memory that is reserved but hardly touched.
#include <gatepro/gatepro.hpp>

#include <gtest/gtest.h>

#if defined(__unix__)
#include <sys/mman.h>
#endif

#include "support/bits.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/routing_data.hpp"

namespace {

using data::random_matrix;
using data::same_bits;
using gatepro::Index;
using gatepro::MatrixView;
using gatepro::RowMatrix;
using gatepro::StridedView;

/// Address space for `rows` rows that lie `row_stride` elements apart. Only what is written to
/// takes memory.
template <class T>
class SparseMatrix {
 public:
  SparseMatrix(Index rows, Index cols, Index row_stride)
      : bytes_(static_cast<std::size_t>((rows - 1) * row_stride + cols) * sizeof(T)) {
#if defined(__unix__) && defined(MAP_NORESERVE)
    memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory_ == MAP_FAILED) memory_ = nullptr;
#endif
    view_ = {static_cast<T*>(memory_), rows, cols, row_stride};
  }
  SparseMatrix(const SparseMatrix&) = delete;
  SparseMatrix& operator=(const SparseMatrix&) = delete;
  ~SparseMatrix() {
#if defined(__unix__)
    if (memory_ != nullptr) munmap(memory_, bytes_);
#endif
  }

  bool reserved() const { return memory_ != nullptr; }
  const MatrixView<T>& view() const { return view_; }
  void assign(const RowMatrix<T>& values) {
    for (Index r = 0; r < view_.rows; ++r) {
      std::copy_n(values.data() + r * values.cols(), values.cols(), view_.row(r));
    }
  }
  RowMatrix<T> matrix() const {
    RowMatrix<T> values(view_.rows, view_.cols);
    for (Index r = 0; r < view_.rows; ++r) {
      std::copy_n(view_.row(r), view_.cols, values.data() + r * view_.cols);
    }
    return values;
  }

 private:
  std::size_t bytes_;
  void* memory_ = nullptr;
  MatrixView<T> view_;
};

// Two rows are more than 2^31 elements apart, and five cover more than 2^33.
TEST(BigViews, EveryViewOfAStep) {
  constexpr Index tokens = 5, hidden = 21, experts = 4, top_k = 2;
  constexpr Index stride = (Index{1} << 31) + 19;
  SparseMatrix<float> x(tokens, hidden, stride), w(experts, hidden, stride),
      logits(tokens, experts, stride), dlogits(tokens, experts, stride), dx(tokens, hidden, stride),
      dw(experts, hidden, stride), weights(tokens, top_k, stride), dweights(tokens, top_k, stride);
  SparseMatrix<std::int32_t> ids(tokens, top_k, stride);
  for (const auto* m : {&x, &w, &logits, &dlogits, &dx, &dw, &weights, &dweights}) {
    if (!m->reserved()) GTEST_SKIP() << "the system reserves no address space of this size";
  }
  if (!ids.reserved()) GTEST_SKIP() << "the system reserves no address space of this size";

  x.assign(random_matrix<float>(tokens, hidden, 1));
  w.assign(random_matrix<float>(experts, hidden, 2));
  dlogits.assign(random_matrix<float>(tokens, experts, 3));
  dweights.assign(random_matrix<float>(tokens, top_k, 4));
  gatepro::RouterConfig config{hidden, experts, top_k};
  config.competition = gatepro::Competition::eliminate();
  gatepro::Router<float> compact_router(config), router(config);
  const RowMatrix<float> compact_x = x.matrix(), compact_w = w.matrix();
  compact_router.refresh(compact_w, 0);
  router.refresh(MatrixView<const float>(w.view()), 0);
  const auto expected = routing_data::forward(compact_router, compact_x, compact_w);

  routing_data::Outcome<gatepro::Router<float>> outcome(router, tokens);
  auto out = outcome.view();
  out.expert_ids_TK = ids.view();
  out.weights_TK = weights.view();
  out.logits_TE = logits.view();
  auto memory = data::scratch(
      std::max(router.forward_workspace_bytes(2), router.backward_workspace_bytes(tokens, 2)));
  router.forward(x.view(), w.view(), out, memory, ThreadExecutor(2));
  EXPECT_TRUE(same_bits(ids.matrix(), expected.ids_TK));
  EXPECT_TRUE(same_bits(weights.matrix(), expected.weights_TK));
  EXPECT_TRUE(same_bits(logits.matrix(), expected.logits_TE));

  for (const bool dense : {false, true}) {
    const routing_data::Gradients<float> start{dx.matrix(), dw.matrix()};
    const auto gradients =
        routing_data::backward(compact_router, compact_x, compact_w, expected, dweights.matrix(),
                               dense ? dlogits.matrix() : RowMatrix<float>(), start);
    router.backward(
        x.view(), w.view(),
        {StridedView<std::int32_t>(ids.view()), StridedView<float>(weights.view())},
        {StridedView<float>(dweights.view()), dense ? dlogits.view() : MatrixView<float>()},
        {dx.view(), dw.view()}, memory, ThreadExecutor(2));
    EXPECT_TRUE(same_bits(dx.matrix(), gradients.dx_TH));
    EXPECT_TRUE(same_bits(dw.matrix(), gradients.dw_EH));
  }
}

// One plane of tokens per choice, the planes more than 2^31 apart.
TEST(BigViews, PlanesOfChoices) {
  constexpr Index tokens = 60, experts = 8, top_k = 3;
  constexpr Index plane = (Index{1} << 31) + 5;
  SparseMatrix<std::int64_t> ids(top_k, tokens, plane);
  SparseMatrix<float> weights(top_k, tokens, plane);
  if (!ids.reserved() || !weights.reserved()) GTEST_SKIP() << "no address space of this size";
  gatepro::RouterConfig config{3, experts, top_k};
  config.competition = gatepro::Competition::off();
  const gatepro::Router<float, float, std::int64_t> router(config);
  const auto logits = random_matrix<float>(tokens, experts, 5);
  const auto expected = routing_data::forward_logits(router, logits);
  decltype(router)::Routing out;
  out.expert_ids_TK = {ids.view().data, tokens, top_k, 1, plane};
  out.weights_TK = {weights.view().data, tokens, top_k, 1, plane};
  auto memory = data::scratch(router.forward_workspace_bytes());
  router.forward_logits(logits, out, memory);
  EXPECT_TRUE(same_bits<std::int64_t>(ids.matrix().transpose(), expected.ids_TK));
  EXPECT_TRUE(same_bits<float>(weights.matrix().transpose(), expected.weights_TK));
}

// A batch of ordinary rows, the last of which start beyond 2^31 elements: a range at the end.
TEST(BigViews, ARangeOfTokensFarInside) {
  constexpr Index hidden = 1 << 14, tokens = (1 << 17) + 3;  // 2^31 + 3 * 2^14 elements
  SparseMatrix<float> x(tokens, hidden, hidden);
  if (!x.reserved()) GTEST_SKIP() << "no address space of this size";
  const auto last = random_matrix<float>(3, hidden, 6);
  const auto range = x.view().middle_rows(tokens - 3, 3);
  std::copy_n(last.data(), last.size(), range.data);
  const auto w = random_matrix<float>(2, hidden, 7);
  gatepro::Router<float> router({hidden, 2, 1});
  router.refresh(w, 0);
  const auto expected = routing_data::forward(router, last, w);
  routing_data::Outcome<gatepro::Router<float>> outcome(router, 3);
  auto memory = data::scratch(router.forward_workspace_bytes());
  router.forward(range, w, outcome.view(), memory);
  EXPECT_TRUE(same_bits(outcome.logits_TE, expected.logits_TE));
  EXPECT_TRUE(same_bits(outcome.ids_TK, expected.ids_TK));
}

}  // namespace
