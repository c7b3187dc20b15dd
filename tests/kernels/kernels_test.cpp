// SPDX-License-Identifier: MIT
// The kernels of every instruction set that this machine has, called directly.
#include <gatepro/kernels/dispatch.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "support/bits.hpp"
#include "support/conversions.hpp"
#include "support/inputs.hpp"
#include "support/type_names.hpp"

namespace {

using data::at;
using gatepro::Index;
using gatepro::RowMatrix;
using gatepro::detail::CompetitionRule;
using gatepro::detail::GateKernels;
using gatepro::detail::GradientKernels;
using gatepro::detail::Isa;
using gatepro::detail::Kernels;
using gatepro::detail::kernels_for;
using gatepro::detail::key_of;
using gatepro::detail::Order;
using gatepro::detail::value_of;

template <class A>
using KeyOf = typename Order<A>::Key;

template <class A>
class KernelsTest : public ::testing::Test {
 protected:
  template <class Body>
  static void for_each_isa(const Body& body) {
    for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
      if (isa > gatepro::detail::best_isa()) continue;
      SCOPED_TRACE(gatepro::detail::name_of(isa));
      body(kernels_for<Kernels<A>>(isa), isa);
    }
  }

  /// The softmax kernel on rows of up to `lanes` tokens.
  static RowMatrix<A> softmax(const Kernels<A>& kernel, const RowMatrix<A>& selected_TK) {
    const Index lanes = kernel.lanes, k = selected_TK.cols();
    RowMatrix<A> weights_TK(selected_TK.rows(), k);
    RowMatrix<KeyOf<A>> keys_KL(k, lanes);
    RowMatrix<A> weights_KL(k, lanes);
    RowMatrix<KeyOf<A>> nonfinite_L(1, lanes);
    for (Index first = 0; first < selected_TK.rows(); first += lanes) {
      for (Index lane = 0; lane < lanes; ++lane) {
        const Index t = std::min(first + lane, selected_TK.rows() - 1);
        for (Index j = 0; j < k; ++j) keys_KL(j, lane) = key_of(selected_TK(t, j));
      }
      kernel.softmax(keys_KL.data(), k, weights_KL.data(), nonfinite_L.data());
      for (Index lane = 0; lane < lanes && first + lane < selected_TK.rows(); ++lane) {
        weights_TK.row(first + lane) = weights_KL.col(lane).transpose();
      }
    }
    return weights_TK;
  }

  /// Numbers from 0 down to where exp underflows, dense and irregular.
  static std::vector<A> exponents() {
    const double lowest = sizeof(A) == 4 ? -110 : -760;
    std::vector<A> result{A(0), A(-0.0), -std::numeric_limits<A>::denorm_min(),
                          -std::numeric_limits<A>::max()};
    for (std::uint64_t i = 0; i < 20000; ++i) {
      const double u = std::abs(data::random_uniform(2, i));
      result.push_back(static_cast<A>(lowest * u));
      result.push_back(static_cast<A>(-std::exp(-40 * u)));
    }
    // Where the reduction of the argument changes from one multiple of ln 2 to the next.
    for (int n = 0; n < (sizeof(A) == 4 ? 152 : 1076); ++n) {
      const A border = static_cast<A>(-(n + 0.5) * 0.69314718055994530942);
      for (A x : {border, std::nextafter(border, A(0)), std::nextafter(border, A(-1e4)),
                  static_cast<A>(-n * 0.69314718055994530942)}) {
        result.push_back(x);
      }
    }
    return result;
  }
};
using Scalars = ::testing::Types<float, double>;
TYPED_TEST_SUITE(KernelsTest, Scalars, TypeNames);

