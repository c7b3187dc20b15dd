// SPDX-License-Identifier: MIT
// Gate kernels: logits = X W^T. Neighbouring experts, or columns if experts are few, in the lanes.

/// Fetches a line of each of R rows. Into the second cache only: rows a power of two apart share a
/// few sets of the first one, where they would drive each other out.
template <int R>
GATEPRO_FN void prefetch_rows([[maybe_unused]] const char* rows, [[maybe_unused]] Index stride) {
#if GATEPRO_VECTOR_EXTENSIONS
  if (rows == nullptr) return;
  GATEPRO_UNROLL
  for (int r = 0; r < R; ++r) __builtin_prefetch(rows + r * stride, 0, 2);
#endif
}

/// What a gate block sums in each step: the product of a column, in A.
template <class A>
struct Products {
  using Sum = A;
  using Token = A;
  static constexpr int columns = 1;  ///< Of X, in each step.

  GATEPRO_FN static Lanes<A> token(const A* x) { return Lanes<A>::splat(*x); }
  GATEPRO_FN static Lanes<A> weights(const A* w) { return Lanes<A>::load(w); }
  GATEPRO_FN static void add(const Lanes<A>& token, const Lanes<A>& weights, Lanes<A>& sum) {
    sum = mul_add(token, weights, sum);
  }
};

/// The same for the products of two neighbouring columns, two bfloat16 in 32 bits. `Dot::add` adds
/// both, the second one first.
template <class Dot>
struct PairProducts : Dot {
  using Sum = float;
  using Token = bfloat16;
  using Pairs = Lanes<std::int32_t>;
  static constexpr int columns = 2;

  GATEPRO_FN static Pairs token(const bfloat16* x) {
    std::int32_t pair;
    std::memcpy(&pair, static_cast<const void*>(x), sizeof pair);
    return Pairs::splat(pair);
  }
  GATEPRO_FN static Pairs weights(const float* w) { return Pairs::load(w); }
};

#if GATEPRO_VECTOR_EXTENSIONS && GATEPRO_BYTES == 64

/// The instruction of AVX512_BF16: two fused multiply-adds that round to nearest even, take
/// denormals for zeros and flush those that they make. As text, because the arguments of the
/// compilers' functions for it change their type from version to version.
struct Vdpbf16ps {
  GATEPRO_FN static void add(const Lanes<std::int32_t>& token, const Lanes<std::int32_t>& weights,
                             Lanes<float>& sum) {
    __asm__("vdpbf16ps {%2, %1, %0|%0, %1, %2}" : "+v"(sum.raw) : "v"(weights.raw), "v"(token.raw));
  }
};

#endif

/// R tokens against C vectors of experts, over `depth` steps: out += x * w, or out = x * w.
/// Each logit is one chain of additions in ascending order of steps, wherever its token stands.
template <class Step, int R, int C>
GATEPRO_FN void gate_block(const typename Step::Token* x, Index x_stride,
                           const typename Step::Sum* w, Index depth, typename Step::Sum* out,
                           Index out_stride, bool first, NextRows next) {
  using V = Lanes<typename Step::Sum>;
  constexpr int L = lanes_v<typename Step::Sum>;
  constexpr Index line = 64 / Index(sizeof(typename Step::Token)) / Step::columns;
  V sum[std::size_t(R)][std::size_t(C)];
  GATEPRO_UNROLL
  for (int r = 0; r < R; ++r) {
    GATEPRO_UNROLL
    for (int c = 0; c < C; ++c) {
      sum[r][c] = first ? V::splat(0) : V::load(out + r * out_stride + c * L);
    }
  }
  for (Index start = 0; start < depth; start += line) {
    prefetch_rows<R>(next.data, next.stride);
    next = next.after(line * Step::columns);
    const Index end = depth - start < line ? depth : start + line;
    for (Index h = start; h < end; ++h) {
      decltype(Step::weights(w)) weights[std::size_t(C)];
      GATEPRO_UNROLL
      for (int c = 0; c < C; ++c) weights[c] = loaded_once(Step::weights(w + (h * C + c) * L));
      const auto* column = x + h * Step::columns;
      GATEPRO_UNROLL
      for (int r = 0; r < R; ++r) {
        const auto token = loaded_once(Step::token(column + r * x_stride));
        GATEPRO_UNROLL
        for (int c = 0; c < C; ++c) Step::add(token, weights[c], sum[r][c]);
        column = known_after(sum[r][C - 1], column);
      }
    }
  }
  GATEPRO_UNROLL
  for (int r = 0; r < R; ++r) {
    GATEPRO_UNROLL
    for (int c = 0; c < C; ++c) sum[r][c].store(out + r * out_stride + c * L);
  }
}

