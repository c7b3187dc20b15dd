// SPDX-License-Identifier: MIT
// mul_add: a * b + c, with one rounding on sets that have an instruction for it, else with two.
//
// Never the compiler's choice, which depends on its flags, on the tuning and on what surrounds the
// expression. For the same reason Vec rounds every other product. By the compilers' own functions,
// since <immintrin.h>, which wraps them, takes as long to compile as the rest of gatepro; 4 stands
// for the current rounding mode.

#if GATEPRO_VECTOR_EXTENSIONS && GATEPRO_BYTES == 64
/// The mask of builtins that take one.
#if defined(__clang__)
inline constexpr std::uint16_t all_16_lanes = 0xffff;
#else
inline constexpr std::int16_t all_16_lanes = -1;
#endif
#endif

#if GATEPRO_VECTOR_EXTENSIONS && GATEPRO_BYTES >= 32 && GATEPRO_ELEMENTWISE_FMA

template <class T, int N>
GATEPRO_FN Vec<T, N> mul_add(Vec<T, N> a, Vec<T, N> b, Vec<T, N> c) {
  return {__builtin_elementwise_fma(a.raw, b.raw, c.raw)};
}

#elif GATEPRO_VECTOR_EXTENSIONS && GATEPRO_BYTES == 64

GATEPRO_FN Vec<float, 16> mul_add(Vec<float, 16> a, Vec<float, 16> b, Vec<float, 16> c) {
  return {__builtin_ia32_vfmaddps512_mask(a.raw, b.raw, c.raw, all_16_lanes, 4)};
}
GATEPRO_FN Vec<double, 8> mul_add(Vec<double, 8> a, Vec<double, 8> b, Vec<double, 8> c) {
  return {__builtin_ia32_vfmaddpd512_mask(a.raw, b.raw, c.raw, 0xff, 4)};
}

#elif GATEPRO_VECTOR_EXTENSIONS && GATEPRO_BYTES == 32

GATEPRO_FN Vec<float, 8> mul_add(Vec<float, 8> a, Vec<float, 8> b, Vec<float, 8> c) {
  return {__builtin_ia32_vfmaddps256(a.raw, b.raw, c.raw)};
}
GATEPRO_FN Vec<double, 4> mul_add(Vec<double, 4> a, Vec<double, 4> b, Vec<double, 4> c) {
  return {__builtin_ia32_vfmaddpd256(a.raw, b.raw, c.raw)};
}

#elif GATEPRO_NEON

GATEPRO_FN Vec<float, 4> mul_add(Vec<float, 4> a, Vec<float, 4> b, Vec<float, 4> c) {
  return {reinterpret_cast<Vec<float, 4>::Raw>(vfmaq_f32(reinterpret_cast<float32x4_t>(c.raw),
                                                         reinterpret_cast<float32x4_t>(a.raw),
                                                         reinterpret_cast<float32x4_t>(b.raw)))};
}
GATEPRO_FN Vec<double, 2> mul_add(Vec<double, 2> a, Vec<double, 2> b, Vec<double, 2> c) {
  return {reinterpret_cast<Vec<double, 2>::Raw>(vfmaq_f64(reinterpret_cast<float64x2_t>(c.raw),
                                                          reinterpret_cast<float64x2_t>(a.raw),
                                                          reinterpret_cast<float64x2_t>(b.raw)))};
}

#else

template <class T, int N>
GATEPRO_FN Vec<T, N> mul_add(Vec<T, N> a, Vec<T, N> b, Vec<T, N> c) {
  return a * b + c;
}

#endif
