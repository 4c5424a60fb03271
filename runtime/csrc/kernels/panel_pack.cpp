// Rows into panels, and back. Compiled for the baseline: it moves bytes, once, when a model is loaded.
#include <algorithm>
#include <cstring>

#include "kernels/panel.h"

namespace corebound::kernels {
namespace {

struct Place {
  int64_t panel, output;
};

Place place_of(const PanelMatrix &matrix, int64_t row) {
  if (!matrix.gated) {
    return {row / panel_outputs, row % panel_outputs};
  }
  constexpr int64_t half_panel = panel_outputs / 2;
  const int64_t half = matrix.outputs / 2;
  const bool up = row >= half;
  const int64_t index = up ? row - half : row;
  return {index / half_panel, index % half_panel + (up ? half_panel : 0)};
}

char *panel_of(const PanelMatrix &matrix, int64_t panel) { return const_cast<char *>(matrix.panel(panel)); }

void pack_bf16(const PackArgs &args) {
  const PanelMatrix &matrix = args.matrix;
  const int64_t pairs = matrix.inputs / 2;
  constexpr int64_t run = 16; // pairs of a cache line of the source: their places stay in the first-level cache
  for (int64_t begin = 0; begin < pairs; begin += run) {
    const int64_t count = std::min(run, pairs - begin);
    for (int64_t r = 0; r < args.rows; ++r) {
      const Place place = place_of(matrix, args.first_row + r);
      char *to = panel_of(matrix, place.panel) + begin * 256 + place.output * 4;
      const char *from = static_cast<const char *>(args.values) + (r * matrix.inputs + 2 * begin) * 2;
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(to + i * 256, from + i * 4, 4);
      }
    }
  }
  for (int64_t r = 0; matrix.inputs % 2 && r < args.rows; ++r) { // the last input alone; its partner stays zero
    const Place place = place_of(matrix, args.first_row + r);
    const char *from = static_cast<const char *>(args.values) + (r * matrix.inputs + matrix.inputs - 1) * 2;
    std::memcpy(panel_of(matrix, place.panel) + pairs * 256 + place.output * 4, from, 2);
  }
}

// Writes one code; bytes of an int4 panel hold two outputs, of which the other is kept.
void put_code(const PanelMatrix &matrix, char *group, int64_t input, int64_t output, uint8_t code) {
  auto *quad = reinterpret_cast<uint8_t *>(group + input / 4 * 4 * matrix.input_bytes());
  if (matrix.kind == WeightKind::int8) {
    quad[4 * output + input % 4] = code;
    return;
  }
  uint8_t &byte = quad[output / 32 * 64 + 4 * (output % 16) + input % 4];
  const int shift = output % 32 / 16 * 4;
  byte = static_cast<uint8_t>((byte & ~(15 << shift)) | (code << shift));
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

void pack_codes(const PackArgs &args) {
  const PanelMatrix &matrix = args.matrix;
  const int middle = matrix.kind == WeightKind::int8 ? 128 : 8;
  const int64_t groups = matrix.num_groups();
  for (int64_t r = 0; r < args.rows; ++r) {
    const Place place = place_of(matrix, args.first_row + r);
    const auto *codes = static_cast<const uint8_t *>(args.values) + r * matrix.inputs;
    for (int64_t group = 0; group < groups; ++group) {
      char *at = panel_of(matrix, place.panel) + group * matrix.group_bytes();
      const int64_t begin = group * matrix.group_inputs;
      for (int64_t i = 0; i < matrix.group_inputs; ++i) {
        // Beyond the inputs there is only what pads a block; inputs are zero there, and so counts any code.
        const auto code = begin + i < matrix.inputs ? codes[begin + i] : static_cast<uint8_t>(middle);
        put_code(matrix, at, i, place.output, code);
      }
      char *scales = at + matrix.group_inputs * matrix.input_bytes();
      put_scale(matrix, scales, place.output, args.scales[r * groups + group]);
      if (matrix.asymmetric) {
        const auto zero = static_cast<uint8_t>(args.zeros[r * groups + group]);
        reinterpret_cast<uint8_t *>(scales + matrix.scale_bytes())[place.output] = zero;
      }
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

int64_t panel_scratch_floats(int64_t rows) {
  constexpr int64_t piece = 256 / 2 * 256 / 4; // see PanelScratch
  return (rows + 31) / 32 * 32 * panel_outputs + piece;
}

} // namespace corebound::kernels
