// Sums of a quantised panel by AMX tiles of bytes: the whole numbers of panel_codes.h, 16 rows at a time, so that
// results are those of two rows bit for bit. A single row is summed in another order.
#pragma once

#include "kernels/panel_amx.h"

COREBOUND_BEGIN_VARIANT

// Codes are fetched so far ahead of what is multiplied.
constexpr int64_t codes_ahead_bytes = 8192;
constexpr int64_t counts_of_unit = 4 * 256; // [high, low][2][16 rows][16 outputs]
static_assert(max_block_inputs * panel_outputs + 2 * counts_of_unit * 4 <= piece_floats * 4,
              "a block and the counts of two units fit the scratch of a piece");

// The whole numbers of 16 rows and 32 outputs of a block, and where they belong.
struct CountedUnit {
  const int32_t *counts;
  const GroupScales *of;
  int64_t row, rows, block, output;
};

inline void add_unit(const CountedUnit &unit, const PanelInput &in, int64_t num_blocks, float *sums) {
  const __m512 base = _mm512_set1_ps(128.0F);
  for (int64_t part = 0; part < 2; ++part) {
    const int64_t output = unit.output + 16 * part;
    const __m512 scales = _mm512_loadu_ps(unit.of->scales + output), zeros = _mm512_loadu_ps(unit.of->zeros + output);
    const int32_t *high = unit.counts + part * 256, *low = high + 512;
    for (int64_t row = 0; row < unit.rows; ++row) {
      const int64_t of_row = (unit.row + row) * num_blocks + unit.block;
      float *to = sums + (unit.row + row) * panel_outputs + output;
      const __m512 upper = _mm512_cvtepi32_ps(_mm512_loadu_si512(high + row * 16));
      const __m512 lower = _mm512_cvtepi32_ps(_mm512_loadu_si512(low + row * 16));
      const __m512 product = _mm512_fmadd_ps(upper, base, lower);
      const __m512 centred = _mm512_fmadd_ps(zeros, _mm512_set1_ps(-in.rounded.sums[of_row]), product);
      const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(in.rounded.scales[of_row]), scales);
      _mm512_storeu_ps(to, _mm512_fmadd_ps(centred, scale, _mm512_loadu_ps(to)));
    }
  }
}

// Counts of 16 rows, `high` and `low`, against 32 outputs of a block.
inline void count_unit(const int8_t *high, const int8_t *low, int64_t stride, const char *codes, int64_t inputs,
                       int64_t step_inputs, int32_t *counts) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t at = 0; at < inputs; at += step_inputs, codes += step_inputs * 64) {
    _tile_loadd(4, high + at, stride);
    _tile_loadd(6, codes, 256);
    _tile_dpbsud(0, 4, 6);
    _tile_loadd(7, codes + 64, 256);
    _tile_dpbsud(1, 4, 7);
    _tile_loadd(5, low + at, stride);
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
  }
  _tile_stored(0, counts, 64);
  _tile_stored(1, counts + 256, 64);
  _tile_stored(2, counts + 512, 64);
  _tile_stored(3, counts + 768, 64);
}

inline void sum_codes_by_tiles(const PanelMatrix &matrix, const char *panel, const PanelInput &in,
                               const PanelScratch &scratch) {
  const int64_t size = matrix.block_inputs(), blocks = matrix.num_blocks(), padded = matrix.padded_inputs;
  const int64_t step = size % 64 == 0 && padded % 64 == 0 ? 64 : 32;
  const Tiles tiles(step);
  std::memset(scratch.sums, 0, static_cast<size_t>(in.rows * panel_outputs) * sizeof(float));
  char *unpacked = reinterpret_cast<char *>(scratch.piece);
  int32_t *counts = reinterpret_cast<int32_t *>(unpacked + max_block_inputs * panel_outputs);
  const int64_t units = (in.rows + 15) / 16 * 2;
  GroupScales of[2] = {GroupScales(matrix, panel + matrix.group_inputs * matrix.input_bytes()), of[0]};
  CountedUnit before{};
  Fetch<false> fetching;
  int64_t turn = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t at = block * size, inputs = smaller(size, padded - at), group = at / matrix.group_inputs;
    const char *codes = panel + group * matrix.group_bytes();
    GroupScales &here = of[group % 2];
    if (group > 0 && at % matrix.group_inputs == 0) {
      here = GroupScales(matrix, codes + matrix.group_inputs * matrix.input_bytes());
    }
    codes += at % matrix.group_inputs * matrix.input_bytes();
    const char *ahead = codes + codes_ahead_bytes;
    fetching.aim(ahead, ahead + inputs * matrix.input_bytes() + 192, units);
    if (matrix.kind == WeightKind::int4) {
      unpack_block(codes, inputs, unpacked);
      written_for_tiles();
      codes = unpacked;
    }
    for (int64_t unit = 0; unit < units; ++unit, ++turn) {
      const int64_t row = unit / 2 * 16, output = unit % 2 * 32, first = row * padded + at;
      int32_t *to = counts + turn % 2 * counts_of_unit;
      fetching.some();
      count_unit(in.rounded.high + first, in.rounded.low + first, padded, codes + output * 4, inputs, step, to);
      // One behind, so that this need not wait for the tiles.
      if (turn > 0) {
        add_unit(before, in, blocks, scratch.sums);
      }
      before = {to, &here, row, smaller(16, in.rows - row), block, output};
    }
  }
  add_unit(before, in, blocks, scratch.sums);
}

COREBOUND_END_VARIANT