/// One panel of C vectors of experts against all tokens of the tile.
template <class Step, int C>
GATEPRO_FN void gate_panel(const typename Step::Token* x, Index x_stride, Index tokens,
                           const typename Step::Sum* w, Index depth, typename Step::Sum* out,
                           Index out_stride, bool first, const NextRows& next) {
  Index t = 0;
  for (; t + 6 <= tokens; t += 6) {
    gate_block<Step, 6, C>(x + t * x_stride, x_stride, w, depth, out + t * out_stride, out_stride,
                           first, next.from_row(t));
  }
  for (; t < tokens; t += 2) {
    // A single token is a pair with itself: code for one alone would hardly be faster.
    const Index pair = t + 1 < tokens ? 1 : 0;
    gate_block<Step, 2, C>(x + t * x_stride, pair * x_stride, w, depth, out + t * out_stride,
                           pair * out_stride, first, NextRows{});
  }
}

/// A tile of tokens against one depth block of packed weights (layout: gate/packing.hpp), in
/// `depth` steps.
template <class Step>
GATEPRO_KERNEL void gate(const typename Step::Token* x, Index x_stride, Index tokens,
                         const typename Step::Sum* packed, Index depth, Index expert_vectors,
                         typename Step::Sum* out, Index out_stride, bool first,
                         const NextRows& next) {
  constexpr int L = lanes_v<typename Step::Sum>;
  constexpr int C = GATEPRO_PANEL_VECTORS;
  Index v = 0;
  const auto next_of = [&] { return v == 0 ? next : NextRows{}; };
  for (; v + C <= expert_vectors; v += C) {
    gate_panel<Step, C>(x, x_stride, tokens, packed + v * L * depth, depth, out + v * L, out_stride,
                        first, next_of());
  }
  if constexpr (C > 2) {
    for (; v + 2 <= expert_vectors; v += 2) {
      gate_panel<Step, 2>(x, x_stride, tokens, packed + v * L * depth, depth, out + v * L,
                          out_stride, first, next_of());
    }
  }
  for (; v < expert_vectors; ++v) {
    gate_panel<Step, 1>(x, x_stride, tokens, packed + v * L * depth, depth, out + v * L, out_stride,
                        first, next_of());
  }
}

/// Sums of the lanes of N = L / 2 vectors: lane i of the result holds half of the sum of vector i,
/// lane i + N the other half.
template <class A, int N, int Step>
GATEPRO_FN Lanes<A> half_sums(const Lanes<A>* vectors) {
  if constexpr (N == 1) {
    return vectors[0];
  } else {
    const Lanes<A> even = half_sums<A, N / 2, 2 * Step>(vectors);
    const Lanes<A> odd = half_sums<A, N / 2, 2 * Step>(vectors + Step);
    return interleave_low(even, odd) + interleave_high(even, odd);
  }
}

