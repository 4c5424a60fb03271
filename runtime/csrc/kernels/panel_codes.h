// Sums of a quantised panel, in whole numbers: codes times inputs that were rounded to 15 bits, or to 8.
//
// A block of inputs (a group, or 128 of a larger one) is taken as scale * (128 * high + low), where the scale is the
// largest magnitude over 127 * 128, so that high and low are signed bytes: that is finer than bf16 itself for all but
// inputs far below the largest of their block. Codes are unsigned, products are exact, and sums of a block fit 32 bits.
//
// Where many rows are bound by arithmetic, `low` is left out of each block that has no magnitude above short_block_top
// times the root mean square of its row. Then no input is off by more than short_block_top / 254 = 3.2 % of that root
// mean square, and the errors of roundings that fall evenly are short_block_top / (127 * sqrt(12)) = 1.8 % of it at
// most.
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

// Counts of one row: with both halves of its inputs, or with the high one alone.
template <int halves> using Counts = Counts16[halves][4];

// sums += (128 * high + low - zeros * sum of inputs) * scale of inputs * scales, for one row.
template <int halves>
inline void add_block(const Counts<halves> &counts, const GroupScales &of, float input_scale, float input_sum,
                      float *sums) {
  constexpr int64_t parts = 16 / Vec::width;
  const Vec base = Vec::set(128.0F), scale = Vec::set(input_scale), sum = Vec::set(-input_sum);
#pragma GCC unroll 4
  for (int64_t j = 0; j < 4; ++j) {
#pragma GCC unroll 4
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t i = 16 * j + part * Vec::width;
      const Vec high = counts[0][j].part(part);
      const Vec product = halves == 2 ? fma(high, base, counts[halves - 1][j].part(part)) : high * base;
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

// Of M rows.
template <int M, int halves> using RowCounts = Counts<halves>[M];

// A part of the codes that come next, fetched with every four inputs of a block by rows that take turns with it.
struct NextCodes {
  const char *at;
  int64_t step; // in bytes, at most two lines; 0 for the same two again
  void fetch() {
    __builtin_prefetch(at, 0, 2);
    __builtin_prefetch(at + 64, 0, 2);
    at += step;
  }
};

// A function of its own, with accumulators that are copied out at its end: where they are also used in what follows,
// g++ 12 stores all of them in each turn, which takes twice as long.
template <bool nibbles, int M, int halves>
[[gnu::noinline]] void count_block(const char *codes, const int8_t *upper, const int8_t *lower, int64_t stride,
                                   int64_t inputs, NextCodes next, RowCounts<M, halves> &counts) {
  Counts16 sums[M][halves][4];
#pragma GCC unroll 6
  for (int64_t m = 0; m < M; ++m) {
#pragma GCC unroll 2
    for (int64_t half = 0; half < halves; ++half) {
#pragma GCC unroll 4
      for (int64_t j = 0; j < 4; ++j) {
        sums[m][half][j] = Counts16::zero();
      }
    }
  }
  for (int64_t i = 0; i < inputs; i += 4, codes += nibbles ? 128 : 256) {
    Quads16 quads[4];
    load_quads<nibbles>(codes, quads);
    next.fetch();
#pragma GCC unroll 6
    for (int64_t m = 0; m < M; ++m) {
#pragma GCC unroll 2
      for (int64_t half = 0; half < halves; ++half) {
        const InputQuad input = InputQuad::load((half == 0 ? upper : lower) + m * stride + i);
#pragma GCC unroll 4
        for (int64_t j = 0; j < 4; ++j) {
          sums[m][half][j] = add_products(sums[m][half][j], quads[j], input);
        }
      }
    }
  }
#pragma GCC unroll 6
  for (int64_t m = 0; m < M; ++m) {
#pragma GCC unroll 2
    for (int64_t half = 0; half < halves; ++half) {
#pragma GCC unroll 4
      for (int64_t j = 0; j < 4; ++j) {
        counts[m][half][j] = sums[m][half][j];
      }
    }
  }
}

// A block of inputs: its codes, where its inputs begin and how many there are, the codes of the block that comes next
// and how many bytes of them belong to four inputs.
struct CodeBlock {
  const char *codes;
  int64_t at, inputs;
  const char *next;
  int64_t next_step;

  // The half of the next one that the rows from `row` on fetch, of those that take turns; a single turn asks again for
  // lines of its own that the cache has, as memory is what it waits for.
  NextCodes part(int64_t row, int64_t rows, int64_t rows_at_once) const {
    if (rows <= rows_at_once) {
      return {codes, 0};
    }
    return {next + row / rows_at_once % 2 * (inputs / 4 * next_step / 2), next_step / 2};
  }
};

// Rows whose sums fit the registers, with so many halves of their inputs.
template <int halves> constexpr int code_rows_at_once = Vec::width == 16 ? 6 / halves : 2 / halves;

// One block for M rows from `row` on.
template <bool nibbles, int M, int halves>
inline void sum_block(const PanelMatrix &matrix, const CodeBlock &block, const GroupScales &of, const PanelInput &in,
                      int64_t row, float *sums) {
  RowCounts<M, halves> counts;
  const int64_t first = row * matrix.padded_inputs + block.at;
  count_block<nibbles, M, halves>(block.codes, in.rounded.high + first, in.rounded.low + first, matrix.padded_inputs,
                                  block.inputs, block.part(row, in.rows, code_rows_at_once<halves>), counts);
  const int64_t blocks = matrix.num_blocks(), index = block.at / matrix.block_inputs();
  for (int64_t m = 0; m < M; ++m) {
    const int64_t of_row = (row + m) * blocks + index;
    add_block<halves>(counts[m], of, in.rounded.scales[of_row], in.rounded.sums[of_row],
                      sums + (row + m) * panel_outputs);
  }
}

// The rows from `row` up to `end`.
template <bool nibbles, int halves>
inline void sum_code_rows(const PanelMatrix &matrix, const CodeBlock &block, const GroupScales &of,
                          const PanelInput &in, int64_t row, int64_t end, float *sums) {
  constexpr int most = code_rows_at_once<halves>;
  for (; row + most <= end; row += most) {
    sum_block<nibbles, most, halves>(matrix, block, of, in, row, sums);
  }
  if constexpr (most > 3) {
    if (row + 3 <= end) {
      sum_block<nibbles, 3, halves>(matrix, block, of, in, row, sums);
      row += 3;
    }
  }
  if constexpr (most > 2) {
    if (row + 2 <= end) {
      sum_block<nibbles, 2, halves>(matrix, block, of, in, row, sums);
      row += 2;
    }
  }
  if (row < end) {
    sum_block<nibbles, 1, halves>(matrix, block, of, in, row, sums);
  }
}

// The same for all rows, without their low halves where none of those that go together has one.
template <bool nibbles>
inline void sum_short_rows(const PanelMatrix &matrix, const CodeBlock &block, const GroupScales &of,
                           const PanelInput &in, float *sums) {
  constexpr int64_t most = code_rows_at_once<1>;
  const int64_t blocks = matrix.num_blocks(), index = block.at / matrix.block_inputs();
  for (int64_t row = 0; row < in.rows; row += most) {
    const int64_t end = row + most < in.rows ? row + most : in.rows;
    bool has_low = false;
    for (int64_t i = row; i < end; ++i) {
      has_low = has_low || in.rounded.has_low[i * blocks + index] != 0;
    }
    if (has_low) {
      sum_code_rows<nibbles, 2>(matrix, block, of, in, row, end, sums);
    } else {
      sum_code_rows<nibbles, 1>(matrix, block, of, in, row, end, sums);
    }
  }
}

#ifdef __AVX512F__
// Four inputs of 64 outputs at a time, one code a byte.
inline void unpack_block(const char *codes, int64_t inputs, char *to) {
  for (int64_t i = 0; i < inputs; i += 4, codes += 128, to += 256) {
    Quads16 quads[4];
    load_quads<true>(codes, quads);
    for (int64_t j = 0; j < 4; ++j) {
      _mm512_storeu_si512(to + 64 * j, quads[j].v);
    }
  }
}
#endif

// Where the codes of the next block begin. Those of another group have scales behind them, which are read before any of
// the codes: they are fetched here, where rows take turns whatever halves they have.
inline const char *next_codes(const PanelMatrix &matrix, const char *codes, int64_t at, int64_t count, int64_t rows) {
  const char *next = codes + count * matrix.input_bytes();
  if (at % matrix.group_inputs + count < matrix.group_inputs) {
    return next;
  }
  const int64_t of_codes = matrix.group_inputs * matrix.input_bytes(), behind = matrix.group_bytes() - of_codes;
  next += behind;
  for (int64_t i = 0; rows > code_rows_at_once<1> && i < behind; i += 64) {
    __builtin_prefetch(next + of_codes + i, 0, 2);
  }
  return next;
}

// Adds the sums of the blocks from `first_block` on.
template <bool nibbles>
inline void sum_codes(const PanelMatrix &matrix, const char *panel, const PanelInput &in, int64_t first_block,
                      const PanelScratch &scratch) {
  const int64_t size = matrix.block_inputs();
  for (int64_t at = first_block * size; at < matrix.padded_inputs; at += size) {
    const int64_t group = at / matrix.group_inputs;
    const char *codes = panel + group * matrix.group_bytes();
    const GroupScales of(matrix, codes + matrix.group_inputs * matrix.input_bytes());
    codes += at % matrix.group_inputs * matrix.input_bytes();
    const int64_t left = matrix.padded_inputs - at, count = left < size ? left : size;
    CodeBlock block = {codes, at, count, next_codes(matrix, codes, at, count, in.rows), 4 * matrix.input_bytes()};
    if (!in.rounded.has_low) {
      sum_code_rows<nibbles, 2>(matrix, block, of, in, 0, in.rows, scratch.sums);
      continue;
    }
#ifdef __AVX512F__
    if constexpr (nibbles) {
      block.codes = reinterpret_cast<const char *>(scratch.piece);
      unpack_block(codes, block.inputs, reinterpret_cast<char *>(scratch.piece));
      sum_short_rows<false>(matrix, block, of, in, scratch.sums);
      continue;
    }
#endif
    sum_short_rows<nibbles>(matrix, block, of, in, scratch.sums);
  }
}

COREBOUND_END_VARIANT
