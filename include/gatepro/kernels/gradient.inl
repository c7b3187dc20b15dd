// SPDX-License-Identifier: MIT
// Gradient kernels: neighbouring columns in the lanes.

/// The same pointer, in a register of its own: g++ would otherwise fold the address of a row into
/// that of each of its vectors, and compute all of them anew.
template <class T>
GATEPRO_FN const T* in_register(const T* pointer) {
#if GATEPRO_VECTOR_EXTENSIONS
  __asm__("" : "+r"(pointer));
#endif
  return pointer;
}

template <class A, class Source, int N>
GATEPRO_FN void add_rows_block(const A* coefficients, const Index* rows, Index count,
                               const Source* base, Index stride, A* out, int last) {
  constexpr int L = lanes_v<A>;
  Lanes<A> sum[std::size_t(N)];
  GATEPRO_UNROLL
  for (int v = 0; v < N; ++v) sum[v] = load_as<A>(out + v * L, v + 1 < N ? L : last);
  for (Index i = 0; i < count; ++i) {
    const Lanes<A> c = Lanes<A>::splat(coefficients[i]);
    const Source* row = in_register(base + rows[i] * stride);
    GATEPRO_UNROLL
    for (int v = 0; v < N; ++v) {
      sum[v] = mul_add(c, load_as<A>(row + v * L, v + 1 < N ? L : last), sum[v]);
    }
  }
  GATEPRO_UNROLL
  for (int v = 0; v < N; ++v) store_first<A>(sum[v], out + v * L, v + 1 < N ? L : last);
}

/// out[c] += sum over i of coefficients[i] * base[rows[i] * stride + c]: one chain per element, in
/// the order of i, from the value that out holds.
template <class A, class Source>
GATEPRO_KERNEL void add_rows(const A* coefficients, const Index* rows, Index count,
                             const void* base, Index stride, Index width, A* out) {
  constexpr int L = lanes_v<A>;
  const Source* from = static_cast<const Source*>(base);
  Index c = 0;
  for (; c + 8 * L <= width; c += 8 * L) {
    add_rows_block<A, Source, 8>(coefficients, rows, count, from + c, stride, out + c, L);
  }
  for (; c + 2 * L <= width; c += 2 * L) {
    add_rows_block<A, Source, 2>(coefficients, rows, count, from + c, stride, out + c, L);
  }
  for (; c < width; c += L) {
    const int n = width - c < L ? int(width - c) : L;
    add_rows_block<A, Source, 1>(coefficients, rows, count, from + c, stride, out + c, n);
  }
}

/// The dot product of two rows, in the same order for any width and instruction set: of 16 chains,
/// chain i sums the rounded products of the elements i, i + 16, ..., and the chains are added in
/// pairs.
template <class A, class Source>
GATEPRO_KERNEL A dot(const A* a, const void* b, Index width) {
  constexpr int L = lanes_v<A>;
  constexpr int chains = 16;
  constexpr int vectors = chains / L;
  const Source* other = static_cast<const Source*>(b);
  Lanes<A> sum[std::size_t(vectors)];
  GATEPRO_UNROLL
  for (int v = 0; v < vectors; ++v) sum[v] = Lanes<A>::splat(A(0));
  Index c = 0;
  for (; c + chains <= width; c += chains) {
    GATEPRO_UNROLL
    for (int v = 0; v < vectors; ++v) {
      sum[v] = sum[v] + load_as<A>(a + c + v * L, L) * load_as<A>(other + c + v * L, L);
    }
  }
  for (int v = 0; c < width; c += L, ++v) {
    const int n = width - c < L ? int(width - c) : L;
    sum[v] = sum[v] + load_as<A>(a + c, n) * load_as<A>(other + c, n);
  }
  A lanes[std::size_t(chains)];
  for (int v = 0; v < vectors; ++v) sum[v].store(lanes + v * L);
  for (int half = chains / 2; half >= 1; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}
