// Rows into panels, and back. Compiled for the baseline: it moves bytes, once, when a model is loaded.
#include <algorithm>
#include <cstring>

#include "kernels/panel_load.h"
#include "kernels/panel_place.h"

namespace corebound::kernels {
namespace {

// Pairs or fours of a cache line of the source that are taken together: their places stay in the first-level cache.
constexpr int64_t run = 16;

char *panel_of(const PanelMatrix &matrix, int64_t panel) { return const_cast<char *>(matrix.panel(panel)); }

void pack_bf16(const PackArgs &args) {
  const PanelMatrix &matrix = args.matrix;
  const int64_t pairs = matrix.inputs / 2;
  for (int64_t begin = 0; begin < pairs; begin += run) {
    const int64_t count = std::min(run, pairs - begin);
    for (int64_t r = 0; r < args.rows; ++r) {
      const Place place = place_of(matrix, args.first_row + r);
      char *to = panel_of(matrix, place.panel) + begin * 256 + place.output * 4;
      const char *from = static_cast<const char *>(args.values) + (r * args.stride + 2 * begin) * 2;
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(to + i * 256, from + i * 4, 4);
      }
    }
  }
  for (int64_t r = 0; matrix.inputs % 2 && r < args.rows; ++r) { // the last input alone; its partner stays zero
    const Place place = place_of(matrix, args.first_row + r);
    const char *from = static_cast<const char *>(args.values) + (r * args.stride + matrix.inputs - 1) * 2;
    std::memcpy(panel_of(matrix, place.panel) + pairs * 256 + place.output * 4, from, 2);
  }
}

uint16_t half_of(float x) { // to nearest even; scales are finite, and some tools make negative ones
  const auto bits = __builtin_bit_cast(uint32_t, x);
  const uint32_t sign = bits >> 16 & 0x8000U, u = bits & 0x7fffffffU;
  if (u >= 0x47800000U) {
    return static_cast<uint16_t>(sign | 0x7c00U);
  }
  if (u < 0x38800000U) {
    return static_cast<uint16_t>(sign |
                                 (__builtin_bit_cast(uint32_t, __builtin_bit_cast(float, u) + 0.5F) - 0x3f000000U));
  }
  return static_cast<uint16_t>(sign | ((u + 0xfffU + ((u >> 13) & 1U) - 0x38000000U) >> 13));
}

float float_of_half(uint16_t x) { // finite
  const uint32_t sign = static_cast<uint32_t>(x & 0x8000U) << 16;
  const auto shifted = static_cast<uint32_t>(x & 0x7fffU) << 13;
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, __builtin_bit_cast(float, shifted) * 0x1p112F) | sign);
}

void put_scale(const PanelMatrix &matrix, char *scales, int64_t output, float scale) {
  if (matrix.scale_kind == ScaleKind::float32) {
    std::memcpy(scales + output * 4, &scale, 4);
    return;
  }
  const auto bits = __builtin_bit_cast(uint32_t, scale);
  const uint16_t narrow = matrix.scale_kind == ScaleKind::float16
                              ? half_of(scale)
                              : static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
  std::memcpy(scales + output * 2, &narrow, 2);
}

float take_scale(const PanelMatrix &matrix, const char *scales, int64_t output) {
  float scale = 0;
  uint16_t narrow = 0;
  switch (matrix.scale_kind) {
  case ScaleKind::float32:
    std::memcpy(&scale, scales + output * 4, 4);
    return scale;
  case ScaleKind::bfloat16:
    std::memcpy(&narrow, scales + output * 2, 2);
    return __builtin_bit_cast(float, static_cast<uint32_t>(narrow) << 16);
  case ScaleKind::float16:
    std::memcpy(&narrow, scales + output * 2, 2);
    return float_of_half(narrow);
  }
  return scale;
}

// Four codes of a row from input `at` on. Beyond the inputs there is only what pads a block; inputs are zero there, and
// so counts any code.
uint32_t four_codes(const uint8_t *codes, int64_t at, int64_t inputs, uint32_t beyond) {
  uint32_t word = beyond;
  if (at + 4 <= inputs) {
    std::memcpy(&word, codes + at, 4);
  } else if (at < inputs) {
    std::memcpy(&word, codes + at, static_cast<size_t>(inputs - at));
  }
  return word;
}

