// SPDX-License-Identifier: MIT
// The lane count; loads and stores of storage types; the transpose.

#if GATEPRO_VECTOR_EXTENSIONS
template <class T>
inline constexpr int lanes_v = GATEPRO_BYTES / int(sizeof(T));
#else
template <class T>
inline constexpr int lanes_v = 1;
#endif

template <class T>
using Lanes = Vec<T, lanes_v<T>>;

/// True if a lane of the mask is set.
template <class T, int N>
GATEPRO_FN bool any_lane(Vec<T, N> mask) {
  T lanes[std::size_t(N)];
  mask.store(lanes);
  T any = 0;
  for (int lane = 0; lane < N; ++lane) any = any | lanes[lane];
  return any != 0;
}

/// The same value, in a register of its own: g++ would otherwise load it anew for each use, and
/// loads are what the few-expert gate has least of.
template <class T, int N>
GATEPRO_FN Vec<T, N> loaded_once(Vec<T, N> v) {
  GATEPRO_OPAQUE(v.raw);
  return v;
}

/// The same pointer, which g++ for Neon takes for a result of what made v. It orders instructions
/// before it allocates registers there, and would load all tokens of a gate block ahead of the
/// first sum: too many for the registers. clang counts registers, and needs to see through.
template <class A, int N, class T>
GATEPRO_FN const T* known_after([[maybe_unused]] Vec<A, N>& v, const T* pointer) {
#if GATEPRO_NEON && !defined(__clang__)
  __asm__("" : "+w"(v.raw), "+r"(pointer));
#endif
  return pointer;
}

/// The 16-bit patterns at `from` as lanes of 32 bits.
GATEPRO_FN Lanes<std::int32_t> load_16_bits(const void* from) {
#if GATEPRO_VECTOR_EXTENSIONS
  typedef std::uint16_t Half __attribute__((vector_size(lanes_v<float> * sizeof(std::uint16_t))));
  Half bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return {__builtin_convertvector(bits, Lanes<std::int32_t>::Raw)};
#else
  std::uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return {bits};
#endif
}

/// Lanes of float from as many half patterns; a signalling NaN may become a quiet one.
GATEPRO_FN Lanes<float> widen_halves(const void* from) {
#if GATEPRO_VECTOR_EXTENSIONS && GATEPRO_BYTES >= 32
  typedef std::int16_t Half __attribute__((vector_size(lanes_v<float> * sizeof(std::int16_t))));
  Half bits;
  __builtin_memcpy(&bits, from, sizeof bits);
#if GATEPRO_BYTES == 64
  return {__builtin_ia32_vcvtph2ps512_mask(bits, Lanes<float>::Raw{}, all_16_lanes, 4)};
#else
  return {__builtin_ia32_vcvtph2ps256(bits)};
#endif
#else
  // The exponent moves from bias 15 to 127. Infinities and NaNs move as far again; subnormals are
  // normalised by a subtraction of floats, which is exact.
  using Word = Lanes<std::int32_t>;
  const Word word = load_16_bits(from);
  const Word magnitude = (word & Word::splat(0x7fff)) << 13;
  const Word exponent = magnitude & Word::splat(0x7c00 << 13);
  const Word rebias = Word::splat((127 - 15) << 23);
  const Word one = Word::splat(1 << 23);
  const Word rebiased = magnitude + rebias;
  const Lanes<float> smallest_normal = bit_cast<float>(Word::splat(113 << 23));
  const Lanes<float> subnormal = bit_cast<float>(rebiased + one) - smallest_normal;
  Word wide = select(exponent == Word::splat(0x7c00 << 13), rebiased + rebias, rebiased);
  wide = select(exponent == Word::splat(0), bit_cast<std::int32_t>(subnormal), wide);
  const Word sign = (word & Word::splat(0x8000)) << 16;
  return bit_cast<float>(wide | sign);
#endif
}

