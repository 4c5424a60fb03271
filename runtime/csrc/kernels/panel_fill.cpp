// Half panels at a time from rows in the caches: words of rows turn into lines of the panel in registers, and codes are
// made on the way. All else, rows that fill no half panel, is done by load_rows.
#include "kernels/panel_fill.h"

#include "kernels/ops_internal.h"
#include "kernels/panel_fill_values.h"
#include "kernels/panel_place.h"
#if defined(__AVX512F__)
#include "kernels/panel_fill_avx512.h"
#elif defined(__AVX2__)
#include "kernels/panel_fill_avx2.h"
#else
#include "kernels/panel_fill_generic.h"
#endif

COREBOUND_BEGIN_VARIANT

constexpr int64_t unit = fill_rows_unit, half_unit = unit / 2;
constexpr float max_float = 0x1.fffffep127F;

// Not that of the library: the linker may keep one variant's copy of a template for all of them.
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The 64 bytes from `from` on of 16 rows `stride` bytes apart, of which `count` exist, the others zero.
struct Lines {
  const char *from;
  int64_t stride;
  alignas(64) char padded[half_unit * line];

  Lines(const char *rows, int64_t apart, int64_t count) : from(rows), stride(apart) {
    if (count < line) {
      std::memset(padded, 0, sizeof(padded));
      for (int64_t row = 0; row < half_unit; ++row) {
        std::memcpy(padded + row * line, rows + row * apart, static_cast<size_t>(count));
      }
      from = padded;
      stride = line;
    }
  }
};

// Rows that fill half a panel, and the largest magnitude that a value of them may have.
struct UnitRows {
  const uint16_t *values;
  int64_t stride;
  float largest;
};

bool fill_pairs(const PanelMatrix &matrix, const UnitRows &rows, char *to) {
  Magnitude found;
  for (int64_t at = 0; at < matrix.inputs; at += line / 2) {
    for (int64_t half = 0; half < 2; ++half) {
      const uint16_t *from = rows.values + half * half_unit * rows.stride + at;
      const Lines lines(reinterpret_cast<const char *>(from), 2 * rows.stride,
                        2 * smaller(line / 2, matrix.inputs - at));
      for (int64_t row = 0; row < half_unit; ++row) {
        found.add(lines.from + row * lines.stride);
      }
      transpose_words(lines.from, lines.stride, to + at * 128 + half * line, 256, line / 4);
    }
  }
  return found.within(rows.largest);
}

// How a group of each row becomes codes; the same sums as in panel_load.cpp, for all rows of a unit at once.
struct Codings {
  alignas(64) float low[unit], high[unit]; // of the group and of 0
  alignas(64) float scale[unit], inverse[unit], zero[unit];

  bool within(float limit) const { // false for NaN
    bool all = true;
    for (int64_t row = 0; row < unit; ++row) {
      all &= high[row] <= limit && -low[row] <= limit;
    }
    return all;
  }

  void choose(const PanelMatrix &matrix, float largest) {
    const auto steps = static_cast<float>((matrix.asymmetric ? 1.0 : 2.0) / static_cast<double>(largest));
    for (int64_t row = 0; row < unit; ++row) {
      const float furthest = high[row] > -low[row] ? high[row] : -low[row];
      const float wanted = (matrix.asymmetric ? high[row] - low[row] : furthest) * steps;
      const uint32_t bits = bits_of(wanted > 0x1p-126F ? wanted : 0x1p-126F);
      scale[row] = float_of((bits + 0xffffU) & 0xffff0000U); // the smallest bf16 that is no smaller
      inverse[row] = 1.0F / scale[row];
    }
    constexpr float shift = 12582912.0F; // to nearest even
    const float middle = matrix.kind == WeightKind::int8 ? 128.0F : 8.0F;
    for (int64_t row = 0; row < unit; ++row) {
      zero[row] = matrix.asymmetric ? (-low[row] / scale[row] + shift) - shift : middle;
    }
  }
};

