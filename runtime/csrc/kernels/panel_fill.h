// Rows of a checkpoint from a file into panels, a piece at a time that stays in the caches from the read to the last
// store.
#pragma once

#include "kernels/panel_load.h"

namespace corebound::kernels {

// Panels are filled by so many rows at once, half a panel: what shares no byte with other rows, and one half of a panel
// of a gated matrix.
inline constexpr int64_t fill_rows_unit = panel_outputs / 2;

// Rows of a file for the rows [first_row, first_row + rows) of a matrix. Of each row `read_bytes` are read, from
// `offset` on and `row_bytes` apart, and of these `inputs` elements from `skipped` on are kept.
struct FillArgs {
  PanelMatrix matrix; // `data` is written
  int descriptor;
  ValueKind kind;
  int64_t offset, row_bytes, read_bytes, skipped;
  int64_t first_row, rows;
  float largest; // no magnitude is beyond
  char *scratch;
  int64_t scratch_bytes; // room for fill_rows_unit rows at least
};

// Fills rows in their order until one cannot be read or holds what is beyond `largest`, and returns how many are
// filled.
COREBOUND_EXPORT int64_t fill_from_file(const FillArgs &args);

// The same as load_rows by the active variant, of values that are finite as bf16 too.
COREBOUND_EXPORT void fill_rows(const PanelMatrix &matrix, const ValueArgs &args, int64_t first_row);

} // namespace corebound::kernels
