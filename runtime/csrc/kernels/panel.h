// Weight matrices in panels, the one copy from which both decode and prefill compute.
//
// A panel holds 64 outputs (rows of the weight) for all inputs, as one ascending stream. Inputs come in pairs or fours,
// because that is what the dot products of bf16 and of bytes take, and the AMX tiles. Outputs beyond the last are zeros
// and so is what pads the inputs, so that no kernel has a tail.
//
//   bf16, 256 bytes for two inputs: output l, input p at element 2 l + p.
//   int8, 256 bytes for four inputs: output l, input p at byte 4 l + p.
//   int4, 128 bytes for four inputs: byte 4 l + p of half h has output 32 h + l in its lower nibble and output
//         32 h + 16 + l in its upper one.
//
// Codes are unsigned. Their inputs come in groups: after the codes of a group follow its 64 scales and, for an
// asymmetric scheme, its 64 zero points as bytes: weight = (code - zero) * scale, where a symmetric zero is 128 or 8.
// A gated matrix has 32 gate rows and their 32 up rows in each panel, so that a panel yields 32 finished activations.
#pragma once

#include <cstddef>
#include <cstdint>

#include "export.h"

namespace corebound::kernels {

inline constexpr int64_t panel_outputs = 64;
inline constexpr int64_t panel_input_unit = 32; // inputs are padded to whole AMX steps
inline constexpr int64_t max_block_inputs = 128;

enum class WeightKind : int { bfloat16, int8, int4 };
enum class ScaleKind : int { float32, bfloat16, float16 };

struct PanelMatrix {
  const char *data; // aligned to 64
  int64_t outputs, inputs;
  int64_t padded_inputs; // a multiple of panel_input_unit and of group_inputs
  int64_t group_inputs;  // inputs that share a scale; padded_inputs where there is one group
  WeightKind kind;
  ScaleKind scale_kind;
  bool asymmetric;
  bool gated;

  // Always inlined: a copy in the object of a variant would be the only one that the linker keeps, for all variants.
  [[gnu::always_inline]] int64_t num_panels() const { return (outputs + panel_outputs - 1) / panel_outputs; }
  [[gnu::always_inline]] int64_t num_groups() const {
    return kind == WeightKind::bfloat16 ? 1 : padded_inputs / group_inputs;
  }
  // Bytes of one input for all outputs.
  [[gnu::always_inline]] int64_t input_bytes() const {
    return kind == WeightKind::bfloat16 ? 128 : kind == WeightKind::int8 ? 64 : 32;
  }
  [[gnu::always_inline]] int64_t scale_bytes() const {
    return panel_outputs * (scale_kind == ScaleKind::float32 ? 4 : 2);
  }
  [[gnu::always_inline]] int64_t group_bytes() const {
    if (kind == WeightKind::bfloat16) {
      return padded_inputs * input_bytes();
    }
    return group_inputs * input_bytes() + scale_bytes() + (asymmetric ? panel_outputs : 0);
  }
  [[gnu::always_inline]] int64_t panel_bytes() const { return num_groups() * group_bytes(); }
  // Inputs that are rounded together for the product with codes, see panel_codes.h.
  [[gnu::always_inline]] int64_t block_inputs() const {
    return group_inputs < max_block_inputs ? group_inputs : max_block_inputs;
  }
  [[gnu::always_inline]] int64_t num_blocks() const { return (padded_inputs + block_inputs() - 1) / block_inputs(); }
  [[gnu::always_inline]] const char *panel(int64_t index) const { return data + index * panel_bytes(); }
};

// How the weights of few rows are read, see pace.h: as two streams at once (a single row) or at a pace, or as one
// stream at a pace. Results do not depend on it.
enum class Reading : int { at_once, paced, one_stream };
inline constexpr int num_readings = 3;

// Rows in whole numbers, as codes meet them (panel_codes.h); round_rows writes them.
struct RoundedRows {
  int8_t *high, *low;   // [rounded_rows(rows), padded_inputs]; what is behind the last row does not matter
  float *scales, *sums; // [rows, num_blocks]; sums are of 128 * high + low
  uint8_t *has_low;     // [rows, num_blocks]: whether `low` is more than zeros; or null, then any may be

  // Those behind so many inputs and blocks.
  [[gnu::always_inline]] RoundedRows from(int64_t elements, int64_t blocks) const {
    return {high + elements, low + elements, scales + blocks, sums + blocks, has_low ? has_low + blocks : nullptr};
  }
};

// What a panel computes with: bf16 rows [rows, padded_inputs], zeros beyond `inputs`, `stride` elements apart.
// `tiles` holds the same rows, padded with zero rows to whole tiles, as AMX wants them, or is null.
struct PanelInput {
  const uint16_t *x;
  const uint16_t *tiles;
  RoundedRows rounded; // for codes that meet no more rows than KernelSet::max_code_rows
  int64_t rows, stride;
  Reading reading = Reading::at_once;
};

enum class Activation : int { none, gelu_tanh, silu_gated, gelu_erf, relu, gelu_tanh_gated };

// The largest logit of a row so far, and the lowest word that has it: the first NaN, where there is one.
struct Best {
  float value;
  int32_t word;

