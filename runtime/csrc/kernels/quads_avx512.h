// Products of codes with whole-numbered inputs for AVX-512: by VNNI where the variant has it.
#pragma once

COREBOUND_BEGIN_VARIANT

// Sums of sixteen outputs, in whole numbers.
struct Counts16 {
  __m512i v;
  static Counts16 zero() { return {_mm512_setzero_si512()}; }
  void store(float *p) const { _mm512_storeu_ps(p, _mm512_cvtepi32_ps(v)); }
};

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
