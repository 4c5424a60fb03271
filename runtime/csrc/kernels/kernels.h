// The native kernels: arguments of each op, and the table of functions that every instruction-set variant fills.
//
// Common contract. Pointers are to contiguous row-major arrays of the named element type, aligned to that type only.
// Outputs may not overlap inputs, unless a field says so. Kernels allocate nothing, start no threads and keep no state:
// a caller splits the stated range between threads, and calls on disjoint ranges may run at the same time.
#pragma once

#include <cstdint>

#include "export.h"
#include "kernels/panel.h"

namespace corebound::kernels {

enum class DType : int { float32, bfloat16, float16 };
inline constexpr int num_dtypes = 3;

struct ValueArgs; // panel_load.h

// Layer norm and RMS norm; a range is of rows. With `residual`, x_scale * x + residual is rounded to the element type,
// stored to `sum`, and normalised; `sum` may be `x` or `residual` itself.
struct NormArgs {
  const void *x;        // [rows, width]
  const void *residual; // [rows, width] or null
  const void *weight;   // [width]
  const void *bias;     // [width]; null for RMS norm
  void *y;              // [rows, width]; may be `x`
  void *sum;            // [rows, width]; null without residual
  int64_t width;
  float eps;
  DType dtype;
  float x_scale = 1.0F;
  float weight_offset = 0.0F; // added to every weight
};

// Copies q, k and v out of a fused projection; a range is of tokens.
struct SplitQkvArgs {
  const void *qkv; // [T, (heads + 2 kv_heads) head_dim]
  void *q;         // [T, heads, head_dim]
  void *k;         // [T, kv_heads, head_dim]
  void *v;
  int64_t heads, kv_heads, head_dim;
  bool per_head; // for each head its q, k, v (heads == kv_heads); otherwise all q, all k, all v
  int64_t element_bytes;
};

// Rotates the first 2 * half dimensions of each head; a range is of tokens.
struct RotaryArgs {
  const void *x;            // [T, heads, head_dim]
  void *out;                // same; may be `x`
  const int64_t *positions; // [T], each within the rows of cos and sin
  const float *cos;         // [P, half]
  const float *sin;
  int64_t heads, head_dim, half;
  bool interleaved; // pairs (2i, 2i + 1); otherwise (i, i + half)
  DType dtype;
};

// Writes tokens into the blocked cache; a range is of tokens.
struct StoreKvArgs {
  const void *k; // [T, kv_heads, head_dim]
  const void *v;
  void *key_cache; // [blocks, kv_heads, block_size, head_dim], blocks `block_stride` elements apart
  void *value_cache;
  const int64_t *slots; // [T], each within blocks * block_size
  int64_t kv_heads, head_dim, block_size, block_stride;
  int64_t element_bytes;
};

// Consecutive query heads that read the same kv head.
struct HeadGroup {
  int32_t first;
  int32_t count; // 1 to max_group_heads
  int32_t kv_head;
};

inline constexpr int max_group_heads = 8;
inline constexpr int attention_query_tile = 64; // rows (queries x heads of a group) that share one pass over the keys
inline constexpr int attention_key_tile = 64;
// With bf16 more rows share a pass, as attention_rows says: blocks of rows and of keys that go through it together.
inline constexpr int attention_row_block = 32;
inline constexpr int attention_block_keys = 256;
inline constexpr int64_t max_head_dim = 512;
// As many as keep queries and results in a second-level cache of 1 MiB.
constexpr int64_t attention_max_rows(int64_t head_dim) { return head_dim <= 128 ? 512 : head_dim <= 256 ? 256 : 128; }
// The same whatever the number of threads, on which results must not depend.
inline constexpr int64_t attention_part_keys = 512;

// Causal attention over the blocked cache; a range is of work items, in the order of `attention_items`. With a `window`
// a query sees so many keys, its own included.
struct AttentionArgs {
  const void *q; // [T, heads, head_dim]
  const void *key_cache;
  const void *value_cache;     // [blocks, kv_heads, block_size, head_dim], blocks `block_stride` elements apart
  void *out;                   // [T, heads, head_dim]
  const int32_t *block_tables; // [sequences, max_blocks]
  const int32_t *query_starts; // [sequences + 1]
  const int32_t *context_lengths;
  const float *alibi_slopes; // [heads] or null
  const HeadGroup *groups;
  int64_t num_groups;
  int64_t sequences, max_blocks, heads, kv_heads, head_dim, block_size, block_stride;
  float scale;
  DType dtype;
  int64_t window = 0; // 0 for all keys
  // Where a single query sees more than attention_part_keys, its parts are items of their own, and leave in here what
  // `attention_merge` puts together: [sequences, max_parts, heads, attention_partial_floats(head_dim)]. Null takes them
  // whole.
  float *partials = nullptr;
  int64_t max_parts = 1; // attention_max_parts(*this)
};

struct UnaryArgs {
  const void *x;
  void *y;    // may be `x`
  bool exact; // GELU by the error function; otherwise by the tanh formula
  DType dtype;
};

// y = silu(first half of each row) * second half; a range is of rows.
struct SiluMulArgs {
  const void *gate_up; // [rows, 2 width]
  void *y;             // [rows, width]
  int64_t width;
  DType dtype;
};

inline constexpr int64_t max_linear_rows = 8;

// y = x weight^T + bias for few rows; a range is of outputs (rows of `weight`). The weight is read once for all rows.
struct LinearArgs {
  const void *x;      // [rows, inputs], rows 1 to max_linear_rows
  const void *weight; // [outputs, inputs]
  const void *bias;   // [outputs] or null
  void *y;            // [rows, outputs]
  int64_t rows, inputs, outputs;
  DType dtype;
};

// One variant's functions. `scratch` of attention is `attention_scratch_bytes` long, aligned to 64, not shared.
struct KernelSet {
  const char *name;
  void (*layer_norm)(const NormArgs &, int64_t begin, int64_t end);
  void (*rms_norm)(const NormArgs &, int64_t begin, int64_t end);
  void (*split_qkv)(const SplitQkvArgs &, int64_t begin, int64_t end);
  void (*rotary)(const RotaryArgs &, int64_t begin, int64_t end);
  void (*store_kv)(const StoreKvArgs &, int64_t begin, int64_t end);
  void (*attention)(const AttentionArgs &, void *scratch, int64_t begin, int64_t end);
  void (*attention_merge)(const AttentionArgs &, int64_t begin, int64_t end); // a range is of sequences * heads
  void (*gelu)(const UnaryArgs &, int64_t begin, int64_t end);
  void (*silu_mul)(const SiluMulArgs &, int64_t begin, int64_t end);
  void (*linear)(const LinearArgs &, int64_t begin, int64_t end);
  // Rows times one panel of weights; `scratch` is panel_scratch_floats(rows) long.
  void (*panel_product)(const PanelMatrix &, int64_t panel, const PanelInput &, const PanelOutput &, float *scratch);
  // The same for up to max_panels_together neighbours.
  void (*panel_products)(const PanelMatrix &, int64_t panel, int64_t count, const PanelInput &, const PanelOutput &,
                         float *scratch);
  // `tiles` of an input (a range is of row tiles), and its rows in whole numbers for a quantised matrix.
  void (*make_tiles)(const PanelInput &, int64_t padded_inputs, uint16_t *tiles, int64_t begin, int64_t end);
  void (*round_rows)(const PanelMatrix &, const PanelInput &, const RoundedRows &);
  void (*split_rotate_store)(const QkvArgs &, int64_t begin, int64_t end);
  bool (*takes_tiles)();      // whether panel_product wants `tiles` from min_tile_rows on
  int64_t (*max_code_rows)(); // rows up to which codes stay bytes; for more they are widened, and it reads bf16 rows
  // Rows of a checkpoint into panels, see panel_fill.h, with room for fill_rows_unit rows in `rounded`, which bf16
  // values do without. Returns whether all magnitudes are up to `largest`; where one is not, what is stored means
  // nothing.
  bool (*fill_panel_rows)(const PanelMatrix &, const ValueArgs &, int64_t first_row, float largest, uint16_t *rounded);
};

// Whether a product wants `tiles` of its rows, or its rows in whole numbers; else it reads them as they are.
inline bool reads_tiles(const KernelSet &kernels, const PanelMatrix &matrix, int64_t rows) {
  const bool values = matrix.kind == WeightKind::bfloat16 || rows > kernels.max_code_rows();
  return kernels.takes_tiles() && rows >= min_tile_rows && values;
}
inline bool reads_whole_numbers(const KernelSet &kernels, const PanelMatrix &matrix, int64_t rows) {
  return matrix.kind != WeightKind::bfloat16 && rows <= kernels.max_code_rows();
}

// With `has_low` only where there are so many rows that inputs may do without.
inline RoundedRows rounded_for(const KernelSet &kernels, RoundedRows to, int64_t rows) {
  if (rows <= max_whole_rows || kernels.takes_tiles()) {
    to.has_low = nullptr;
  }
  return to;
}

// The functions of the active variant: the best compiled one that isa::active() allows.
COREBOUND_EXPORT const KernelSet &active_kernels();

// Rows (queries x heads) of a work item, a multiple of attention_query_tile. It depends on the batch alone.
COREBOUND_EXPORT int64_t attention_rows(const AttentionArgs &args);

// Work items of an attention call, and the scratch that one thread needs.
COREBOUND_EXPORT int64_t attention_items(const AttentionArgs &args);
COREBOUND_EXPORT int64_t attention_scratch_bytes(const AttentionArgs &args);

// In how many parts the keys of sequence `b` are taken, and the most of any; one where it has several queries.
COREBOUND_EXPORT int64_t attention_parts(const AttentionArgs &args, int64_t b);
COREBOUND_EXPORT int64_t attention_max_parts(const AttentionArgs &args);
// A head's results of a part, padded to whole vectors, then its largest score and the sum of its weights.
constexpr int64_t attention_partial_floats(int64_t head_dim) { return (head_dim + 15) / 16 * 16 + 16; }

} // namespace corebound::kernels