  [[gnu::always_inline]] constexpr bool yields_to(float other, int64_t its_word) const {
    if (other != other || value != value) {
      return other != other && (value == value || its_word < word);
    }
    return other > value || (other == value && its_word < word);
  }
};

inline constexpr Best no_word = {-__builtin_inff(), INT32_MAX}; // yields to every word

// What becomes of a panel's sums: y = activation(sums + bias). Where `y` is bf16, all outputs of a panel are written,
// so that rows must have room for whole panels; `logits` gets only those that exist.
struct PanelOutput {
  uint16_t *y;          // bf16 [rows, stride], or null
  float *logits;        // [rows, stride], where y is null
  const uint16_t *bias; // bf16, in the order of the panels and padded to whole ones, or null
  int64_t stride;
  Activation activation;
  Best *best = nullptr; // [rows], brought up to date with the panel's logits; or null
};

// What a variant with AMX does. Tiles of bytes are of 16 rows, so that there must be memory behind the last row.
inline constexpr int64_t min_tile_rows = 5;      // rows from which on it reads `tiles` for bf16 weights
inline constexpr int64_t min_code_tile_rows = 3; // rows from which on it multiplies codes by tiles of bytes
// Rows up to which every input of codes has both of its bytes, see panel_codes.h; with AMX all have.
inline constexpr int64_t max_whole_rows = 16;
inline constexpr float short_block_top = 8;
// Rows that there must be memory for, in whole numbers.
constexpr int64_t rounded_rows(int64_t rows) { return (rows + 15) / 16 * 16; }

// Elements of `tiles` for rows of `padded_inputs`: [row tile of 16][step of 32 inputs][16][32]; tiles are taken in
// twos, what the second of the last two holds does not matter.
constexpr int64_t tile_elements(int64_t rows, int64_t padded_inputs) { return (rows + 31) / 32 * 32 * padded_inputs; }

// How much is computed at a time where there are many rows: their inputs come from a farther cache once for all of
// these panels, whose sums (512 KiB) stay in the second level. Of bf16 weights fewer rows are, see panel_amx.h.
inline constexpr int64_t max_panels_together = 4, max_rows_together = 512;
inline constexpr int64_t piece_floats = 256 / 2 * 256 / 4; // 256 inputs of a panel

// Floats of scratch that one thread needs for max_panels_together panels, aligned to 64 bytes.
COREBOUND_EXPORT int64_t panel_scratch_floats(int64_t rows);

// Splits the fused projection of tokens into rotated queries, and rotated keys and values in the cache. Where they have
// weights, each head of the queries and of the keys is first divided by its root mean square. A range is of kv heads,
// with the query heads that read them.
struct QkvArgs {
  const uint16_t *qkv; // bf16 [T, stride]
  int64_t stride, tokens;
  uint16_t *q;         // [T, heads, head_dim]
  uint16_t *key_cache; // [blocks, kv_heads, block_size, head_dim], blocks `block_stride` elements apart
  uint16_t *value_cache;
  const int64_t *positions; // [T]
  const int64_t *slots;     // [T]
  const float *cos;         // [P, half], or null for no rotation
  const float *sin;
  const int32_t *first_head; // [kv_heads + 1]: query heads of kv head k are first_head[k] to first_head[k + 1]
  int64_t heads, kv_heads, head_dim, block_size, block_stride;
  bool per_head;                   // qkv has q, k and v of each head in turn; otherwise all q, all k, all v
  int64_t half;                    // the first 2 * half dimensions of a head turn
  bool interleaved;                // pairs (2i, 2i + 1); otherwise (i, i + half)
  const uint16_t *q_norm, *k_norm; // bf16 [head_dim], or null
  float norm_eps;
};

// Rows of a matrix on their way into panels: codes or values of rows [first_row, first_row + rows).
struct PackArgs {
  PanelMatrix matrix;  // `data` is written
  const void *values;  // [rows, inputs]: bf16 elements, or one code a byte (0 to 255, 0 to 15)
  const float *scales; // [rows, num_groups], quantised kinds only
  const float *zeros;  // [rows, num_groups], asymmetric only: zero points as codes
  int64_t first_row, rows;
  int64_t stride; // elements from a row of `values` to the next
};
COREBOUND_EXPORT void pack_rows(const PackArgs &args);

// One row of a bf16 matrix back out of its panels, as bf16 [inputs]; how a tied embedding is looked up.
COREBOUND_EXPORT void unpack_row(const PanelMatrix &matrix, int64_t row, uint16_t *out);

} // namespace corebound::kernels
