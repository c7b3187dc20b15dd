// SPDX-License-Identifier: MIT
// A learned bias of the logits: the bits of adding it afterwards, and its gradient against the
// double reference, the same bits however the work is cut.
#include <gatepro/gate/bias_gradient.hpp>

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "gatepro/gate/logit_gradients.hpp"
#include "gatepro/gate/logits.hpp"
#include "support/bits.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/ids.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/type_names.hpp"

namespace {

using gatepro::BiasedWeights;
using gatepro::GateArithmetic;
using gatepro::Index;
using gatepro::MatrixView;
using gatepro::RowMatrix;
using gatepro::SerialExecutor;
using gatepro::VectorView;

template <class A>
std::vector<A> random_bias(Index experts, std::uint64_t seed = 3) {
  const auto values = data::random_matrix<A>(1, experts, seed, 4);
  return {values.data(), values.data() + experts};
}

template <class X, class W, class A, class Executor = SerialExecutor>
RowMatrix<A> gate(const RowMatrix<X>& x_TH, const RowMatrix<W>& w_EH, VectorView<const A> bias_E,
                  GateArithmetic wanted = GateArithmetic::widened, const Executor& executor = {}) {
  data::GuardedMatrix<A> logits(x_TH.rows(), w_EH.rows(), 3);
  auto memory = data::scratch(
      gatepro::gate_logits_workspace_bytes<X, W>(w_EH.rows(), w_EH.cols(), executor.workers()));
  gatepro::gate_logits(gatepro::view(x_TH), BiasedWeights<W, A>{w_EH, bias_E}, logits.view(),
                       memory, executor, wanted);
  EXPECT_TRUE(logits.intact());
  return logits.values();
}

template <class A>
RowMatrix<A> plus(RowMatrix<A> logits_TE, const std::vector<A>& bias_E) {
  for (Index t = 0; t < logits_TE.rows(); ++t) {
    for (Index e = 0; e < logits_TE.cols(); ++e) {
      logits_TE(t, e) += bias_E[static_cast<std::size_t>(e)];
    }
  }
  return logits_TE;
}

template <class Types>
class GateBiasTest : public ::testing::Test {};
using AllInputs =
    ::testing::Types<Inputs<float, float>, Inputs<double, double>, Inputs<gatepro::bfloat16, float>,
                     Inputs<gatepro::half, gatepro::bfloat16>, Inputs<float, double>>;
TYPED_TEST_SUITE(GateBiasTest, AllInputs, InputNames);

TYPED_TEST(GateBiasTest, GivesTheBitsOfAddingItToTheLogits) {
  using X = typename TypeParam::X;
  using W = typename TypeParam::W;
  using A = typename TypeParam::A;
  const auto before_EH = data::random_matrix<A>(3, 3, 9);
  gatepro::PackedWeights<A> packed(gatepro::view(before_EH));  // packed again below
  for (Index experts : {1, 2, 4, 8, 9, 17, 60, 64, 65, 160}) {
    for (Index hidden : {0, 3, 513}) {
      const auto x_TH = data::random_matrix<X>(53, hidden, 1);
      const auto w_EH = data::random_matrix<W>(experts, hidden, 2);
      const auto bias_E = random_bias<A>(experts);
      const RowMatrix<A> without_TE = gate<X, W, A>(x_TH, w_EH, {});
      const RowMatrix<A> want_TE = plus(without_TE, bias_E);
      EXPECT_TRUE(data::same_bits(gate<X, W, A>(x_TH, w_EH, bias_E), want_TE)) << experts;
      EXPECT_TRUE(data::same_bits(
          gate<X, W, A>(x_TH, w_EH, bias_E, GateArithmetic::widened, ThreadExecutor(3)), want_TE));
      for (Index first : {0, 5, 48}) {
        const RowMatrix<X> some_TH = x_TH.middleRows(first, 53 - first);
        EXPECT_TRUE(data::same_bits(gate<X, W, A>(some_TH, w_EH, bias_E),
                                    RowMatrix<A>(want_TE.middleRows(first, 53 - first))));
      }
      for (const bool biased : {true, false}) {
        if (biased) {
          packed.pack(BiasedWeights<W, A>{w_EH, bias_E});
        } else {
          packed.pack(gatepro::view(w_EH));
        }
        EXPECT_EQ(packed.has_bias(), biased);
        const gatepro::PackedWeights<A> copied = packed;
        RowMatrix<A> logits_TE(53, experts);
        auto memory = data::scratch(gatepro::gate_logits_workspace_bytes<X, A>(experts, hidden));
        gatepro::gate_logits(gatepro::view(x_TH), copied, gatepro::view(logits_TE), memory);
        EXPECT_TRUE(data::same_bits(logits_TE, biased ? want_TE : without_TE)) << experts;
      }
    }
  }
}

TEST(GateBias, IsAddedAfterPairsOfColumns) {
  using gatepro::bfloat16;
  for (Index experts : {8, 9, 40}) {
    const auto x_TH = data::random_matrix<bfloat16>(50, 33, 1);
    const auto w_EH = data::random_matrix<bfloat16>(experts, 33, 2);
    const auto bias_E = random_bias<float>(experts);
    const auto wanted = GateArithmetic::bf16_dot;
    const auto without_TE = gate<bfloat16, bfloat16, float>(x_TH, w_EH, {}, wanted);
    const auto with_TE = gate<bfloat16, bfloat16, float>(x_TH, w_EH, bias_E, wanted);
    EXPECT_TRUE(data::same_bits(with_TE, plus(without_TE, bias_E)));
  }
}

TEST(GateBias, NonfiniteValuesStayInTheirColumn) {
  for (Index experts : {2, 8, 21}) {
    const auto x_TH = data::random_matrix<float>(7, 20, 1);
    const auto w_EH = data::random_matrix<float>(experts, 20, 2);
    for (const float value : {std::numeric_limits<float>::quiet_NaN(), data::infinity<float>(),
                              -data::infinity<float>()}) {
      auto bias_E = random_bias<float>(experts);
      const auto clean_TE = gate<float, float, float>(x_TH, w_EH, bias_E);
      bias_E[1] = value;
      const auto got_TE = gate<float, float, float>(x_TH, w_EH, bias_E);
      for (Index t = 0; t < 7; ++t) {
        for (Index e = 0; e < experts; ++e) {
          if (e != 1) {
            EXPECT_EQ(got_TE(t, e), clean_TE(t, e));
          } else if (std::isnan(value)) {
            EXPECT_TRUE(std::isnan(got_TE(t, e)));
          } else {
            EXPECT_EQ(got_TE(t, e), value);
          }
        }
      }
    }
  }
}

TEST(GateBias, BadInputWritesNothing) {
  const auto x_TH = data::random_matrix<float>(4, 5, 1), w_EH = data::random_matrix<float>(3, 5, 2);
  RowMatrix<float> logits_TE = RowMatrix<float>::Constant(4, 3, 7);
  auto bias_E = random_bias<float>(4);
  auto memory = data::scratch(gatepro::gate_logits_workspace_bytes<float, float>(3, 5));
  const auto refuse = [&](VectorView<const float> bias, std::initializer_list<const char*> names) {
    expect_error(
        [&] {
          gatepro::gate_logits(gatepro::view(x_TH), BiasedWeights<float>{w_EH, bias},
                               gatepro::view(logits_TE), memory);
        },
        names);
    EXPECT_TRUE((logits_TE.array() == 7).all());
  };
  refuse(bias_E, {"gate_logits", "bias_E", "size=4", "size needed=3"});
  refuse({nullptr, 3}, {"gate_logits", "bias_E", "null"});
  refuse({logits_TE.data() + 2, 3}, {"gate_logits", "logits_TE and bias_E overlap"});
  refuse({bias_E.data(), 0}, {"gate_logits", "bias_E", "size=0"});
  const gatepro::PackedWeights<float> packed(gatepro::view(w_EH));
  expect_error(
      [&] {
        gatepro::PackedWeights<float>(BiasedWeights<float>{w_EH, bias_E});
      },
      {"PackedWeights", "bias_E", "size=4"});
}

/// A gradient to a bias. An empty dlogits_TE stands for none.
template <class A>
struct Gradient {
  RowMatrix<std::int32_t> ids_TK;
  RowMatrix<A> dselected_TK, dlogits_TE;
  std::vector<std::uint8_t> padding;
  std::vector<A> start_E;

