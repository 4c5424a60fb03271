// Sums of a panel by pairs of inputs: decode in every variant, and prefill where there is no AMX.
#pragma once

#include "kernels/panel.h"
#include "kernels/pairs.h"

COREBOUND_BEGIN_VARIANT

// What a thread works with: sums [rows][64], sums of one group alone, and a piece of the panel as AMX wants it.
struct PanelScratch {
  float *sums, *group, *piece;
  PanelScratch(float *memory, int64_t rows) : sums(memory) {
    const int64_t padded = (rows + 31) / 32 * 32;
    group = sums + padded * panel_outputs;
    piece = group + padded * panel_outputs;
  }
};

constexpr uint16_t bf16_of(int value) {
  return static_cast<uint16_t>(__builtin_bit_cast(uint32_t, static_cast<float>(value)) >> 16); // small integers: exact
}

struct Meanings {
  uint16_t of[16];
};
constexpr Meanings meanings(int scale, int middle) {
  Meanings result{};
  for (int code = 0; code < 16; ++code) {
    result.of[code] = bf16_of((code - middle) * scale);
  }
  return result;
}
constexpr Meanings int4_meanings = meanings(1, 8), low_meanings = meanings(1, 0), high_meanings = meanings(16, 8);

// Rows whose sums fit the registers beside the weights of a pair.
constexpr int rows_at_once = Vec::width == 16 ? 6 : 1;

// sums[m][j] += weights * x over `pairs` pairs, for one kind of weight.
template <int M> inline void add_bf16(const char *weights, int64_t pairs, const uint16_t *x, int64_t stride,
                                      Sums16 (&sums)[M][4]) {
  for (int64_t i = 0; i < pairs; ++i) {
    Pairs16 pair[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      pair[j] = Pairs16::load(weights + i * 256 + j * 64);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const InputPair input = InputPair::load(x + m * stride + 2 * i);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        sums[m][j] = add_products(sums[m][j], pair[j], input);
      }
    }
  }
}

template <int M> inline void add_int4(const char *weights, int64_t pairs, const uint16_t *x, int64_t stride,
                                      Sums16 (&sums)[M][4]) {
  const NibbleTable table(int4_meanings.of);
  for (int64_t i = 0; i < pairs; ++i) {
    const Nibbles nibbles = Nibbles::load(weights + i * 64);
    const Pairs16 pair[4] = {look_up<0>(table, nibbles), look_up<1>(table, nibbles), look_up<2>(table, nibbles),
                             look_up<3>(table, nibbles)};
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const InputPair input = InputPair::load(x + m * stride + 2 * i);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        sums[m][j] = add_products(sums[m][j], pair[j], input);
      }
    }
  }
}

// A byte is 16 times its upper nibble plus its lower one, and so are the products.
template <int M> inline void add_int8(const char *weights, int64_t pairs, const uint16_t *x, int64_t stride,
                                      Sums16 (&sums)[M][4]) {
  const NibbleTable low(low_meanings.of), high(high_meanings.of);
  for (int64_t i = 0; i < pairs; ++i) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const Nibbles nibbles = Nibbles::load(weights + i * 128 + half * 64);
      const Pairs16 lows[2] = {look_up<0>(low, nibbles), look_up<2>(low, nibbles)};
      const Pairs16 highs[2] = {look_up<1>(high, nibbles), look_up<3>(high, nibbles)};
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const InputPair input = InputPair::load(x + m * stride + 2 * i);
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
          Sums16 &sum = sums[m][2 * half + j];
          sum = add_products(add_products(sum, lows[j], input), highs[j], input);
        }
      }
    }
  }
}

template <int M> inline void add_pairs(WeightKind kind, const char *weights, int64_t pairs, const uint16_t *x,
                                       int64_t stride, float *sums) {
  Sums16 acc[M][4];
  for (int m = 0; m < M; ++m) {
    for (int j = 0; j < 4; ++j) {
      acc[m][j] = Sums16::load(sums + m * panel_outputs + 16 * j);
    }
  }
  switch (kind) {
  case WeightKind::bfloat16:
    add_bf16<M>(weights, pairs, x, stride, acc);
    break;
  case WeightKind::int8:
    add_int8<M>(weights, pairs, x, stride, acc);
    break;
  case WeightKind::int4:
    add_int4<M>(weights, pairs, x, stride, acc);
    break;
  }
  for (int m = 0; m < M; ++m) {
    for (int j = 0; j < 4; ++j) {
      acc[m][j].store(sums + m * panel_outputs + 16 * j);
    }
  }
}

