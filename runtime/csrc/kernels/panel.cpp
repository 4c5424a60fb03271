// The product of rows with one panel of weights. Few rows: bound by memory, so the panel is one ascending stream and
// all that happens to it happens in registers. Many rows: bound by arithmetic, so pieces of the panel that fit the
// cache serve all rows, by AMX tiles where the variant has them.
#include <cmath>
#include <limits>

#include "kernels/panel_codes.h"
#include "kernels/panel_finish.h"
#include "kernels/panel_sums.h"
#ifdef __AVX512F__
#include "kernels/panel_row_codes.h"
#endif
#ifdef __AMX_BF16__
#include "kernels/panel_amx_codes.h"
#include "kernels/panel_amx_widen.h"
#endif

COREBOUND_BEGIN_VARIANT

template <bool nibbles>
void sum_any_codes(const PanelMatrix &matrix, const char *panel, const PanelInput &in, const PanelScratch &scratch) {
  int64_t done = 0;
#ifdef __AVX512F__
  if (in.rows == 1) {
    switch (in.reading) {
    case Reading::at_once:
      done = sum_codes_of_row<nibbles, AtOnce>(matrix, panel, in, scratch.sums);
      break;
    case Reading::paced:
      done = sum_codes_of_row<nibbles, Paced>(matrix, panel, in, scratch.sums);
      break;
    case Reading::one_stream:
      done = sum_codes_of_row<nibbles, OneStream>(matrix, panel, in, scratch.sums);
      break;
    }
  }
#endif
  sum_codes<nibbles>(matrix, panel, in, done, scratch);
}

void sum_any_weights(const PanelMatrix &matrix, const char *panel, const PanelInput &in, float *sums) {
#ifdef __AVX512F__
  if (in.rows == 1) {
    switch (const int64_t pairs = matrix.padded_inputs / 2; in.reading) {
    case Reading::at_once:
      return sum_weights_of_row<AtOnce>(panel, pairs, in.x, sums);
    case Reading::paced:
      return sum_weights_of_row<Paced>(panel, pairs, in.x, sums);
    case Reading::one_stream:
      return sum_weights_of_row<OneStream>(panel, pairs, in.x, sums);
    }
  }
#endif
  sum_pairs(matrix, panel, in, sums);
}

// Rows whose results go past the caches where weights come from memory.
constexpr int64_t max_streamed_rows = 4;

// Rows up to which codes stay bytes. With AMX, products of bf16 take half as long as those with both bytes of inputs,
// but widening a weight takes as long as ten products, so that more rows must share it.
#if defined(__AMX_BF16__)
constexpr int64_t most_code_rows = 32;
#else
constexpr int64_t most_code_rows = INT64_MAX;
#endif

void compute_sums(const PanelMatrix &matrix, const char *panel, const PanelInput &in, const PanelScratch &scratch) {
#ifdef __AMX_BF16__
  if (matrix.kind != WeightKind::bfloat16 && in.rows >= min_code_tile_rows) {
    return sum_codes_by_tiles(matrix, panel, in, scratch);
  }
#endif
  std::memset(scratch.sums, 0, static_cast<size_t>(in.rows * panel_outputs) * sizeof(float));
  switch (matrix.kind) {
  case WeightKind::bfloat16:
    return sum_any_weights(matrix, panel, in, scratch.sums);
  case WeightKind::int8:
    return sum_any_codes<false>(matrix, panel, in, scratch);
  case WeightKind::int4:
    return sum_any_codes<true>(matrix, panel, in, scratch);
  }
}

// The largest magnitude of a block; NaN where one of its values is not finite. Blocks are whole vectors.
float top_of(const bf16 *x, int64_t count) {
  Vec largest = Vec::zero(), nothing = Vec::zero();
  for (int64_t i = 0; i < count; i += Vec::width) {
    const Vec values = Vec::load(x + i);
    largest = max(largest, abs(values));
    nothing = fma(values, Vec::zero(), nothing); // 0, or NaN where a value is not finite
  }
  return largest.largest() + nothing.sum();
}

