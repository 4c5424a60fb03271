// Stores of panel_fill.cpp for AVX2.
#pragma once

#include "kernels/vec.h"

COREBOUND_BEGIN_VARIANT

inline void finish_stores() {}

// Each of four vectors of quotients as whole numbers, to nearest even, plus `zero`, from 0 to `top`, as bytes.
inline void store_rounded(const Vec *quotients, int32_t zero, int32_t top, uint8_t *to) {
  const auto pair = [&](int k) {
    const __m256i words =
        _mm256_packs_epi32(_mm256_cvtps_epi32(quotients[k].v), _mm256_cvtps_epi32(quotients[k + 1].v));
    return _mm256_add_epi16(words, _mm256_set1_epi16(static_cast<int16_t>(zero)));
  };
  const __m256i bytes = _mm256_packus_epi16(pair(0), pair(2)); // four of each vector in each 128-bit lane
  const __m256i codes = _mm256_min_epu8(bytes, _mm256_set1_epi8(static_cast<char>(top)));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), _mm256_permutevar8x32_epi32(codes, order));
}

// Takes 8 rows of 8 words.
inline void transpose_eight(const char *from, int64_t stride, char *to, int64_t step, int64_t count) {
  __m256i a[8], b[8];
  for (int i = 0; i < 8; ++i) {
    a[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from + i * stride));
  }
  for (int i = 0; i < 8; i += 4) { // fours of rows: b[i + k] has their words k and 4 + k, in a 128-bit lane each
    const __m256i low = _mm256_unpacklo_epi32(a[i], a[i + 1]), high = _mm256_unpackhi_epi32(a[i], a[i + 1]);
    const __m256i low2 = _mm256_unpacklo_epi32(a[i + 2], a[i + 3]), high2 = _mm256_unpackhi_epi32(a[i + 2], a[i + 3]);
    b[i] = _mm256_unpacklo_epi64(low, low2);
    b[i + 1] = _mm256_unpackhi_epi64(low, low2);
    b[i + 2] = _mm256_unpacklo_epi64(high, high2);
    b[i + 3] = _mm256_unpackhi_epi64(high, high2);
  }
  for (int k = 0; k < 4; ++k) {
    a[k] = _mm256_permute2x128_si256(b[k], b[4 + k], 0x20);
    a[4 + k] = _mm256_permute2x128_si256(b[k], b[4 + k], 0x31);
  }
  for (int i = 0; i < 8; ++i) { // by constants, so that all stay in registers
    if (i < count) {
      _mm256_store_si256(reinterpret_cast<__m256i *>(to + i * step), a[i]);
    }
  }
}

// Takes 16 rows of 16 words each, `stride` bytes apart; word i of all rows becomes the line at `to` + i * `step`, for
// `count` words.
inline void transpose_words(const char *from, int64_t stride, char *to, int64_t step, int64_t count) {
  for (int64_t i = 0; i < count; i += 8) {
    transpose_eight(from + 4 * i, stride, to + i * step, step, count - i);
    transpose_eight(from + 4 * i + 8 * stride, stride, to + i * step + 32, step, count - i);
  }
}

COREBOUND_END_VARIANT
