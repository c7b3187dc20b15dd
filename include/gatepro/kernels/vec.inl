// SPDX-License-Identifier: MIT
// Vec<T, N>: N values in a register. Included once per instruction set, inside its namespace.
//
// T is float, double, std::int32_t or std::int64_t. Comparisons give masks: integer vectors whose
// lanes are all ones or all zeros. `select` and the integer operations never look at values as
// floating-point numbers, so they mean the same under -ffast-math.

template <class T>
using BitsOf = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

#if GATEPRO_VECTOR_EXTENSIONS

template <class T, int N>
struct Vec {
  typedef T Raw __attribute__((vector_size(N * sizeof(T))));
  using Mask = Vec<BitsOf<T>, N>;
  Raw raw;

  GATEPRO_FN static Vec splat(T value) { return {value - Raw{}}; }  // minus keeps the sign of -0
  GATEPRO_FN static Vec load(const void* from) {
    Vec v;
    __builtin_memcpy(&v.raw, from, sizeof v.raw);
    return v;
  }
  GATEPRO_FN void store(void* to) const { __builtin_memcpy(to, &raw, sizeof raw); }

  GATEPRO_FN friend Vec operator+(Vec a, Vec b) { return {a.raw + b.raw}; }
  GATEPRO_FN friend Vec operator-(Vec a, Vec b) { return {a.raw - b.raw}; }
  GATEPRO_FN friend Vec operator*(Vec a, Vec b) {
    Raw product = a.raw * b.raw;
    GATEPRO_OPAQUE(product);
    return {product};
  }
  GATEPRO_FN friend Vec operator/(Vec a, Vec b) { return {a.raw / b.raw}; }
  GATEPRO_FN friend Vec operator&(Vec a, Vec b) { return {a.raw & b.raw}; }
  GATEPRO_FN friend Vec operator|(Vec a, Vec b) { return {a.raw | b.raw}; }
  GATEPRO_FN friend Vec operator^(Vec a, Vec b) { return {a.raw ^ b.raw}; }
  GATEPRO_FN friend Vec operator<<(Vec a, int bits) { return {a.raw << bits}; }
  GATEPRO_FN friend Vec operator>>(Vec a, int bits) { return {a.raw >> bits}; }
  GATEPRO_FN friend Mask operator<(Vec a, Vec b) {
    return {reinterpret_cast<typename Mask::Raw>(a.raw < b.raw)};
  }
  GATEPRO_FN friend Mask operator>(Vec a, Vec b) {
    return {reinterpret_cast<typename Mask::Raw>(a.raw > b.raw)};
  }
  GATEPRO_FN friend Mask operator==(Vec a, Vec b) {
    return {reinterpret_cast<typename Mask::Raw>(a.raw == b.raw)};
  }

  GATEPRO_FN friend Vec select(Mask mask, Vec a, Vec b) { return {mask.raw ? a.raw : b.raw}; }

  // On the raw vectors, where both compilers see a maximum; through a Mask, g++ does not.
  GATEPRO_FN friend Vec larger(Vec a, Vec b) { return {a.raw > b.raw ? a.raw : b.raw}; }
  GATEPRO_FN friend Vec smaller(Vec a, Vec b) { return {a.raw < b.raw ? a.raw : b.raw}; }
};

/// The same bits as another element type of the same size.
template <class To, class T, int N>
GATEPRO_FN Vec<To, N> bit_cast(Vec<T, N> v) {
  return {reinterpret_cast<typename Vec<To, N>::Raw>(v.raw)};
}

/// Values converted lane by lane; towards zero if To is an integer.
template <class To, class T, int N>
GATEPRO_FN Vec<To, N> convert(Vec<T, N> v) {
  return {__builtin_convertvector(v.raw, typename Vec<To, N>::Raw)};
}

#if defined(__clang__)
template <class V, int... Lane>
GATEPRO_FN V shuffle(V a, V b, std::integer_sequence<int, Lane...>) {
  return {__builtin_shufflevector(a.raw, b.raw, Lane...)};
}
#else
template <class V, int... Lane>
GATEPRO_FN V shuffle(V a, V b, std::integer_sequence<int, Lane...>) {
  return {__builtin_shuffle(a.raw, b.raw, typename V::Mask::Raw{Lane...})};
}
#endif

template <int First, int N, int... Lane>
constexpr auto interleaved(std::integer_sequence<int, Lane...>) {
  return std::integer_sequence<int, (Lane % 2 * N + First + Lane / 2)...>{};
}

/// a0 b0 a1 b1 ... of the lower halves.
template <class T, int N>
GATEPRO_FN Vec<T, N> interleave_low(Vec<T, N> a, Vec<T, N> b) {
  return shuffle(a, b, interleaved<0, N>(std::make_integer_sequence<int, N>{}));
}

