// SPDX-License-Identifier: MIT
// Gate kernels: logits = X W^T. Neighbouring experts, or columns if experts are few, in the lanes.

/// Fetches a vector of each of the next R rows of X, where there are any. The hardware follows a
/// row, but does not see the next one coming.
template <class A, int R>
GATEPRO_FN void prefetch_rows([[maybe_unused]] const A* next, [[maybe_unused]] Index stride) {
#if GATEPRO_VECTOR_EXTENSIONS
  if (next == nullptr) return;
  GATEPRO_UNROLL
  for (int r = 0; r < R; ++r) __builtin_prefetch(next + r * stride);
#endif
}

/// R tokens against C vectors of experts, over `depth` columns: out += x * w, or out = x * w.
/// Each logit is one chain of additions in ascending column order, wherever its token stands.
/// `next` are the rows of X to fetch meanwhile, or null.
template <class A, int R, int C>
GATEPRO_FN void gate_block(const A* x, const A* next, Index x_stride, const A* w, Index depth,
                           A* out, Index out_stride, bool first) {
  using V = Lanes<A>;
  constexpr int L = lanes_v<A>;
  constexpr Index line = 64 / Index(sizeof(A));
  V sum[std::size_t(R)][std::size_t(C)];
  GATEPRO_UNROLL
  for (int r = 0; r < R; ++r) {
    GATEPRO_UNROLL
    for (int c = 0; c < C; ++c) {
      sum[r][c] = first ? V::splat(A(0)) : V::load(out + r * out_stride + c * L);
    }
  }
  for (Index start = 0; start < depth; start += line) {
    prefetch_rows<A, R>(next == nullptr ? nullptr : next + start, x_stride);
    const Index end = depth - start < line ? depth : start + line;
    for (Index h = start; h < end; ++h) {
      V weights[std::size_t(C)];
      GATEPRO_UNROLL
      for (int c = 0; c < C; ++c) weights[c] = V::load(w + (h * C + c) * L);
      GATEPRO_UNROLL
      for (int r = 0; r < R; ++r) {
        const V token = V::splat(x[r * x_stride + h]);
        GATEPRO_UNROLL
        for (int c = 0; c < C; ++c) sum[r][c] = mul_add(token, weights[c], sum[r][c]);
      }
    }
  }
  GATEPRO_UNROLL
  for (int r = 0; r < R; ++r) {
    GATEPRO_UNROLL
    for (int c = 0; c < C; ++c) sum[r][c].store(out + r * out_stride + c * L);
  }
}

/// One panel of C vectors of experts against all tokens of the tile. The first panel fetches X for
/// itself and the others.
template <class A, int C>
GATEPRO_FN void gate_panel(const A* x, Index x_stride, Index tokens, const A* w, Index depth,
                           A* out, Index out_stride, bool first, bool fetch) {
  Index t = 0;
  for (; t + 6 <= tokens; t += 6) {
    const A* next = fetch && t + 12 <= tokens ? x + (t + 6) * x_stride : nullptr;
    gate_block<A, 6, C>(x + t * x_stride, next, x_stride, w, depth, out + t * out_stride,
                        out_stride, first);
  }
  for (; t + 2 <= tokens; t += 2) {
    gate_block<A, 2, C>(x + t * x_stride, nullptr, x_stride, w, depth, out + t * out_stride,
                        out_stride, first);
  }
  if (t < tokens) {
    gate_block<A, 1, C>(x + t * x_stride, nullptr, x_stride, w, depth, out + t * out_stride,
                        out_stride, first);
  }
}

/// A tile of tokens against one depth block of packed weights (layout: detail/packing.hpp).
template <class A>
GATEPRO_KERNEL void gate(const A* x, Index x_stride, Index tokens, const A* packed, Index depth,
                         Index expert_vectors, A* out, Index out_stride, bool first) {
  constexpr int L = lanes_v<A>;
  constexpr int C = GATEPRO_PANEL_VECTORS;
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

/// R tokens against up to L / 2 experts, with columns in the lanes.
template <class A, int R>
GATEPRO_FN void gate_few_block(const A* x, const A* next, Index x_stride, const A* w, Index depth,
                               A* out, Index out_stride, bool first) {
  constexpr int L = lanes_v<A>;
  constexpr int N = L / 2;
  const Index w_stride = (depth + L - 1) / L * L;
  Lanes<A> sum[std::size_t(R)][std::size_t(N)];
  GATEPRO_UNROLL
  for (int r = 0; r < R; ++r) {
    GATEPRO_UNROLL
    for (int e = 0; e < N; ++e) sum[r][e] = Lanes<A>::splat(A(0));
  }
  for (Index h = 0; h < depth; h += L) {
    prefetch_rows<A, R>(next == nullptr ? nullptr : next + h, x_stride);
    const int n = depth - h < L ? int(depth - h) : L;
    Lanes<A> tokens[std::size_t(R)];
    GATEPRO_UNROLL
    for (int r = 0; r < R; ++r) tokens[r] = load_as<A>(x + r * x_stride + h, n);
    GATEPRO_UNROLL
    for (int e = 0; e < N; ++e) {
      const Lanes<A> weights = Lanes<A>::load(w + e * w_stride + h);
      GATEPRO_UNROLL
      for (int r = 0; r < R; ++r) sum[r][e] = mul_add(tokens[r], weights, sum[r][e]);
    }
  }
  GATEPRO_UNROLL
  for (int r = 0; r < R; ++r) {
    A halves[std::size_t(L)];
    half_sums<A, N, 1>(sum[r]).store(halves);
    A* logits = out + r * out_stride;
    for (int e = 0; e < N; ++e) {
      const A block = halves[e] + halves[e + N];
      logits[e] = first ? block : logits[e] + block;
    }
  }
}

/// Like gate, for so few experts that half of the lanes or more would stay empty.
template <class A>
GATEPRO_KERNEL void gate_few(const A* x, Index x_stride, Index tokens, const A* packed,
                             Index depth, A* out, Index out_stride, bool first) {
  if constexpr (lanes_v<A> > 1) {
    Index t = 0;
    for (; t + 3 <= tokens; t += 3) {
      const A* next = t + 6 <= tokens ? x + (t + 3) * x_stride : nullptr;
      gate_few_block<A, 3>(x + t * x_stride, next, x_stride, packed, depth, out + t * out_stride,
                           out_stride, first);
    }
    for (; t < tokens; ++t) {
      gate_few_block<A, 1>(x + t * x_stride, nullptr, x_stride, packed, depth, out + t * out_stride,
                           out_stride, first);
    }
  }
}
