// Weights on their way from a checkpoint into panels. Compiled for the baseline: reading them takes longer.
#include "kernels/panel_load.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace corebound::kernels {
namespace {

float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }

// Magnitudes order as their bits do, with infinity and NaN above all others.
template <typename Bits, typename Signed> Bits largest_bits(const ValueArgs &args, Bits magnitude) {
  Signed largest = 0;
  for (int64_t row = 0; row < args.rows; ++row) {
    const Bits *values = static_cast<const Bits *>(args.values) + row * args.stride;
    for (int64_t i = 0; i < args.columns; ++i) {
      largest = std::max(largest, static_cast<Signed>(values[i] & magnitude));
    }
  }
  return static_cast<Bits>(largest);
}

float float_of_half_magnitude(uint16_t bits) {
  if (bits >= 0x7c00U) {
    return bits > 0x7c00U ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
  }
  return float_of(static_cast<uint32_t>(bits) << 13) * 0x1p112F;
}

uint16_t rounded(uint32_t bits) { return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16); }

void row_to_bfloat16(const ValueArgs &args, int64_t row, uint16_t *out) {
  if (args.kind == ValueKind::bfloat16) {
    const auto *values = static_cast<const uint16_t *>(args.values) + row * args.stride;
    std::copy_n(values, args.columns, out);
  } else if (args.kind == ValueKind::float32) {
    const auto *values = static_cast<const uint32_t *>(args.values) + row * args.stride;
    for (int64_t i = 0; i < args.columns; ++i) {
      out[i] = rounded(values[i]);
    }
  } else {
    const auto *values = static_cast<const uint16_t *>(args.values) + row * args.stride;
    for (int64_t i = 0; i < args.columns; ++i) {
      const float value = float_of((values[i] & 0x7fffU) << 13) * 0x1p112F;
      out[i] = rounded(__builtin_bit_cast(uint32_t, value) | (values[i] & 0x8000U) << 16);
    }
  }
}

// To nearest even, for what is below 2^22.
float nearest(float x) {
  constexpr float shift = 12582912.0F; // 1.5 * 2^23, where the last bit of a float counts ones
  return (x + shift) - shift;
}

// Eight lanes are what the compiler needs to be told to keep them in registers.
struct Range {
  float low, high;
  Range(const float *values, int64_t count) {
    constexpr int64_t lanes = 8;
    float lows[lanes], highs[lanes];
    for (int64_t k = 0; k < lanes; ++k) {
      lows[k] = highs[k] = values[0];
    }
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
      for (int64_t k = 0; k < lanes; ++k) {
        lows[k] = values[i + k] < lows[k] ? values[i + k] : lows[k];
        highs[k] = values[i + k] > highs[k] ? values[i + k] : highs[k];
      }
    }
    low = *std::min_element(lows, lows + lanes);
    high = *std::max_element(highs, highs + lanes);
    for (; i < count; ++i) {
      low = std::min(low, values[i]);
      high = std::max(high, values[i]);
    }
  }
};

// A scale is the smallest that reaches the outermost weights, rounded up to a bf16, as in quantization/rtn.py.
float scale_of(float wanted) {
  const auto bits = __builtin_bit_cast(uint32_t, std::max(wanted, 0x1p-126F));
  return float_of((bits + 0xffffU) & 0xffff0000U);
}

// Scale and zero of a group.
struct Rounding {
  float scale, zero;
};

Rounding quantise_group(const PanelMatrix &matrix, const float *__restrict values, int64_t count,
                        uint8_t *__restrict codes) {
  const float largest = matrix.kind == WeightKind::int8 ? 255.0F : 15.0F;
  const Range range(values, count);
  float scale = 0, zero = 0;
  if (matrix.asymmetric) { // 0 has a code of its own
    const float low = std::min(range.low, 0.0F), high = std::max(range.high, 0.0F);
    scale = scale_of((high - low) * static_cast<float>(1.0 / static_cast<double>(largest)));
    zero = nearest(-low / scale);
  } else {
    scale = scale_of(std::max(range.high, -range.low) * static_cast<float>(2.0 / static_cast<double>(largest)));
    zero = matrix.kind == WeightKind::int8 ? 128.0F : 8.0F;
  }
  for (int64_t i = 0; i < count; ++i) {
    float code = nearest(values[i] / scale) + zero;
    code = code < 0 ? 0 : code;
    code = code > largest ? largest : code;
    codes[i] = static_cast<uint8_t>(static_cast<int32_t>(code));
  }
  return {scale, zero};
}

