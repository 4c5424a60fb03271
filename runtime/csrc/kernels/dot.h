// Dot products of M vectors x with S vectors w at once: the core of the matrix-vector product and of decode attention.
#pragma once

#include "kernels/vec.h"

COREBOUND_BEGIN_VARIANT

// Stores the sum of each of `count` vectors; folded, that takes a third of the time but other roundings.
template <int count, bool folded> inline void store_sums(const Vec *vectors, float *out) {
  if constexpr (folded && count % Vec::width == 0) {
    for (int i = 0; i < count; i += Vec::width) {
      sum_each(vectors + i).store(out + i);
    }
  } else {
    for (int i = 0; i < count; ++i) {
      out[i] = vectors[i].sum();
    }
  }
}

// out[m * S + s] = sum over k of x[m * ldx + k] * w[s][k]. U accumulators for every pair hide the latency of the
// multiply-add; M * S * U of them should fit the registers. Without `folded`, a result does not depend on S.
template <int M, int S, int U, bool folded, class T>
inline void dot_block(const T *x, int64_t ldx, const T *const *w, int64_t length, float *out) {
  Vec acc[M][S][U];
  for (int m = 0; m < M; ++m) {
    for (int s = 0; s < S; ++s) {
      for (int u = 0; u < U; ++u) {
        acc[m][s][u] = Vec::zero();
      }
    }
  }
  int64_t k = 0;
  for (; k + U * Vec::width <= length; k += U * Vec::width) {
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
      const int64_t at = k + u * Vec::width;
      Vec row[S];
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) {
        row[s] = Vec::load(w[s] + at);
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const Vec in = Vec::load(x + m * ldx + at);
#pragma GCC unroll 8
        for (int s = 0; s < S; ++s) {
          acc[m][s][u] = fma(in, row[s], acc[m][s][u]);
        }
      }
    }
  }
  for (; k < length; k += Vec::width) {
    for (int m = 0; m < M; ++m) {
      const Vec in = load_upto(x + m * ldx + k, length - k);
      for (int s = 0; s < S; ++s) {
        acc[m][s][0] = fma(in, load_upto(w[s] + k, length - k), acc[m][s][0]);
      }
    }
  }
  Vec totals[M * S];
  for (int m = 0; m < M; ++m) {
    for (int s = 0; s < S; ++s) {
      totals[m * S + s] = acc[m][s][0];
      for (int u = 1; u < U; ++u) {
        totals[m * S + s] = totals[m * S + s] + acc[m][s][u];
      }
    }
  }
  store_sums<M * S, folded>(totals, out);
}

#ifdef __AVX512BF16__
// A stream that misses every cache arrives up to a tenth faster when a line is asked for in two loads: the prefetcher
// then stays ahead of them.
inline __m512i load_by_halves(const bf16 *p) {
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
  const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p + 16));
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

// The same by the processor's own bf16 dot product: 32 elements an instruction, nothing to widen.
template <int M, int S, int U, bool folded>
inline void dot_block(const bf16 *x, int64_t ldx, const bf16 *const *w, int64_t length, float *out) {
  constexpr int64_t step = 32;
  __m512 acc[M][S][U];
  for (int m = 0; m < M; ++m) {
    for (int s = 0; s < S; ++s) {
      for (int u = 0; u < U; ++u) {
        acc[m][s][u] = _mm512_setzero_ps();
      }
    }
  }
  int64_t k = 0;
  for (; k + U * step <= length; k += U * step) {
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
      const int64_t at = k + u * step;
      __m512bh row[S];
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) {
        row[s] = reinterpret_cast<__m512bh>(M == 1 ? load_by_halves(w[s] + at) : _mm512_loadu_si512(w[s] + at));
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const __m512bh in = reinterpret_cast<__m512bh>(_mm512_loadu_si512(x + m * ldx + at));
#pragma GCC unroll 8
        for (int s = 0; s < S; ++s) {
          acc[m][s][u] = _mm512_dpbf16_ps(acc[m][s][u], in, row[s]);
        }
      }
    }
  }
  for (; k < length; k += step) {
    const __mmask32 mask = length - k >= step ? ~__mmask32{0} : (__mmask32{1} << (length - k)) - 1;
    for (int m = 0; m < M; ++m) {
      const __m512bh in = reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16(mask, x + m * ldx + k));
      for (int s = 0; s < S; ++s) {
        const __m512bh row = reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16(mask, w[s] + k));
        acc[m][s][0] = _mm512_dpbf16_ps(acc[m][s][0], in, row);
      }
    }
  }
  Vec totals[M * S];
  for (int m = 0; m < M; ++m) {
    for (int s = 0; s < S; ++s) {
      totals[m * S + s] = {acc[m][s][0]};
      for (int u = 1; u < U; ++u) {
        totals[m * S + s] = totals[m * S + s] + Vec{acc[m][s][u]};
      }
    }
  }
  store_sums<M * S, folded>(totals, out);
}
#endif

COREBOUND_END_VARIANT