// With the largest logit 0 and one other x, the weights are 1 and exp(x) over their sum. Where
// exp(x) vanishes in that sum, the second weight is the kernel's exp itself.
TYPED_TEST(KernelsTest, ExpIsWithinTwoUlp) {
  using A = TypeParam;
  const std::vector<A> x = this->exponents();
  RowMatrix<A> selected_TK = RowMatrix<A>::Zero(static_cast<Index>(x.size()), 2);
  for (std::size_t i = 0; i < x.size(); ++i) selected_TK(static_cast<Index>(i), 1) = x[i];
  this->for_each_isa([&](const Kernels<A>& kernel, Isa) {
    const RowMatrix<A> weights_TK = this->softmax(kernel, selected_TK);
    double worst = 0, worst_of_sum = 0;
    for (Index t = 0; t < weights_TK.rows(); ++t) {
      const long double e = std::exp(static_cast<long double>(selected_TK(t, 1)));
      if (1 + 2 * static_cast<A>(e) == 1) {
        ASSERT_EQ(weights_TK(t, 0), 1);
        worst = std::max(worst, data::ulps(weights_TK(t, 1), e));
      } else {
        worst_of_sum = std::max({worst_of_sum, data::ulps(weights_TK(t, 0), 1 / (1 + e)),
                                 data::ulps(weights_TK(t, 1), e / (1 + e))});
      }
    }
    EXPECT_LE(worst, 2);
    EXPECT_LE(worst_of_sum, 3);  // half for the sum and half for the quotient come on top
    this->RecordProperty("worst_exp_ulp", std::to_string(worst));
    this->RecordProperty("worst_weight_ulp", std::to_string(worst_of_sum));
  });
}

TYPED_TEST(KernelsTest, ExpOfZeroIsOneAndUnderflowIsZero) {
  using A = TypeParam;
  RowMatrix<A> selected_TK(3, 2);
  selected_TK << 7, 7, std::numeric_limits<A>::max(), -std::numeric_limits<A>::max(), 0,
      sizeof(A) == 4 ? -104 : -746;
  this->for_each_isa([&](const Kernels<A>& kernel, Isa) {
    RowMatrix<A> expected_TK(3, 2);
    expected_TK << 0.5, 0.5, 1, 0, 1, 0;
    EXPECT_TRUE(data::same_bits(this->softmax(kernel, selected_TK), expected_TK));
  });
}

// Any number of tokens and experts, rows with a gap: a tile of L x L is rarely whole.
TYPED_TEST(KernelsTest, LoadKeysTransposes) {
  using A = TypeParam;
  this->for_each_isa([&](const Kernels<A>& kernel, Isa) {
    const Index lanes = kernel.lanes;
    for (Index tokens = 1; tokens <= lanes; ++tokens) {
      for (Index experts = 1; experts <= 2 * lanes + 1; ++experts) {
        const RowMatrix<A> logits_TE = data::special_matrix<A>(tokens, experts + 3, 5);
        // Exactly as large as promised, so that a sanitizer sees a read past the end.
        std::vector<A> exact(logits_TE.data(), logits_TE.data() + logits_TE.size() - 3);
        std::vector<KeyOf<A>> keys_EL(static_cast<std::size_t>(experts * lanes) + 1, KeyOf<A>(77));
        kernel.load_keys(exact.data(), experts + 3, experts, tokens, experts, keys_EL.data());
        for (Index e = 0; e < experts; ++e) {
          for (Index lane = 0; lane < lanes; ++lane) {
            ASSERT_EQ(keys_EL[static_cast<std::size_t>(e * lanes + lane)],
                      key_of(logits_TE(std::min(lane, tokens - 1), e)))
                << tokens << " x " << experts << " at " << e << ", " << lane;
          }
        }
        ASSERT_EQ(keys_EL.back(), 77);
      }
    }
  });
}

// Any number of tokens and columns, rows with and without a gap.
TYPED_TEST(KernelsTest, StoreLanesTransposes) {
  using A = TypeParam;
  this->for_each_isa([&](const Kernels<A>& kernel, Isa) {
    const Index lanes = kernel.lanes;
    for (Index tokens = 1; tokens <= lanes; ++tokens) {
      for (Index cols = 1; cols <= 2 * lanes + 1; ++cols) {
        for (const Index gap : {0, 3}) {
          const RowMatrix<A> values_CL = data::random_matrix<A>(cols, lanes, 7);
          const Index stride = cols + gap;
          // Exactly as large as needed, so that a sanitizer sees a write past the end.
          std::vector<A> to(static_cast<std::size_t>(tokens * stride - gap), A(77));
          kernel.store_lanes(values_CL.data(), cols, tokens, to.data(), stride);
          for (std::size_t i = 0; i < to.size(); ++i) {
            const Index t = static_cast<Index>(i) / stride;
            const Index c = static_cast<Index>(i) % stride;
            ASSERT_EQ(to[i], c < cols ? values_CL(c, t) : A(77))
                << tokens << " x " << cols << " at " << t << ", " << c;
          }
        }
      }
    }
  });
}

