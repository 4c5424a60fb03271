// What decode and prefill attention share: the unit of work, its memory, and the online softmax of a row.
#pragma once

#include "kernels/vec.h"

COREBOUND_BEGIN_VARIANT

constexpr int64_t key_tile = attention_key_tile;

// One thread's working memory, carved from `scratch`; all rows are padded to 16 floats.
struct Work {
  int64_t dim; // head_dim, padded
  float *queries, *results, *scores, *keys, *values, *largest, *sums;

  Work(const AttentionArgs &args, void *scratch) : dim((args.head_dim + 15) / 16 * 16) {
    queries = static_cast<float *>(scratch);
    results = queries + attention_query_tile * dim;
    scores = results + attention_query_tile * dim;
    keys = scores + attention_query_tile * key_tile;
    values = keys + key_tile * dim;
    largest = values + key_tile * dim;
    sums = largest + attention_query_tile;
  }
};

// Some queries of one sequence, for one group of heads.
struct Item {
  HeadGroup group;
  const int32_t *blocks;
  int64_t first_token; // of the whole batch
  int64_t num_queries;
  int64_t first_position; // in the sequence, of the first query
};

// Keys [begin, end) of an item; `partials` is where those of one query leave their part, [heads,
// attention_partial_floats], or null where they are all.
struct KeyRange {
  int64_t begin, end;
  float *partials;
};

inline void fill(float *p, int64_t count, float value) {
  for (int64_t i = 0; i < count; ++i) {
    p[i] = value;
  }
}

constexpr int64_t pointer_count = key_tile + 16; // the last pointer repeats, so that keys can be taken 16 at a time

// Pointers to the keys and values at positions [begin, begin + count) of the item's sequence and kv head.
template <class T>
void locate(const AttentionArgs &args, const Item &item, int64_t begin, int64_t count, const T **keys,
            const T **values) {
  int64_t index = begin / args.block_size, offset = begin % args.block_size;
  for (int64_t j = 0; j < count; ++index, offset = 0) { // block by block: a division for each key takes longer
    const int64_t first = item.blocks[index] * args.block_stride + item.group.kv_head * args.block_size * args.head_dim;
    for (; j < count && offset < args.block_size; ++j, ++offset) {
      keys[j] = static_cast<const T *>(args.key_cache) + first + offset * args.head_dim;
      values[j] = static_cast<const T *>(args.value_cache) + first + offset * args.head_dim;
    }
  }
  for (int64_t j = count; j < (count + 15) / 16 * 16; ++j) {
    keys[j] = keys[count - 1];
  }
}

struct Ramp {
  float values[key_tile];
};
constexpr Ramp make_ramp() {
  Ramp ramp{};
  for (int i = 0; i < key_tile; ++i) {
    ramp.values[i] = static_cast<float>(i);
  }
  return ramp;
}
constexpr Ramp ramp = make_ramp();

// The first position that the query at `position` sees.
inline int64_t first_seen(const AttentionArgs &args, int64_t position) {
  return args.window > 0 && position >= args.window ? position + 1 - args.window : 0;
}

// Turns the raw scores of a row into weights: scales the first `visible`, adds alibi, takes the exponentials, and
// zeroes the rest of the tile, and so the first `hidden`. Returns the factor by which results of earlier tiles shrink.
// A score that is NaN makes its weight NaN, and by the sum the whole row, whatever the maximum made of it.
inline float update_softmax(float *row, int64_t hidden, int64_t visible, float scale, float slope, int64_t distance,
                            float &largest, float &sum) {
  if (hidden >= visible) {
    hidden = visible = 0;
  }
  const Vec slopes = Vec::set(slope), start = Vec::set(slope * static_cast<float>(distance)), scales = Vec::set(scale);
  for (int64_t j = 0; j < visible; j += Vec::width) {
    fma(Vec::load(row + j), scales, fma(Vec::load(ramp.values + j), slopes, start)).store(row + j);
  }
  fill(row, hidden, -__builtin_inff());
  fill(row + visible, key_tile - visible, -__builtin_inff());
  Vec top = Vec::set(largest);
  for (int64_t j = 0; j < visible; j += Vec::width) {
    top = max(top, Vec::load(row + j));
  }
  const float before = largest;
  largest = top.largest();
  const Vec shift = Vec::set(largest);
  for (int64_t j = 0; j < visible; j += Vec::width) {
    exp(Vec::load(row + j) - shift).store(row + j);
  }
  fill(row, hidden, 0.0F);
  fill(row + visible, key_tile - visible, 0.0F);
  Vec total = Vec::zero();
  for (int64_t j = 0; j < visible; j += Vec::width) {
    total = total + Vec::load(row + j);
  }
  if (before == largest) {
    sum += total.sum();
    return 1.0F;
  }
  float shrink[Vec::width];
  exp(Vec::set(before - largest)).store(shrink);
  sum = sum * shrink[0] + total.sum();
  return shrink[0];
}

inline void shrink_row(float *row, int64_t dim, float factor) {
  if (factor == 1.0F) {
    return;
  }
  for (int64_t d = 0; d < dim; d += Vec::width) {
    (Vec::load(row + d) * Vec::set(factor)).store(row + d);
  }
}

template <class T> void write_row(const float *row, float sum, int64_t head_dim, T *out) {
  const Vec scale = Vec::set(1.0F / sum);
  for (int64_t d = 0; d < head_dim; d += Vec::width) {
    store_upto(Vec::load(row + d) * scale, out + d, head_dim - d);
  }
}

inline float slope_of(const AttentionArgs &args, int64_t head) {
  return args.alibi_slopes ? args.alibi_slopes[head] : 0.0F;
}

COREBOUND_END_VARIANT
