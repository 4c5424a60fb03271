// Products of codes with whole-numbered inputs for AVX2: two registers for each sixteen outputs.
#pragma once

COREBOUND_BEGIN_VARIANT

// Sums of sixteen outputs, in whole numbers.
struct Counts16 {
  __m256i low, high;
  static Counts16 zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  void store(float *p) const {
    _mm256_storeu_ps(p, _mm256_cvtepi32_ps(low));
    _mm256_storeu_ps(p + 8, _mm256_cvtepi32_ps(high));
  }
};

// Codes of sixteen outputs for four inputs each.
struct Quads16 {
  __m256i low, high;
  static Quads16 load(const void *p) {
    const auto *words = static_cast<const __m256i *>(p);
    return {_mm256_loadu_si256(words), _mm256_loadu_si256(words + 1)};
  }
};
inline __m256i lower_half(__m256i bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }
inline Quads16 low_nibbles(Quads16 bytes) { return {lower_half(bytes.low), lower_half(bytes.high)}; }
inline Quads16 high_nibbles(Quads16 bytes) {
  return {lower_half(_mm256_srli_epi16(bytes.low, 4)), lower_half(_mm256_srli_epi16(bytes.high, 4))};
}

struct InputQuad {
  __m256i even, odd; // inputs 0 and 2, 1 and 3, as 16-bit numbers
  static InputQuad load(const int8_t *x) {
    return {_mm256_set1_epi32((x[0] & 0xffff) | (x[2] << 16)), _mm256_set1_epi32((x[1] & 0xffff) | (x[3] << 16))};
  }
};
inline __m256i add_eight(__m256i sums, __m256i codes, const InputQuad &x) {
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(255)), x.even);
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), x.odd);
  return _mm256_add_epi32(sums, _mm256_add_epi32(even, odd));
}
inline Counts16 add_products(Counts16 sums, Quads16 codes, InputQuad x) {
  return {add_eight(sums.low, codes.low, x), add_eight(sums.high, codes.high, x)};
}

COREBOUND_END_VARIANT
