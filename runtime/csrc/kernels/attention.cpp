// Causal attention over the blocked cache with an online softmax: scores exist for 64 keys at a time only.
//
// One query (decode) is bound by memory: its heads that share a kv head go over the cache together, so every key and
// value is read once. Several queries (prefill) are arithmetic: keys and values of a tile are widened and laid out
// once, then serve up to 64 rows (queries x heads) through a small register-blocked product.
#include "kernels/dot.h"
#include "kernels/ops_internal.h"

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
  for (int64_t j = 0; j < count; ++j) {
    const int64_t position = begin + j;
    const int64_t block = item.blocks[position / args.block_size], offset = position % args.block_size;
    const int64_t row = ((block * args.kv_heads + item.group.kv_head) * args.block_size + offset) * args.head_dim;
    keys[j] = static_cast<const T *>(args.key_cache) + row;
    values[j] = static_cast<const T *>(args.value_cache) + row;
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

// Turns the raw scores of a row into weights: scales the first `visible`, adds alibi, takes the exponentials, and
// zeroes the rest of the tile. Returns the factor by which results of earlier tiles shrink.
inline float update_softmax(float *row, int64_t visible, float scale, float slope, int64_t distance, float &largest,
                            float &sum) {
  const Vec slopes = Vec::set(slope), start = Vec::set(slope * static_cast<float>(distance)), scales = Vec::set(scale);
  for (int64_t j = 0; j < visible; j += Vec::width) {
    fma(Vec::load(row + j), scales, fma(Vec::load(ramp.values + j), slopes, start)).store(row + j);
  }
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

// results[m] += sum over j of weights[m][j] * values[j], for M rows and V vectors of columns from `from` on.
template <class T, int M, int V>
void add_weighted_columns(const float *weights, const T *const *values, int64_t count, int64_t from, int64_t head_dim,
                          int64_t dim, float *results) {
  Vec acc[M][V];
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < V; ++v) {
      acc[m][v] = Vec::load(results + m * dim + from + v * Vec::width);
    }
  }
  for (int64_t j = 0; j < count; ++j) {
    Vec value[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const int64_t d = from + v * Vec::width;
      value[v] = V > 1 ? Vec::load(values[j] + d) : load_upto(values[j] + d, head_dim - d);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Vec weight = Vec::set(weights[m * key_tile + j]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        acc[m][v] = fma(weight, value[v], acc[m][v]);
      }
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < V; ++v) {
      acc[m][v].store(results + m * dim + from + v * Vec::width);
    }
  }
}

template <class T, int M>
void add_weighted(const float *weights, const T *const *values, int64_t count, int64_t head_dim, int64_t dim,
                  float *results) {
  constexpr int registers = Vec::width == 16 ? 16 : 8;
  constexpr int together = registers / M < 4 ? registers / M : 4;
  int64_t d = 0;
  if constexpr (together > 1) {
    for (; d + together * Vec::width <= head_dim; d += together * Vec::width) {
      add_weighted_columns<T, M, together>(weights, values, count, d, head_dim, dim, results);
    }
  }
  for (; d < head_dim; d += Vec::width) {
    add_weighted_columns<T, M, 1>(weights, values, count, d, head_dim, dim, results);
  }
}