TYPED_TEST(KernelsTest, CountsTheIdsOfTheFirstTokens) {
  this->for_each_isa([&](const Kernels<TypeParam>& kernel, Isa) {
    const Index lanes = kernel.lanes, experts = 5, top_k = 3;
    for (Index tokens = 1; tokens <= lanes; ++tokens) {
      std::vector<KeyOf<TypeParam>> ids_KL;
      std::vector<std::int64_t> expected(experts, 1), counts(experts, 1);
      for (Index i = 0; i < top_k * lanes; ++i) {
        ids_KL.push_back(static_cast<KeyOf<TypeParam>>(i * i % experts));
        if (i % lanes < tokens) ++expected[static_cast<std::size_t>(i * i % experts)];
      }
      kernel.count_ids(ids_KL.data(), top_k, tokens, counts.data());
      ASSERT_EQ(counts, expected) << tokens;
    }
  });
}

template <class A, class Source>
void expect_all_patterns_widen(Isa isa) {
  std::vector<Source> patterns(65536);
  std::vector<A> wide(patterns.size());
  for (std::size_t i = 0; i < patterns.size(); ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    std::memcpy(static_cast<void*>(&patterns[i]), &bits, sizeof bits);
  }
  kernels_for<GateKernels<A, Source>>(isa).widen(patterns.data(), 65536, wide.data());
  int wrong = 0;
  for (std::size_t i = 0; i < patterns.size(); ++i) {
    A expected = static_cast<A>(static_cast<float>(patterns[i]));
    A got = wide[i];
    if (std::isnan(expected)) {
      // A conversion may quiet a signalling NaN; the payload stays.
      constexpr int mantissa = std::numeric_limits<A>::digits - 1;
      const auto quiet = data::BitsOf<A>(1) << (mantissa - 1);
      expected = data::from_bits<A>(data::bits_of(expected) | quiet);
      got = data::from_bits<A>(data::bits_of(got) | quiet);
    }
    if (!data::same_bits(got, expected)) {
      ++wrong;
      EXPECT_TRUE(data::same_bits(got, expected)) << "pattern " << i;
    }
    ASSERT_LT(wrong, 5);
  }
}

TYPED_TEST(KernelsTest, WidensEveryPatternAsEigenDoes) {
  this->for_each_isa([](const Kernels<TypeParam>&, Isa isa) {
    expect_all_patterns_widen<TypeParam, gatepro::bfloat16>(isa);
    expect_all_patterns_widen<TypeParam, gatepro::half>(isa);
  });
}

template <class A, class Source>
void expect_any_count_widens(const Kernels<A>& kernel, Isa isa) {
  for (Index count = 0; count <= 2 * kernel.lanes + 1; ++count) {
    const RowMatrix<Source> from = data::random_matrix<Source>(1, count, 3);
    const std::vector<Source> exact(from.data(), from.data() + count);
    std::vector<A> wide(static_cast<std::size_t>(count) + 1, A(77));
    kernels_for<GateKernels<A, Source>>(isa).widen(exact.data(), count, wide.data());
    for (Index i = 0; i < count; ++i) {
      ASSERT_EQ(wide[static_cast<std::size_t>(i)], static_cast<A>(from(0, i))) << count;
    }
    ASSERT_EQ(wide.back(), 77);
  }
}

TYPED_TEST(KernelsTest, WidensAnyCount) {
  this->for_each_isa([](const Kernels<TypeParam>& kernel, Isa isa) {
    expect_any_count_widens<TypeParam, float>(kernel, isa);
    expect_any_count_widens<TypeParam, double>(kernel, isa);
    expect_any_count_widens<TypeParam, gatepro::bfloat16>(kernel, isa);
    expect_any_count_widens<TypeParam, gatepro::half>(kernel, isa);
  });
}

