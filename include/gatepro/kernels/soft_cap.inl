// SPDX-License-Identifier: MIT
// Soft caps: cap * tanh(x / cap), and the slope. Values are capped in double, floats too: what is
// left of a chain's error is then far below the distance of two floats, so that no order changes.

/// x = tanh(x) for x from 0 to 20, from where on it is 1: -m / (2 + m), where m = exp(-2 x) - 1
/// keeps all digits also near 0.
template <std::size_t U>
GATEPRO_FN void tanh_of_size(Lanes<double> (&x)[U]) {
  using V = Lanes<double>;
  constexpr int degree = int(std::size(exp_polynomial<double>)) - 1;
  // The sum with it is rounded to a whole number, which stands in the last bits.
  constexpr double whole = 0x1.8p52;
  V shifted[U], m[U];
  GATEPRO_UNROLL
  for (std::size_t u = 0; u < U; ++u) {
    x[u] = x[u] * V::splat(-2);
    shifted[u] = loaded_once(mul_add(x[u], V::splat(1.44269504088896340736), V::splat(whole)));
  }
  GATEPRO_UNROLL
  for (std::size_t u = 0; u < U; ++u) {
    const V n = shifted[u] - V::splat(whole);
    x[u] = mul_add(n, V::splat(-ln2_high<double>), x[u]);
    x[u] = mul_add(n, V::splat(-ln2_low<double>), x[u]);
    m[u] = V::splat(exp_polynomial<double>[degree]);
  }
  GATEPRO_UNROLL
  for (int i = degree - 1; i >= 2; --i) {
    GATEPRO_UNROLL
    for (std::size_t u = 0; u < U; ++u) {
      m[u] = mul_add(m[u], x[u], V::splat(exp_polynomial<double>[i]));
    }
  }
  GATEPRO_UNROLL
  for (std::size_t u = 0; u < U; ++u) {
    m[u] = mul_add(x[u] * x[u], m[u], x[u]);
    const Keys<double> exponent = bit_cast<BitsOf<double>>(shifted[u])
                                  << Order<double>::mantissa_bits;
    const V power = bit_cast<double>(exponent + bit_cast<BitsOf<double>>(V::splat(1)));
    m[u] = mul_add(power, m[u], power - V::splat(1));
    x[u] = (V::splat(0) - m[u]) / (V::splat(2) + m[u]);
  }
}

/// Caps U vectors of values of A, as many as doubles have lanes. NaNs stay as they are.
template <std::size_t U, class A>
GATEPRO_FN void soft_cap_vectors(A* values, Lanes<double> cap) {
  using V = Lanes<double>;
  using Bits = Keys<double>;
  using O = Order<double>;
  constexpr int L = lanes_v<double>;
  const Bits magnitude = Bits::splat(O::magnitude);
  V x[U], size[U];
  GATEPRO_UNROLL
  for (std::size_t u = 0; u < U; ++u) {
    x[u] = convert<double>(Vec<A, L>::load(values + u * L));
    const Bits quotient = bit_cast<BitsOf<double>>(x[u] / cap) & magnitude;
    size[u] = bit_cast<double>(smaller(quotient, bit_cast<BitsOf<double>>(V::splat(20))));
  }
  tanh_of_size(size);
  GATEPRO_UNROLL
  for (std::size_t u = 0; u < U; ++u) {
    const Bits bits = bit_cast<BitsOf<double>>(x[u]);
    const Bits capped = bit_cast<BitsOf<double>>(size[u] * cap) | (bits & Bits::splat(O::lowest));
    const Bits kept = select((bits & magnitude) > Bits::splat(O::infinity), bits, capped);
    convert<A>(bit_cast<double>(kept)).store(values + u * L);
  }
}

/// row[i] = cap * tanh(row[i] / cap).
template <class A>
GATEPRO_KERNEL void soft_cap(A* row, Index count, A cap) {
  constexpr int L = lanes_v<double>;
  constexpr int U = chains_v;
  const Lanes<double> cap_L = Lanes<double>::splat(static_cast<double>(cap));
  Index i = 0;
  for (; i + U * L <= count; i += U * L) soft_cap_vectors<std::size_t(U)>(row + i, cap_L);
  for (; i + L <= count; i += L) soft_cap_vectors<1>(row + i, cap_L);
  if (i == count) return;
  A values[std::size_t(L)] = {};
  const auto rest = std::size_t(count - i) * sizeof(A);
  std::memcpy(values, row + i, rest);
  soft_cap_vectors<1>(values, cap_L);
  std::memcpy(row + i, values, rest);
}

/// gradients[i] *= 1 - (capped[i] / cap)^2, the slope of soft_cap.
template <class A>
GATEPRO_KERNEL void soft_cap_slopes(const A* capped, Index count, A cap, A* gradients) {
  constexpr int L = lanes_v<A>;
  const Lanes<A> one = Lanes<A>::splat(A(1));
  for (Index i = 0; i < count; i += L) {
    const int n = count - i < L ? int(count - i) : L;
    const Lanes<A> share = load_as<A>(capped + i, n) / Lanes<A>::splat(cap);
    const Lanes<A> slope = (one - share) * (one + share);
    store_first<A>(load_as<A>(gradients + i, n) * slope, gradients + i, n);
  }
}
