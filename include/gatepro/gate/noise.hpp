// SPDX-License-Identifier: MIT
// Stages: noise on tokens and on logits.
//
// A value of noise is a function of the seed, the step, the index of the token and the column. So
// it does not depend on threads, nor on how a batch is cut, and the backward makes it again instead
// of storing it.
#ifndef GATEPRO_GATE_NOISE_HPP
#define GATEPRO_GATE_NOISE_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "gatepro/core/checks.hpp"
#include "gatepro/core/order.hpp"
#include "gatepro/core/philox.hpp"
#include "gatepro/core/product.hpp"
#include "gatepro/gate/rounding.hpp"

namespace gatepro {

/// Which noise: give every forward a `step` of its own, and every layer and rank a `seed` of its
/// own. Plain data, for checkpoints.
struct NoiseKey {
  std::uint64_t seed = 0;  ///< The run's, layer's and rank's.
  std::uint64_t step = 0;  ///< Counts the forwards; the same step gives the same noise again.
  /// Which token of the batch a call begins with, for calls that get a range of them: >= 0.
  Index first_token = 0;
};

namespace detail {

/// What noise is for. Uses have streams of their own.
enum class NoiseUse : std::uint32_t {
  jitter = 1,
  logits = 2,
  routing = 3,
  weights = 4,
  hashes = 5
};

/// What a value of noise takes, in multiply-adds of the gate: uniform, or normal.
inline constexpr Index uniform_work = 512, normal_work = 2048;

/// Four columns' worth of noise.
struct FourValues {
  double value[4];
};

inline namespace GATEPRO_ABI {

inline std::uint32_t low_word(std::uint64_t value) { return static_cast<std::uint32_t>(value); }
inline std::uint32_t high_word(std::uint64_t value) {
  return static_cast<std::uint32_t>(value >> 32);
}

/// The Philox key of a stream, itself made by Philox: seed, step and use do not fit beside token
/// and column into one counter.
inline std::uint64_t stream_key(const NoiseKey& noise, NoiseUse use) {
  const PhiloxBlock counter{
      {low_word(noise.step), high_word(noise.step), static_cast<std::uint32_t>(use), 0}};
  const PhiloxBlock key = philox4x32(counter, noise.seed);
  return (std::uint64_t{key.word[1]} << 32) | key.word[0];
}

/// The bits of columns 4 * block to 4 * block + 3 of a token.
inline PhiloxBlock noise_bits(std::uint64_t key, Index token, Index block) {
  const auto t = static_cast<std::uint64_t>(token);
  const auto b = static_cast<std::uint64_t>(block);
  return philox4x32({{low_word(t), high_word(t), low_word(b), high_word(b)}}, key);
}

/// Uniform in (-1, 1), symmetric, never 0: the middle of one of 2^32 equal parts.
inline double uniform_of(std::uint32_t bits) {
  return (2 * static_cast<double>(bits) + 1) * 0x1p-32 - 1;
}

inline FourValues uniforms_of(const PhiloxBlock& bits) {
  return {{uniform_of(bits.word[0]), uniform_of(bits.word[1]), uniform_of(bits.word[2]),
           uniform_of(bits.word[3])}};
}

/// Two numbers from N(0, 1) of two words, by Box and Muller. They end at 6.7.
inline void store_normals(std::uint32_t radius_bits, std::uint32_t angle_bits, double* two) {
  constexpr double two_pi = 6.283185307179586476925;
  const double in_0_1 = (static_cast<double>(radius_bits) + 1) * 0x1p-32;
  const double radius = std::sqrt(-2 * std::log(in_0_1));
  const double angle = two_pi * (static_cast<double>(angle_bits) * 0x1p-32);
  two[0] = radius * std::cos(angle);
  two[1] = radius * std::sin(angle);
}

inline FourValues normals_of(const PhiloxBlock& bits) {
  FourValues normals;
  store_normals(bits.word[0], bits.word[1], normals.value);
  store_normals(bits.word[2], bits.word[3], normals.value + 2);
  return normals;
}

/// Calls `visit(t, c, value)` for all elements of a T x cols matrix; `shape` makes four values of a
/// block of bits, which takes `work` for each.
template <class Shape, class Executor, class Visit>
void for_each_noise(const NoiseKey& noise, NoiseUse use, Index tokens, Index cols, Index work,
                    const Shape& shape, const Executor& executor, int workers, const Visit& visit) {
  const std::uint64_t key = stream_key(noise, use);
  const int busy = useful_workers(executor, workers, {work, tokens, cols});
  for_each_row(tokens, executor, busy, [&](Index t) {
    for (Index c = 0; c < cols; c += 4) {
      const FourValues four = shape(noise_bits(key, noise.first_token + t, c / 4));
      const Index count = (std::min)(Index{4}, cols - c);
      for (Index i = 0; i < count; ++i) visit(t, c + i, four.value[i]);
    }
  });
}

/// What jitter multiplies by. A float, so that tokens and gradients of any scalar get the same.
inline float jitter_factor(double epsilon, double uniform) {
  return static_cast<float>(1 + product(epsilon, uniform));
}

inline void check_first_token(const Checks& checks, Index first_token, Index tokens) {
  checks.need(first_token >= 0 && tokens <= (std::numeric_limits<Index>::max)() - first_token,
              "first_token >= 0, and token indices in range",
              {{"first_token", first_token}, {"tokens", tokens}});
}

inline void check_epsilon(const Checks& checks, double epsilon) {
  checks.need(key_of(epsilon) >= 0 && epsilon < 1, "0 <= epsilon < 1", {{"epsilon", epsilon}});
}

}  // namespace GATEPRO_ABI
}  // namespace detail

inline namespace GATEPRO_ABI {

/// out_TH = x_TH * factor, with a factor per element that is uniform in (1 - epsilon, 1 + epsilon),
/// rounded to float (Switch Transformer; Megatron-LM `moe_input_jitter_eps`).
///
/// x_TH: T x H; token t of it is token noise.first_token + t of the batch. out_TH: T x H,
/// overwritten, of the same scalar; it may be x_TH. An epsilon of 0 copies. Throws Error for
/// shapes, an epsilon outside [0, 1) or a negative first_token, before any write. No allocation.
/// Thread-safe.
template <class X, class Executor = SerialExecutor>
void jitter_tokens(detail::non_deduced_t<MatrixView<const X>> x_TH, double epsilon,
                   const NoiseKey& noise, MatrixView<X> out_TH, const Executor& executor = {}) {
  detail::check_input_scalars<X, X>();
  const detail::Checks checks("jitter_tokens");
  using A = accumulator_t<X>;
  checks.matrix("x_TH", x_TH, x_TH.rows, x_TH.cols);
  detail::check_epsilon(checks, epsilon);
  detail::check_first_token(checks, noise.first_token, x_TH.rows);
  checks.matrix("out_TH", out_TH, x_TH.rows, x_TH.cols);
  checks.overlaps(detail::output("out_TH", out_TH), detail::in_place("x_TH", x_TH));
  const int workers = checks.workers(executor);

  detail::for_each_noise(noise, detail::NoiseUse::jitter, x_TH.rows, x_TH.cols,
                         detail::uniform_work, detail::uniforms_of, executor, workers,
                         [&](Index t, Index c, double uniform) {
                           const A factor = static_cast<A>(detail::jitter_factor(epsilon, uniform));
                           out_TH(t, c) = static_cast<X>(static_cast<A>(x_TH(t, c)) * factor);
                         });
}

/// dx_TH += dout_TH * factor, with the factors of jitter_tokens: its gradient.
///
/// dout_TH, dx_TH: T x H; to a dx_TH of 16 bits goes the sum in float, rounded once. The other
/// arguments as in the forward. Throws Error as jitter_tokens. No allocation. Thread-safe.
template <class D, class Executor = SerialExecutor>
void jitter_backward(detail::non_deduced_t<MatrixView<const accumulator_t<D>>> dout_TH,
                     double epsilon, const NoiseKey& noise, MatrixView<D> dx_TH,
                     const Executor& executor = {}) {
  using A = accumulator_t<D>;
  detail::check_input_scalars<D, D>();
  const detail::Checks checks("jitter_backward");
  checks.matrix("dout_TH", dout_TH, dout_TH.rows, dout_TH.cols);
  detail::check_epsilon(checks, epsilon);
  detail::check_first_token(checks, noise.first_token, dout_TH.rows);
  checks.matrix("dx_TH", dx_TH, dout_TH.rows, dout_TH.cols);
  checks.overlaps(detail::output("dx_TH", dx_TH), detail::input("dout_TH", dout_TH));
  const int workers = checks.workers(executor);

  detail::for_each_noise(
      noise, detail::NoiseUse::jitter, dout_TH.rows, dout_TH.cols, detail::uniform_work,
      detail::uniforms_of, executor, workers, [&](Index t, Index c, double uniform) {
        const A factor = static_cast<A>(detail::jitter_factor(epsilon, uniform));
        const A sum = static_cast<A>(dx_TH(t, c)) + detail::product(dout_TH(t, c), factor);
        dx_TH(t, c) = detail::rounded_to<D>(sum);
      });
}

/// logits_TE += sigma N(0, 1), independently per element. The gradient passes through unchanged.
///
/// logits_TE: T x E; token t of it is token noise.first_token + t of the batch. A sigma of 0
/// changes nothing. Throws Error for shapes, a sigma that is not finite and >= 0 or a negative
/// first_token, before any write. No allocation. Thread-safe.
template <class A, class Executor = SerialExecutor>
void add_logit_noise(double sigma, const NoiseKey& noise, MatrixView<A> logits_TE,
                     const Executor& executor = {}) {
  detail::check_accumulator<A>();
  const detail::Checks checks("add_logit_noise");
  checks.need(detail::key_of(sigma) >= 0 && detail::key_of(sigma) < detail::Order<double>::infinity,
              "sigma finite and >= 0", {{"sigma", sigma}});
  detail::check_first_token(checks, noise.first_token, logits_TE.rows);
  checks.matrix("logits_TE", logits_TE, logits_TE.rows, logits_TE.cols);
  const int workers = checks.workers(executor);
  if (detail::key_of(sigma) == 0) return;

  detail::for_each_noise(noise, detail::NoiseUse::logits, logits_TE.rows, logits_TE.cols,
                         detail::normal_work, detail::normals_of, executor, workers,
                         [&](Index t, Index c, double normal) {
                           logits_TE(t, c) += static_cast<A>(detail::product(sigma, normal));
                         });
}

}  // namespace GATEPRO_ABI
}  // namespace gatepro

#endif  // GATEPRO_GATE_NOISE_HPP
