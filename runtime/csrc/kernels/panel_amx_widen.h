// Sums of panels by AMX tiles of bf16, of quantised ones by pieces that are widened first.
#pragma once

#include "kernels/panel_amx.h"
#include "kernels/panel_codes.h"
#include "kernels/panel_finish.h"

COREBOUND_BEGIN_VARIANT

// Inputs of codes that all rows pass before the next ones. A half of the piece (16 KiB), two tiles of rows (16 KiB) and
// their sums (8 KiB) then stay in the first-level cache; with twice as many, every tile would come from the second.
constexpr int64_t tile_piece_inputs = 256, half_piece_bytes = tile_piece_inputs * 64;
static_assert(2 * half_piece_bytes == piece_floats * 4, "a piece fills the scratch that there is for it");

// Pieces in tile order: [half][step][2][16 pairs][64 bytes].
struct InPiece {
  static constexpr int64_t row_bytes = 64, second = 1024, half = half_piece_bytes, step = step_bytes / 2;
  static char *place(char *piece, int64_t pair, int64_t part) {
    return piece + part / 2 * half + pair / 16 * step + part % 2 * second + pair % 16 * row_bytes;
  }
};

// Two floats of each of 16 outputs, rounded, as a bf16 pair.
inline __m512i joined(__m512 first, __m512 second) {
  const __m512i places = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                          21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(places, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first)));
}

// Writes (code - zero) * scale of `inputs` inputs as bf16 pairs into a piece, from pair `first` on: 16 outputs of a
// pair where InPiece::place says. Here, unlike with few rows, each weight is rounded.
template <bool nibbles>
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
      _mm512_storeu_si512(InPiece::place(piece, pair, j), joined(value[0], value[1]));
      _mm512_storeu_si512(InPiece::place(piece, pair + 1, j), joined(value[2], value[3]));
    }
  }
}

// Fills a piece with up to `count` inputs from input `at` on, of one group or of several small ones.
inline void widen_piece(const PanelMatrix &matrix, const char *panel, int64_t at, int64_t count, char *piece) {
  for (int64_t filled = 0; filled < count;) {
    const int64_t index = (at + filled) / matrix.group_inputs, within = (at + filled) % matrix.group_inputs;
    const int64_t of_group = matrix.group_inputs - within, left = count - filled;
    const int64_t part = of_group < left ? of_group : left;
    const char *codes = panel + index * matrix.group_bytes();
    const GroupScales of(matrix, codes + matrix.group_inputs * matrix.input_bytes());
    codes += within * matrix.input_bytes();
    if (matrix.kind == WeightKind::int4) {
      widen<true>(codes, part, of, piece, filled / 2);
    } else {
      widen<false>(codes, part, of, piece, filled / 2);
    }
    filled += part;
  }
}

inline void sum_widened(const PanelMatrix &matrix, const char *panels, int64_t count, const PanelInput &in,
                        const PanelScratch &scratch) {
  char *piece = reinterpret_cast<char *>(scratch.piece);
  // By stores, which bring the sums into the cache, well before they are loaded.
  std::memset(scratch.sums, 0, static_cast<size_t>(count * panel_sums(in.rows)) * sizeof(float));
  sum_pieces<false>(matrix, panels, count, in, tile_piece_inputs, scratch.sums,
                    [&](const char *panel, int64_t at, int64_t inputs, float *sums, auto &fetching) {
                      widen_piece(matrix, panel, at, inputs, piece);
                      written_for_tiles();
                      add_tile_rows<InPiece>(in.tiles + at / 32 * tile_size, matrix.padded_inputs * 16,
                                             (in.rows + 15) / 16, piece, inputs / 32, false, sums, fetching);
                    });
}

inline void sum_by_tiles(const PanelMatrix &matrix, const char *panels, int64_t count, const PanelInput &in,
                         const PanelScratch &scratch) {
  if (matrix.kind != WeightKind::bfloat16) {
    sum_widened(matrix, panels, count, in, scratch);
  } else if (in.reading != Reading::at_once) {
    sum_weights<true>(matrix, panels, count, in, scratch.sums);
  } else {
    sum_weights<false>(matrix, panels, count, in, scratch.sums);
  }
}

// All rows against some panels, as many together as the caches hold.
inline void multiply_by_tiles(const PanelMatrix &matrix, int64_t panel, int64_t count, const PanelInput &in,
                              const PanelOutput &out, const PanelScratch &scratch) {
  const Tiles tiles;
  const int64_t most = matrix.kind == WeightKind::bfloat16 ? max_weight_rows : max_rows_together;
  for (int64_t row = 0; row < in.rows; row += most) {
    PanelInput part = in;
    part.tiles += row * matrix.padded_inputs;
    part.rows = smaller(most, in.rows - row);
    if (in.rows > max_paced_rows) {
      part.reading = Reading::at_once;
    }
    sum_by_tiles(matrix, matrix.panel(panel), count, part, scratch);
    for (int64_t i = 0; i < count; ++i) {
      finish_panel<false>(matrix, panel + i, row, part.rows, scratch.sums + i * panel_sums(part.rows), out);
    }
  }
}

COREBOUND_END_VARIANT
