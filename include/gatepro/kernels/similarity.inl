// SPDX-License-Identifier: MIT
// Similarity kernels: neighbouring columns, or experts, in the lanes.

/// The largest magnitude of a row as bits; a NaN is larger than infinity.
template <class A>
GATEPRO_KERNEL BitsOf<A> largest_magnitude(const A* row, Index count) {
  constexpr int L = lanes_v<A>;
  const Lanes<BitsOf<A>> magnitude = Lanes<BitsOf<A>>::splat(Order<A>::magnitude);
  Lanes<BitsOf<A>> largest = Lanes<BitsOf<A>>::splat(0);
  for (Index i = 0; i < count; i += L) {
    const int n = count - i < L ? int(count - i) : L;
    largest = larger(largest, bit_cast<BitsOf<A>>(load_as<A>(row + i, n)) & magnitude);
  }
  BitsOf<A> lanes[std::size_t(L)];
  largest.store(lanes);
  BitsOf<A> result = 0;
  for (int lane = 0; lane < L; ++lane) result = lanes[lane] > result ? lanes[lane] : result;
  return result;
}

/// `count` <= L elements times first * second. Adds their squares to `squares`.
template <class A>
GATEPRO_FN void scale_vector(A* row, int count, A first, A second, Lanes<A>& squares) {
  const Lanes<A> once = load_as<A>(row, count) * Lanes<A>::splat(first);
  const Lanes<A> scaled = once * Lanes<A>::splat(second);
  store_first<A>(scaled, row, count);
  squares = mul_add(scaled, scaled, squares);
}

/// row[i] = row[i] * first * second. Returns the sum of the squares.
template <class A>
GATEPRO_KERNEL A scale(A* row, Index count, A first, A second) {
  constexpr int L = lanes_v<A>;
  constexpr int chains = 4;  // one would wait for each addition
  Lanes<A> squares[std::size_t(chains)];
  GATEPRO_UNROLL
  for (int c = 0; c < chains; ++c) squares[c] = Lanes<A>::splat(A(0));
  Index i = 0;
  for (; i + chains * L <= count; i += chains * L) {
    GATEPRO_UNROLL
    for (int c = 0; c < chains; ++c) {
      scale_vector<A>(row + i + c * L, L, first, second, squares[c]);
    }
  }
  for (; i < count; i += L) {
    const int n = count - i < L ? int(count - i) : L;
    scale_vector<A>(row + i, n, first, second, squares[0]);
  }
  A lanes[std::size_t(L)];
  ((squares[0] + squares[1]) + (squares[2] + squares[3])).store(lanes);
  A sum = 0;
  for (int lane = 0; lane < L; ++lane) sum += lanes[lane];
  return sum;
}

/// Cosines from products: cosines[j] *= own_inverse * inverse_norms[j], in [-1, 1]. A negative
/// inverse marks a row without similarity: quiet NaN.
template <class A>
GATEPRO_KERNEL void normalise(A* cosines, Index count, A own_inverse, const A* inverse_norms) {
  using V = Lanes<A>;
  using O = Order<A>;
  constexpr int L = lanes_v<A>;
  const Keys<A> zero = Keys<A>::splat(0);
  const V own = V::splat(own_inverse);
  const V quiet_nan = bit_cast<A>(Keys<A>::splat(O::quiet_nan_bits));
  for (Index j = 0; j < count; j += L) {
    const int n = count - j < L ? int(count - j) : L;
    const V other = load_as<A>(inverse_norms + j, n);
    const V cosine = load_as<A>(cosines + j, n) * (own * other);
    const V clamped = smaller(V::splat(A(1)), larger(V::splat(A(-1)), cosine));
    const auto unknown = (bit_cast<BitsOf<A>>(own) | bit_cast<BitsOf<A>>(other)) < zero;
    store_first<A>(select(unknown, quiet_nan, clamped), cosines + j, n);
  }
}

/// `count` <= lanes_v<double> values as double; lanes past `count` are zero.
template <class A>
GATEPRO_FN Lanes<double> load_double(const A* from, int count) {
  constexpr int L = lanes_v<double>;
  if (count == L) return convert<double>(Vec<A, L>::load(from));
  A values[std::size_t(L)] = {};
  copy_pieces<L / 2>(from, values, count);
  return convert<double>(Vec<A, L>::load(values));
}

/// Adds the products of `count` <= lanes_v<double> elements of two rows.
template <class A>
GATEPRO_FN void add_products(const A* a, const A* b, int count, Lanes<double>& aa,
                             Lanes<double>& ab, Lanes<double>& bb) {
  const Lanes<double> x = load_double(a, count);
  const Lanes<double> y = load_double(b, count);
  aa = mul_add(x, x, aa);
  ab = mul_add(x, y, ab);
  bb = mul_add(y, y, bb);
}

GATEPRO_FN double sum_of_lanes(Lanes<double> values) {
  double lanes[std::size_t(lanes_v<double>)];
  values.store(lanes);
  double sum = 0;
  for (double lane : lanes) sum += lane;
  return sum;
}

/// The products of two rows with themselves and each other.
template <class A>
GATEPRO_KERNEL RowProducts row_products(const A* a, const A* b, Index count) {
  using V = Lanes<double>;
  constexpr int L = lanes_v<double>;
  const V zero = V::splat(0);
  V aa[2] = {zero, zero}, ab[2] = {zero, zero}, bb[2] = {zero, zero};
  Index i = 0;
  for (; i + 2 * L <= count; i += 2 * L) {
    add_products(a + i, b + i, L, aa[0], ab[0], bb[0]);
    add_products(a + i + L, b + i + L, L, aa[1], ab[1], bb[1]);
  }
  for (; i < count; i += L) {
    const int n = count - i < L ? int(count - i) : L;
    add_products(a + i, b + i, n, aa[0], ab[0], bb[0]);
  }
  return {sum_of_lanes(aa[0] + aa[1]), sum_of_lanes(ab[0] + ab[1]), sum_of_lanes(bb[0] + bb[1])};
}

/// Columns [h, h + L) of L rows, one after the other.
template <class A>
GATEPRO_KERNEL void transpose_columns(const A* const* rows, Index h, A* columns) {
  constexpr int L = lanes_v<A>;
  Lanes<A> block[std::size_t(L)];
  GATEPRO_UNROLL
  for (int r = 0; r < L; ++r) block[r] = Lanes<A>::load(rows[r] + h);
  transpose<A>(block);
  GATEPRO_UNROLL
  for (int i = 0; i < L; ++i) block[i].store(columns + i * L);
}

/// The products of L pairs of rows: each the chain of additions that `gate` makes of them. Rows are
/// read to a multiple of L.
template <class A>
GATEPRO_KERNEL void pair_products(const A* const* left, const A* const* right, Index depth,
                                  A* products) {
  constexpr int L = lanes_v<A>;
  A x[std::size_t(L * L)], y[std::size_t(L * L)];
  Lanes<A> sum = Lanes<A>::splat(A(0));
  for (Index h = 0; h < depth; h += L) {
    transpose_columns(left, h, x);
    transpose_columns(right, h, y);
    const int n = depth - h < L ? int(depth - h) : L;
    for (int i = 0; i < n; ++i) {
      sum = mul_add(Lanes<A>::load(x + i * L), Lanes<A>::load(y + i * L), sum);
    }
  }
  sum.store(products);
}
