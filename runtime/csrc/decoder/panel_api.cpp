// The C functions that Python calls to load weights into panels and to take them out again.
#include "kernels/panel_fill.h"

using corebound::kernels::FillArgs;
using corebound::kernels::PanelMatrix;
using corebound::kernels::UnpackArgs;
using corebound::kernels::ValueArgs;

COREBOUND_API float corebound_panel_largest(const ValueArgs *values) {
  return corebound::kernels::largest_magnitude(*values);
}

COREBOUND_API void corebound_panel_to_bfloat16(const ValueArgs *values, uint16_t *out) {
  corebound::kernels::to_bfloat16(*values, out);
}

COREBOUND_API void corebound_panel_load(const PanelMatrix *matrix, const ValueArgs *values, int64_t first_row) {
  corebound::kernels::fill_rows(*matrix, *values, first_row);
}

COREBOUND_API int64_t corebound_panel_fill(const FillArgs *args) { return corebound::kernels::fill_from_file(*args); }

COREBOUND_API void corebound_panel_unpack(const UnpackArgs *args) { corebound::kernels::unpack_rows(*args); }
