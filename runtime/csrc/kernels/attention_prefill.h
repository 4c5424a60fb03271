// Attention of several queries. It is arithmetic: keys and values of a tile are widened and laid out once, then serve
// up to 64 rows (queries x heads) through a small register-blocked product.
#pragma once

#include "kernels/attention_rows.h"

COREBOUND_BEGIN_VARIANT

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
  for (int64_t begin = first_seen(args, item.first_position); begin < end; begin += key_tile) {
    const int64_t count = end - begin < key_tile ? end - begin : key_tile;
    const T *keys[pointer_count], *values[pointer_count];
    locate(args, item, begin, count, keys, values);
    lay_out(keys, values, count, args.head_dim, work);
    multiply(work.queries, work.dim, work.keys, key_tile, work.scores, key_tile, padded, key_tile, args.head_dim,
             false);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t position = item.first_position + r / heads;
      const int64_t ahead = position + 1 - begin, visible = ahead < 0 ? 0 : ahead < count ? ahead : count;
      const int64_t before = first_seen(args, position) - begin, hidden = before < 0 ? 0 : before;
      const float shrink =
          update_softmax(work.scores + r * key_tile, hidden, visible, args.scale,
                         slope_of(args, item.group.first + r % heads), begin - position, work.largest[r], work.sums[r]);
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

COREBOUND_END_VARIANT