/// a0 b0 a1 b1 ... of the upper halves.
template <class T, int N>
GATEPRO_FN Vec<T, N> interleave_high(Vec<T, N> a, Vec<T, N> b) {
  return shuffle(a, b, interleaved<N / 2, N>(std::make_integer_sequence<int, N>{}));
}

/// Elements of a block of 128 bits. Shuffles within blocks, and of whole blocks, are cheap.
template <class T>
inline constexpr int block_v = 16 / int(sizeof(T));

template <class T, int Half, int... Lane>
constexpr auto zipped(std::integer_sequence<int, Lane...>) {
  constexpr int N = int(sizeof...(Lane)), B = block_v<T>;
  return std::integer_sequence<int,
                               (Lane % 2 * N + Lane / B * B + Lane % B / 2 + Half * B / 2)...>{};
}

/// In each block: a0 b0 a1 b1 ... of its lower (Half = 0) or upper (1) half.
template <int Half, class T, int N>
GATEPRO_FN Vec<T, N> zip(Vec<T, N> a, Vec<T, N> b) {
  return shuffle(a, b, zipped<T, Half>(std::make_integer_sequence<int, N>{}));
}

template <class T, int Odd, int... Lane>
constexpr auto alternate(std::integer_sequence<int, Lane...>) {
  constexpr int B = block_v<T>;
  return std::integer_sequence<int, ((2 * (Lane / B) + Odd) * B + Lane % B)...>{};
}

/// The even (Odd = 0) or odd (1) blocks of a, then those of b.
template <int Odd, class T, int N>
GATEPRO_FN Vec<T, N> alternate_blocks(Vec<T, N> a, Vec<T, N> b) {
  return shuffle(a, b, alternate<T, Odd>(std::make_integer_sequence<int, N>{}));
}

#else  // One value at a time, with the same meaning: for compilers without vector extensions.

template <class T, int N>
struct Vec {
  static_assert(N == 1, "gatepro: the scalar path has one lane");
  using Mask = Vec<BitsOf<T>, 1>;
  T raw;

  GATEPRO_FN static Vec splat(T value) { return {value}; }
  GATEPRO_FN static Vec load(const void* from) {
    Vec v;
    std::memcpy(&v.raw, from, sizeof v.raw);
    return v;
  }
  GATEPRO_FN void store(void* to) const { std::memcpy(to, &raw, sizeof raw); }

  GATEPRO_FN friend Vec operator+(Vec a, Vec b) { return {a.raw + b.raw}; }
  GATEPRO_FN friend Vec operator-(Vec a, Vec b) { return {a.raw - b.raw}; }
  GATEPRO_FN friend Vec operator*(Vec a, Vec b) {
    T product = a.raw * b.raw;
    GATEPRO_OPAQUE(product);
    return {product};
  }
  GATEPRO_FN friend Vec operator/(Vec a, Vec b) { return {a.raw / b.raw}; }
  GATEPRO_FN friend Vec operator&(Vec a, Vec b) { return {a.raw & b.raw}; }
  GATEPRO_FN friend Vec operator|(Vec a, Vec b) { return {a.raw | b.raw}; }
  GATEPRO_FN friend Vec operator^(Vec a, Vec b) { return {a.raw ^ b.raw}; }
  GATEPRO_FN friend Vec operator<<(Vec a, int bits) {
    return {static_cast<T>(static_cast<std::make_unsigned_t<T>>(a.raw) << bits)};
  }
  GATEPRO_FN friend Vec operator>>(Vec a, int bits) { return {a.raw >> bits}; }
  GATEPRO_FN friend Mask operator<(Vec a, Vec b) { return {BitsOf<T>(-(a.raw < b.raw))}; }
  GATEPRO_FN friend Mask operator>(Vec a, Vec b) { return {BitsOf<T>(-(a.raw > b.raw))}; }
  GATEPRO_FN friend Mask operator==(Vec a, Vec b) { return {BitsOf<T>(-(a.raw == b.raw))}; }

  GATEPRO_FN friend Vec select(Mask mask, Vec a, Vec b) { return mask.raw != 0 ? a : b; }

  GATEPRO_FN friend Vec larger(Vec a, Vec b) { return a.raw > b.raw ? a : b; }
  GATEPRO_FN friend Vec smaller(Vec a, Vec b) { return a.raw < b.raw ? a : b; }
};

template <class To, class T, int N>
GATEPRO_FN Vec<To, N> bit_cast(Vec<T, N> v) {
  return Vec<To, N>::load(&v.raw);
}

template <class To, class T, int N>
GATEPRO_FN Vec<To, N> convert(Vec<T, N> v) {
  return {static_cast<To>(v.raw)};
}

#endif
