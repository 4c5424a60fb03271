// The product of rows with one panel of weights. Few rows: bound by memory, so the panel is one ascending stream and
// all that happens to it happens in registers. Many rows: bound by arithmetic, so pieces of the panel that fit the
// cache serve all rows, by AMX tiles where the variant has them.
#include "kernels/panel_codes.h"
#include "kernels/panel_finish.h"
#include "kernels/panel_sums.h"
#ifdef __AVX512F__
#include "kernels/panel_row_codes.h"
#endif
#ifdef __AVX512BF16__
#include "kernels/panel_widen.h"
#endif
#ifdef __AMX_BF16__
#include "kernels/panel_amx_codes.h"
#include "kernels/panel_amx_widen.h"
#endif

COREBOUND_BEGIN_VARIANT

template <bool nibbles>
void sum_any_codes(const PanelMatrix &matrix, const char *panel, const PanelInput &in, float *sums) {
  int64_t done = 0;
#ifdef __AVX512F__
  if (in.rows == 1) {
    switch (in.reading) {
    case Reading::at_once:
      done = sum_codes_of_row<nibbles, AtOnce>(matrix, panel, in, sums);
      break;
    case Reading::paced:
      done = sum_codes_of_row<nibbles, Paced>(matrix, panel, in, sums);
      break;
    case Reading::one_stream:
      done = sum_codes_of_row<nibbles, OneStream>(matrix, panel, in, sums);
      break;
    }
  }
#endif
  sum_codes<nibbles>(matrix, panel, in, done, sums);
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

// Rows up to which codes stay bytes. Widening a weight takes as long as ten products, so more rows must share it; with
// AMX, products of bf16 take half as long. Where bf16 has no instruction of its own, bytes are faster for any number.
#if defined(__AMX_BF16__)
constexpr int64_t most_code_rows = 32;
#elif defined(__AVX512BF16__)
constexpr int64_t most_code_rows = 64;
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
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
  if (matrix.kind != WeightKind::bfloat16 && in.rows > most_code_rows) {
    return sum_widened_rows(matrix, panel, in, scratch);
  }
#endif
  switch (matrix.kind) {
  case WeightKind::bfloat16:
    return sum_any_weights(matrix, panel, in, scratch.sums);
  case WeightKind::int8:
    return sum_any_codes<false>(matrix, panel, in, scratch.sums);
  case WeightKind::int4:
    return sum_any_codes<true>(matrix, panel, in, scratch.sums);
  }
}

// One block of inputs in whole numbers: scale * (128 * high + low). Returns the scale, and their sum in `sum`.
float round_block(const bf16 *x, int64_t count, int8_t *high, int8_t *low, float &sum) {
  Vec largest = Vec::zero(), nothing = Vec::zero();
  for (int64_t i = 0; i < count; i += Vec::width) {
    const Vec values = Vec::load(x + i); // blocks are whole vectors
    largest = max(largest, abs(values));
    nothing = fma(values, Vec::zero(), nothing); // 0, or NaN where a value is not finite
  }
  const float top = largest.largest();
  constexpr float range = 127 * 128;
  constexpr float smallest = 1e-30F; // what is all below it counts as zero: its inverse might be none
  if (const float check = nothing.sum(); !(top > smallest) || check != 0) {
    std::memset(high, 0, static_cast<size_t>(count));
    std::memset(low, 0, static_cast<size_t>(count));
    sum = 0;
    return check; // so that what is not finite makes the product NaN
  }
  const float scale = top / range, inverse = range / top;
  Vec total = Vec::zero(); // exact: at most 128 numbers below 2^14
  for (int64_t i = 0; i < count; i += Vec::width) {
    const Vec whole = round(Vec::load(x + i) * Vec::set(inverse));
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

void round_rows(const PanelMatrix &matrix, const PanelInput &in, int8_t *high, int8_t *low, float *scales,
                float *sums) {
  const int64_t size = matrix.block_inputs(), blocks = matrix.num_blocks();
  for (int64_t row = 0; row < in.rows; ++row) {
    const bf16 *x = reinterpret_cast<const bf16 *>(in.x) + row * in.stride;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t at = block * size, left = matrix.padded_inputs - at, to = row * matrix.padded_inputs + at;
      float &scale = scales[row * blocks + block];
      scale = round_block(x + at, left < size ? left : size, high + to, low + to, sums[row * blocks + block]);
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
