// Products of codes with whole-numbered inputs for AVX-512: by VNNI where the variant has it.
#pragma once

COREBOUND_BEGIN_VARIANT

// Sums of sixteen outputs, in whole numbers.
struct Counts16 {
  __m512i v;
  static Counts16 zero() { return {_mm512_setzero_si512()}; }
  Vec part(int64_t) const { return {_mm512_cvtepi32_ps(v)}; } // all of them
};

// Splits whole numbers into 128 * high + low.
inline void store_halves(Vec whole, int8_t *high, int8_t *low) {
  const __m512i value = _mm512_cvttps_epi32(whole.v);
  const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(value, _mm512_set1_epi32(64)), 7);
  const __m512i lower = _mm512_sub_epi32(value, _mm512_slli_epi32(upper, 7));
  _mm_storeu_si128(reinterpret_cast<__m128i *>(high), _mm512_cvtepi32_epi8(upper));
  _mm_storeu_si128(reinterpret_cast<__m128i *>(low), _mm512_cvtepi32_epi8(lower));
}

// Codes of sixteen outputs for four inputs each.
struct Quads16 {
  __m512i v;
  static Quads16 load(const void *p) { return {_mm512_loadu_si512(p)}; }
};
inline Quads16 low_nibbles(Quads16 bytes) { return {_mm512_and_si512(bytes.v, _mm512_set1_epi8(15))}; }
inline Quads16 high_nibbles(Quads16 bytes) {
  return {_mm512_and_si512(_mm512_srli_epi16(bytes.v, 4), _mm512_set1_epi8(15))};
}

#if defined(__AVX512VNNI__)
struct InputQuad {
  __m512i four;
  static InputQuad load(const int8_t *x) {
    int bits;
    std::memcpy(&bits, x, 4);
    return {_mm512_set1_epi32(bits)};
  }
};
inline Counts16 add_products(Counts16 sums, Quads16 codes, InputQuad x) {
  return {_mm512_dpbusd_epi32(sums.v, codes.v, x.four)};
}
#else
struct InputQuad {
  __m512i even, odd; // inputs 0 and 2, 1 and 3, as 16-bit numbers
  static InputQuad load(const int8_t *x) {
    return {_mm512_set1_epi32((x[0] & 0xffff) | (x[2] << 16)), _mm512_set1_epi32((x[1] & 0xffff) | (x[3] << 16))};
  }
};
inline Counts16 add_products(Counts16 sums, Quads16 codes, InputQuad x) {
  const __m512i even = _mm512_madd_epi16(_mm512_and_si512(codes.v, _mm512_set1_epi16(255)), x.even);
  const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(codes.v, 8), x.odd);
  return {_mm512_add_epi32(sums.v, _mm512_add_epi32(even, odd))};
}
#endif

COREBOUND_END_VARIANT
