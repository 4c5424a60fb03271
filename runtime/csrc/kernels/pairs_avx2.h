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

// What each of the 16 values of a nibble means, as bf16: low and high bytes apart, for the byte shuffle.
struct NibbleTable {
  __m256i low, high;
  explicit NibbleTable(const uint16_t *values) {
    uint8_t bytes[2][32];
    for (int i = 0; i < 32; ++i) {
      bytes[0][i] = static_cast<uint8_t>(values[i % 16]);
      bytes[1][i] = static_cast<uint8_t>(values[i % 16] >> 8);
    }
    low = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(bytes[0]));
    high = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(bytes[1]));
  }
  __m256i of(__m256i lanes) const {
    // The upper byte of a lane asks for nothing, which the shuffle answers with zero.
    const __m256i index = _mm256_or_si256(_mm256_and_si256(lanes, _mm256_set1_epi16(15)), _mm256_set1_epi16(-32768));
    return _mm256_or_si256(_mm256_shuffle_epi8(low, index), _mm256_slli_epi16(_mm256_shuffle_epi8(high, index), 8));
  }
};

struct Nibbles {
  __m256i low, high;
  static Nibbles load(const void *p) {
    const auto *words = static_cast<const __m256i *>(p);
    return {_mm256_loadu_si256(words), _mm256_loadu_si256(words + 1)};
  }
};

// The weights in nibble `index` of every 16-bit lane.
template <int index> inline Pairs16 look_up(const NibbleTable &table, Nibbles nibbles) {
  return {table.of(_mm256_srli_epi16(nibbles.low, 4 * index)), table.of(_mm256_srli_epi16(nibbles.high, 4 * index))};
}

COREBOUND_END_VARIANT