// Rows of one panel on their way into codes.
class Quantiser {
public:
  Quantiser(const PanelMatrix &matrix, int64_t rows)
      : matrix_(matrix), values_(static_cast<size_t>(matrix.inputs)), codes_(static_cast<size_t>(rows * matrix.inputs)),
        scales_(static_cast<size_t>(rows * matrix.num_groups())), zeros_(scales_.size()) {}

  void put(const uint16_t *rows, int64_t stride, int64_t first_row, int64_t count) {
    const int64_t groups = matrix_.num_groups(), size = matrix_.group_inputs;
    for (int64_t row = 0; row < count; ++row) {
      float *values = values_.data();
      for (int64_t i = 0; i < matrix_.inputs; ++i) {
        values[i] = float_of(static_cast<uint32_t>(rows[row * stride + i]) << 16);
      }
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t begin = group * size, of_row = row * groups + group;
        const Rounding rounding = quantise_group(matrix_, &values_[begin], std::min(size, matrix_.inputs - begin),
                                                 &codes_[row * matrix_.inputs + begin]);
        scales_[of_row] = rounding.scale;
        zeros_[of_row] = rounding.zero;
      }
    }
    pack_rows({matrix_, codes_.data(), scales_.data(), zeros_.data(), first_row, count, matrix_.inputs});
  }

private:
  const PanelMatrix &matrix_;
  std::vector<float> values_;
  std::vector<uint8_t> codes_;
  std::vector<float> scales_, zeros_;
};

} // namespace

float largest_magnitude(const ValueArgs &args) {
  if (args.kind == ValueKind::float32) {
    return float_of(largest_bits<uint32_t, int32_t>(args, 0x7fffffffU));
  }
  const auto bits = largest_bits<uint16_t, int16_t>(args, 0x7fffU);
  return args.kind == ValueKind::float16 ? float_of_half_magnitude(bits) : float_of(static_cast<uint32_t>(bits) << 16);
}

void to_bfloat16(const ValueArgs &args, uint16_t *out) {
  for (int64_t row = 0; row < args.rows; ++row) {
    row_to_bfloat16(args, row, out + row * args.columns);
  }
}

void load_rows(const PanelMatrix &matrix, const ValueArgs &args, int64_t first_row) {
  const bool direct = args.kind == ValueKind::bfloat16, plain = matrix.kind == WeightKind::bfloat16;
  if (direct && plain) {
    return pack_rows({matrix, args.values, nullptr, nullptr, first_row, args.rows, args.stride});
  }
  // A panel at a time, so that all between the checkpoint and the panel stays in the second-level cache.
  const int64_t step = std::min(panel_outputs, args.rows);
  std::vector<uint16_t> rounded_rows(static_cast<size_t>(direct ? 0 : step * args.columns));
  Quantiser quantiser(matrix, plain ? 0 : step);
  for (int64_t row = 0; row < args.rows; row += step) {
    const int64_t count = std::min(step, args.rows - row);
    const uint16_t *rows = static_cast<const uint16_t *>(args.values) + row * args.stride;
    int64_t stride = args.stride;
    if (!direct) {
      for (int64_t i = 0; i < count; ++i) {
        row_to_bfloat16(args, row + i, rounded_rows.data() + i * args.columns);
      }
      rows = rounded_rows.data();
      stride = args.columns;
    }
    if (plain) {
      pack_rows({matrix, rows, nullptr, nullptr, first_row + row, count, stride});
    } else {
      quantiser.put(rows, stride, first_row + row, count);
    }
  }
}

} // namespace corebound::kernels
