// Codes as bf16 weights, a piece of a panel at a time, for products with so many rows that it pays: AVX-512 with bf16.
#pragma once

#include "kernels/panel_codes.h"

COREBOUND_BEGIN_VARIANT

// Two floats of each of 16 outputs, rounded, as a bf16 pair.
inline __m512i joined(__m512 first, __m512 second) {
  const __m512i places = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                          21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(places, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first)));
}

// Writes (code - zero) * scale of `inputs` inputs as bf16 pairs into a piece, from pair `first` on: 16 outputs of a
// pair where Layout::place says. Here, unlike with few rows, each weight is rounded.
template <class Layout, bool nibbles>
inline void widen(const char *codes, int64_t inputs, const GroupScales &of, char *piece, int64_t first) {
  __m512 scales[4], offsets[4];
  for (int j = 0; j < 4; ++j) {
    scales[j] = _mm512_loadu_ps(of.scales + 16 * j);
    offsets[j] = _mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(_mm512_loadu_ps(of.zeros + 16 * j), scales[j]));
  }
  const __m512i byte = _mm512_set1_epi32(255);
  for (int64_t i = 0; i < inputs; i += 4, codes += nibbles ? 128 : 256) {
    Quads16 quads[4];
    load_quads<nibbles>(codes, quads);
    for (int j = 0; j < 4; ++j) {
      __m512 value[4];
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const __m512i code = _mm512_and_si512(_mm512_srli_epi32(quads[j].v, 8 * k), byte);
        value[k] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(code), scales[j], offsets[j]);
      }
      const int64_t pair = first + i / 2;
      _mm512_storeu_si512(Layout::place(piece, pair, j), joined(value[0], value[1]));
      _mm512_storeu_si512(Layout::place(piece, pair + 1, j), joined(value[2], value[3]));
    }
  }
}

// Fills a piece with up to `count` inputs from input `at` on, of one group or of several small ones.
template <class Layout>
inline void widen_piece(const PanelMatrix &matrix, const char *panel, int64_t at, int64_t count, char *piece) {
  for (int64_t filled = 0; filled < count;) {
    const int64_t index = (at + filled) / matrix.group_inputs, within = (at + filled) % matrix.group_inputs;
    const int64_t of_group = matrix.group_inputs - within, left = count - filled;
    const int64_t part = of_group < left ? of_group : left;
    const char *codes = panel + index * matrix.group_bytes();
    const GroupScales of(matrix, codes + matrix.group_inputs * matrix.input_bytes());
    codes += within * matrix.input_bytes();
    if (matrix.kind == WeightKind::int4) {
      widen<Layout, true>(codes, part, of, piece, filled / 2);
    } else {
      widen<Layout, false>(codes, part, of, piece, filled / 2);
    }
    filled += part;
  }
}

// Pieces that lie as bf16 panels do.
struct AsPanel {
  static char *place(char *piece, int64_t pair, int64_t part) { return piece + 256 * pair + 64 * part; }
};

// Sums of a quantised panel for rows of bf16, a piece that fits the first-level cache for all of them at a time.
inline void sum_widened_rows(const PanelMatrix &matrix, const char *panel, const PanelInput &in,
                             const PanelScratch &scratch) {
  char *piece = reinterpret_cast<char *>(scratch.piece);
  for (int64_t at = 0; at < matrix.padded_inputs; at += shared_inputs) {
    const int64_t left = matrix.padded_inputs - at, count = left < shared_inputs ? left : shared_inputs;
    widen_piece<AsPanel>(matrix, panel, at, count, piece);
    add_rows<Pace<false>>(piece, count / 2, in.x + at, in.stride, in.rows, scratch.sums);
  }
}

COREBOUND_END_VARIANT
