// What is done to weights once, between a checkpoint and panels: check, round, quantise, store; and the way back.
#pragma once

#include "kernels/panel.h"

namespace corebound::kernels {

enum class ValueKind : int { bfloat16, float16, float32 };

// Rows of a checkpoint, `stride` elements apart.
struct ValueArgs {
  const void *values; // [rows, columns]
  ValueKind kind;
  int64_t rows, columns, stride;
};

// The largest magnitude; NaN or infinity where one is among the values.
COREBOUND_EXPORT float largest_magnitude(const ValueArgs &args);

// Finite values, rounded to nearest even, as bf16 [rows, columns].
COREBOUND_EXPORT void to_bfloat16(const ValueArgs &args, uint16_t *out);

// Finite values into rows of a matrix from `first_row` on, by its format: rounded to bf16, and then, for codes, to the
// nearest code of their group as corebound.quantization.rtn does. Codes have scales that are bf16.
COREBOUND_EXPORT void load_rows(const PanelMatrix &matrix, const ValueArgs &args, int64_t first_row);

// Rows out of panels, as they were put in: bf16 elements, or codes, scales and, for asymmetric schemes, zeros.
struct UnpackArgs {
  PanelMatrix matrix;
  void *values;  // [rows, inputs]: bf16 elements, or one code a byte
  float *scales; // [rows, num_groups]
  float *zeros;
  int64_t first_row, rows;
};
COREBOUND_EXPORT void unpack_rows(const UnpackArgs &args);

} // namespace corebound::kernels
