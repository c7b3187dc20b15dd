// SPDX-License-Identifier: MIT
// GateArithmetic::bf16_dot: its chains emulated from the manual's words, on any machine through the
// packing, the tiles and the kernel of the set in use, and compared with the instruction where the
// machine has it.
#include <gatepro/gate/logits.hpp>
#include <gatepro/kernels/targets.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "support/bits.hpp"
#include "support/conversions.hpp"
#include "support/errors.hpp"
#include "support/executors.hpp"
#include "support/inputs.hpp"
#include "support/memory.hpp"
#include "support/reference/gate.hpp"

namespace {

namespace detail = gatepro::detail;
using gatepro::bfloat16;
using gatepro::GateArithmetic;
using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::SerialExecutor;
using Brains = RowMatrix<bfloat16>;
using Floats = RowMatrix<float>;

float flushed(float value) {
  return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value;
}

/// One step of vdpbf16ps (Intel SDM): rounded once, to nearest even; denormals are zeros.
float multiply_add(bfloat16 x, bfloat16 w, float sum) {
  return flushed(std::fma(flushed(static_cast<float>(x)), flushed(static_cast<float>(w)), sum));
}

/// What PairProducts asks for: the second column of each pair first.
struct EmulatedDot {
  template <class Word, class Sum>
  static void add(const Word& token, const Word& weights, Sum& sum) {
    constexpr std::size_t lanes = sizeof(Sum) / sizeof(float);
    bfloat16 x[2 * lanes], w[2 * lanes];
    float sums[lanes];
    std::memcpy(static_cast<void*>(x), &token, sizeof x);
    std::memcpy(static_cast<void*>(w), &weights, sizeof w);
    std::memcpy(sums, &sum, sizeof sums);
    for (std::size_t i = 0; i < lanes; ++i) {
      sums[i] = multiply_add(x[2 * i + 1], w[2 * i + 1], sums[i]);
      sums[i] = multiply_add(x[2 * i], w[2 * i], sums[i]);
    }
    std::memcpy(&sum, sums, sizeof sums);
  }
};

/// The kernel of the set in use, with that for its arithmetic.
detail::PairGate<float> emulated_gate() {
#if GATEPRO_X86_TARGETS
  using detail::Isa;
  if (detail::chosen_isa() == Isa::avx512) {
    return detail::avx512::gate<detail::avx512::PairProducts<EmulatedDot>>;
  }
  if (detail::chosen_isa() == Isa::avx2) {
    return detail::avx2::gate<detail::avx2::PairProducts<EmulatedDot>>;
  }
#endif
  return detail::portable::gate<detail::portable::PairProducts<EmulatedDot>>;
}

template <class Executor = SerialExecutor>
Floats emulated(const Brains& x_TH, const Brains& w_EH, const Executor& executor = {}) {
  Floats logits_TE = Floats::Constant(x_TH.rows(), w_EH.rows(), 77);
  const int workers = executor.workers();
  const std::size_t bytes =
      gatepro::gate_logits_workspace_bytes<bfloat16, bfloat16>(w_EH.rows(), w_EH.cols(), workers);
  auto memory = data::scratch(bytes);
  detail::Arena arena("test", memory, bytes);
  auto* room = arena.take<float>(detail::packed_size<float>(w_EH.rows(), w_EH.cols()));
  const auto packed =
      detail::pack_pairs<float>(gatepro::view(w_EH), emulated_gate(), room, executor, workers);
  detail::gate_into<bfloat16, float>(gatepro::view(x_TH), packed, gatepro::view(logits_TE), arena,
                                     executor, workers);
  return logits_TE;
}

template <class Executor = SerialExecutor>
Floats gate(const Brains& x_TH, const Brains& w_EH, GateArithmetic wanted,
            const Executor& executor = {}) {
  Floats logits_TE = Floats::Constant(x_TH.rows(), w_EH.rows(), 77);
  auto memory = data::scratch(gatepro::gate_logits_workspace_bytes<bfloat16, bfloat16>(
      w_EH.rows(), w_EH.cols(), executor.workers()));
  gatepro::gate_logits(gatepro::view(x_TH), gatepro::view(w_EH), gatepro::view(logits_TE), memory,
                       executor, wanted);
  return logits_TE;
}

/// Each logit as one chain.
Floats chains(const Brains& x_TH, const Brains& w_EH) {
  Floats logits_TE = Floats::Zero(x_TH.rows(), w_EH.rows());
  for (Index t = 0; t < x_TH.rows(); ++t) {
    for (Index e = 0; e < w_EH.rows(); ++e) {
      float& sum = logits_TE(t, e);
      for (Index h = 0; h < x_TH.cols(); h += 2) {
        if (h + 1 < x_TH.cols()) sum = multiply_add(x_TH(t, h + 1), w_EH(e, h + 1), sum);
        sum = multiply_add(x_TH(t, h), w_EH(e, h), sum);
      }
    }
  }
  return logits_TE;
}

/// Any NaN for a NaN: which one an operation makes of two is not said.
Floats with_one_nan(Floats m) {
  for (Index i = 0; i < m.size(); ++i) {
    if (data::is_nan(m.data()[i])) m.data()[i] = std::numeric_limits<float>::quiet_NaN();
  }
  return m;
}

/// Patterns below `count` on top of `first`, each with either sign.
Brains patterns(Index rows, Index cols, std::uint64_t seed, int first, int count) {
  Brains m(rows, cols);
  for (Index i = 0; i < m.size(); ++i) {
    const auto counter = static_cast<std::uint64_t>(i);
    const auto pattern = first + static_cast<int>(data::random_below(count, seed, counter));
    const int sign = data::random_below(2, seed + 1, counter) == 0 ? 0 : 0x8000;
    const auto bits = static_cast<std::uint16_t>(pattern | sign);
    std::memcpy(static_cast<void*>(m.data() + i), &bits, sizeof bits);
  }
  return m;
}

struct Shape {
  Index tokens, hidden, experts;
};

/// Blocks of 6 and 2 tokens, panels of 4, 2 and 1 vectors of experts, blocks of 512 columns and 16
/// pairs: each whole, short and over by one.
const Shape shapes[] = {{1, 1, 1},     {2, 2, 3},     {3, 3, 4},     {5, 31, 5},
                        {6, 32, 8},    {7, 33, 9},    {47, 64, 16},  {48, 511, 17},
                        {49, 512, 7},  {13, 513, 33}, {97, 514, 2},  {8, 1023, 60},
                        {9, 1024, 64}, {8, 1025, 65}, {20, 77, 129}, {5, 40, 257}};

TEST(Bf16Dot, EmulatedGateGivesTheChains) {
  for (const auto& [tokens, hidden, experts] : shapes) {
    const auto x_TH = data::random_matrix<bfloat16>(tokens, hidden, 1);
    const auto w_EH = data::random_matrix<bfloat16>(experts, hidden, 2);
    EXPECT_TRUE(data::same_bits(emulated(x_TH, w_EH), chains(x_TH, w_EH)))
        << tokens << " x " << hidden << " x " << experts;
  }
  const Brains x_TH(3, 0), w_EH(20, 0);
  EXPECT_TRUE(data::same_bits(emulated(x_TH, w_EH), chains(x_TH, w_EH)));
}

// The widened gate where the instruction is not used.
TEST(Bf16Dot, GateGivesTheChainsOrSaysThatItDoesNot) {
  for (const auto& [tokens, hidden, experts] : shapes) {
    const auto x_TH = data::random_matrix<bfloat16>(tokens, hidden, 1);
    const auto w_EH = data::random_matrix<bfloat16>(experts, hidden, 2);
    const auto used = gatepro::gate_arithmetic(GateArithmetic::bf16_dot, experts);
    const Floats expected_TE = used == GateArithmetic::bf16_dot
                                   ? chains(x_TH, w_EH)
                                   : gate(x_TH, w_EH, GateArithmetic::widened);
    EXPECT_TRUE(data::same_bits(gate(x_TH, w_EH, GateArithmetic::bf16_dot), expected_TE))
        << tokens << " x " << hidden << " x " << experts;
  }
}

// All patterns, then those around the smallest normal number and its square root, where sums and
// products are denormal.
TEST(Bf16Dot, InstructionIsWhatTheManualSays) {
  if (gatepro::gate_arithmetic(GateArithmetic::bf16_dot, 32) != GateArithmetic::bf16_dot) {
    GTEST_SKIP() << "no AVX512_BF16, or a lower instruction set";
  }
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const Brains wild_TH = patterns(200, 4, 10 + seed, 0, 0x8000);
    const Brains wild_EH = patterns(32, 4, 50 + seed, 0, 0x8000);
    EXPECT_TRUE(data::same_bits(with_one_nan(gate(wild_TH, wild_EH, GateArithmetic::bf16_dot)),
                                with_one_nan(chains(wild_TH, wild_EH))));
    const Brains tiny_TH = patterns(200, 6, 100 + seed, 0x1f00, 0x180);
    const Brains tiny_EH = patterns(32, 6, 150 + seed, 0x1f00, 0x180);
    EXPECT_TRUE(data::same_bits(gate(tiny_TH, tiny_EH, GateArithmetic::bf16_dot),
                                chains(tiny_TH, tiny_EH)));
    const Brains denormal_TH = patterns(200, 6, 200 + seed, 0, 0x200);
    const Brains one_EH = patterns(32, 6, 250 + seed, 0x3f00, 0x100);
    EXPECT_TRUE(data::same_bits(gate(denormal_TH, one_EH, GateArithmetic::bf16_dot),
                                chains(denormal_TH, one_EH)));
  }
}

