// Attention of one query of several heads that share a kv head, by tiles straight from the cache. Keys lie there as a
// tile takes its rows, so that queries are the columns, and values as it takes pairs of columns: times (weight, 0) a
// pair gives its first number, times (0, weight) its second, so that every head has two rows of weights. Nothing of the
// cache is laid out anew, and what comes next is fetched meanwhile.
#pragma once

#include "kernels/attention_weights.h"

#ifdef __AMX_BF16__

COREBOUND_BEGIN_VARIANT

constexpr int64_t group_keys = 16, batch_groups = 4;                 // keys of a tile; tiles taken together
constexpr int64_t max_groups = attention_part_keys / group_keys + 1; // keys need not begin where a group does
constexpr int64_t max_chunks = max_head_dim / 32;                    // of 32 dimensions, those of a tile
constexpr int64_t fetch_groups = 4;                                  // of keys or values, fetched ahead

// What `H` places for heads take of a thread's working memory.
template <int H> struct alignas(64) SingleWork {
  uint32_t queries[max_chunks][16][H];                               // pairs of dimensions
  float scores[max_groups * group_keys][H];                          // raw, of a key
  uint32_t weights[batch_groups][2 * H][group_keys];                 // (weight, 0) of each head, then (0, weight)
  float sums[max_chunks][2 * H][16], results[max_chunks][2 * H][16]; // even dimensions of each head, then odd ones
  uint16_t edges[2][group_keys * max_head_dim];                      // first and last values where not all are seen
};

// The scratch of any attention holds the results of several queries, which is more.
static_assert(sizeof(SingleWork<8>) <= sizeof(float) * attention_max_rows(64) * 64);

// The keys, then the values of some groups, and a few keys after those, for fetching.
struct Places {
  const char *keys[max_groups], *values[max_groups];
  const char *stream[2 * max_groups + fetch_groups];
  int64_t count = 0, next = 0, bytes = 0;

  // Some bytes of one of the groups to be fetched next.
  void fetch_some(int64_t group, int64_t from, int64_t size) const {
    const char *line = stream[next + group] + from;
    for (const char *end = line + size; line < end; line += 64) {
      _mm_prefetch(line, _MM_HINT_T1); // the first-level cache has too few places for what is on its way
    }
  }
  void fetch() {
    fetch_some(0, 0, bytes);
    ++next;
  }
};

// The shapes of tiles for scores, or for values; tiles are configured while this lives.
template <int H> class SingleTiles {
public:
  explicit SingleTiles(bool keys) {
    TileShapes shapes;
    for (int i = 0; i < 8; ++i) {
      // Scores are 0 to 3, queries 4; then sums 0 to 3, weights 4 and 6.
      shapes.row_bytes[i] = keys && i <= 4 ? 4 * H : 64;
      shapes.rows[i] = keys || i == 5 || i == 7 ? 16 : 2 * H;
    }
    asm volatile("" ::"r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
  }
  ~SingleTiles() { _tile_release(); }
  SingleTiles(const SingleTiles &) = delete;
  SingleTiles &operator=(const SingleTiles &) = delete;
};

// Raw scores of a batch of groups. Fetching is spread over it, since loads wait where too many lines are on their way.
template <int H>
inline void score_batch(const SingleWork<H> &work, Places &places, const char *const *keys, int64_t row_bytes,
                        float *scores) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t from = 0; from < row_bytes; from += 64) {
    _tile_loadd(4, work.queries[from / 64], 4 * H);
    _tile_loadd(5, keys[0] + from, row_bytes);
    _tile_dpbf16ps(0, 5, 4);
    places.fetch_some(0, from * group_keys, 64 * group_keys);
    _tile_loadd(6, keys[1] + from, row_bytes);
    _tile_dpbf16ps(1, 6, 4);
    places.fetch_some(1, from * group_keys, 64 * group_keys);
    _tile_loadd(7, keys[2] + from, row_bytes);
    _tile_dpbf16ps(2, 7, 4);
    places.fetch_some(2, from * group_keys, 64 * group_keys);
    _tile_loadd(5, keys[3] + from, row_bytes);
    _tile_dpbf16ps(3, 5, 4);
    places.fetch_some(3, from * group_keys, 64 * group_keys);
  }
  places.next += batch_groups;
  _tile_stored(0, scores, 4 * H);
  _tile_stored(1, scores + group_keys * H, 4 * H);
  _tile_stored(2, scores + 2 * group_keys * H, 4 * H);
  _tile_stored(3, scores + 3 * group_keys * H, 4 * H);
}

