// Sums of panels by AMX tiles of bf16, of quantised ones by pieces that are widened first.
#pragma once

#include "kernels/panel_amx.h"
#include "kernels/panel_finish.h"
#include "kernels/panel_widen.h"

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

inline void sum_widened(const PanelMatrix &matrix, const char *panels, int64_t count, const PanelInput &in,
                        const PanelScratch &scratch) {
  char *piece = reinterpret_cast<char *>(scratch.piece);
  // By stores, which bring the sums into the cache, well before they are loaded.
  std::memset(scratch.sums, 0, static_cast<size_t>(count * panel_sums(in.rows)) * sizeof(float));
  sum_pieces<false>(matrix, panels, count, in, tile_piece_inputs, scratch.sums,
                    [&](const char *panel, int64_t at, int64_t inputs, float *sums, auto &fetching) {
                      widen_piece<InPiece>(matrix, panel, at, inputs, piece);
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