// Raw scores of `count` keys, rounded up to whole groups: those beyond are of the last key again.
template <class T, int M>
void score_keys(const T *q, const T *const *keys, int64_t count, int64_t head_dim, float *scores) {
  // As many products at once as sum_each folds in one go.
  constexpr int together = Vec::width > M ? Vec::width / M : 1;
  float out[M * together];
  for (int64_t j = 0; j < count; j += together) {
    dot_block<M, together, 1, true>(q, head_dim, keys + j, head_dim, out);
    for (int m = 0; m < M; ++m) {
      for (int s = 0; s < together; ++s) {
        scores[m * key_tile + j + s] = out[m * together + s];
      }
    }
  }
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

// One query: M consecutive heads from `head` on.
template <class T, int M> void attend_query(const AttentionArgs &args, const Item &item, int64_t head, Work &work) {
  const int64_t offset = (item.first_token * args.heads + head) * args.head_dim;
  const T *q = static_cast<const T *>(args.q) + offset;
  T *out = static_cast<T *>(args.out) + offset;
  const int64_t position = item.first_position;
  fill(work.results, M * work.dim, 0.0F);
  fill(work.largest, M, -__builtin_inff());
  fill(work.sums, M, 0.0F);
  for (int64_t begin = 0; begin <= position; begin += key_tile) {
    const int64_t count = position + 1 - begin < key_tile ? position + 1 - begin : key_tile;
    const T *keys[pointer_count], *values[pointer_count];
    locate(args, item, begin, count, keys, values);
    score_keys<T, M>(q, keys, count, args.head_dim, work.scores);
    for (int m = 0; m < M; ++m) {
      const float shrink = update_softmax(work.scores + m * key_tile, count, args.scale, slope_of(args, head + m),
                                          begin - position, work.largest[m], work.sums[m]);
      shrink_row(work.results + m * work.dim, work.dim, shrink);
    }
    add_weighted<T, M>(work.scores, values, count, args.head_dim, work.dim, work.results);
  }
  for (int m = 0; m < M; ++m) {
    write_row(work.results + m * work.dim, work.sums[m], args.head_dim, out + m * args.head_dim);
  }
}

template <class T> void attend_one_query(const AttentionArgs &args, const Item &item, Work &work) {
  const int64_t end = item.group.first + item.group.count;
  for (int64_t head = item.group.first; head < end;) {
    const int64_t left = end - head;
    if (left >= 8) {
      attend_query<T, 8>(args, item, head, work);
      head += 8;
    } else if (left >= 4) {
      attend_query<T, 4>(args, item, head, work);
      head += 4;
    } else if (left >= 2) {
      attend_query<T, 2>(args, item, head, work);
      head += 2;
    } else {
      attend_query<T, 1>(args, item, head, work);
      head += 1;
    }
  }
}

// c[R x N] = (or +=) a[R x depth] * b[depth x N] for R rows and V vectors of columns, in registers.
template <int R, int V>
void multiply_block(const float *a, int64_t lda, const float *b, int64_t ldb, float *c, int64_t ldc, int64_t depth,
                    bool accumulate) {
  Vec acc[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      acc[r][v] = accumulate ? Vec::load(c + r * ldc + v * Vec::width) : Vec::zero();
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec column[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      column[v] = Vec::load(b + k * ldb + v * Vec::width);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec factor = Vec::set(a[r * lda + k]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        acc[r][v] = fma(factor, column[v], acc[r][v]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      acc[r][v].store(c + r * ldc + v * Vec::width);
    }
  }
}

constexpr int64_t row_block = 4;

// The same for any multiple of `row_block` rows and of 16 columns.
inline void multiply(const float *a, int64_t lda, const float *b, int64_t ldb, float *c, int64_t ldc, int64_t rows,
                     int64_t columns, int64_t depth, bool accumulate) {
  constexpr int wide = Vec::width == 16 ? 4 : 2;
  for (int64_t r = 0; r < rows; r += row_block) {
    int64_t n = 0;
    for (; n + wide * Vec::width <= columns; n += wide * Vec::width) {
      multiply_block<row_block, wide>(a + r * lda, lda, b + n, ldb, c + r * ldc + n, ldc, depth, accumulate);
    }
    for (; n < columns; n += Vec::width) {
      multiply_block<row_block, 1>(a + r * lda, lda, b + n, ldb, c + r * ldc + n, ldc, depth, accumulate);
    }
  }
}

// Keys as [head_dim, key_tile], values as [key_tile, dim], both widened; what lies beyond `count` is zero.
template <class T>
void lay_out(const T *const *keys, const T *const *values, int64_t count, int64_t head_dim, Work &work) {
  float widened[max_head_dim + 16];
  for (int64_t j = 0; j < key_tile; ++j) {
    float *value = work.values + j * work.dim;
    if (j >= count) {
      fill(value, work.dim, 0.0F);
      fill(widened, head_dim, 0.0F);
    } else {
      for (int64_t d = 0; d < head_dim; d += Vec::width) {
        load_upto(values[j] + d, head_dim - d).store(value + d);
        load_upto(keys[j] + d, head_dim - d).store(widened + d);
      }
    }
    for (int64_t d = 0; d < head_dim; ++d) {
      work.keys[d * key_tile + j] = widened[d];
    }
  }
}

// Widens the rows (query-major, then head) into the work area, padded with zero rows to a multiple of row_block.
template <class T> int64_t load_queries(const AttentionArgs &args, const Item &item, Work &work) {
  const int64_t rows = item.num_queries * item.group.count, padded = (rows + row_block - 1) / row_block * row_block;
  fill(work.queries, padded * work.dim, 0.0F);
  fill(work.results, padded * work.dim, 0.0F);
  fill(work.scores, padded * key_tile, 0.0F);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t token = item.first_token + r / item.group.count, head = item.group.first + r % item.group.count;
    const T *q = static_cast<const T *>(args.q) + (token * args.heads + head) * args.head_dim;
    for (int64_t d = 0; d < args.head_dim; d += Vec::width) {
      load_upto(q + d, args.head_dim - d).store(work.queries + r * work.dim + d);
    }
  }
  fill(work.largest, rows, -__builtin_inff());
  fill(work.sums, rows, 0.0F);
  return padded;
}

template <class T> void attend_queries(const AttentionArgs &args, const Item &item, Work &work) {
  const int64_t heads = item.group.count, rows = item.num_queries * heads;
  const int64_t padded = load_queries<T>(args, item, work);
  const int64_t end = item.first_position + item.num_queries;
  for (int64_t begin = 0; begin < end; begin += key_tile) {
    const int64_t count = end - begin < key_tile ? end - begin : key_tile;
    const T *keys[pointer_count], *values[pointer_count];
    locate(args, item, begin, count, keys, values);
    lay_out(keys, values, count, args.head_dim, work);
    multiply(work.queries, work.dim, work.keys, key_tile, work.scores, key_tile, padded, key_tile, args.head_dim,
             false);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t position = item.first_position + r / heads;
      const int64_t ahead = position + 1 - begin, visible = ahead < 0 ? 0 : ahead < count ? ahead : count;
      const float shrink =
          update_softmax(work.scores + r * key_tile, visible, args.scale, slope_of(args, item.group.first + r % heads),
                         begin - position, work.largest[r], work.sums[r]);
      shrink_row(work.results + r * work.dim, work.dim, shrink);
    }
    multiply(work.scores, key_tile, work.values, work.dim, work.results, work.dim, padded, work.dim, key_tile, true);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t token = item.first_token + r / heads, head = item.group.first + r % heads;
    T *out = static_cast<T *>(args.out) + (token * args.heads + head) * args.head_dim;
    write_row(work.results + r * work.dim, work.sums[r], args.head_dim, out);
  }
}

template <class T> void attention_range(const AttentionArgs &args, void *scratch, int64_t begin, int64_t end) {
  Work work(args, scratch);
  int64_t index = 0;
  for (int64_t b = 0; b < args.sequences; ++b) {
    const int64_t start = args.query_starts[b], queries = args.query_starts[b + 1] - start;
    for (int64_t g = 0; g < args.num_groups; ++g) {
      const int64_t tile = queries_per_item(args.groups[g].count);
      for (int64_t first = 0; first < queries; first += tile, ++index) {
        if (index < begin || index >= end) {
          continue;
        }
        const Item item = {args.groups[g], args.block_tables + b * args.max_blocks, start + first,
                           queries - first < tile ? queries - first : tile, args.context_lengths[b] - queries + first};
        if (item.num_queries == 1) {
          attend_one_query<T>(args, item, work);
        } else {
          attend_queries<T>(args, item, work);
        }
      }
    }
  }
}

COREBOUND_END_VARIANT

namespace corebound::kernels::COREBOUND_VARIANT {

void attention(const AttentionArgs &args, void *scratch, int64_t begin, int64_t end) {
  with_dtype(args.dtype, [&]<class T>(T *) { attention_range<T>(args, scratch, begin, end); });
}

} // namespace corebound::kernels::COREBOUND_VARIANT