// 64 inputs of a row as codes. With 8 bits each, the quotient of an input and a scale is half way between whole numbers
// or 2^-10 off at least, and its product with the inverse is 2^-15 off at most: of that, rounded to a multiple of
// 2^-11, the nearest whole number is the quotient's.
void code_line(const uint16_t *values, float inverse, float zero, int32_t largest, uint8_t *codes) {
  const Vec factor = Vec::set(inverse), shift = Vec::set(6144.0F); // 1.5 * 2^12
  for (int64_t i = 0; i < line; i += 4 * Vec::width) {
    Vec quotients[4];
    for (int64_t k = 0; k < 4; ++k) {
      const Vec x = Vec::load(reinterpret_cast<const bf16 *>(values) + i + k * Vec::width);
      quotients[k] = fma(x, factor, shift) - shift;
    }
    store_rounded(quotients, static_cast<int32_t>(zero), largest, codes + i);
  }
}

// `count` inputs of a row as codes, `beyond` in place of those that do not exist.
void code_row(const uint16_t *values, int64_t count, const Codings &codings, int64_t row, const PanelMatrix &matrix,
              uint8_t *codes) {
  const int32_t largest = matrix.kind == WeightKind::int8 ? 255 : 15;
  uint16_t padded[line];
  if (count < line) {
    std::memset(padded, 0, sizeof(padded));
    std::memcpy(padded, values, static_cast<size_t>(count) * 2);
    values = padded;
  }
  code_line(values, codings.inverse[row], codings.zero[row], largest, codes);
  if (count < line) {
    std::memset(codes + count, matrix.kind == WeightKind::int8 ? 128 : 8, static_cast<size_t>(line - count));
  }
}

// The codes of a unit, a row of 64 bytes each, as lines of the panel; an int4 panel has two rows in a byte.
void store_codes(const PanelMatrix &matrix, uint8_t *codes, char *to, int64_t quads) {
  auto *rows = reinterpret_cast<char *>(codes);
  if (matrix.kind == WeightKind::int8) {
    transpose_words(rows, line, to, 256, quads);
    transpose_words(rows + half_unit * line, line, to + line, 256, quads);
    return;
  }
  for (int64_t i = 0; i < half_unit * line; ++i) {
    codes[i] = static_cast<uint8_t>(codes[i] | codes[half_unit * line + i] << 4);
  }
  transpose_words(rows, line, to, 128, quads);
}

// Scales and zeros of a unit whose first output is `output`. Scales are bf16 already, whatever they are kept as.
void store_scales(const PanelMatrix &matrix, const Codings &codings, char *scales, int64_t output) {
  for (int64_t row = 0; row < unit; ++row) {
    if (matrix.scale_kind == ScaleKind::float32) {
      std::memcpy(scales + (output + row) * 4, &codings.scale[row], 4);
    } else {
      const auto narrow = static_cast<uint16_t>(bits_of(codings.scale[row]) >> 16);
      std::memcpy(scales + (output + row) * 2, &narrow, 2);
    }
    if (matrix.asymmetric) {
      scales[matrix.scale_bytes() + output + row] = static_cast<char>(static_cast<int32_t>(codings.zero[row]));
    }
  }
}

bool fill_codes(const PanelMatrix &matrix, const UnitRows &rows, char *panel, int64_t output) {
  const float largest = matrix.kind == WeightKind::int8 ? 255.0F : 15.0F;
  const int64_t size = matrix.group_inputs, of_output = matrix.kind == WeightKind::int8 ? output * 4 : output * 2;
  for (int64_t group = 0; group < matrix.num_groups(); ++group) {
    char *to = panel + group * matrix.group_bytes();
    const int64_t start = group * size, exist = smaller(size, matrix.inputs - start);
    Codings codings;
    for (int64_t row = 0; row < unit; ++row) {
      const Ends ends(rows.values + row * rows.stride + start, exist);
      codings.low[row] = ends.low;
      codings.high[row] = ends.high;
    }
    if (!codings.within(rows.largest)) { // NaN has no code
      return false;
    }
    codings.choose(matrix, largest);
    for (int64_t at = 0; at < size; at += line) {
      alignas(64) uint8_t codes[unit * line];
      const int64_t count = exist > at ? smaller(exist - at, line) : 0;
      for (int64_t row = 0; row < unit; ++row) {
        code_row(rows.values + row * rows.stride + start + at, count, codings, row, matrix, codes + row * line);
      }
      store_codes(matrix, codes, to + at * matrix.input_bytes() + of_output, smaller(line, size - at) / 4);
    }
    store_scales(matrix, codings, to + size * matrix.input_bytes(), output);
  }
  return true;
}