/// Lanes of float from as many 16-bit patterns.
template <class Source>
GATEPRO_FN Lanes<float> widen_16_bits(const void* bits) {
  if constexpr (std::is_same_v<Source, bfloat16>) {
    return bit_cast<float>(load_16_bits(bits) << 16);
  } else {
    return widen_halves(bits);
  }
}

/// Copies `count` < 2 * Piece values, in pieces of constant size.
template <int Piece, class T>
GATEPRO_FN void copy_pieces(const T* from, T* to, int count) {
  if constexpr (Piece > 0) {
    const int here = count & Piece;
    if (here != 0) std::memcpy(to, from, Piece * sizeof(T));
    copy_pieces<Piece / 2>(from + here, to + here, count);
  }
}

#if GATEPRO_VECTOR_EXTENSIONS && GATEPRO_BYTES == 64

/// The first `count` < L values, then zeros. Nothing is read from behind them.
GATEPRO_FN Vec<float, 16> load_first(const float* from, int count) {
  const auto lanes = static_cast<std::uint16_t>((1 << count) - 1);
  return {__builtin_ia32_loadups512_mask(from, Vec<float, 16>::Raw{}, lanes)};
}
GATEPRO_FN Vec<double, 8> load_first(const double* from, int count) {
  const auto lanes = static_cast<std::uint8_t>((1 << count) - 1);
  return {__builtin_ia32_loadupd512_mask(from, Vec<double, 8>::Raw{}, lanes)};
}

#elif GATEPRO_VECTOR_EXTENSIONS && GATEPRO_BYTES == 32

GATEPRO_FN Vec<float, 8> load_first(const float* from, int count) {
  using Word = Vec<std::int32_t, 8>;
  const Word lanes = Word{{0, 1, 2, 3, 4, 5, 6, 7}} < Word::splat(count);
  const void* unaligned = from;
  return {
      __builtin_ia32_maskloadps256(static_cast<const Vec<float, 8>::Raw*>(unaligned), lanes.raw)};
}
GATEPRO_FN Vec<double, 4> load_first(const double* from, int count) {
  using Word = Vec<std::int64_t, 4>;
  const Word lanes = Word{{0, 1, 2, 3}} < Word::splat(count);
  typedef long long Mask __attribute__((vector_size(32)));
  const void* unaligned = from;
  return {__builtin_ia32_maskloadpd256(static_cast<const Vec<double, 4>::Raw*>(unaligned),
                                       reinterpret_cast<Mask>(lanes.raw))};
}

#else

template <class A>
GATEPRO_FN Lanes<A> load_first(const A* from, int count) {
  A values[lanes_v<A>] = {};
  copy_pieces<lanes_v<A> / 2>(from, values, count);
  return Lanes<A>::load(values);
}

#endif

/// `count` <= lanes_v<A> values of Source as A; lanes past `count` are zero.
template <class A, class Source>
GATEPRO_FN Lanes<A> load_as(const Source* from, int count) {
  if constexpr (std::is_same_v<A, Source>) {
    return count == lanes_v<A> ? Lanes<A>::load(from) : load_first(from, count);
  } else if constexpr (sizeof(Source) == 2 && sizeof(A) == 4) {
    if (count == lanes_v<A>) return widen_16_bits<Source>(from);
    std::uint16_t bits[lanes_v<float>] = {};
    std::memcpy(bits, static_cast<const void*>(from), std::size_t(count) * sizeof(Source));
    return widen_16_bits<Source>(bits);
  } else if constexpr (sizeof(Source) == 2) {
    A wide[lanes_v<A>];
    std::uint16_t bits[lanes_v<float>] = {};
    float values[lanes_v<float>];
    std::memcpy(bits, static_cast<const void*>(from), std::size_t(count) * sizeof(Source));
    widen_16_bits<Source>(bits).store(values);
    for (int i = 0; i < lanes_v<A>; ++i) wide[i] = static_cast<A>(values[i]);
    return Lanes<A>::load(wide);
  } else {
    A wide[lanes_v<A>] = {};
    for (int i = 0; i < count; ++i) wide[i] = static_cast<A>(from[i]);
    return Lanes<A>::load(wide);
  }
}