/// Of a dot product of doubles: |logit - exact| <= sqrt(H) eps |x| |w|, as for the widened gate.
TEST(Bf16Dot, ErrorHasTheBoundOfTheWidenedGate) {
  for (Index hidden : {7, 64, 1025, 4096}) {
    const auto x_TH = data::random_matrix<bfloat16>(13, hidden, 3);
    const auto w_EH = data::random_matrix<bfloat16>(21, hidden, 4);
    const auto x = data::to_reference(x_TH), w = data::to_reference(w_EH);
    const auto exact_TE = reference::gate_logits(x, w);
    const auto norm = [](const std::vector<double>& row) {
      return std::sqrt(std::inner_product(row.begin(), row.end(), row.begin(), 0.0));
    };
    const double eps = static_cast<double>(std::numeric_limits<float>::epsilon());
    for (const Floats& logits_TE :
         {emulated(x_TH, w_EH), gate(x_TH, w_EH, GateArithmetic::bf16_dot)}) {
      for (Index t = 0; t < 13; ++t) {
        for (Index e = 0; e < 21; ++e) {
          const double bound = std::sqrt(static_cast<double>(hidden)) * eps *
                               norm(x[static_cast<std::size_t>(t)]) *
                               norm(w[static_cast<std::size_t>(e)]);
          EXPECT_NEAR(static_cast<double>(logits_TE(t, e)), data::at(exact_TE, t, e), bound);
        }
      }
    }
  }
}

