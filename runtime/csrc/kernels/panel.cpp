// The product of rows with one panel of weights. Few rows: bound by memory, so the panel is one ascending stream and all
// that happens to it happens in registers. Many rows: bound by arithmetic, so pieces of the panel that fit the cache
// serve all rows, by AMX tiles where the variant has them.
#include "kernels/panel_finish.h"
#include "kernels/panel_sums.h"
#ifdef __AMX_BF16__
#include "kernels/panel_amx.h"
#endif

COREBOUND_BEGIN_VARIANT

void compute_sums(const PanelMatrix &matrix, const char *panel, const PanelInput &in, const PanelScratch &scratch) {
#ifdef __AMX_BF16__
  if (in.tiles && in.rows >= min_tile_rows) {
    return sum_by_tiles(matrix, panel, in, scratch);
  }
#endif
  sum_by_pairs(matrix, panel, in, scratch);
}

COREBOUND_END_VARIANT

namespace corebound::kernels::COREBOUND_VARIANT {

void panel_product(const PanelMatrix &matrix, int64_t panel, const PanelInput &in, const PanelOutput &out,
                   float *memory) {
  const PanelScratch scratch(memory, in.rows);
  compute_sums(matrix, matrix.panel(panel), in, scratch);
  finish_panel(matrix, panel, in.rows, scratch.sums, out);
}

void make_tiles(const PanelInput &in, int64_t padded_inputs, uint16_t *tiles, int64_t begin, int64_t end) {
  const int64_t steps = padded_inputs / 32;
  for (int64_t tile = begin; tile < end; ++tile) {
    for (int64_t step = 0; step < steps; ++step) {
      for (int64_t row = 0; row < 16; ++row) {
        uint16_t *to = tiles + ((tile * steps + step) * 16 + row) * 32;
        if (tile * 16 + row < in.rows) {
          std::memcpy(to, in.x + (tile * 16 + row) * in.stride + step * 32, 64);
        } else {
          std::memset(to, 0, 64);
        }
      }
    }
  }
}

void sum_groups(const PanelMatrix &matrix, const PanelInput &in, float *sums) {
  const int64_t groups = matrix.num_groups();
  for (int64_t row = 0; row < in.rows; ++row) {
    for (int64_t group = 0; group < groups; ++group) {
      const bf16 *x = reinterpret_cast<const bf16 *>(in.x) + row * in.stride + group * matrix.group_inputs;
      Vec total = Vec::zero();
      for (int64_t i = 0; i < matrix.group_inputs; i += Vec::width) {
        total = total + load_upto(x + i, matrix.group_inputs - i);
      }
      sums[row * groups + group] = total.sum();
    }
  }
}

bool takes_tiles() {
#ifdef __AMX_BF16__
  return true;
#else
  return false;
#endif
}

} // namespace corebound::kernels::COREBOUND_VARIANT