bool fill_unit(const PanelMatrix &matrix, const UnitRows &rows, int64_t first_row) {
  const Place place = place_of(matrix, first_row);
  char *panel = const_cast<char *>(matrix.panel(place.panel));
  if (matrix.kind == WeightKind::bfloat16) {
    return fill_pairs(matrix, rows, panel + place.output * 4);
  }
  return fill_codes(matrix, rows, panel, place.output);
}

// Whether the rows from `row` on, `rows` of them, begin with half a panel.
bool fills_unit(const PanelMatrix &matrix, int64_t row, int64_t rows) {
  const int64_t half = matrix.gated ? matrix.outputs / 2 : matrix.outputs, index = row % half;
  const bool plain = matrix.kind == WeightKind::bfloat16 || matrix.scale_kind != ScaleKind::float16;
  return plain && index % unit == 0 && rows >= unit && index + unit <= half;
}

// Rows up to the next one that may begin half a panel.
int64_t rows_before_unit(const PanelMatrix &matrix, int64_t row, int64_t rows) {
  const int64_t half = matrix.gated ? matrix.outputs / 2 : matrix.outputs, index = row % half;
  return smaller(rows, smaller(half - index, unit - index % unit));
}

uint16_t rounded_bits(uint32_t bits) { return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16); }

// Finite values as bf16 [rows, columns]. Not by Vec, whose stores make zeros of the smallest numbers in some variants.
void round_rows_to(const ValueArgs &args, uint16_t *__restrict out) {
  for (int64_t row = 0; row < args.rows; ++row, out += args.columns) {
    if (args.kind == ValueKind::float32) {
      const auto *values = static_cast<const uint32_t *>(args.values) + row * args.stride;
      for (int64_t i = 0; i < args.columns; ++i) {
        out[i] = rounded_bits(values[i]);
      }
    } else {
      const auto *values = static_cast<const uint16_t *>(args.values) + row * args.stride;
      for (int64_t i = 0; i < args.columns; ++i) {
        const float value = float_of((values[i] & 0x7fffU) << 13) * 0x1p112F;
        out[i] = rounded_bits(bits_of(value) | (values[i] & 0x8000U) << 16);
      }
    }
  }
}

COREBOUND_END_VARIANT

namespace corebound::kernels::COREBOUND_VARIANT {

bool fill_panel_rows(const PanelMatrix &matrix, const ValueArgs &args, int64_t first_row, float largest,
                     uint16_t *rounded) {
  const int64_t element = args.kind == ValueKind::float32 ? 4 : 2;
  bool within = true;
  for (int64_t done = 0; done < args.rows && within;) {
    const int64_t row = first_row + done, left = args.rows - done;
    const bool whole = fills_unit(matrix, row, left), straight = whole && args.kind == ValueKind::bfloat16;
    const int64_t count = whole ? unit : rows_before_unit(matrix, row, left);
    const char *values = static_cast<const char *>(args.values) + done * args.stride * element;
    ValueArgs rows{values, args.kind, count, args.columns, args.stride};
    if (!straight && !values_within(rows, largest)) {
      within = false;
      break;
    }
    if (args.kind != ValueKind::bfloat16) {
      round_rows_to(rows, rounded);
      rows = {rounded, ValueKind::bfloat16, count, args.columns, args.columns};
    }
    if (whole) {
      const float limit = straight ? largest : max_float;
      within = fill_unit(matrix, {static_cast<const uint16_t *>(rows.values), rows.stride, limit}, row);
    } else {
      load_rows(matrix, rows, row);
    }
    done += count;
  }
  finish_stores();
  return within;
}

} // namespace corebound::kernels::COREBOUND_VARIANT