TEST(Bf16Dot, BitsDoNotDependOnHowTheWorkIsCut) {
  const auto x_TH = data::random_matrix<bfloat16>(101, 515, 5);
  const auto w_EH = data::random_matrix<bfloat16>(40, 515, 6);
  const Floats emulated_TE = emulated(x_TH, w_EH);
  const Floats logits_TE = gate(x_TH, w_EH, GateArithmetic::bf16_dot);
  for (int workers : {2, 7}) {
    EXPECT_TRUE(data::same_bits(emulated(x_TH, w_EH, ThreadExecutor(workers)), emulated_TE));
    EXPECT_TRUE(data::same_bits(
        gate(x_TH, w_EH, GateArithmetic::bf16_dot, LastWorkerFirst(workers)), logits_TE));
  }
  for (Index count : {1, 2, 5, 47, 49}) {
    const Brains some_TH = x_TH.middleRows(count, count);
    EXPECT_TRUE(
        data::same_bits(emulated(some_TH, w_EH), Floats(emulated_TE.middleRows(count, count))));
  }
  for (Index gap : {1, 2}) {  // rows at odd addresses, and pairs across a cache line
    data::GuardedMatrix<bfloat16> x(x_TH, gap), w(w_EH, gap);
    data::GuardedMatrix<float> logits(x_TH.rows(), 40, 3);
    auto memory = data::scratch(gatepro::gate_logits_workspace_bytes<bfloat16, bfloat16>(40, 515));
    gatepro::gate_logits(x.view(), w.view(), logits.view(), memory, SerialExecutor{},
                         GateArithmetic::bf16_dot);
    EXPECT_TRUE(data::same_bits(logits.values(), logits_TE));
    EXPECT_TRUE(logits.intact());
  }
}

// An odd last column is paired with zeros, not with what follows it.
TEST(Bf16Dot, NonfiniteValuesStayInTheirRowAndColumn) {
  for (Index hidden : {5, 515}) {
    auto x_TH = data::random_matrix<bfloat16>(55, hidden, 7);
    auto w_EH = data::random_matrix<bfloat16>(21, hidden, 8);
    const Floats clean_TE = emulated(x_TH, w_EH);
    const Floats clean_used_TE = gate(x_TH, w_EH, GateArithmetic::bf16_dot);
    x_TH(6, hidden - 1) = std::numeric_limits<bfloat16>::quiet_NaN();
    x_TH(54, 0) = std::numeric_limits<bfloat16>::infinity();
    w_EH(1, hidden - 2) = -std::numeric_limits<bfloat16>::infinity();
    const Floats emulated_TE = emulated(x_TH, w_EH);
    const Floats used_TE = gate(x_TH, w_EH, GateArithmetic::bf16_dot);
    for (Index t = 0; t < 55; ++t) {
      for (Index e = 0; e < 21; ++e) {
        if (t == 6 || t == 54 || e == 1) {
          EXPECT_FALSE(std::isfinite(emulated_TE(t, e))) << t << " " << e;
          EXPECT_FALSE(std::isfinite(used_TE(t, e))) << t << " " << e;
        } else {
          EXPECT_TRUE(data::same_bits(emulated_TE(t, e), clean_TE(t, e))) << t << " " << e;
          EXPECT_TRUE(data::same_bits(used_TE(t, e), clean_used_TE(t, e))) << t << " " << e;
        }
      }
    }
  }
}

