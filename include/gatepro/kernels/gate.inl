// SPDX-License-Identifier: MIT
// Gate kernels: logits = X W^T. Neighbouring experts, or columns if experts are few, in the lanes.

/// Fetches a vector of each of the next R rows of X, where there are any. The hardware follows a
/// row, but does not see the next one coming.
template <int R, class Source>
GATEPRO_FN void prefetch_rows([[maybe_unused]] const Source* next, [[maybe_unused]] Index stride) {
#if GATEPRO_VECTOR_EXTENSIONS
  if (next == nullptr) return;
  GATEPRO_UNROLL
  for (int r = 0; r < R; ++r) __builtin_prefetch(next + r * stride);
#endif
}

/// A column of X by itself, or the first or second of two neighbours that are read together.
enum class Column { single, first, second };

/// Column x[0] of a token (of a pair: x[0] or x[1]) in every lane. Two bfloat16 take one load of 32
/// bits, which a shift or a mask turns into either value as float.
template <class A, Column column, class Source>
GATEPRO_FN Lanes<A> splat_column(const Source* x) {
  if constexpr (std::is_same_v<A, Source>) {
    return Lanes<A>::splat(x[column == Column::second ? 1 : 0]);
  } else {
    using Word = Lanes<std::int32_t>;
    static_assert(std::is_same_v<Source, bfloat16> && sizeof(A) == 4, "widened in registers");
    if constexpr (column == Column::single) {
      std::uint16_t bits;
      std::memcpy(&bits, static_cast<const void*>(x), sizeof bits);
      return bit_cast<A>(Word::splat(bits) << 16);
    } else {
      std::int32_t pair;
      std::memcpy(&pair, static_cast<const void*>(x), sizeof pair);
      const Word both = Word::splat(pair);
      constexpr bool low = (column == Column::first) == GATEPRO_LITTLE_ENDIAN;
      return bit_cast<A>(low ? both << 16 : both & Word::splat(-65536));
    }
  }
}

/// One column: sum += x * w, for R tokens against C vectors of experts.
template <class A, Column column, int R, int C, class Source>
GATEPRO_FN void gate_column(const Source* x, Index x_stride, const A* w,
                            Lanes<A> (&sum)[std::size_t(R)][std::size_t(C)]) {
  using V = Lanes<A>;
  V weights[std::size_t(C)];
  GATEPRO_UNROLL
  for (int c = 0; c < C; ++c) weights[c] = V::load(w + c * lanes_v<A>);
  GATEPRO_UNROLL
  for (int r = 0; r < R; ++r) {
    const V token = splat_column<A, column>(x + r * x_stride);
    GATEPRO_UNROLL
    for (int c = 0; c < C; ++c) sum[r][c] = mul_add(token, weights[c], sum[r][c]);
  }
}

/// R tokens against C vectors of experts, over `depth` columns: out += x * w, or out = x * w.
/// Each logit is one chain of additions in ascending column order, wherever its token stands.
/// `next` are the rows of X to fetch meanwhile, or null.
template <class A, int R, int C, class Source>
GATEPRO_FN void gate_block(const Source* x, const Source* next, Index x_stride, const A* w,
                           Index depth, A* out, Index out_stride, bool first) {
  using V = Lanes<A>;
  constexpr int L = lanes_v<A>;
  constexpr Index line = 64 / Index(sizeof(Source));
  V sum[std::size_t(R)][std::size_t(C)];
  GATEPRO_UNROLL
  for (int r = 0; r < R; ++r) {
    GATEPRO_UNROLL
    for (int c = 0; c < C; ++c) {
      sum[r][c] = first ? V::splat(A(0)) : V::load(out + r * out_stride + c * L);
    }
  }
  for (Index start = 0; start < depth; start += line) {
    prefetch_rows<R>(next == nullptr ? nullptr : next + start, x_stride);
    const Index end = depth - start < line ? depth : start + line;
    Index h = start;
    for (; h + 2 <= end; h += 2) {
      gate_column<A, Column::first, R, C>(x + h, x_stride, w + h * C * L, sum);
      gate_column<A, Column::second, R, C>(x + h, x_stride, w + (h + 1) * C * L, sum);
    }
    if (h < end) gate_column<A, Column::single, R, C>(x + h, x_stride, w + h * C * L, sum);
  }
  GATEPRO_UNROLL
  for (int r = 0; r < R; ++r) {
    GATEPRO_UNROLL
    for (int c = 0; c < C; ++c) sum[r][c].store(out + r * out_stride + c * L);
  }
}

/// One panel of C vectors of experts against all tokens of the tile. The first panel fetches X for
/// itself and the others.
template <class A, int C, class Source>
GATEPRO_FN void gate_panel(const Source* x, Index x_stride, Index tokens, const A* w, Index depth,
                           A* out, Index out_stride, bool first, bool fetch) {
  Index t = 0;
  for (; t + 6 <= tokens; t += 6) {
    const Source* next = fetch && t + 12 <= tokens ? x + (t + 6) * x_stride : nullptr;
    gate_block<A, 6, C>(x + t * x_stride, next, x_stride, w, depth, out + t * out_stride,
                        out_stride, first);
  }
  const Source* none = nullptr;
  for (; t + 2 <= tokens; t += 2) {
    gate_block<A, 2, C>(x + t * x_stride, none, x_stride, w, depth, out + t * out_stride,
                        out_stride, first);
  }
  if (t < tokens) {
    gate_block<A, 1, C>(x + t * x_stride, none, x_stride, w, depth, out + t * out_stride,
                        out_stride, first);
  }
}

/// A tile of tokens against one depth block of packed weights (layout: gate/packing.hpp).
template <class A, class Source>
GATEPRO_KERNEL void gate(const void* tokens_TH, Index x_stride, Index tokens, const A* packed,
                         Index depth, Index expert_vectors, A* out, Index out_stride, bool first) {
  constexpr int L = lanes_v<A>;
  constexpr int C = GATEPRO_PANEL_VECTORS;
  const Source* x = static_cast<const Source*>(tokens_TH);
  Index v = 0;
  for (; v + C <= expert_vectors; v += C) {
    gate_panel<A, C>(x, x_stride, tokens, packed + v * L * depth, depth, out + v * L, out_stride,
                     first, v == 0);
  }
  if constexpr (C > 2) {
    for (; v + 2 <= expert_vectors; v += 2) {
      gate_panel<A, 2>(x, x_stride, tokens, packed + v * L * depth, depth, out + v * L, out_stride,
                       first, v == 0);
    }
  }
  for (; v < expert_vectors; ++v) {
    gate_panel<A, 1>(x, x_stride, tokens, packed + v * L * depth, depth, out + v * L, out_stride,
                     first, v == 0);
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
    prefetch_rows<R>(next == nullptr ? nullptr : next + h, x_stride);
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
    GATEPRO_UNROLL
    for (int r = 0; r < L; ++r) {
      block[r] = Lanes<A>::splat(A(0));
      if (r < rows) block[r] = load_as<A>(w + r * row_stride + h, n);
    }
    transpose<A>(block);
    GATEPRO_UNROLL
    for (int i = 0; i < L; ++i) {
      if (i < n) block[i].store(to + (h + i) * to_stride);
    }
  }
}
