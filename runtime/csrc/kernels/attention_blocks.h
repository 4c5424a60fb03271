// Blocks of keys and values in the order in which this variant multiplies them, and the two products of attention:
// AMX tiles where the variant has them, else pairs as with panels of weights.
#pragma once

#include "kernels/attention_rows.h"
#include "kernels/panel_sums.h"
#ifdef __AMX_BF16__
#include "kernels/panel_amx.h"
#endif

COREBOUND_BEGIN_VARIANT

constexpr int64_t block_keys = attention_block_keys, block_rows = attention_row_block;
constexpr int64_t block_panels = block_keys / key_tile;

// One thread's working memory, carved from `scratch`; `rows` and dim are whole blocks.
struct Bf16Work {
  int64_t dim, chunks, max_rows;   // head_dim padded to 32; chunks of 64 dimensions
  char *keys, *values;             // a block of them
  uint16_t *queries, *weights;     // all rows; a block of them
  float *scores;                   // [panel of 64 keys][row of a block][64]
  float *results, *largest, *sums; // [chunk][row][64]; [row]; [row][16], to be added up

  Bf16Work(const AttentionArgs &args, void *scratch)
      : dim((args.head_dim + 31) / 32 * 32), chunks((args.head_dim + 63) / 64),
        max_rows(attention_max_rows(args.head_dim)) {
    keys = static_cast<char *>(scratch);
    values = keys + block_keys * dim * 2;
    queries = reinterpret_cast<uint16_t *>(values + block_keys * chunks * 128);
    weights = queries + max_rows * dim;
    scores = reinterpret_cast<float *>(weights + block_rows * block_keys);
    results = scores + block_rows * block_keys;
    largest = results + chunks * max_rows * 64;
    sums = largest + max_rows;
  }
  float *result(int64_t chunk, int64_t row) const { return results + (chunk * max_rows + row) * 64; }
};

#ifdef __AMX_BF16__

// Tiles of 16 rows x 32 columns, those of a row of tiles behind each other.
inline uint16_t *row_place(uint16_t *rows, int64_t columns, int64_t row, int64_t column) {
  return rows + (row / 16 * (columns / 32) + column / 32) * tile_size + row % 16 * 32 + column % 32;
}
// Of 16 keys, a pair of dimensions: tiles of 16 pairs, those of the same keys behind each other.
inline char *key_place(const Bf16Work &work, int64_t key, int64_t pair) {
  return work.keys + (key / 16 * (work.dim / 32) + pair / 16) * 1024 + pair % 16 * 64;
}
// Of a pair of keys, 16 dimensions.
inline char *value_place(const Bf16Work &work, int64_t key, int64_t d) {
  return work.values + (d / 16 * (block_keys / 32) + key / 32) * 1024 + key % 32 / 2 * 64;
}