template <int H>
inline void score_group(const SingleWork<H> &work, const char *keys, int64_t row_bytes, float *scores) {
  _tile_zero(0);
  for (int64_t from = 0; from < row_bytes; from += 64) {
    _tile_loadd(4, work.queries[from / 64], 4 * H);
    _tile_loadd(5, keys + from, row_bytes);
    _tile_dpbf16ps(0, 5, 4);
  }
  _tile_stored(0, scores, 4 * H);
}

// Adds weights times values of `count` groups, for 32 * C dimensions. Up to two tiles of sums are kept twice, for odd
// groups again, since one product waits for another.
template <int H, int C, bool twice = C <= 2>
inline void add_groups(const SingleWork<H> &work, const char *const *values, int64_t from, int64_t count,
                       int64_t row_bytes) {
  for (int64_t g = 0; g < count; ++g) {
    const char *value = values[g] + from;
    if (twice && g % 2 == 1) {
      _tile_loadd(6, work.weights[g], 64);
      _tile_loadd(7, value, row_bytes);
      _tile_dpbf16ps(2, 6, 7);
      if constexpr (C == 2) {
        _tile_loadd(5, value + 64, row_bytes);
        _tile_dpbf16ps(3, 6, 5);
      }
      continue;
    }
    _tile_loadd(4, work.weights[g], 64);
    _tile_loadd(5, value, row_bytes);
    _tile_dpbf16ps(0, 4, 5);
    if constexpr (C > 1) {
      _tile_loadd(7, value + 64, row_bytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (C > 2) {
      _tile_loadd(5, value + 128, row_bytes);
      _tile_dpbf16ps(2, 4, 5);
    }
    if constexpr (C > 3) {
      _tile_loadd(7, value + 192, row_bytes);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
}

// Sixteen keys' scores as weights rounded to bf16, a head behind the other; adds them to `sum`.
template <int H> inline void weigh_group(const float *scores, Vec scale, Vec shift, uint32_t *weights, Vec &sum) {
  const __m512i half = _mm512_set1_epi32(0x8000), kept = _mm512_set1_epi32(static_cast<int>(0xffff0000U));
  __m512i a[H], b[H];
#pragma GCC unroll 8
  for (int i = 0; i < H; ++i) {
    const Vec weight = power_of_two(fma(Vec::load(scores + 16 * i), scale, shift));
    a[i] = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(weight.v), half), kept);
    sum = sum + Vec{_mm512_castsi512_ps(a[i])};
  }
  // Each step takes one bit of the head from the places in a vector to the number of the vector, and one of the key
  // back.
  if constexpr (H == 8) {
    for (int i = 0; i < 4; ++i) {
      b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
      b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
    }
    for (int i = 0; i < 8; i += 4) {
      for (int j = 0; j < 2; ++j) {
        a[i + j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
        a[i + j + 2] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
      }
    }
  } else {
    for (int j = 0; j < 2; ++j) {
      b[j] = _mm512_unpacklo_epi64(a[j], a[j + 2]);
      b[j + 2] = _mm512_unpackhi_epi64(a[j], a[j + 2]);
    }
    for (int i = 0; i < 4; ++i) {
      a[i] = b[i];
    }
  }
  const __m512i even = H == 8 ? _mm512_setr_epi32(0, 4, 16, 20, 2, 6, 18, 22, 8, 12, 24, 28, 10, 14, 26, 30)
                              : _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 2, 6, 10, 14, 18, 22, 26, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
#pragma GCC unroll 8
  for (int i = 0; i < H; i += 2) {
    const __m512i first = _mm512_permutex2var_epi32(a[i], even, a[i + 1]);
    const __m512i second = _mm512_permutex2var_epi32(a[i], odd, a[i + 1]);
    _mm512_store_si512(weights + (H + i) * 16, first);
    _mm512_store_si512(weights + (H + i + 1) * 16, second);
    _mm512_store_si512(weights + i * 16, _mm512_srli_epi32(first, 16));
    _mm512_store_si512(weights + (i + 1) * 16, _mm512_srli_epi32(second, 16));
  }
}

COREBOUND_END_VARIANT

#endif