template <class A>
GATEPRO_FN void store_first(Lanes<A> v, A* to, int count) {
  if (count == lanes_v<A>) {
    v.store(to);
    return;
  }
  A values[lanes_v<A>];
  v.store(values);
  copy_pieces<lanes_v<A> / 2>(values, to, count);
}

/// What stands in rows of a block that are not there.
enum class Missing { zeros, last_row };

/// `rows` <= L rows of `cols` <= L values of Source as A; columns that are not there are zero.
/// Blocks with rows or columns missing go through memory, so that the code for parts of rows stands
/// once, not L times.
template <class A, Missing missing, class Source>
GATEPRO_FN void load_block(const Source* from, Index row_stride, int rows, int cols,
                           Lanes<A> (&block)[std::size_t(lanes_v<A>)]) {
  constexpr int L = lanes_v<A>;
  if (rows == L && cols == L) {
    GATEPRO_UNROLL
    for (int r = 0; r < L; ++r) block[r] = loaded_once(load_as<A>(from + r * row_stride, L));
    return;
  }
  A values[std::size_t(L * L)] = {};
  for (int r = 0; r < (missing == Missing::zeros ? rows : L); ++r) {
    const Source* row = from + (r < rows ? r : rows - 1) * row_stride;
    load_as<A>(row, cols).store(values + r * L);
  }
  GATEPRO_UNROLL
  for (int r = 0; r < L; ++r) block[r] = Lanes<A>::load(values + r * L);
}

/// to[i] = from[i], exactly.
template <class A, class Source>
GATEPRO_KERNEL void widen(const void* from, Index count, A* to) {
  constexpr int L = lanes_v<A>;
  const Source* source = static_cast<const Source*>(from);
  Index i = 0;
  for (; i + L <= count; i += L) load_as<A>(source + i, L).store(to + i);
  if (i < count) store_first<A>(load_as<A>(source + i, int(count - i)), to + i, int(count - i));
}

#if GATEPRO_VECTOR_EXTENSIONS

/// Exchanges one bit of the row's number, that of Distance, with one of the lane's: of the place
/// within a block of 128 bits, or of the block.
template <class A, int Distance>
GATEPRO_FN void exchange_bit(Lanes<A> (&rows)[std::size_t(lanes_v<A>)]) {
  constexpr bool within_block = Distance < block_v<A>;
  GATEPRO_UNROLL
  for (int i = 0; i < lanes_v<A> / 2; ++i) {
    const int r = i / Distance * 2 * Distance + i % Distance;
    const Lanes<A> a = rows[r], b = rows[r + Distance];
    rows[r] = within_block ? zip<0>(a, b) : alternate_blocks<0>(a, b);
    rows[r + Distance] = within_block ? zip<1>(a, b) : alternate_blocks<1>(a, b);
  }
}

template <class A, int Distance>
GATEPRO_FN void exchange_bits_within_blocks(Lanes<A> (&rows)[std::size_t(lanes_v<A>)]) {
  if constexpr (Distance > 0) {
    exchange_bit<A, Distance>(rows);
    exchange_bits_within_blocks<A, Distance / 2>(rows);
  }
}

template <class A, int Distance>
GATEPRO_FN void exchange_bits_of_blocks(Lanes<A> (&rows)[std::size_t(lanes_v<A>)]) {
  if constexpr (Distance < lanes_v<A>) {
    exchange_bit<A, Distance>(rows);
    exchange_bits_of_blocks<A, 2 * Distance>(rows);
  }
}

/// Transposes an L x L block in registers: log2(L) rounds of shuffles.
template <class A>
GATEPRO_FN void transpose(Lanes<A> (&rows)[std::size_t(lanes_v<A>)]) {
  exchange_bits_within_blocks<A, block_v<A> / 2>(rows);
  exchange_bits_of_blocks<A, block_v<A>>(rows);
}

#else

template <class A>
GATEPRO_FN void transpose(Lanes<A> (&)[1]) {}

#endif
