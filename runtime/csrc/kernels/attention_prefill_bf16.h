// Attention of several bf16 queries, as products with panels: a tile of keys is a panel whose outputs are the keys, and
// a tile of values one whose inputs are the keys. So it runs on what the matrices run on, AMX tiles or bf16 dot
// products. The weights of the values are taken as two bf16 numbers, the second what the first lacks, so that nothing
// is lost.
#pragma once

#include "kernels/attention_rows.h"
#include "kernels/panel_sums.h"
#ifdef __AMX_BF16__
#include "kernels/panel_amx.h"
#endif

COREBOUND_BEGIN_VARIANT

constexpr int64_t query_rows = attention_query_tile;

// Rows of bf16 and panels of up to `max_head_dim` inputs, in the order in which this variant multiplies them.
#ifdef __AMX_BF16__
constexpr int64_t piece_pairs = tile_piece_inputs / 2, piece_bytes = 2 * half_piece_bytes;
inline char *panel_place(char *panel, int64_t pair, int64_t part) {
  return piece_place(panel + pair / piece_pairs * piece_bytes, pair % piece_pairs, part);
}
inline uint16_t *row_place(uint16_t *rows, int64_t columns, int64_t row, int64_t column) {
  return rows + (row / 16 * (columns / 32) + column / 32) * tile_size + row % 16 * 32 + column % 32;
}
inline void add_product(const uint16_t *rows, int64_t columns, int64_t num_rows, const char *panel, float *sums) {
  for (int64_t at = 0; at < columns; at += tile_piece_inputs) {
    add_tile_rows(rows + at / 32 * tile_size, columns * 16, (num_rows + 15) / 16,
                  smaller(tile_piece_inputs, columns - at) / 32, panel + at / tile_piece_inputs * piece_bytes, sums,
                  nullptr, 0);
  }
}
#else
struct Tiles {};
inline char *panel_place(char *panel, int64_t pair, int64_t part) { return panel + pair * 256 + part * 64; }
inline uint16_t *row_place(uint16_t *rows, int64_t columns, int64_t row, int64_t column) {
  return rows + row * columns + column;
}
inline void add_product(const uint16_t *rows, int64_t columns, int64_t num_rows, const char *panel, float *sums) {
  add_rows(panel, columns / 2, rows, columns, num_rows, sums);
}
#endif

constexpr int64_t panel_area = 512 / 2 * 256; // bytes: a panel of max_head_dim inputs, and of two tiles of keys

// One thread's working memory, carved from `scratch`.
struct Bf16Work {
  int64_t dim, chunks; // head_dim padded to 32; panels of 64 dimensions
  char *keys, *values; // one panel; one for each chunk
  uint16_t *queries, *weights, *rests;
  float *scores, *results, *largest, *sums; // results [chunk][row][64]

  Bf16Work(const AttentionArgs &args, void *scratch)
      : dim((args.head_dim + 31) / 32 * 32), chunks((args.head_dim + 63) / 64) {
    keys = static_cast<char *>(scratch);
    values = keys + panel_area;
    queries = reinterpret_cast<uint16_t *>(values + chunks * panel_area);
    weights = queries + query_rows * dim;
    rests = weights + query_rows * key_tile;
    scores = reinterpret_cast<float *>(rests + query_rows * key_tile);
    results = scores + query_rows * key_tile;
    largest = results + chunks * query_rows * 64;
    sums = largest + query_rows;
  }
};

inline void load_bf16_queries(const AttentionArgs &args, const Item &item, Bf16Work &work) {
  const int64_t heads = item.group.count, rows = item.num_queries * heads;
  std::memset(work.queries, 0, static_cast<size_t>(query_rows * work.dim) * 2);
  std::memset(work.weights, 0, static_cast<size_t>(query_rows * key_tile) * 4); // and the rests behind them
  std::memset(work.results, 0, static_cast<size_t>(work.chunks * query_rows * 64) * 4);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t token = item.first_token + r / heads, head = item.group.first + r % heads;
    const uint16_t *q = static_cast<const uint16_t *>(args.q) + (token * args.heads + head) * args.head_dim;
    for (int64_t d = 0; d < args.head_dim; d += 32) {
      const int64_t count = args.head_dim - d < 32 ? args.head_dim - d : 32;
      std::memcpy(row_place(work.queries, work.dim, r, d), q + d, static_cast<size_t>(count) * 2);
    }
    work.largest[r] = -__builtin_inff();
    work.sums[r] = 0.0F;
  }
}

#ifdef __AVX512F__
// out[i][j] = in[j][i], for 16 rows of 16 numbers.
inline void transpose(const __m512i (&in)[16], __m512i (&out)[16]) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(in[i], in[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(in[i], in[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    a[i] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0x88);
    a[i + 4] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0xdd);
    a[i + 8] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0x88);
    a[i + 12] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    out[i] = _mm512_shuffle_i32x4(a[i], a[i + 8], 0x88);
    out[i + 4] = _mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0x88);
    out[i + 8] = _mm512_shuffle_i32x4(a[i], a[i + 8], 0xdd);
    out[i + 12] = _mm512_shuffle_i32x4(a[i + 4], a[i + 12], 0xdd);
  }
}
#endif

