// Pairs for AVX2: two registers for each sixteen outputs.
#pragma once

COREBOUND_BEGIN_VARIANT

struct Sums16 {
  __m256 low, high;
  static Sums16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Sums16 load(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  void store(float *p) const {
    _mm256_storeu_ps(p, low);
    _mm256_storeu_ps(p + 8, high);
  }
};

inline Sums16 operator+(Sums16 a, Sums16 b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }

struct Pairs16 {
  __m256i low, high;
  static Pairs16 load(const void *p) {
    const auto *words = static_cast<const __m256i *>(p);
    return {_mm256_loadu_si256(words), _mm256_loadu_si256(words + 1)};
  }
  void store(void *p) const {
    auto *words = static_cast<__m256i *>(p);
    _mm256_storeu_si256(words, low);
    _mm256_storeu_si256(words + 1, high);
  }
};

struct InputPair {
  __m256 first, second;
  static InputPair load(const uint16_t *x) {
    return {_mm256_set1_ps(to_float(bf16{x[0]})), _mm256_set1_ps(to_float(bf16{x[1]}))};
  }
};

inline __m256 add_half(__m256 sums, __m256i weights, InputPair x) {
  const __m256 first = _mm256_castsi256_ps(_mm256_slli_epi32(weights, 16));
  const __m256 second = _mm256_castsi256_ps(_mm256_and_si256(weights, _mm256_set1_epi32(-65536)));
  return _mm256_fmadd_ps(second, x.second, _mm256_fmadd_ps(first, x.first, sums));
}

inline Sums16 add_products(Sums16 sums, Pairs16 weights, InputPair x) {
  return {add_half(sums.low, weights.low, x), add_half(sums.high, weights.high, x)};
}

COREBOUND_END_VARIANT