  Gradient(Index tokens, Index experts, Index top_k, bool dense)
      : ids_TK(data::random_ids<std::int32_t>(tokens, experts, top_k, 1)),
        dselected_TK(data::random_matrix<A>(tokens, top_k, 2)),
        padding(data::random_mask(tokens, 4)),
        start_E(random_bias<A>(experts, 5)) {
    if (dense) dlogits_TE = data::random_matrix<A>(tokens, experts, 3);
    if (tokens > 3) ids_TK(3, 0) = -1;
  }
  gatepro::Choices<const std::int32_t> choices(Index first, Index count) const {
    return {gatepro::strided_view(ids_TK).middle_rows(first, count),
            {padding.data() + first, count},
            {}};
  }
  gatepro::LogitGradients<A> gradients(Index first, Index count) const {
    const auto dense = dlogits_TE.size() == 0 ? MatrixView<const A>() : gatepro::view(dlogits_TE);
    return {gatepro::strided_view(dselected_TK).middle_rows(first, count),
            dense.middle_rows(first, count)};
  }
  template <class Executor = SerialExecutor>
  std::vector<A> backward(const Executor& executor = {}) const {
    std::vector<A> dbias_E = start_E;
    gatepro::gate_backward_bias(choices(0, ids_TK.rows()), gradients(0, ids_TK.rows()),
                                VectorView<A>(dbias_E), executor);
    return dbias_E;
  }
};

template <class A>
class GateBiasGradientTest : public ::testing::Test {};
using Accumulators = ::testing::Types<float, double>;
TYPED_TEST_SUITE(GateBiasGradientTest, Accumulators, TypeNames);

TYPED_TEST(GateBiasGradientTest, IsTheSumOverTheTokens) {
  using A = TypeParam;
  for (const bool dense : {false, true}) {
    for (Index experts : {1, 5, 64, 65, 200}) {
      const Index top_k = std::min<Index>(4, experts), tokens = 301;
      const Gradient<A> p(tokens, experts, top_k, dense);
      const std::vector<A> got_E = p.backward();
      std::vector<double> want(p.start_E.begin(), p.start_E.end()), size = want;
      for (double& s : size) s = std::abs(s);
      const auto add = [&](Index e, A gradient) {
        want[static_cast<std::size_t>(e)] += double(gradient);
        size[static_cast<std::size_t>(e)] += std::abs(double(gradient));
      };
      for (Index t = 0; t < tokens; ++t) {
        if (p.padding[static_cast<std::size_t>(t)] != 0) continue;
        for (Index e = 0; dense && e < experts; ++e) add(e, p.dlogits_TE(t, e));
        for (Index j = 0; j < top_k; ++j) {
          if (p.ids_TK(t, j) >= 0) add(p.ids_TK(t, j), p.dselected_TK(t, j));
        }
      }
      for (std::size_t e = 0; e < want.size(); ++e) {
        EXPECT_NEAR(double(got_E[e]), want[e],
                    double(tokens) * double(std::numeric_limits<A>::epsilon()) * size[e]);
      }
    }
  }
}

// Also those of the merged gradients, which a trainer with a GEMM has.
TYPED_TEST(GateBiasGradientTest, BitsDoNotDependOnHowTheWorkIsCut) {
  using A = TypeParam;
  for (const bool dense : {false, true}) {
    for (Index experts : {7, 64, 150}) {
      const Index tokens = 290;
      const Gradient<A> p(tokens, experts, 3, dense);
      const std::vector<A> want_E = p.backward();
      EXPECT_EQ(p.backward(ThreadExecutor(3)), want_E);
      EXPECT_EQ(p.backward(LastWorkerFirst(7)), want_E);
      std::vector<A> by_tokens = p.start_E, by_experts = p.start_E, of_merged = p.start_E;
      for (auto [first, count] : {std::pair<Index, Index>{0, 1}, {1, 200}, {201, 0}, {201, 89}}) {
        gatepro::gate_backward_bias(p.choices(first, count), p.gradients(first, count),
                                    VectorView<A>(by_tokens));
      }
      EXPECT_EQ(by_tokens, want_E);
      for (auto [begin, end] : {std::pair<Index, Index>{3, experts}, {0, 2}, {2, 3}, {5, 5}}) {
        gatepro::gate_backward_bias(p.choices(0, tokens), p.gradients(0, tokens),
                                    VectorView<A>(by_experts), SerialExecutor{},
                                    gatepro::ExpertRange{begin, end});
      }
      EXPECT_EQ(by_experts, want_E);
      RowMatrix<A> merged_TE = RowMatrix<A>::Zero(tokens, experts);
      gatepro::merge_logit_gradients(p.choices(0, tokens), p.gradients(0, tokens),
                                     gatepro::view(merged_TE));
      gatepro::gate_backward_bias(gatepro::view(merged_TE), VectorView<A>(of_merged),
                                  ThreadExecutor(2));
      EXPECT_EQ(of_merged, want_E);
    }
  }
}

TYPED_TEST(GateBiasGradientTest, StartsAsManyWorkersAsPay) {
  for (const bool dense : {false, true}) {
    const Gradient<TypeParam> p(290, 150, 3, dense);
    int most = 0;
    p.backward(NotingExecutor{1e9, &most});
    EXPECT_EQ(most, 1);
    p.backward(NotingExecutor{1, &most});
    EXPECT_EQ(most, 7);
  }
}

TYPED_TEST(GateBiasGradientTest, BadInputWritesNothing) {
  using A = TypeParam;
  Gradient<A> p(6, 5, 2, true);
  std::vector<A> dbias_E = p.start_E;
  const auto refuse = [&](VectorView<A> dbias, std::optional<gatepro::ExpertRange> range,
                          std::initializer_list<const char*> names) {
    expect_error(
        [&] {
          gatepro::gate_backward_bias(p.choices(0, 6), p.gradients(0, 6), dbias, SerialExecutor{},
                                      range);
        },
        names);
    EXPECT_EQ(dbias_E, p.start_E);
  };
  refuse({dbias_E.data(), 4}, {}, {"gate_backward_bias", "dlogits_TE", "cols=5"});
  refuse({nullptr, 5}, {}, {"gate_backward_bias", "dbias_E", "null"});
  refuse(dbias_E, gatepro::ExpertRange{2, 6}, {"gate_backward_bias", "range", "end=6"});
  refuse({p.dlogits_TE.data(), 5}, {}, {"gate_backward_bias", "dbias_E and dlogits_TE overlap"});
  expect_error(
      [&] {
        gatepro::gate_backward_bias(gatepro::view(p.dlogits_TE), VectorView<A>(dbias_E.data(), 4));
      },
      {"gate_backward_bias", "dlogits_TE", "cols=5", "cols needed=4"});
  for (std::int32_t id : {-2, 5}) {
    for (auto& byte : p.padding) byte = 0;
    p.ids_TK(2, 1) = id;
    refuse(dbias_E, {}, {"gate_backward_bias", "expert_ids_TK", "row=2"});
  }
}

}  // namespace
