// Pairs for AVX-512: with its bf16 dot product where the variant has it, else by widening.
#pragma once

COREBOUND_BEGIN_VARIANT

struct Sums16 {
  __m512 v;
  static Sums16 zero() { return {_mm512_setzero_ps()}; }
  static Sums16 load(const float *p) { return {_mm512_loadu_ps(p)}; }
  void store(float *p) const { _mm512_storeu_ps(p, v); }
};

inline Sums16 operator+(Sums16 a, Sums16 b) { return {_mm512_add_ps(a.v, b.v)}; }

struct Pairs16 {
  __m512i v;
  static Pairs16 load(const void *p) { return {_mm512_loadu_si512(p)}; }
  void store(void *p) const { _mm512_storeu_si512(p, v); }
};

// The two inputs of a pair, each for all outputs.
#if defined(__AVX512BF16__)
struct InputPair {
  __m512i both;
  static InputPair load(const uint16_t *x) {
    uint32_t bits;
    std::memcpy(&bits, x, 4);
    return {_mm512_set1_epi32(static_cast<int>(bits))};
  }
};
inline Sums16 add_products(Sums16 sums, Pairs16 weights, InputPair x) {
  return {_mm512_dpbf16_ps(sums.v, reinterpret_cast<__m512bh>(weights.v), reinterpret_cast<__m512bh>(x.both))};
}
#else
struct InputPair {
  __m512 first, second;
  static InputPair load(const uint16_t *x) {
    return {_mm512_set1_ps(to_float(bf16{x[0]})), _mm512_set1_ps(to_float(bf16{x[1]}))};
  }
};
inline Sums16 add_products(Sums16 sums, Pairs16 weights, InputPair x) {
  const __m512 first = _mm512_castsi512_ps(_mm512_slli_epi32(weights.v, 16));
  const __m512 second = _mm512_castsi512_ps(_mm512_and_si512(weights.v, _mm512_set1_epi32(-65536)));
  return {_mm512_fmadd_ps(second, x.second, _mm512_fmadd_ps(first, x.first, sums.v))};
}
#endif

COREBOUND_END_VARIANT
