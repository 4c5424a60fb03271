// Where in its panel a row of a matrix is.
#pragma once

#include <cstring>

#include "kernels/panel.h"

namespace corebound::kernels {

struct Place {
  int64_t panel, output;
};

inline Place place_of(const PanelMatrix &matrix, int64_t row) {
  if (!matrix.gated) {
    return {row / panel_outputs, row % panel_outputs};
  }
  constexpr int64_t half_panel = panel_outputs / 2;
  const int64_t half = matrix.outputs / 2;
  const bool up = row >= half;
  const int64_t index = up ? row - half : row;
  return {index / half_panel, index % half_panel + (up ? half_panel : 0)};
}

// Where in the 256 or 128 bytes of four inputs the four codes of an output are, and how far they are shifted there.
struct QuadPlace {
  int64_t offset;
  int shift;
  uint32_t mask;
};

inline QuadPlace quad_place(const PanelMatrix &matrix, int64_t output) {
  if (matrix.kind == WeightKind::int8) {
    return {4 * output, 0, 0xffffffffU};
  }
  const int shift = output % 32 / 16 * 4;
  return {output / 32 * 64 + 4 * (output % 16), shift, 0x0f0f0f0fU << shift};
}

} // namespace corebound::kernels