// c[32 x 32], 64 floats a row, = (or +=) two row tiles times two column tiles over `steps` steps; the second of each is
// `stride` bytes behind the first. With one row tile only, c[16 x 32].
template <bool add, bool one_row_tile>
inline void multiply_square(const char *rows, int64_t row_stride, const char *columns, int64_t column_stride,
                            int64_t steps, float *c) {
  float *below = c + 16 * 64;
  if constexpr (add) {
    _tile_loadd(0, c, 256);
    _tile_loadd(1, c + 16, 256);
    if constexpr (!one_row_tile) {
      _tile_loadd(2, below, 256);
      _tile_loadd(3, below + 16, 256);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t step = 0; step < steps; ++step, rows += 1024, columns += 1024) {
    _tile_loadd(4, rows, 64);
    _tile_loadd(6, columns, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, columns + column_stride, 64);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (!one_row_tile) {
      _tile_loadd(5, rows + row_stride, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, 256);
  _tile_stored(1, c + 16, 256);
  if constexpr (!one_row_tile) {
    _tile_stored(2, below, 256);
    _tile_stored(3, below + 16, 256);
  }
}

// Scores of the block of rows from `row` on with keys [begin, end), multiples of 32.
inline void multiply_keys(const Bf16Work &work, int64_t row, int64_t num_rows, int64_t begin, int64_t end) {
  written_for_tiles();
  const int64_t steps = work.dim / 32;
  const auto multiply = num_rows > 16 ? multiply_square<false, false> : multiply_square<false, true>;
  const char *rows = reinterpret_cast<const char *>(work.queries + row * work.dim);
  for (int64_t key = begin; key < end; key += 32) {
    multiply(rows, steps * 1024, key_place(work, key, 0), steps * 1024, steps,
             work.scores + key / key_tile * block_rows * key_tile + key % key_tile);
  }
}

// Adds the weights of keys [begin, end) times their values to the results of the block of rows from `row` on.
inline void multiply_values(const Bf16Work &work, int64_t row, int64_t rows, int64_t begin, int64_t end) {
  written_for_tiles();
  constexpr int64_t stride = block_keys / 32 * 1024;
  const auto multiply = rows > 16 ? multiply_square<true, false> : multiply_square<true, true>;
  const char *weights = reinterpret_cast<const char *>(work.weights) + begin / 32 * 1024;
  for (int64_t d = 0; d < work.dim; d += 32) {
    multiply(weights, stride, value_place(work, begin, d), stride, (end - begin) / 32,
             work.result(d / 64, row) + d % 64);
  }
}

#else

struct Tiles {};
inline uint16_t *row_place(uint16_t *rows, int64_t columns, int64_t row, int64_t column) {
  return rows + row * columns + column;
}
// Panels of 64 keys, and of 64 dimensions.
inline char *key_place(const Bf16Work &work, int64_t key, int64_t pair) {
  return work.keys + key / 64 * work.dim * 128 + pair * 256 + key % 64 * 4;
}
inline char *value_place(const Bf16Work &work, int64_t key, int64_t d) {
  return work.values + d / 64 * block_keys * 128 + key / 2 * 256 + d % 64 * 4;
}

inline void multiply_keys(const Bf16Work &work, int64_t row, int64_t rows, int64_t begin, int64_t end) {
  for (int64_t panel = begin / 64; panel < (end + 63) / 64; ++panel) {
    float *scores = work.scores + panel * block_rows * key_tile;
    std::memset(scores, 0, static_cast<size_t>(rows * key_tile) * sizeof(float));
    add_rows<Pace<false>>(key_place(work, panel * 64, 0), work.dim / 2, work.queries + row * work.dim, work.dim, rows,
                          scores);
  }
}

inline void multiply_values(const Bf16Work &work, int64_t row, int64_t rows, int64_t begin, int64_t end) {
  for (int64_t chunk = 0; chunk < work.chunks; ++chunk) {
    add_rows<Pace<false>>(value_place(work, begin, chunk * 64), (end - begin) / 2, work.weights + begin, block_keys,
                          rows, work.result(chunk, row));
  }
}

#endif

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

// Sixteen keys' dimensions [d, d + 32), of which `count` exist.
inline void lay_out_keys(const bf16 *const *keys, int64_t num_keys, int64_t key, int64_t d, int64_t count,
                         const Bf16Work &work) {
#ifdef __AVX512F__
  const auto mask = static_cast<__mmask32>(count >= 32 ? 0xffffffffU : (1U << count) - 1);
  __m512i in[16], out[16];
  for (int64_t j = 0; j < 16; ++j) {
    in[j] = j < num_keys ? _mm512_maskz_loadu_epi16(mask, keys[j] + d) : _mm512_setzero_si512();
  }
  transpose(in, out);
  for (int64_t i = 0; i < 16; ++i) {
    _mm512_storeu_si512(key_place(work, key, d / 2 + i), out[i]);
  }
#else
  for (int64_t i = 0; i < 16; ++i) {
    uint16_t line[32] = {};
    for (int64_t j = 0; j < num_keys; ++j) {
      for (int64_t p = 0; p < 2 && 2 * i + p < count; ++p) {
        line[2 * j + p] = keys[j][d + 2 * i + p].bits;
      }
    }
    std::memcpy(key_place(work, key, d / 2 + i), line, 64);
  }
#endif
}

// Dimensions [d, d + 32), of which `count` exist, of two keys, or of one where `second` is null.
inline void lay_out_values(const bf16 *first, const bf16 *second, int64_t key, int64_t d, int64_t count,
                           const Bf16Work &work) {
#ifdef __AVX512F__
  const auto mask = static_cast<__mmask32>(count >= 32 ? 0xffffffffU : (1U << count) - 1);
  const __m512i a = first ? _mm512_maskz_loadu_epi16(mask, first + d) : _mm512_setzero_si512();
  const __m512i b = second ? _mm512_maskz_loadu_epi16(mask, second + d) : _mm512_setzero_si512();
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                       5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  _mm512_storeu_si512(value_place(work, key, d), _mm512_permutex2var_epi16(a, low, b));
  _mm512_storeu_si512(value_place(work, key, d + 16), _mm512_permutex2var_epi16(a, high, b));
#else
  uint16_t line[64] = {};
  for (int64_t i = 0; i < count && i < 32; ++i) {
    line[2 * i] = first ? first[d + i].bits : uint16_t{0};
    line[2 * i + 1] = second ? second[d + i].bits : uint16_t{0};
  }
  std::memcpy(value_place(work, key, d), line, 64);
  std::memcpy(value_place(work, key, d + 16), line + 32, 64);
#endif
}

// Lays out `count` keys and values from place `key` of the block on, at most 64, and zeros up to whole panels.
inline void lay_out_block(const bf16 *const *keys, const bf16 *const *values, int64_t key, int64_t count,
                          int64_t head_dim, const Bf16Work &work) {
  for (int64_t j = 0; j < key_tile; j += 16) {
    const int64_t left = count - j, num_keys = left < 0 ? 0 : left < 16 ? left : 16;
    for (int64_t d = 0; d < work.dim; d += 32) {
      lay_out_keys(keys + j, num_keys, key + j, d, head_dim - d, work);
    }
  }
  for (int64_t d = 0; d < work.dim; d += 32) {
    for (int64_t j = 0; j < key_tile; j += 2) {
      const bf16 *first = j < count ? values[j] : nullptr, *second = j + 1 < count ? values[j + 1] : nullptr;
      lay_out_values(first, second, key + j, d, head_dim - d, work);
    }
  }
}

COREBOUND_END_VARIANT