// The same for any number of rows.
inline void add_rows(WeightKind kind, const char *weights, int64_t pairs, const uint16_t *x, int64_t stride,
                     int64_t rows, float *sums) {
  int64_t row = 0;
  while (row < rows) {
    const uint16_t *from = x + row * stride;
    float *to = sums + row * panel_outputs;
    const int64_t count = rows - row < rows_at_once ? rows - row : rows_at_once;
    if constexpr (rows_at_once == 1) {
      add_pairs<1>(kind, weights, pairs, from, stride, to);
    } else {
      switch (count) {
      case 1:
        add_pairs<1>(kind, weights, pairs, from, stride, to);
        break;
      case 2:
        add_pairs<2>(kind, weights, pairs, from, stride, to);
        break;
      case 3:
        add_pairs<3>(kind, weights, pairs, from, stride, to);
        break;
      case 4:
        add_pairs<4>(kind, weights, pairs, from, stride, to);
        break;
      case 5:
        add_pairs<5>(kind, weights, pairs, from, stride, to);
        break;
      default:
        add_pairs<6>(kind, weights, pairs, from, stride, to);
      }
    }
    row += count;
  }
}

// The scales of 64 outputs, and their zero points or zeros.
struct GroupScales {
  float scales[panel_outputs], zeros[panel_outputs];
  GroupScales(const PanelMatrix &matrix, const char *after_pairs) {
    for (int64_t i = 0; i < panel_outputs; i += Vec::width) {
      Vec scale = Vec::zero();
      switch (matrix.scale_kind) {
      case ScaleKind::float32:
        scale = Vec::load(reinterpret_cast<const float *>(after_pairs) + i);
        break;
      case ScaleKind::bfloat16:
        scale = Vec::load(reinterpret_cast<const bf16 *>(after_pairs) + i);
        break;
      case ScaleKind::float16:
        scale = Vec::load(reinterpret_cast<const f16 *>(after_pairs) + i);
        break;
      }
      scale.store(scales + i);
    }
    const auto *points = reinterpret_cast<const int8_t *>(after_pairs + matrix.scale_bytes());
    for (int64_t i = 0; i < panel_outputs; ++i) {
      zeros[i] = matrix.asymmetric ? static_cast<float>(points[i]) : 0.0F;
    }
  }
};

// sums += (group - zeros * sum of the group's inputs) * scales, for every row.
inline void add_group(const PanelMatrix &matrix, const GroupScales &of, const PanelInput &in, int64_t index,
                      const float *group, float *sums) {
  for (int64_t row = 0; row < in.rows; ++row) {
    const Vec inputs = Vec::set(matrix.asymmetric ? in.group_sums[row * matrix.num_groups() + index] : 0.0F);
    for (int64_t i = 0; i < panel_outputs; i += Vec::width) {
      const int64_t at = row * panel_outputs + i;
      const Vec centred = Vec::load(group + at) - Vec::load(of.zeros + i) * inputs;
      fma(centred, Vec::load(of.scales + i), Vec::load(sums + at)).store(sums + at);
    }
  }
}

// Rows that share a piece of the panel read it from the cache after the first few; a piece is 16 KiB of bf16.
inline void add_in_pieces(const PanelMatrix &matrix, const char *weights, int64_t inputs, const uint16_t *x,
                          const PanelInput &in, float *sums) {
  const int64_t piece = in.rows > rows_at_once ? 128 : inputs;
  for (int64_t at = 0; at < inputs; at += piece) {
    const int64_t count = inputs - at < piece ? inputs - at : piece;
    add_rows(matrix.kind, weights + at / 2 * matrix.pair_bytes(), count / 2, x + at, in.stride, in.rows, sums);
  }
}

inline void sum_by_pairs(const PanelMatrix &matrix, const char *panel, const PanelInput &in,
                         const PanelScratch &scratch) {
  const auto bytes = static_cast<size_t>(in.rows * panel_outputs) * sizeof(float);
  std::memset(scratch.sums, 0, bytes);
  if (matrix.kind == WeightKind::bfloat16) {
    return add_in_pieces(matrix, panel, matrix.padded_inputs, in.x, in, scratch.sums);
  }
  const int64_t pairs = matrix.group_inputs / 2;
  for (int64_t group = 0; group < matrix.num_groups(); ++group) {
    const char *weights = panel + group * matrix.group_bytes();
    std::memset(scratch.group, 0, bytes);
    add_in_pieces(matrix, weights, matrix.group_inputs, in.x + group * matrix.group_inputs, in, scratch.group);
    add_group(matrix, GroupScales(matrix, weights + pairs * matrix.pair_bytes()), in, group, scratch.group,
              scratch.sums);
  }
}

COREBOUND_END_VARIANT