/// Ids by descending key, lowest id first among equals.
template <class Key>
std::vector<Index> sorted_ids(const RowMatrix<Key>& keys_EL, Index lane) {
  std::vector<Index> ids(static_cast<std::size_t>(keys_EL.rows()));
  std::iota(ids.begin(), ids.end(), Index{0});
  std::stable_sort(ids.begin(), ids.end(),
                   [&](Index a, Index b) { return keys_EL(a, lane) > keys_EL(b, lane); });
  return ids;
}

template <class A>
void expect_top_k(const Kernels<A>& kernel, const RowMatrix<KeyOf<A>>& keys_EL,
                  const std::vector<Index>& ks) {
  const Index lanes = kernel.lanes, experts = keys_EL.rows();
  std::vector<std::vector<Index>> sorted;
  for (Index lane = 0; lane < lanes; ++lane) sorted.push_back(sorted_ids(keys_EL, lane));
  for (Index k : ks) {
    RowMatrix<KeyOf<A>> top_keys_KL = RowMatrix<KeyOf<A>>::Constant(k + 1, lanes, 77);
    RowMatrix<KeyOf<A>> top_ids_KL = RowMatrix<KeyOf<A>>::Constant(k + 1, lanes, 77);
    kernel.top_k(keys_EL.data(), experts, k, {top_keys_KL.data(), top_ids_KL.data()});
    for (Index lane = 0; lane < lanes; ++lane) {
      for (Index j = 0; j < k; ++j) {
        const Index id = at(sorted, lane, j);
        ASSERT_EQ(top_ids_KL(j, lane), id) << "E " << experts << " k " << k << " slot " << j;
        ASSERT_EQ(top_keys_KL(j, lane), keys_EL(id, lane));
      }
      ASSERT_EQ(top_keys_KL(k, lane), 77);
      ASSERT_EQ(top_ids_KL(k, lane), 77);
    }
  }
}

/// Ids in the order of a competition: survivors, losers, NaNs; then by ranked key; then by id.
template <class A>
std::vector<Index> ids_after_competition(const RowMatrix<KeyOf<A>>& keys_EL, Index lane,
                                         const std::vector<std::int32_t>& rivals,
                                         const CompetitionRule<A>& rule,
                                         std::vector<KeyOf<A>>& ranked) {
  using O = Order<A>;
  std::vector<std::pair<int, KeyOf<A>>> places;
  ranked.clear();
  for (Index e = 0; e < keys_EL.rows(); ++e) {
    const KeyOf<A> own = keys_EL(e, lane);
    const bool loses = own != O::nan && own < keys_EL(rivals[static_cast<std::size_t>(e)], lane);
    const bool is_loser = loses && rule.eliminate;
    const KeyOf<A> paid = loses ? key_of(static_cast<A>(value_of<A>(own) - rule.lambda)) : own;
    places.push_back({own == O::nan ? 0 : is_loser ? 1 : 2, rule.eliminate ? own : paid});
    ranked.push_back(is_loser ? O::loser : rule.eliminate ? own : paid);
  }
  std::vector<Index> ids(places.size());
  std::iota(ids.begin(), ids.end(), Index{0});
  std::stable_sort(ids.begin(), ids.end(), [&](Index a, Index b) {
    return places[static_cast<std::size_t>(a)] > places[static_cast<std::size_t>(b)];
  });
  return ids;
}

