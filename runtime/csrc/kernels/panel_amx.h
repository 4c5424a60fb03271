// Sums of a panel by AMX tiles: 16 rows x 32 inputs against 16 pairs x 16 outputs, with four tiles of sums at a time.
#pragma once

#include "kernels/panel_codes.h"

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

// bf16 weights need no other order. Both halves of a piece of so many steps, a pair of its row tiles and, at a pace,
// the piece after it stay in the first-level cache; up to 32 rows, what is read counts more than loads of sums.
constexpr int64_t few_steps = 2, many_steps = 4, few_rows = 32;
// Tiles of many rows lie so that more than these would take each other's place in the second-level cache.
constexpr int64_t max_weight_rows = 256;
// Up to so many rows are bound by memory, so that one panel at a time is read, at its pace.
constexpr int64_t max_paced_rows = 64, touch_ahead_bytes = 1024, next_ahead_bytes = 6144;

// Comes between what ordinary stores wrote and the tiles that are loaded from it: g++ 12 does not know that _tile_loadd
// reads memory, and might move the stores behind it.
inline void written_for_tiles() { asm volatile("" ::: "memory"); }

// What is read next, a few lines at a time: all at once, it would hold up the loads. It comes into the second-level
// cache, or, paced, with the line further on as in pace.h: AMX's own loads are too far apart for the hardware to see a
// stream in them.
template <bool paced> class Fetch {
public:
  void aim(const char *begin, const char *end, int64_t num_times) {
    at_ = begin;
    end_ = end;
    lines_ = ((end - begin) / 64 + num_times - 1) / num_times;
  }
  void some() {
    for (int64_t line = 0; line < lines_ && at_ < end_; ++line, at_ += 64) {
      if constexpr (paced) {
        pace_.follow(at_, at_ + next_ahead_bytes);
      } else {
        _mm_prefetch(at_, _MM_HINT_T1);
      }
    }
  }

private:
  const char *at_ = nullptr, *end_ = nullptr;
  int64_t lines_ = 0;
  Pace<paced> pace_;
};

// Floats of the sums of a panel: whole pairs of row tiles.
constexpr int64_t panel_sums(int64_t rows) { return (rows + 31) / 32 * 32 * panel_outputs; }

// How weights lie: rows of a tile `row_bytes` apart, the tile of 16 more outputs `second` bytes behind, the other 32
// outputs `half` bytes, and the next step `step` bytes.
struct InPanel {
  static constexpr int64_t row_bytes = pair_row_bytes, second = 64, half = 128, step = step_bytes;
};

// Two row tiles against two output tiles: sums[32][64 floats, the first 32 used], which `is_first` begins.
template <class Layout, class F>
inline void add_square(const uint16_t *tiles, int64_t tile_stride, const char *pairs, int64_t steps, bool is_first,
                       float *sums, F &fetching) {
  float *below = sums + 16 * panel_outputs;
  if (is_first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, sum_row_bytes);
    _tile_loadd(1, sums + 16, sum_row_bytes);
    _tile_loadd(2, below, sum_row_bytes);
    _tile_loadd(3, below + 16, sum_row_bytes);
  }
  for (int64_t step = 0; step < steps; ++step, tiles += tile_size, pairs += Layout::step) {
    fetching.some();
    _tile_loadd(4, tiles, 64);
    _tile_loadd(6, pairs, Layout::row_bytes);
    _tile_loadd(7, pairs + Layout::second, Layout::row_bytes);
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

// Touches the lines a little ahead of a step, up to `end`, at the pace of memory.
template <bool paced> inline void touch_step(Pace<paced> &pace, const char *pairs, const char *end) {
  if constexpr (paced) {
    const char *at = pairs + touch_ahead_bytes;
    const int64_t bytes = smaller(step_bytes, end - at);
#pragma GCC unroll 8
    for (int64_t line = 0; line < bytes; line += 64) {
      pace.follow(at + line, at + line + ahead_bytes);
    }
  }
}

// One row tile against all four output tiles.
template <bool paced> inline void add_line(const uint16_t *tiles, const char *pairs, int64_t steps, float *sums) {
  Pace<paced> pace;
  const char *end = pairs + steps * step_bytes;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
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

// All row tiles against a piece of a panel.
template <class Layout, class F>
inline void add_tile_rows(const uint16_t *tiles, int64_t tile_stride, int64_t num_tiles, const char *piece,
                          int64_t steps, bool is_first, float *sums, F &fetching) {
  for (int64_t half = 0; half < 2; ++half) {
    for (int64_t tile = 0; tile < num_tiles; tile += 2) {
      // A last odd tile has an empty one beside it: see tile_elements.
      add_square<Layout>(tiles + tile * tile_stride, tile_stride, piece + half * Layout::half, steps, is_first,
                         sums + tile * 16 * panel_outputs + half * 32, fetching);
    }
  }
}

// The sums of `count` neighbouring panels for some rows: every panel passes a piece of `piece_inputs` while the tiles
// of these inputs are in the second-level cache, then all pass the next one. `add` is given a panel, an input and how
// many, whether they are the first, and sums, and fetches what comes next meanwhile.
template <bool paced, class F>
inline void sum_pieces(const PanelMatrix &matrix, const char *panels, int64_t count, const PanelInput &in,
                       int64_t piece_inputs, float *sums, F &&add) {
  const int64_t num_tiles = (in.rows + 15) / 16;
  const int64_t padded = matrix.padded_inputs, panel_bytes = matrix.panel_bytes();
  const char *end = matrix.panel(matrix.num_panels());
  Fetch<paced> fetching;
  for (int64_t at = 0; at < padded; at += piece_inputs) {
    const int64_t inputs = smaller(piece_inputs, padded - at), after = at + inputs;
    for (int64_t i = 0; i < count; ++i) {
      const char *panel = panels + i * panel_bytes;
      // Behind the last piece of the last panel lies the next panel, which is most often the next to be computed.
      const char *next = i + 1 < count    ? panel + panel_bytes + at * panel_bytes / padded
                         : after < padded ? panels + after * panel_bytes / padded
                                          : panel + panel_bytes;
      const int64_t left = end - next, bytes = piece_inputs * matrix.input_bytes();
      fetching.aim(next, next + smaller(bytes, left), (num_tiles + 1) / 2 * 2 * (inputs / 32));
      add(panel, at, inputs, sums + i * panel_sums(in.rows), fetching);
    }
  }
}

template <bool paced>
inline void sum_weights(const PanelMatrix &matrix, const char *panels, int64_t count, const PanelInput &in,
                        float *sums) {
  const int64_t num_tiles = (in.rows + 15) / 16, padded = matrix.padded_inputs;
  if (num_tiles == 1) {
    for (int64_t i = 0; i < count; ++i) {
      add_line<paced>(in.tiles, panels + i * matrix.panel_bytes(), padded / 32, sums + i * panel_sums(in.rows));
    }
    return;
  }
  const int64_t steps = in.rows <= few_rows ? few_steps : many_steps;
  sum_pieces<paced>(matrix, panels, count, in, steps * 32, sums,
                    [&](const char *panel, int64_t at, int64_t inputs, float *of_panel, auto &fetching) {
                      add_tile_rows<InPanel>(in.tiles + at / 32 * tile_size, padded * 16, num_tiles,
                                             panel + at / 2 * pair_row_bytes, inputs / 32, at == 0, of_panel, fetching);
                    });
}

COREBOUND_END_VARIANT
