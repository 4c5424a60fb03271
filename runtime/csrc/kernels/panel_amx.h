// Sums of a panel by AMX tiles: 16 rows x 32 inputs against 16 pairs x 16 outputs, with four tiles of sums at a time.
#pragma once

#include "kernels/panel_codes.h"
#include "kernels/panel_finish.h"

COREBOUND_BEGIN_VARIANT

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; } // std::min would be shared between variants

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// All eight tiles whole, or, for steps of fewer bytes of a row, 4 and 5 narrower and 6 and 7 lower; tiles are
// configured while this lives.
class Tiles {
public:
  explicit Tiles(int64_t step_bytes = 64) {
    TileShapes shapes;
    for (int i = 0; i < 8; ++i) {
      shapes.row_bytes[i] = i == 4 || i == 5 ? static_cast<uint16_t>(step_bytes) : 64;
      shapes.rows[i] = i >= 6 ? static_cast<uint8_t>(step_bytes / 4) : 16;
    }
    // g++ 12 does not know that the instruction reads all of it, and would drop most of the stores.
    asm volatile("" ::"r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles &) = delete;
  Tiles &operator=(const Tiles &) = delete;
};

constexpr int64_t sum_row_bytes = panel_outputs * 4, pair_row_bytes = 256, tile_size = 16 * 32, step_bytes = 16 * 256;
// Inputs that all rows pass before the next ones. A half of the piece (16 KiB), two tiles of rows (16 KiB) and their
// sums (8 KiB) then stay in the first-level cache; with twice as many, every tile would come from the second.
constexpr int64_t tile_piece_inputs = 256, half_piece_bytes = tile_piece_inputs * 64;
static_assert(2 * half_piece_bytes == piece_floats * 4, "a piece fills the scratch that there is for it");

// Up to so many rows, copying a piece into tile order costs more than it saves.
constexpr int64_t max_direct_rows = 64, touch_ahead_bytes = 1024;

// Comes between what ordinary stores wrote and the tiles that are loaded from it: g++ 12 does not know that _tile_loadd
// reads memory, and might move the stores behind it.
inline void written_for_tiles() { asm volatile("" ::: "memory"); }

// What is read next, brought into the second-level cache a few lines at a time: all at once, it would hold up the
// loads.
class Fetch {
public:
  Fetch(const char *begin, int64_t num_bytes, int64_t num_times)
      : at_(begin), end_(begin + num_bytes), lines_((num_bytes / 64 + num_times - 1) / num_times) {}
  void some() {
    for (int64_t line = 0; line < lines_ && at_ < end_; ++line, at_ += 64) {
      _mm_prefetch(at_, _MM_HINT_T1);
    }
  }

private:
  const char *at_, *end_;
  int64_t lines_;
};

// Two row tiles against two output tiles: sums[32][64 floats, the first 32 used]. Tiles of pairs are `row_bytes` a row,
// the second `second` bytes behind the first, and the next step's `step` bytes on; `between` is called once a step.
template <class F>
inline void add_square(const uint16_t *tiles, int64_t tile_stride, const char *pairs, int64_t row_bytes, int64_t second,
                       int64_t step_size, int64_t steps, float *sums, F &&between) {
  float *below = sums + 16 * panel_outputs;
  _tile_loadd(0, sums, sum_row_bytes);
  _tile_loadd(1, sums + 16, sum_row_bytes);
  _tile_loadd(2, below, sum_row_bytes);
  _tile_loadd(3, below + 16, sum_row_bytes);
  for (int64_t step = 0; step < steps; ++step, tiles += tile_size, pairs += step_size) {
    between(pairs);
    _tile_loadd(4, tiles, 64);
    _tile_loadd(6, pairs, row_bytes);
    _tile_loadd(7, pairs + second, row_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, tiles + tile_stride, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, sum_row_bytes);
  _tile_stored(1, sums + 16, sum_row_bytes);
  _tile_stored(2, below, sum_row_bytes);
  _tile_stored(3, below + 16, sum_row_bytes);
}

// Touches the lines a little ahead of a step, up to `end`, at the pace of memory: AMX's own loads are too far apart for
// the hardware to see a stream in them.
template <bool paced> inline void touch_step(Pace<paced> &pace, const char *pairs, const char *end) {
  if constexpr (paced) {
    const char *at = pairs + touch_ahead_bytes;
    const int64_t bytes = smaller(step_bytes, end - at);
#pragma GCC unroll 8
    for (int64_t line = 0; line < bytes; line += 64) {
      pace.follow(at + line, ahead_bytes);
    }
  }
}

// One row tile against all four output tiles.
template <bool paced> inline void add_line(const uint16_t *tiles, const char *pairs, int64_t steps, float *sums) {
  Pace<paced> pace;
  const char *end = pairs + steps * step_bytes;
  _tile_loadd(0, sums, sum_row_bytes);
  _tile_loadd(1, sums + 16, sum_row_bytes);
  _tile_loadd(2, sums + 32, sum_row_bytes);
  _tile_loadd(3, sums + 48, sum_row_bytes);
  for (int64_t step = 0; step < steps; ++step, tiles += tile_size, pairs += step_bytes) {
    touch_step(pace, pairs, end);
    _tile_loadd(4, tiles, 64);
    _tile_loadd(5, pairs, pair_row_bytes);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, pairs + 64, pair_row_bytes);
    _tile_dpbf16ps(1, 4, 6);
    _tile_loadd(7, pairs + 128, pair_row_bytes);
    _tile_dpbf16ps(2, 4, 7);
    _tile_loadd(5, pairs + 192, pair_row_bytes);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_stored(0, sums, sum_row_bytes);
  _tile_stored(1, sums + 16, sum_row_bytes);
  _tile_stored(2, sums + 32, sum_row_bytes);
  _tile_stored(3, sums + 48, sum_row_bytes);
}

// All row tiles against a piece in tile order, [half][step][2][16 pairs][64]. What is at `fetch`, the piece after it,
// comes into the cache meanwhile.
inline void add_tile_rows(const uint16_t *tiles, int64_t tile_stride, int64_t num_tiles, int64_t steps,
                          const char *piece, float *sums, const char *fetch, int64_t fetch_bytes) {
  Fetch fetching(fetch, fetch_bytes, (num_tiles + 1) / 2 * 2 * steps);
  for (int64_t half = 0; half < 2; ++half) {
    for (int64_t tile = 0; tile < num_tiles; tile += 2) {
      // A last odd tile has an empty one beside it: see tile_elements.
      add_square(tiles + tile * tile_stride, tile_stride, piece + half * half_piece_bytes, 64, 1024, step_bytes / 2,
                 steps, sums + tile * 16 * panel_outputs + half * 32, [&](const char *) { fetching.some(); });
    }
  }
}

// A few row tiles straight from a bf16 panel, a piece at a time, which the first pass brings into the cache.
template <bool paced>
inline void add_few(const uint16_t *tiles, int64_t tile_stride, int64_t num_tiles, const char *panel, int64_t steps,
                    float *sums) {
  constexpr int64_t piece_steps = tile_piece_inputs / 32;
  Pace<paced> pace;
  for (int64_t first = 0; first < steps; first += piece_steps) {
    const int64_t count = smaller(piece_steps, steps - first);
    for (int64_t tile = 0; tile < num_tiles; tile += 2) {
      for (int64_t half = 0; half < 2; ++half) {
        add_square(tiles + tile * tile_stride + first * tile_size, tile_stride, panel + first * step_bytes + half * 128,
                   pair_row_bytes, 64, step_bytes, count, sums + tile * 16 * panel_outputs + half * 32,
                   [&](const char *pairs) {
                     if (tile == 0 && half == 0) {
                       touch_step(pace, pairs, panel + steps * step_bytes);
                     }
                   });
      }
    }
  }
}

template <bool paced>
inline void add_direct(const PanelMatrix &matrix, const char *panel, const PanelInput &in, float *sums) {
  const int64_t steps = matrix.padded_inputs / 32, num_tiles = (in.rows + 15) / 16;
  if (num_tiles == 1) {
    return add_line<paced>(in.tiles, panel, steps, sums);
  }
  add_few<paced>(in.tiles, matrix.padded_inputs * 16, num_tiles, panel, steps, sums);
}

// Where 16 outputs of a pair belong in a piece.
inline char *piece_place(char *piece, int64_t pair, int64_t part) {
  return piece + part / 2 * half_piece_bytes + pair / 16 * (step_bytes / 2) + part % 2 * 1024 + pair % 16 * 64;
}

inline void copy_piece(const char *pairs, int64_t count, char *piece) {
  for (int64_t pair = 0; pair < count; ++pair, pairs += pair_row_bytes) {
    for (int64_t part = 0; part < 4; ++part) {
      _mm512_storeu_si512(piece_place(piece, pair, part), _mm512_loadu_si512(pairs + part * 64));
    }
  }
}

// Two floats of each of 16 outputs, rounded, as a bf16 pair.
inline __m512i joined(__m512 first, __m512 second) {
  const __m512i places = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                          21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(places, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first)));
}

// Writes (code - zero) * scale of `inputs` inputs as bf16 pairs into a piece, from pair `first` on. Here, unlike with
// few rows, each weight is rounded.
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
      _mm512_storeu_si512(piece_place(piece, pair, j), joined(value[0], value[1]));
      _mm512_storeu_si512(piece_place(piece, pair + 1, j), joined(value[2], value[3]));
    }
  }
}

