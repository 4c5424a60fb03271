// Products of codes with whole-numbered inputs for AVX2: two registers for each sixteen outputs.
#pragma once

COREBOUND_BEGIN_VARIANT

// Sums of sixteen outputs, in whole numbers.
struct Counts16 {
  __m256i low, high;
  static Counts16 zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  Vec part(int64_t index) const { return {_mm256_cvtepi32_ps(index == 0 ? low : high)}; }
};

// Splits whole numbers into 128 * high + low.
inline void store_halves(Vec whole, int8_t *high, int8_t *low) {
  const __m256i value = _mm256_cvttps_epi32(whole.v);
  const __m256i upper = _mm256_srai_epi32(_mm256_add_epi32(value, _mm256_set1_epi32(64)), 7);
  const __m256i lower = _mm256_sub_epi32(value, _mm256_slli_epi32(upper, 7));
  const __m256i halves = _mm256_packs_epi32(upper, lower); // in each 128-bit lane four of one, four of the other
  const __m256i bytes =
      _mm256_permutevar8x32_epi32(_mm256_packs_epi16(halves, halves), _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5));
  _mm_storel_epi64(reinterpret_cast<__m128i *>(high), _mm256_castsi256_si128(bytes));
  _mm_storeh_pd(reinterpret_cast<double *>(low), _mm_castsi128_pd(_mm256_castsi256_si128(bytes)));
}

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
