// Stores of panel_fill.cpp for any x86-64 processor.
#pragma once

#include "kernels/vec.h"

COREBOUND_BEGIN_VARIANT

inline void finish_stores() {}

// Each of four vectors of quotients as whole numbers, to nearest even, plus `zero`, from 0 to `top`, as bytes.
inline void store_rounded(const Vec *quotients, int32_t zero, int32_t top, uint8_t *to) {
  for (int k = 0; k < 4; ++k) {
    const Vec whole = round(quotients[k]);
    for (int i = 0; i < Vec::width; ++i) {
      const int32_t code = static_cast<int32_t>(whole.v[i]) + zero;
      *to++ = static_cast<uint8_t>(code < 0 ? 0 : code > top ? top : code);
    }
  }
}

// Takes 16 rows of 16 words each, `stride` bytes apart; word i of all rows becomes the line at `to` + i * `step`, for
// `count` words.
inline void transpose_words(const char *from, int64_t stride, char *to, int64_t step, int64_t count) {
  for (int64_t row = 0; row < 16; ++row) {
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(to + i * step + 4 * row, from + row * stride + 4 * i, 4);
    }
  }
}

COREBOUND_END_VARIANT