// Fills a piece with up to `count` inputs from input `at` on, of one group or of several small ones.
inline void widen_piece(const PanelMatrix &matrix, const char *panel, int64_t at, int64_t count, char *piece) {
  for (int64_t filled = 0; filled < count;) {
    const int64_t index = (at + filled) / matrix.group_inputs, within = (at + filled) % matrix.group_inputs;
    const int64_t part = smaller(matrix.group_inputs - within, count - filled);
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

// The sums of `count` neighbouring panels for some rows: every panel passes a piece of their inputs while that is in
// the second-level cache, then all pass the next one.
inline void sum_pieces(const PanelMatrix &matrix, const char *panels, int64_t count, const PanelInput &in,
                       const PanelScratch &scratch) {
  const int64_t num_tiles = (in.rows + 15) / 16, of_panel = (in.rows + 31) / 32 * 32 * panel_outputs;
  std::memset(scratch.sums, 0, static_cast<size_t>(count * of_panel) * sizeof(float));
  char *piece = reinterpret_cast<char *>(scratch.piece);
  const int64_t padded = matrix.padded_inputs, panel_bytes = matrix.panel_bytes();
  for (int64_t at = 0; at < padded; at += tile_piece_inputs) {
    const int64_t inputs = smaller(tile_piece_inputs, padded - at), end = at + inputs;
    for (int64_t i = 0; i < count; ++i) {
      const char *panel = panels + i * panel_bytes;
      if (matrix.kind == WeightKind::bfloat16) {
        copy_piece(panel + at / 2 * pair_row_bytes, inputs / 2, piece);
      } else {
        widen_piece(matrix, panel, at, inputs, piece);
      }
      written_for_tiles();
      // Behind the last piece of the last panel lies the next panel, which is most often the next to be computed.
      const char *fetch = i + 1 < count  ? panel + panel_bytes + at * panel_bytes / padded
                          : end < padded ? panels + end * panel_bytes / padded
                                         : panel + panel_bytes;
      add_tile_rows(in.tiles + at / 32 * tile_size, padded * 16, num_tiles, inputs / 32, piece,
                    scratch.sums + i * of_panel, fetch, tile_piece_inputs * matrix.input_bytes());
    }
  }
}

inline void sum_by_tiles(const PanelMatrix &matrix, const char *panel, const PanelInput &in,
                         const PanelScratch &scratch) {
  const Tiles tiles;
  if (matrix.kind == WeightKind::bfloat16 && in.rows <= max_direct_rows) { // bound by memory: straight from the panel
    const int64_t padded = (in.rows + 31) / 32 * 32;
    std::memset(scratch.sums, 0, static_cast<size_t>(padded * panel_outputs) * sizeof(float));
    written_for_tiles();
    return in.paced ? add_direct<true>(matrix, panel, in, scratch.sums)
                    : add_direct<false>(matrix, panel, in, scratch.sums);
  }
  sum_pieces(matrix, panel, 1, in, scratch);
}

inline void multiply_many(const PanelMatrix &matrix, int64_t panel, int64_t count, const PanelInput &in,
                          const PanelOutput &out, const PanelScratch &scratch) {
  const Tiles tiles;
  for (int64_t row = 0; row < in.rows; row += max_rows_together) {
    PanelInput part = in;
    part.tiles += row * matrix.padded_inputs;
    part.rows = smaller(max_rows_together, in.rows - row);
    sum_pieces(matrix, matrix.panel(panel), count, part, scratch);
    const int64_t of_panel = (part.rows + 31) / 32 * 32 * panel_outputs;
    for (int64_t i = 0; i < count; ++i) {
      finish_panel(matrix, panel + i, row, part.rows, scratch.sums + i * of_panel, out);
    }
  }
}

COREBOUND_END_VARIANT