/// `count` <= L columns of R tokens against up to L / 2 experts: sum += x * w, column by lane.
template <class A, int R, class Source>
GATEPRO_FN void gate_few_columns(const Source* x, Index x_stride, const A* w, Index w_stride,
                                 int count,
                                 Lanes<A> (&sum)[std::size_t(R)][std::size_t(lanes_v<A> / 2)]) {
  Lanes<A> tokens[std::size_t(R)];
  GATEPRO_UNROLL
  for (int r = 0; r < R; ++r) tokens[r] = load_as<A>(x + r * x_stride, count);
  GATEPRO_UNROLL
  for (int e = 0; e < lanes_v<A> / 2; ++e) {
    const Lanes<A> weights = loaded_once(Lanes<A>::load(w + e * w_stride));
    GATEPRO_UNROLL
    for (int r = 0; r < R; ++r) sum[r][e] = mul_add(tokens[r], weights, sum[r][e]);
  }
}

/// R tokens against up to L / 2 experts, with columns in the lanes.
template <class A, int R, class Source>
GATEPRO_FN void gate_few_block(const Source* x, const Source* next, Index x_stride, const A* w,
                               Index depth, A* out, Index out_stride, bool first) {
  constexpr int L = lanes_v<A>;
  constexpr int N = L / 2;
  const Index w_stride = (depth + L - 1) / L * L;
  Lanes<A> sum[std::size_t(R)][std::size_t(N)];
  GATEPRO_UNROLL
  for (int r = 0; r < R; ++r) {
    GATEPRO_UNROLL
    for (int e = 0; e < N; ++e) sum[r][e] = Lanes<A>::splat(A(0));
  }
  Index h = 0;
  for (; h + L <= depth; h += L) {
    const char* soon = next == nullptr ? nullptr : reinterpret_cast<const char*>(next + h);
    prefetch_rows<R>(soon, x_stride * Index(sizeof(Source)));
    gate_few_columns<A, R>(x + h, x_stride, w + h, w_stride, L, sum);
  }
  if (h < depth) {
    gate_few_columns<A, R>(x + h, x_stride, w + h, w_stride, int(depth - h), sum);
  }
  GATEPRO_UNROLL
  for (int r = 0; r < R; ++r) {
    A halves[std::size_t(L)];
    half_sums<A, N, 1>(sum[r]).store(halves);
    A* logits = out + r * out_stride;
    Vec<A, N> block = Vec<A, N>::load(halves) + Vec<A, N>::load(halves + N);
    if (!first) block = Vec<A, N>::load(logits) + block;
    block.store(logits);
  }
}

/// Like gate, for so few experts that half of the lanes or more would stay empty.
template <class A, class Source>
GATEPRO_KERNEL void gate_few(const void* tokens_TH, Index x_stride, Index tokens, const A* packed,
                             Index depth, A* out, Index out_stride, bool first) {
  constexpr bool has_lanes = lanes_v < A >> 1;
  if constexpr (has_lanes) {
    const Source* x = static_cast<const Source*>(tokens_TH);
    Index t = 0;
    for (; t + 3 <= tokens; t += 3) {
      const Source* next = t + 6 <= tokens ? x + (t + 3) * x_stride : nullptr;
      gate_few_block<A, 3>(x + t * x_stride, next, x_stride, packed, depth, out + t * out_stride,
                           out_stride, first);
    }
    const Source* none = nullptr;
    for (; t < tokens; ++t) {
      gate_few_block<A, 1>(x + t * x_stride, none, x_stride, packed, depth, out + t * out_stride,
                           out_stride, first);
    }
  }
}

/// L rows of W as columns: for each h, an element of each row side by side, at to + h * to_stride.
/// Rows from `rows` on are zero.
template <class A, class Source>
GATEPRO_KERNEL void pack(const void* from, Index row_stride, Index rows, Index depth, A* to,
                         Index to_stride) {
  constexpr int L = lanes_v<A>;
  const Source* w = static_cast<const Source*>(from);
  for (Index h = 0; h < depth; h += L) {
    const int n = depth - h < L ? int(depth - h) : L;
    Lanes<A> block[std::size_t(L)];
    load_block<A, Missing::zeros>(w + h, row_stride, int(rows), n, block);
    transpose<A>(block);
    GATEPRO_UNROLL
    for (int i = 0; i < L; ++i) {
      if (i < n) block[i].store(to + (h + i) * to_stride);
    }
  }
}