// Sixteen keys' dimensions [d, d + 32), of which `count` exist, into the panel.
inline void lay_out_keys(const bf16 *const *keys, int64_t num_keys, int64_t d, int64_t count, int64_t part,
                         char *panel) {
#ifdef __AVX512F__
  const auto mask = static_cast<__mmask32>(count >= 32 ? 0xffffffffU : (1U << count) - 1);
  __m512i in[16], out[16];
  for (int64_t j = 0; j < 16; ++j) {
    in[j] = j < num_keys ? _mm512_maskz_loadu_epi16(mask, keys[j] + d) : _mm512_setzero_si512();
  }
  transpose(in, out);
  for (int64_t i = 0; i < 16; ++i) {
    _mm512_storeu_si512(panel_place(panel, d / 2 + i, part), out[i]);
  }
#else
  for (int64_t i = 0; i < 16; ++i) {
    uint16_t line[32] = {};
    for (int64_t j = 0; j < num_keys; ++j) {
      for (int64_t p = 0; p < 2 && 2 * i + p < count; ++p) {
        line[2 * j + p] = keys[j][d + 2 * i + p].bits;
      }
    }
    std::memcpy(panel_place(panel, d / 2 + i, part), line, 64);
  }
#endif
}

// Sixteen dimensions from `d` on, of which `count` exist, of two keys: what lies beyond them is zero.
inline void lay_out_values(const bf16 *first, const bf16 *second, int64_t d, int64_t count, char *to) {
  uint16_t line[32] = {};
  for (int64_t i = 0; i < count; ++i) {
    line[2 * i] = first ? first[d + i].bits : uint16_t{0};
    line[2 * i + 1] = second ? second[d + i].bits : uint16_t{0};
  }
  std::memcpy(to, line, 64);
}

inline void lay_out_tile(const bf16 *const *keys, const bf16 *const *values, int64_t count, int64_t head_dim,
                         Bf16Work &work) {
  for (int64_t part = 0; part < 4; ++part) {
    const int64_t left = count - part * 16, num_keys = left < 0 ? 0 : left < 16 ? left : 16;
    for (int64_t d = 0; d < work.dim; d += 32) {
      lay_out_keys(keys + part * 16, num_keys, d, head_dim - d < 32 ? head_dim - d : 32, part, work.keys);
    }
  }
  for (int64_t chunk = 0; chunk < work.chunks; ++chunk) {
    char *panel = work.values + chunk * panel_area;
    for (int64_t j = 0; j < key_tile; j += 2) {
      const bf16 *first = j < count ? values[j] : nullptr, *second = j + 1 < count ? values[j + 1] : nullptr;
      for (int64_t part = 0; part < 4; ++part) {
        const int64_t d = chunk * 64 + part * 16, left = head_dim - d;
        lay_out_values(first, second, d, left < 0 ? 0 : left < 16 ? left : 16, panel_place(panel, j / 2, part));
      }
    }
  }
}

inline void attend_bf16_queries(const AttentionArgs &args, const Item &item, void *scratch) {
  Bf16Work work(args, scratch);
  [[maybe_unused]] const Tiles tiles{};
  const int64_t heads = item.group.count, rows = item.num_queries * heads;
  load_bf16_queries(args, item, work);
  const int64_t end = item.first_position + item.num_queries;
  for (int64_t begin = first_seen(args, item.first_position); begin < end; begin += key_tile) {
    const int64_t count = end - begin < key_tile ? end - begin : key_tile;
    const bf16 *keys[pointer_count], *values[pointer_count];
    locate(args, item, begin, count, keys, values);
    lay_out_tile(keys, values, count, args.head_dim, work);
    std::memset(work.scores, 0, static_cast<size_t>(query_rows * key_tile) * 4);
    add_product(work.queries, work.dim, rows, work.keys, work.scores);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t position = item.first_position + r / heads;
      const int64_t ahead = position + 1 - begin, visible = ahead < 0 ? 0 : ahead < count ? ahead : count;
      const int64_t before = first_seen(args, position) - begin, hidden = before < 0 ? 0 : before;
      float *row = work.scores + r * key_tile;
      const float shrink =
          update_softmax(row, hidden, visible, args.scale, slope_of(args, item.group.first + r % heads),
                         begin - position, work.largest[r], work.sums[r]);
      for (int64_t chunk = 0; chunk < work.chunks; ++chunk) {
        shrink_row(work.results + (chunk * query_rows + r) * 64, 64, shrink);
      }
      for (int64_t j = 0; j < key_tile; j += Vec::width) {
        bf16 *rounded = reinterpret_cast<bf16 *>(row_place(work.weights, key_tile, r, j));
        const Vec weight = Vec::load(row + j);
        weight.store(rounded);
        (weight - Vec::load(rounded)).store(reinterpret_cast<bf16 *>(row_place(work.rests, key_tile, r, j)));
      }
    }
    for (int64_t chunk = 0; chunk < work.chunks; ++chunk) {
      const char *panel = work.values + chunk * panel_area;
      add_product(work.weights, key_tile, rows, panel, work.results + chunk * query_rows * 64);
      add_product(work.rests, key_tile, rows, panel, work.results + chunk * query_rows * 64);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t token = item.first_token + r / heads, head = item.group.first + r % heads;
    bf16 *out = static_cast<bf16 *>(args.out) + (token * args.heads + head) * args.head_dim;
    for (int64_t chunk = 0; chunk < work.chunks; ++chunk) {
      const int64_t left = args.head_dim - chunk * 64;
      write_row(work.results + (chunk * query_rows + r) * 64, work.sums[r], left < 64 ? left : 64, out + chunk * 64);
    }
  }
}

COREBOUND_END_VARIANT
