// Attention of several bf16 queries. A work item is up to 512 rows (queries x heads that read the same keys); keys and
// values of 256 positions are laid out once for all of them, then each block of 32 rows goes through scores, weights
// and results while these are in the cache. Blocks of keys begin at multiples of their size, whatever the item, and
// items do not depend on the number of threads: nor do results.
#pragma once

#include "kernels/attention_blocks.h"
#include "kernels/attention_weights.h"

COREBOUND_BEGIN_VARIANT

inline void load_bf16_queries(const AttentionArgs &args, const Item &item, const Bf16Work &work) {
  const int64_t heads = item.group.count, rows = item.num_queries * heads;
  const int64_t padded = (rows + block_rows - 1) / block_rows * block_rows;
  std::memset(work.queries, 0, static_cast<size_t>(padded * work.dim) * sizeof(uint16_t));
  std::memset(work.weights, 0, static_cast<size_t>(block_rows * block_keys) * sizeof(uint16_t));
  for (int64_t chunk = 0; chunk < work.chunks; ++chunk) {
    std::memset(work.result(chunk, 0), 0, static_cast<size_t>(padded * 64) * sizeof(float));
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t token = item.first_token + r / heads, head = item.group.first + r % heads;
    const uint16_t *q = static_cast<const uint16_t *>(args.q) + (token * args.heads + head) * args.head_dim;
    for (int64_t d = 0; d < args.head_dim; d += 32) {
      const int64_t count = args.head_dim - d < 32 ? args.head_dim - d : 32;
      std::memcpy(row_place(work.queries, work.dim, r, d), q + d, static_cast<size_t>(count) * sizeof(uint16_t));
    }
  }
  fill(work.largest, padded, -__builtin_inff());
  fill(work.sums, padded * 16, 0.0F);
}

// Takes `rows` rows from `row` on through the keys from position `begin` on, which are laid out up to `end`.
inline void attend_rows(const AttentionArgs &args, const Item &item, const Bf16Work &work, int64_t row, int64_t rows,
                        int64_t begin, int64_t end) {
  const int64_t heads = item.group.count;
  const int64_t first = item.first_position + row / heads, last = item.first_position + (row + rows - 1) / heads;
  // What none of the rows sees is left out, in steps of 32 keys.
  const int64_t from = first_seen(args, first) - begin, to = (last < end ? last + 1 : end) - begin;
  const int64_t first_key = from < 0 ? 0 : from / 32 * 32, end_key = (to + 31) / 32 * 32;
  if (first_key >= end_key) {
    return;
  }
  multiply_keys(work, row, rows, first_key, end_key);
  weigh_rows(args, item, work, {row, rows, begin, first_key, end_key});
  multiply_values(work, row, rows, first_key, end_key);
}

inline void leave_partials(const AttentionArgs &args, const Item &item, const Bf16Work &work, float *partials) {
  const int64_t dim = (args.head_dim + 15) / 16 * 16;
  for (int64_t r = 0; r < item.group.count; ++r) {
    float *to = partials + (item.group.first + r) * attention_partial_floats(args.head_dim);
    for (int64_t d = 0; d < dim; ++d) {
      to[d] = work.result(d / 64, r)[d % 64];
    }
    to[dim] = work.largest[r] / log2_of_e;
    to[dim + 1] = Vec::load(work.sums + r * 16).sum();
  }
}

// The keys of `range`, whose beginning is where blocks begin; a part of them is of one query only.
inline void attend_bf16_queries(const AttentionArgs &args, const Item &item, const KeyRange &range, void *scratch) {
  const Bf16Work work(args, scratch);
  [[maybe_unused]] const Tiles tiles{};
  const int64_t heads = item.group.count, rows = item.num_queries * heads;
  load_bf16_queries(args, item, work);
  for (int64_t begin = range.begin; begin < range.end; begin += block_keys) {
    const int64_t end = range.end - begin < block_keys ? range.end : begin + block_keys;
    for (int64_t at = begin; at < end; at += key_tile) {
      const int64_t count = end - at < key_tile ? end - at : key_tile;
      const bf16 *keys[pointer_count], *values[pointer_count];
      locate(args, item, at, count, keys, values);
      lay_out_block(keys, values, at - begin, count, args.head_dim, work);
    }
    for (int64_t row = 0; row < rows; row += block_rows) {
      attend_rows(args, item, work, row, rows - row < block_rows ? rows - row : block_rows, begin, end);
    }
  }
  if (range.partials) {
    return leave_partials(args, item, work, range.partials);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t token = item.first_token + r / heads, head = item.group.first + r % heads;
    bf16 *out = static_cast<bf16 *>(args.out) + (token * args.heads + head) * args.head_dim;
    const float sum = Vec::load(work.sums + r * 16).sum();
    for (int64_t chunk = 0; chunk < work.chunks; ++chunk) {
      const int64_t left = args.head_dim - chunk * 64;
      write_row(work.result(chunk, r), sum, left < 64 ? left : 64, out + chunk * 64);
    }
  }
}

COREBOUND_END_VARIANT