void pack_codes(const PackArgs &args) {
  const PanelMatrix &matrix = args.matrix;
  const uint32_t beyond = matrix.kind == WeightKind::int8 ? 0x80808080U : 0x08080808U;
  const int64_t groups = matrix.num_groups(), quad_bytes = 4 * matrix.input_bytes();
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t begin = 0; begin < matrix.group_inputs; begin += 4 * run) {
      const int64_t count = std::min(run, (matrix.group_inputs - begin) / 4);
      for (int64_t r = 0; r < args.rows; ++r) {
        const Place place = place_of(matrix, args.first_row + r);
        const QuadPlace quad = quad_place(matrix, place.output);
        const auto *codes = static_cast<const uint8_t *>(args.values) + r * args.stride;
        char *to = panel_of(matrix, place.panel) + group * matrix.group_bytes() + begin / 4 * quad_bytes + quad.offset;
        for (int64_t i = 0; i < count; ++i, to += quad_bytes) {
          const int64_t at = group * matrix.group_inputs + begin + 4 * i;
          uint32_t word = 0; // a byte of an int4 panel holds two outputs, of which the other is kept
          std::memcpy(&word, to, 4);
          word = (word & ~quad.mask) | four_codes(codes, at, matrix.inputs, beyond) << quad.shift;
          std::memcpy(to, &word, 4);
        }
      }
    }
    for (int64_t r = 0; r < args.rows; ++r) {
      const Place place = place_of(matrix, args.first_row + r);
      char *scales =
          panel_of(matrix, place.panel) + group * matrix.group_bytes() + matrix.group_inputs * matrix.input_bytes();
      put_scale(matrix, scales, place.output, args.scales[r * groups + group]);
      if (matrix.asymmetric) {
        const auto zero = static_cast<uint8_t>(args.zeros[r * groups + group]);
        reinterpret_cast<uint8_t *>(scales + matrix.scale_bytes())[place.output] = zero;
      }
    }
  }
}

void unpack_codes(const UnpackArgs &args, int64_t r) {
  const PanelMatrix &matrix = args.matrix;
  const Place place = place_of(matrix, args.first_row + r);
  const QuadPlace quad = quad_place(matrix, place.output);
  const int64_t groups = matrix.num_groups(), quad_bytes = 4 * matrix.input_bytes();
  auto *codes = static_cast<uint8_t *>(args.values) + r * matrix.inputs;
  for (int64_t group = 0; group < groups; ++group) {
    const char *from = matrix.panel(place.panel) + group * matrix.group_bytes();
    const int64_t begin = group * matrix.group_inputs, left = matrix.inputs - begin;
    for (int64_t i = 0; i < std::min(matrix.group_inputs, left); i += 4) {
      uint32_t word = 0;
      std::memcpy(&word, from + i / 4 * quad_bytes + quad.offset, 4);
      word = (word & quad.mask) >> quad.shift;
      std::memcpy(codes + begin + i, &word, static_cast<size_t>(std::min<int64_t>(4, left - i)));
    }
    const char *scales = from + matrix.group_inputs * matrix.input_bytes();
    args.scales[r * groups + group] = take_scale(matrix, scales, place.output);
    if (matrix.asymmetric) {
      const auto *zeros = reinterpret_cast<const uint8_t *>(scales + matrix.scale_bytes());
      args.zeros[r * groups + group] = zeros[place.output];
    }
  }
}

} // namespace

void pack_rows(const PackArgs &args) {
  if (args.matrix.kind == WeightKind::bfloat16) {
    pack_bf16(args);
  } else {
    pack_codes(args);
  }
}

void unpack_row(const PanelMatrix &matrix, int64_t row, uint16_t *out) {
  const Place place = place_of(matrix, row);
  const char *from = matrix.panel(place.panel) + place.output * 4;
  for (int64_t i = 0; i + 1 < matrix.inputs; i += 2) {
    std::memcpy(out + i, from + i / 2 * 256, 4);
  }
  if (matrix.inputs % 2) {
    std::memcpy(out + matrix.inputs - 1, from + matrix.inputs / 2 * 256, 2);
  }
}

void unpack_rows(const UnpackArgs &args) {
  for (int64_t r = 0; r < args.rows; ++r) {
    if (args.matrix.kind == WeightKind::bfloat16) {
      unpack_row(args.matrix, args.first_row + r, static_cast<uint16_t *>(args.values) + r * args.matrix.inputs);
    } else {
      unpack_codes(args, r);
    }
  }
}

int64_t panel_scratch_floats(int64_t rows) {
  const int64_t padded = (rows + 31) / 32 * 32, together = rows < max_rows_together ? padded : max_rows_together;
  const int64_t of_panels = max_panels_together * together;
  return piece_floats + (padded < of_panels ? of_panels : padded) * panel_outputs;
}

} // namespace corebound::kernels