template <class A>
void expect_top_k_after_competition(const Kernels<A>& kernel, const RowMatrix<KeyOf<A>>& keys_EL,
                                    Index k, A lambda, bool eliminate) {
  using Keys = RowMatrix<KeyOf<A>>;
  const Index lanes = kernel.lanes, experts = keys_EL.rows();
  std::vector<std::int32_t> rivals;
  for (Index e = 0; e < experts; ++e) {
    rivals.push_back(
        static_cast<std::int32_t>(data::random_below(experts, 11, static_cast<std::uint64_t>(e))));
  }
  CompetitionRule<A> rule;
  rule.rivals.only = rivals.data();
  rule.eliminate = eliminate;
  rule.lambda = lambda;
  Keys ranked_EL(experts, lanes), other_keys(k, lanes), other_ids(k, lanes);
  Keys top_keys = Keys::Constant(k + 1, lanes, 77), top_ids = top_keys;
  kernel.compete(keys_EL.data(), experts, rule, ranked_EL.data());
  const gatepro::detail::SelectedKeys<KeyOf<A>> top{top_keys.data(), top_ids.data()};
  if (!eliminate || !kernel.top_k_with_losers(keys_EL.data(), experts, k, ranked_EL.data(), top)) {
    kernel.top_k(ranked_EL.data(), experts, k, top);
    kernel.refill(keys_EL.data(), experts, k, ranked_EL.data(),
                  {other_keys.data(), other_ids.data()}, top);
  }
  std::vector<KeyOf<A>> ranked;
  for (Index lane = 0; lane < lanes; ++lane) {
    const auto ids = ids_after_competition<A>(keys_EL, lane, rivals, rule, ranked);
    for (Index j = 0; j < k; ++j) {
      const Index id = ids[static_cast<std::size_t>(j)];
      ASSERT_EQ(top_ids(j, lane), id) << "E " << experts << " k " << k << " slot " << j
                                      << " eliminate " << eliminate << " lambda " << lambda;
      ASSERT_EQ(top_keys(j, lane), ranked[static_cast<std::size_t>(id)]);
    }
    ASSERT_EQ(top_keys(k, lane), 77);
    ASSERT_EQ(top_ids(k, lane), 77);
  }
}

/// Keys that are hard to order, of each kind one matrix. A kernel may keep ids in the low bits of
/// keys while that costs no order: some kinds leave these bits zero, some differ in nothing else,
/// some do only around the k-th place.
template <class A>
std::vector<RowMatrix<KeyOf<A>>> hard_keys(Index experts, Index lanes) {
  using Key = KeyOf<A>;
  std::vector<RowMatrix<Key>> kinds;
  const auto add = [&](const auto& key_at) {
    RowMatrix<Key> keys_EL(experts, lanes);
    for (Index i = 0; i < keys_EL.size(); ++i) keys_EL.data()[i] = key_at(i);
    kinds.push_back(keys_EL);
  };
  const auto below = [](Index n, std::uint64_t seed, Index i) {
    return static_cast<Key>(data::random_below(n, seed, static_cast<std::uint64_t>(i)));
  };
  const Key one = key_of(A(1));
  add([&](Index i) {
    return key_of(static_cast<A>(data::random_uniform(5, static_cast<std::uint64_t>(i))));
  });
  add([&](Index i) { return static_cast<Key>(below(3, 4, i) - 1); });
  add([&](Index i) { return static_cast<Key>(Order<A>::empty + 1 + below(3, 6, i)); });
  add([&](Index i) { return static_cast<Key>((below(5, 7, i) - 2) * 65536); });
  add([&](Index i) { return static_cast<Key>((below(5, 7, i) - 2) * 65536 + (i == 0 ? 1 : 0)); });
  add([&](Index i) { return static_cast<Key>(one + below(2 * experts, 8, i)); });
  add([&](Index i) { return static_cast<Key>(-one - below(2 * experts, 8, i)); });
  add([&](Index i) { return static_cast<Key>((below(experts, 9, i)) * 1024 + below(2, 10, i)); });
  add([&](Index i) {
    const Key kind = below(6, 11, i);
    if (kind == 0) return Order<A>::nan;
    return kind == 1 ? static_cast<Key>(-Order<A>::infinity) : below(4, 12, i);
  });
  // One pair of neighbours in value, with the larger key behind: the rest is far apart.
  add([&](Index i) {
    const Index e = i / lanes, pair = i % lanes % experts;
    if (e == pair || e == experts - 1) return static_cast<Key>(one + (e == pair ? 0 : 1));
    return static_cast<Key>(one + (e % 2 == 0 ? 1 : -1) * (e + 1) * 4096);
  });
  return kinds;
}

