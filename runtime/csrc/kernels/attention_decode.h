// Attention of one query. It is bound by memory, so the heads that share a kv head go over the cache together and every
// key and value is read once.
#pragma once

#include "kernels/attention_rows.h"
#include "kernels/dot.h"

COREBOUND_BEGIN_VARIANT

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

// One query: M consecutive heads from `head` on.
template <class T, int M>
void attend_query(const AttentionArgs &args, const Item &item, const KeyRange &range, int64_t head, Work &work) {
  const int64_t offset = (item.first_token * args.heads + head) * args.head_dim;
  const T *q = static_cast<const T *>(args.q) + offset;
  T *out = static_cast<T *>(args.out) + offset;
  const int64_t position = item.first_position;
  fill(work.results, M * work.dim, 0.0F);
  fill(work.largest, M, -__builtin_inff());
  fill(work.sums, M, 0.0F);
  for (int64_t begin = range.begin; begin < range.end; begin += key_tile) {
    const int64_t count = range.end - begin < key_tile ? range.end - begin : key_tile;
    const T *keys[pointer_count], *values[pointer_count];
    locate(args, item, begin, count, keys, values);
    score_keys<T, M>(q, keys, count, args.head_dim, work.scores);
    for (int m = 0; m < M; ++m) {
      const float shrink = update_softmax(work.scores + m * key_tile, 0, count, args.scale, slope_of(args, head + m),
                                          begin - position, work.largest[m], work.sums[m]);
      shrink_row(work.results + m * work.dim, work.dim, shrink);
    }
    add_weighted<T, M>(work.scores, values, count, args.head_dim, work.dim, work.results);
  }
  for (int m = 0; m < M; ++m) {
    if (range.partials) {
      float *to = range.partials + (head + m) * attention_partial_floats(args.head_dim);
      for (int64_t d = 0; d < work.dim; d += Vec::width) {
        Vec::load(work.results + m * work.dim + d).store(to + d);
      }
      to[work.dim] = work.largest[m];
      to[work.dim + 1] = work.sums[m];
      continue;
    }
    write_row(work.results + m * work.dim, work.sums[m], args.head_dim, out + m * args.head_dim);
  }
}

template <class T>
void attend_one_query(const AttentionArgs &args, const Item &item, const KeyRange &range, Work &work) {
  const int64_t end = item.group.first + item.group.count;
  for (int64_t head = item.group.first; head < end;) {
    const int64_t left = end - head;
    if (left >= 8) {
      attend_query<T, 8>(args, item, range, head, work);
      head += 8;
    } else if (left >= 4) {
      attend_query<T, 4>(args, item, range, head, work);
      head += 4;
    } else if (left >= 2) {
      attend_query<T, 2>(args, item, range, head, work);
      head += 2;
    } else {
      attend_query<T, 1>(args, item, range, head, work);
      head += 1;
    }
  }
}

// Puts the parts of sequence `b` together for one head.
template <class T> void merge_parts(const AttentionArgs &args, int64_t b, int64_t head) {
  const int64_t dim = (args.head_dim + 15) / 16 * 16, row = attention_partial_floats(args.head_dim);
  const int64_t parts = attention_parts(args, b);
  const float *first = args.partials + (b * args.max_parts * args.heads + head) * row;
  const auto part = [&](int64_t p) { return first + p * args.heads * row; };
  float largest = part(0)[dim];
  for (int64_t p = 1; p < parts; ++p) {
    largest = part(p)[dim] > largest ? part(p)[dim] : largest;
  }
  alignas(64) float results[max_head_dim];
  fill(results, dim, 0.0F);
  float sum = 0;
  for (int64_t p = 0; p < parts; ++p) {
    const Vec weight = exp(Vec::set(part(p)[dim] - largest));
    float weights[Vec::width];
    weight.store(weights);
    sum += weights[0] * part(p)[dim + 1];
    for (int64_t d = 0; d < dim; d += Vec::width) {
      fma(weight, Vec::load(part(p) + d), Vec::load(results + d)).store(results + d);
    }
  }
  T *out = static_cast<T *>(args.out) + (args.query_starts[b] * args.heads + head) * args.head_dim;
  write_row(results, sum, args.head_dim, out);
}

COREBOUND_END_VARIANT