TEST(Bf16Dot, PackedWeightsGiveTheSameBits) {
  const Floats other_EH = Floats::Ones(3, 9);
  gatepro::PackedWeights<float> packed(gatepro::view(other_EH));
  for (Index experts : {2, 8, 9, 40}) {
    const auto x_TH = data::random_matrix<bfloat16>(9, 601, 9);
    const auto w_EH = data::random_matrix<bfloat16>(experts, 601, 10);
    packed.pack(gatepro::view(w_EH), GateArithmetic::bf16_dot);
    EXPECT_EQ(packed.arithmetic(), gatepro::gate_arithmetic(GateArithmetic::bf16_dot, experts));
    Floats logits_TE(9, experts);
    auto memory =
        data::scratch(gatepro::gate_logits_workspace_bytes<bfloat16, float>(experts, 601));
    gatepro::gate_logits(gatepro::view(x_TH), packed, gatepro::view(logits_TE), memory);
    EXPECT_TRUE(data::same_bits(logits_TE, gate(x_TH, w_EH, GateArithmetic::bf16_dot)));
    packed.pack(gatepro::view(w_EH));
    EXPECT_EQ(packed.arithmetic(), GateArithmetic::widened);
    gatepro::gate_logits(gatepro::view(x_TH), packed, gatepro::view(logits_TE), memory);
    EXPECT_TRUE(data::same_bits(logits_TE, gate(x_TH, w_EH, GateArithmetic::widened)));
  }
}

TEST(Bf16Dot, FewExpertsAreWidened) {
  EXPECT_EQ(gatepro::gate_arithmetic(GateArithmetic::bf16_dot, 8), GateArithmetic::widened);
  EXPECT_EQ(gatepro::gate_arithmetic(GateArithmetic::widened, 64), GateArithmetic::widened);
  const auto expected = detail::has_bf16_dot() ? GateArithmetic::bf16_dot : GateArithmetic::widened;
  EXPECT_EQ(gatepro::gate_arithmetic(GateArithmetic::bf16_dot, 9), expected);
}

TEST(Bf16Dot, OtherScalarsAreRefused) {
  const Floats x_TH = Floats::Ones(3, 5), w_EH = Floats::Ones(20, 5);
  const Brains brain_x_TH = x_TH.cast<bfloat16>(), brain_w_EH = w_EH.cast<bfloat16>();
  Floats logits_TE = Floats::Constant(3, 20, 77);
  const Floats untouched_TE = logits_TE;
  auto memory = data::scratch(gatepro::gate_logits_workspace_bytes<float, float>(20, 5));
  const auto refuses = [&](const auto& x, const auto& w) {
    expect_error(
        [&] {
          gatepro::gate_logits(gatepro::view(x), gatepro::view(w), gatepro::view(logits_TE), memory,
                               SerialExecutor{}, GateArithmetic::bf16_dot);
        },
        {"gate_logits", "bfloat16 tokens and router weights for GateArithmetic::bf16_dot"});
  };
  refuses(x_TH, w_EH);
  refuses(x_TH, brain_w_EH);
  refuses(brain_x_TH, w_EH);
  using PackedFloats = gatepro::PackedWeights<float>;
  using PackedDoubles = gatepro::PackedWeights<double>;
  expect_error([&] { PackedFloats(gatepro::view(w_EH), GateArithmetic::bf16_dot); },
               {"PackedWeights", "bfloat16"});
  expect_error([&] { PackedDoubles(gatepro::view(brain_w_EH), GateArithmetic::bf16_dot); },
               {"PackedWeights", "bfloat16"});

  const PackedFloats packed(gatepro::view(brain_w_EH), GateArithmetic::bf16_dot);
  if (packed.arithmetic() == GateArithmetic::bf16_dot) {
    expect_error(
        [&] {
          gatepro::gate_logits(gatepro::view(x_TH), packed, gatepro::view(logits_TE), memory);
        },
        {"gate_logits", "bfloat16 tokens for weights that are packed"});
  }
  EXPECT_TRUE(data::same_bits(logits_TE, untouched_TE));
}

}  // namespace
