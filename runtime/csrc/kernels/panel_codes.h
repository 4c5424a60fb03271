// Sums of a quantised panel, in whole numbers: codes times inputs that were rounded to 15 bits.
//
// A block of inputs (a group, or 128 of a larger one) is taken as scale * (128 * high + low), where the scale is the
// largest magnitude over 127 * 128, so that high and low are signed bytes: that is finer than bf16 itself for all but
// inputs far below the largest of their block. Codes are unsigned, products are exact, and sums of a block fit 32 bits.
#pragma once

#include "kernels/panel_sums.h"

COREBOUND_BEGIN_VARIANT

// The scales of 64 outputs, and what their codes have as zero.
struct GroupScales {
  float scales[panel_outputs], zeros[panel_outputs];
  GroupScales(const PanelMatrix &matrix, const char *after_codes) {
    for (int64_t i = 0; i < panel_outputs; i += Vec::width) {
      Vec scale = Vec::zero();
      switch (matrix.scale_kind) {
      case ScaleKind::float32:
        scale = Vec::load(reinterpret_cast<const float *>(after_codes) + i);
        break;
      case ScaleKind::bfloat16:
        scale = Vec::load(reinterpret_cast<const bf16 *>(after_codes) + i);
        break;
      case ScaleKind::float16:
        scale = Vec::load(reinterpret_cast<const f16 *>(after_codes) + i);
        break;
      }
      scale.store(scales + i);
    }
    const auto *points = reinterpret_cast<const uint8_t *>(after_codes + matrix.scale_bytes());
    const Vec middle = Vec::set(matrix.kind == WeightKind::int8 ? 128.0F : 8.0F);
    for (int64_t i = 0; !matrix.asymmetric && i < panel_outputs; i += Vec::width) {
      middle.store(zeros + i);
    }
    for (int64_t i = 0; matrix.asymmetric && i < panel_outputs; ++i) {
      zeros[i] = static_cast<float>(points[i]);
    }
  }
};

// sums += (128 * high + low - zeros * sum of inputs) * scale of inputs * scales, for one row.
inline void add_block(const Counts16 *high, const Counts16 *low, const GroupScales &of, float input_scale,
                      float input_sum, float *sums) {
  constexpr int64_t parts = 16 / Vec::width;
  const Vec base = Vec::set(128.0F), scale = Vec::set(input_scale), sum = Vec::set(-input_sum);
#pragma GCC unroll 4
  for (int64_t j = 0; j < 4; ++j) {
#pragma GCC unroll 4
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t i = 16 * j + part * Vec::width;
      const Vec product = fma(high[j].part(part), base, low[j].part(part));
      const Vec centred = fma(Vec::load(of.zeros + i), sum, product);
      fma(centred, scale * Vec::load(of.scales + i), Vec::load(sums + i)).store(sums + i);
    }
  }
}

template <bool nibbles> inline void load_quads(const char *codes, Quads16 (&quads)[4]) {
  if constexpr (nibbles) {
    const Quads16 first = Quads16::load(codes), second = Quads16::load(codes + 64);
    quads[0] = low_nibbles(first);
    quads[1] = high_nibbles(first);
    quads[2] = low_nibbles(second);
    quads[3] = high_nibbles(second);
  } else {
#pragma GCC unroll 4
    for (int64_t j = 0; j < 4; ++j) {
      quads[j] = Quads16::load(codes + 64 * j);
    }
  }
}

// What M rows come to with the codes of a block: for each, those of `upper` and then those of `lower`.
template <int M> using RowCounts = Counts16[M][2][4];

// A function of its own, with accumulators that are copied out at its end: where they are also used in what follows,
// g++ 12 stores all of them in each turn, which takes twice as long.
template <bool nibbles, int M>
[[gnu::noinline]] void count_block(const char *codes, const int8_t *upper, const int8_t *lower, int64_t stride,
                                   int64_t inputs, RowCounts<M> &counts) {
  Counts16 high[M][4], low[M][4];
#pragma GCC unroll 4
  for (int64_t m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int64_t j = 0; j < 4; ++j) {
      high[m][j] = Counts16::zero();
      low[m][j] = Counts16::zero();
    }
  }
  for (int64_t i = 0; i < inputs; i += 4, codes += nibbles ? 128 : 256) {
    Quads16 quads[4];
    load_quads<nibbles>(codes, quads);
#pragma GCC unroll 4
    for (int64_t m = 0; m < M; ++m) {
      const InputQuad h = InputQuad::load(upper + m * stride + i), l = InputQuad::load(lower + m * stride + i);
#pragma GCC unroll 4
      for (int64_t j = 0; j < 4; ++j) {
        high[m][j] = add_products(high[m][j], quads[j], h);
        low[m][j] = add_products(low[m][j], quads[j], l);
      }
    }
  }
#pragma GCC unroll 4
  for (int64_t m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int64_t j = 0; j < 4; ++j) {
      counts[m][0][j] = high[m][j];
      counts[m][1][j] = low[m][j];
    }
  }
}

// One block of `inputs` inputs from input `at` on, for M rows from `row` on.
template <bool nibbles, int M>
inline void sum_block(const PanelMatrix &matrix, const char *codes, const GroupScales &of, const PanelInput &in,
                      int64_t row, int64_t at, int64_t inputs, float *sums) {
  RowCounts<M> counts;
  const int64_t first = row * matrix.padded_inputs + at;
  count_block<nibbles, M>(codes, in.high + first, in.low + first, matrix.padded_inputs, inputs, counts);
  const int64_t blocks = matrix.num_blocks(), block = at / matrix.block_inputs();
  for (int64_t m = 0; m < M; ++m) {
    const int64_t of_row = (row + m) * blocks + block;
    add_block(counts[m][0], counts[m][1], of, in.block_scales[of_row], in.block_sums[of_row],
              sums + (row + m) * panel_outputs);
  }
}

template <bool nibbles>
inline void sum_codes(const PanelMatrix &matrix, const char *panel, const PanelInput &in, int64_t first_block,
                      float *sums) {
  constexpr int together = Vec::width == 16 ? 3 : 1; // rows whose sums fit the registers
  const int64_t size = matrix.block_inputs();
  for (int64_t at = first_block * size; at < matrix.padded_inputs; at += size) {
    const int64_t group = at / matrix.group_inputs;
    const char *codes = panel + group * matrix.group_bytes();
    const GroupScales of(matrix, codes + matrix.group_inputs * matrix.input_bytes());
    codes += at % matrix.group_inputs * matrix.input_bytes();
    const int64_t left = matrix.padded_inputs - at, inputs = left < size ? left : size;
    int64_t row = 0;
    if constexpr (together == 3) {
      for (; row + 3 <= in.rows; row += 3) {
        sum_block<nibbles, 3>(matrix, codes, of, in, row, at, inputs, sums);
      }
      if (row + 2 == in.rows) {
        sum_block<nibbles, 2>(matrix, codes, of, in, row, at, inputs, sums);
        row += 2;
      }
    }
    for (; row < in.rows; ++row) {
      sum_block<nibbles, 1>(matrix, codes, of, in, row, at, inputs, sums);
    }
  }
}

COREBOUND_END_VARIANT