TYPED_TEST(KernelsTest, TopKAfterCompetitionIsAStableSort) {
  using A = TypeParam;
  this->for_each_isa([](const Kernels<A>& kernel, Isa) {
    for (Index experts : {1, 2, 3, 8, 9, 16, 17, 33, 64, 200}) {
      for (const auto& any_keys_EL : hard_keys<A>(experts, kernel.lanes)) {
        // Of logits: none below -inf but for NaN.
        const RowMatrix<KeyOf<A>> keys_EL = any_keys_EL.unaryExpr([](KeyOf<A> key) {
          return key < -Order<A>::infinity ? Order<A>::nan : (std::min)(key, Order<A>::infinity);
        });
        for (Index k : {1, 2, 3, 4, 5, 8, 9, 16, 40, 70, 200}) {
          if (k > experts) continue;
          for (double lambda : {0.0, 1e-4, 0.5, 1e4}) {
            expect_top_k_after_competition<A>(kernel, keys_EL, k, static_cast<A>(lambda), false);
          }
          expect_top_k_after_competition<A>(kernel, keys_EL, k, A(0), true);
        }
      }
    }
  });
}

TYPED_TEST(KernelsTest, TopKIsAStableSort) {
  using A = TypeParam;
  this->for_each_isa([](const Kernels<A>& kernel, Isa) {
    for (Index experts = 1; experts <= 40; ++experts) {
      std::vector<Index> ks(static_cast<std::size_t>(experts));
      std::iota(ks.begin(), ks.end(), Index{1});
      for (const auto& keys_EL : hard_keys<A>(experts, kernel.lanes)) {
        expect_top_k<A>(kernel, keys_EL, ks);
      }
    }
    for (Index experts : {64, 65, 97, 160, 300}) {
      for (const auto& keys_EL : hard_keys<A>(experts, kernel.lanes)) {
        expect_top_k<A>(kernel, keys_EL,
                        {1, 2, 3, 4, 6, 8, 9, 16, 17, 24, 31, 32, 33, 63, experts - 1, experts});
      }
    }
    // Each way from short lists of many to long ones.
    for (Index experts : {1024, 1200}) {
      for (const auto& keys_EL : hard_keys<A>(experts, kernel.lanes)) {
        expect_top_k<A>(kernel, keys_EL, {9, 32, 33, 34, 35, 63, 64, 65, 100, 600, experts});
      }
    }
  });
}

/// out += coefficients * rows as one chain per element, fused or not.
template <class A, class Source>
RowMatrix<A> chain(const RowMatrix<A>& start, const std::vector<A>& coefficients,
                   const std::vector<Index>& rows, const RowMatrix<Source>& base, bool fused) {
  RowMatrix<A> out = start;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (Index c = 0; c < out.cols(); ++c) {
      const A element = static_cast<A>(base(rows[i], c));
      // volatile keeps this compilation from fusing what must not be fused.
      volatile A product = coefficients[i] * element;
      out(0, c) = fused ? std::fma(coefficients[i], element, out(0, c)) : out(0, c) + product;
    }
  }
  return out;
}

template <class A, class Source>
void expect_one_chain(Isa isa) {
  const Index lanes = kernels_for<Kernels<A>>(isa).lanes;
  const auto add_rows = kernels_for<GradientKernels<A, Source>>(isa).add_rows;
  const std::vector<Index> rows{4, 0, 2, 2, 7};
  const RowMatrix<A> random = data::random_matrix<A>(1, 5, 8);
  const std::vector<A> coefficients(random.data(), random.data() + 5);
  bool all_fused = true, none_fused = true;
  for (Index width = 0; width <= 17 * lanes + 1; width += width < 2 * lanes ? 1 : lanes / 2 + 1) {
    const RowMatrix<Source> base = data::random_matrix<Source>(8, width, 7);
    const RowMatrix<A> start = data::random_matrix<A>(1, width, 9);
    std::vector<A> out(start.data(), start.data() + width);
    out.push_back(A(77));
    add_rows(coefficients.data(), rows.data(), 5, base.data(), width, width, out.data());
    const RowMatrix<A> got = Eigen::Map<const RowMatrix<A>>(out.data(), 1, width);
    const auto fused = data::same_bits(got, chain(start, coefficients, rows, base, true));
    const auto plain = data::same_bits(got, chain(start, coefficients, rows, base, false));
    ASSERT_TRUE(fused || plain) << width;
    ASSERT_EQ(out.back(), 77);
    all_fused = all_fused && fused;
    none_fused = none_fused && plain;
  }
  // Not the one in some columns and the other in the rest.
  EXPECT_TRUE(all_fused || none_fused);
}

