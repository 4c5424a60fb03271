// Stores of panel_fill.cpp for any x86-64 processor.
#pragma once

#include "kernels/vec.h"

COREBOUND_BEGIN_VARIANT

inline constexpr bool fused_quotient = false;

inline void finish_stores() {}

// The lowest byte of each whole number.
inline void store_bytes(Vec whole, uint8_t *to) {
  for (int i = 0; i < Vec::width; ++i) {
    to[i] = static_cast<uint8_t>(static_cast<int32_t>(whole.v[i]));
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
