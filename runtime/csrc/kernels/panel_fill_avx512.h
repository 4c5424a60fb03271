// Stores of panel_fill.cpp for AVX-512.
#pragma once

#include "kernels/vec.h"

COREBOUND_BEGIN_VARIANT

// Each of four vectors of quotients as whole numbers, to nearest even, plus `zero`, from 0 to `top`, as bytes.
inline void store_rounded(const Vec *quotients, int32_t zero, int32_t top, uint8_t *to) {
  const auto pair = [&](int k) {
    const __m512i words =
        _mm512_packs_epi32(_mm512_cvtps_epi32(quotients[k].v), _mm512_cvtps_epi32(quotients[k + 1].v));
    return _mm512_add_epi16(words, _mm512_set1_epi16(static_cast<int16_t>(zero)));
  };
  const __m512i bytes = _mm512_packus_epi16(pair(0), pair(2)); // four of each vector in each 128-bit lane
  const __m512i codes = _mm512_min_epu8(bytes, _mm512_set1_epi8(static_cast<int8_t>(top)));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(to, _mm512_permutexvar_epi32(order, codes));
}

// Past the caches: nothing reads a panel before all of them are filled, and a line that is written whole needs no read.
inline void stream(char *to, __m512i words) { _mm512_stream_si512(reinterpret_cast<__m512i *>(to), words); }

inline void finish_stores() { _mm_sfence(); }

// Takes 16 rows of 16 words each, `stride` bytes apart; word i of all rows becomes the line at `to` + i * `step`, for
// `count` words.
inline void transpose_words(const char *from, int64_t stride, char *to, int64_t step, int64_t count) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i) {
    a[i] = _mm512_loadu_si512(from + i * stride);
  }
  for (int i = 0; i < 16; i += 4) { // fours of rows: b[i + k] has their words 4 l + k, in 128-bit lane l
    const __m512i low = _mm512_unpacklo_epi32(a[i], a[i + 1]), high = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    const __m512i low2 = _mm512_unpacklo_epi32(a[i + 2], a[i + 3]), high2 = _mm512_unpackhi_epi32(a[i + 2], a[i + 3]);
    b[i] = _mm512_unpacklo_epi64(low, low2);
    b[i + 1] = _mm512_unpackhi_epi64(low, low2);
    b[i + 2] = _mm512_unpacklo_epi64(high, high2);
    b[i + 3] = _mm512_unpackhi_epi64(high, high2);
  }
  for (int k = 0; k < 4; ++k) { // a 4 x 4 transpose of lanes
    const __m512i low = _mm512_shuffle_i32x4(b[k], b[4 + k], 0x44), high = _mm512_shuffle_i32x4(b[k], b[4 + k], 0xee);
    const __m512i low2 = _mm512_shuffle_i32x4(b[8 + k], b[12 + k], 0x44);
    const __m512i high2 = _mm512_shuffle_i32x4(b[8 + k], b[12 + k], 0xee);
    a[k] = _mm512_shuffle_i32x4(low, low2, 0x88);
    a[4 + k] = _mm512_shuffle_i32x4(low, low2, 0xdd);
    a[8 + k] = _mm512_shuffle_i32x4(high, high2, 0x88);
    a[12 + k] = _mm512_shuffle_i32x4(high, high2, 0xdd);
  }
  if (count == 16) {
    for (int i = 0; i < 16; ++i) {
      stream(to + i * step, a[i]);
    }
    return;
  }
  for (int i = 0; i < 16; ++i) { // by constants, so that all stay in registers
    if (i < count) {
      stream(to + i * step, a[i]);
    }
  }
}

COREBOUND_END_VARIANT