TYPED_TEST(KernelsTest, AddRowsIsOneChainPerElement) {
  this->for_each_isa([](const Kernels<TypeParam>&, Isa isa) {
    expect_one_chain<TypeParam, float>(isa);
    expect_one_chain<TypeParam, double>(isa);
    expect_one_chain<TypeParam, gatepro::bfloat16>(isa);
    expect_one_chain<TypeParam, gatepro::half>(isa);
  });
}

TYPED_TEST(KernelsTest, RowProductsAreThoseOfDouble) {
  using A = TypeParam;
  this->for_each_isa([](const Kernels<A>& kernel, Isa) {
    for (Index count : {0, 1, 3, 8, 15, 16, 17, 40, 1000}) {
      const auto a = data::random_matrix<A>(1, count, 1), b = data::random_matrix<A>(1, count, 2);
      long double aa = 0, ab = 0, bb = 0;
      for (Index i = 0; i < count; ++i) {
        const auto x = static_cast<long double>(a(0, i)), y = static_cast<long double>(b(0, i));
        aa += x * x;
        ab += x * y;
        bb += y * y;
      }
      const auto products = kernel.row_products(a.data(), b.data(), count);
      const auto error = 1e-15L * static_cast<long double>(1 + count);
      ASSERT_LE(std::abs(aa - static_cast<long double>(products.aa)), error);
      ASSERT_LE(std::abs(ab - static_cast<long double>(products.ab)), error);
      ASSERT_LE(std::abs(bb - static_cast<long double>(products.bb)), error);
    }
  });
}

// To the bit what the gate makes of the same rows.
TYPED_TEST(KernelsTest, PairProductsAreLogits) {
  using A = TypeParam;
  this->for_each_isa([](const Kernels<A>& kernel, Isa isa) {
    const auto& gate = kernels_for<GateKernels<A, A>>(isa);
    const Index lanes = kernel.lanes;
    for (Index depth : {1, 2, 15, 16, 17, 33, 300}) {
      const Index stride = (depth + lanes - 1) / lanes * lanes;
      const auto left = data::random_matrix<A>(lanes, stride, 3);
      const auto right = data::random_matrix<A>(lanes, stride, 4);
      RowMatrix<A> packed(depth, lanes), logits(lanes, lanes), products(1, lanes);
      gate.pack(right.data(), stride, lanes, depth, packed.data(), lanes);
      gate.gate(left.data(), stride, lanes, packed.data(), depth, 1, logits.data(), lanes, true,
                {});
      std::vector<const A*> x, y;
      for (Index i = 0; i < lanes; ++i) x.push_back(left.row(i).data());
      for (Index i = 0; i < lanes; ++i) y.push_back(right.row(i).data());
      kernel.pair_products(x.data(), y.data(), depth, products.data());
      ASSERT_TRUE(data::same_bits(products, RowMatrix<A>(logits.diagonal().transpose()))) << depth;
    }
  });
}

#if defined(__GNUC__) && !defined(__clang__) && !defined(__FAST_MATH__) && \
    (GATEPRO_X86_TARGETS || GATEPRO_NEON)
// GCC fuses by default: the documented chain of fused multiply-adds.
TYPED_TEST(KernelsTest, MultiplyAddsAreFusedWhereTheSetHasThem) {
  using A = TypeParam;
  const A x = 1 + std::numeric_limits<A>::epsilon();
  const Index row = 0;
  this->for_each_isa([&](const Kernels<A>&, Isa isa) {
    if (isa == Isa::portable && !GATEPRO_NEON) return;
    A out = -1;
    kernels_for<GradientKernels<A, A>>(isa).add_rows(&x, &row, 1, &x, 1, 1, &out);
    EXPECT_EQ(out, std::fma(x, x, A(-1)));
  });
}
#endif

}  // namespace