// The largest magnitude of a block that needs no low half, in a row of `count` values.
float short_top(const bf16 *x, int64_t count) {
  Vec squares = Vec::zero();
  for (int64_t i = 0; i < count; i += Vec::width) {
    const Vec values = Vec::load(x + i);
    squares = fma(values, values, squares);
  }
  // Where squares overflow, every block may be short of the infinity that comes out: then none is.
  const float mean = squares.sum() / static_cast<float>(count);
  return mean < std::numeric_limits<float>::infinity() ? short_block_top * std::sqrt(mean) : 0.0F;
}

// One block of inputs in whole numbers: scale * (128 * high + low), where `low` is zeros if the block is to be short.
// Returns the scale, and the sum of 128 * high + low in `sum`; `top` is that of the block.
float round_block(const bf16 *x, int64_t count, float top, bool is_short, int8_t *high, int8_t *low, float &sum) {
  constexpr float range = 127 * 128;
  constexpr float smallest = 1e-30F; // what is all below it counts as zero: its inverse might be none
  if (!(top > smallest)) {
    std::memset(high, 0, static_cast<size_t>(count));
    std::memset(low, 0, static_cast<size_t>(count));
    sum = 0;
    return top != top ? top : 0; // so that what is not finite makes the product NaN
  }
  const float scale = top / range;
  const Vec inverse = Vec::set((is_short ? 127 : range) / top), step = Vec::set(is_short ? 128.0F : 1.0F);
  Vec total = Vec::zero(); // exact: at most 128 numbers below 2^14
  for (int64_t i = 0; i < count; i += Vec::width) {
    const Vec whole = round(Vec::load(x + i) * inverse) * step;
    store_halves(whole, high + i, low + i);
    total = total + whole;
  }
  sum = total.sum();
  return scale;
}

COREBOUND_END_VARIANT

namespace corebound::kernels::COREBOUND_VARIANT {

void panel_product(const PanelMatrix &matrix, int64_t panel, const PanelInput &in, const PanelOutput &out,
                   float *memory) {
  const PanelScratch scratch(memory);
#ifdef __AMX_BF16__
  if (in.tiles && in.rows >= min_tile_rows) {
    return multiply_by_tiles(matrix, panel, 1, in, out, scratch);
  }
#endif
  compute_sums(matrix, matrix.panel(panel), in, scratch);
  if (in.reading != Reading::at_once && in.rows <= max_streamed_rows) {
    finish_panel<true>(matrix, panel, 0, in.rows, scratch.sums, out);
  } else {
    finish_panel<false>(matrix, panel, 0, in.rows, scratch.sums, out);
  }
}

void panel_products(const PanelMatrix &matrix, int64_t panel, int64_t count, const PanelInput &in,
                    const PanelOutput &out, float *memory) {
#ifdef __AMX_BF16__
  if (in.tiles && (in.rows > max_paced_rows || matrix.kind != WeightKind::bfloat16)) {
    return multiply_by_tiles(matrix, panel, count, in, out, PanelScratch(memory));
  }
#endif
  for (int64_t i = 0; i < count; ++i) {
    panel_product(matrix, panel + i, in, out, memory);
  }
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

void round_rows(const PanelMatrix &matrix, const PanelInput &in, const RoundedRows &to) {
  const int64_t size = matrix.block_inputs(), blocks = matrix.num_blocks();
  for (int64_t row = 0; row < in.rows; ++row) {
    const bf16 *x = reinterpret_cast<const bf16 *>(in.x) + row * in.stride;
    const float most = to.has_low ? short_top(x, matrix.padded_inputs) : 0;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t at = block * size, left = matrix.padded_inputs - at, count = left < size ? left : size;
      const int64_t index = row * blocks + block, first = row * matrix.padded_inputs + at;
      const float top = top_of(x + at, count);
      const bool is_short = to.has_low && top <= most;
      to.scales[index] = round_block(x + at, count, top, is_short, to.high + first, to.low + first, to.sums[index]);
      if (to.has_low) {
        to.has_low[index] = !is_short;
      }
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

int64_t max_code_rows() { return most_code_rows; }

} // namespace corebound::kernels::COREBOUND_VARIANT
