// SPDX-License-Identifier: MIT
// float to the 16-bit types: to nearest, ties to even, on every instruction set the same. A NaN
// stays one, quiet, with its sign and the bits of its payload for which there is room.

/// Stores the lower halves of the first `count` lanes.
GATEPRO_FN void store_16_bits(Lanes<std::int32_t> v, void* to, int count) {
#if GATEPRO_VECTOR_EXTENSIONS
  typedef std::uint16_t Half __attribute__((vector_size(lanes_v<float> * sizeof(std::uint16_t))));
  const Half bits = __builtin_convertvector(v.raw, Half);
  if (count == lanes_v<float>) {
    __builtin_memcpy(to, &bits, sizeof bits);
    return;
  }
#else
  const auto bits = static_cast<std::uint16_t>(v.raw);
#endif
  std::memcpy(to, &bits, std::size_t(count) * sizeof(std::uint16_t));
}

/// word >> bits, rounded to nearest even; word is not negative and far from overflow.
template <int bits>
GATEPRO_FN Lanes<std::int32_t> shift_to_even(Lanes<std::int32_t> word) {
  using Word = Lanes<std::int32_t>;
  const Word odd = (word >> bits) & Word::splat(1);
  return (word + Word::splat((1 << (bits - 1)) - 1) + odd) >> bits;
}

/// The bits of each value as a Target, in the lower half of its lane.
template <class Target>
GATEPRO_FN Lanes<std::int32_t> narrow_bits(Lanes<float> v) {
  using Word = Lanes<std::int32_t>;
  const Word word = bit_cast<std::int32_t>(v);
  const Word sign = (word >> 16) & Word::splat(0x8000);
  const Word magnitude = word & Word::splat(0x7fffffff);
  const Word infinity = Word::splat(0xff << 23);
  const Word is_nan = magnitude > infinity;
  if constexpr (std::is_same_v<Target, bfloat16>) {
    const Word quiet = (magnitude >> 16) | Word::splat(0x40);
    return sign | select(is_nan, quiet, shift_to_even<16>(smaller(magnitude, infinity)));
  } else {
    // Exponents move from bias 127 to 15; what is larger then than infinity is infinite. Below
    // 2^-14 the sum with 1/2, whose last place is the smallest subnormal half, rounds.
    const Word normal = shift_to_even<13>(smaller(magnitude, infinity) - Word::splat(112 << 23));
    const Lanes<float> half_one = Lanes<float>::splat(0.5F);
    const Word subnormal =
        bit_cast<std::int32_t>(bit_cast<float>(magnitude) + half_one) - Word::splat(126 << 23);
    const Word narrow =
        select(magnitude < Word::splat(113 << 23), subnormal, smaller(normal, Word::splat(0x7c00)));
    const Word quiet = ((magnitude >> 13) & Word::splat(0x3ff)) | Word::splat(0x7e00);
    return sign | select(is_nan, quiet, narrow);
  }
}

#if GATEPRO_VECTOR_EXTENSIONS && GATEPRO_BYTES >= 32
/// narrow_bits and store_16_bits by the instruction for it.
GATEPRO_FN void store_halves(Lanes<float> v, void* to, int count) {
  typedef std::int16_t Half __attribute__((vector_size(lanes_v<float> * sizeof(std::int16_t))));
  constexpr int to_nearest_even = 0;
#if GATEPRO_BYTES == 64
  constexpr std::uint16_t all_lanes = 0xffff;
  const Half bits = __builtin_ia32_vcvtps2ph512_mask(v.raw, to_nearest_even, Half{}, all_lanes);
#else
  const Half bits = __builtin_ia32_vcvtps2ph256(v.raw, to_nearest_even);
#endif
  std::memcpy(to, &bits, std::size_t(count) * sizeof(std::int16_t));
}
#endif

/// Stores the first `count` values as Target.
template <class Target>
GATEPRO_FN void store_narrow(Lanes<float> v, void* to, int count) {
#if GATEPRO_VECTOR_EXTENSIONS && GATEPRO_BYTES >= 32
  if constexpr (std::is_same_v<Target, half>) return store_halves(v, to, count);
#endif
  store_16_bits(narrow_bits<Target>(v), to, count);
}

/// to[i] = from[i], rounded.
template <class Target>
GATEPRO_KERNEL void narrow(const float* from, Index count, void* to) {
  constexpr int L = lanes_v<float>;
  Target* target = static_cast<Target*>(to);
  Index i = 0;
  for (; i + L <= count; i += L) store_narrow<Target>(Lanes<float>::load(from + i), target + i, L);
  if (i < count) {
    const int rest = int(count - i);
    store_narrow<Target>(load_as<float>(from + i, rest), target + i, rest);
  }
}
