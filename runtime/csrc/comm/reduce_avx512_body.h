// 512-bit sums for both AVX-512 variants, included inside the anonymous namespace of each. The including file defines
// `__m512i pack_bf16(__m512 low, __m512 high)`, which rounds 32 sums to bf16.

inline __mmask16 first16(size_t n) { return static_cast<__mmask16>((1U << n) - 1U); }
inline __mmask32 first32(size_t n) { return static_cast<__mmask32>((1ULL << n) - 1ULL); }

struct Bf16 {
  using Element = uint16_t;
  struct Sum {
    __m512 low, high;
  };
  static constexpr size_t lanes = 32;
  static Sum load(const Element *p) {
    return {widen(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))),
            widen(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p + 16)))};
  }
  static Sum load_some(const Element *p, size_t n) {
    const __m512i both = _mm512_maskz_loadu_epi16(first32(n), p);
    return {widen(_mm512_castsi512_si256(both)), widen(_mm512_extracti64x4_epi64(both, 1))};
  }
  static Sum add(Sum a, Sum b) { return {_mm512_add_ps(a.low, b.low), _mm512_add_ps(a.high, b.high)}; }
  static void store(Element *p, Sum v) { _mm512_storeu_si512(p, pack_bf16(v.low, v.high)); }
  static void store_some(Element *p, Sum v, size_t n) {
    _mm512_mask_storeu_epi16(p, first32(n), pack_bf16(v.low, v.high));
  }

private:
  static __m512 widen(__m256i half) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)); }
};

struct Fp16 {
  using Element = uint16_t;
  using Sum = __m512;
  static constexpr size_t lanes = 16;
  static Sum load(const Element *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
  }
  static Sum load_some(const Element *p, size_t n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first16(n), p)); }
  static Sum add(Sum a, Sum b) { return _mm512_add_ps(a, b); }
  static void store(Element *p, Sum v) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), narrow(v)); }
  static void store_some(Element *p, Sum v, size_t n) { _mm256_mask_storeu_epi16(p, first16(n), narrow(v)); }

private:
  static __m256i narrow(Sum v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
};

struct Fp32 {
  using Element = float;
  using Sum = __m512;
  static constexpr size_t lanes = 16;
  static Sum load(const Element *p) { return _mm512_loadu_ps(p); }
  static Sum load_some(const Element *p, size_t n) { return _mm512_maskz_loadu_ps(first16(n), p); }
  static Sum add(Sum a, Sum b) { return _mm512_add_ps(a, b); }
  static void store(Element *p, Sum v) { _mm512_storeu_ps(p, v); }
  static void store_some(Element *p, Sum v, size_t n) { _mm512_mask_storeu_ps(p, first16(n), v); }
};

struct Int32 {
  using Element = int32_t;
  using Sum = __m512i;
  static constexpr size_t lanes = 16;
  static Sum load(const Element *p) { return _mm512_loadu_si512(p); }
  static Sum load_some(const Element *p, size_t n) { return _mm512_maskz_loadu_epi32(first16(n), p); }
  static Sum add(Sum a, Sum b) { return _mm512_add_epi32(a, b); }
  static void store(Element *p, Sum v) { _mm512_storeu_si512(p, v); }
  static void store_some(Element *p, Sum v, size_t n) { _mm512_mask_storeu_epi32(p, first16(n), v); }
};

#include "comm/reduce_loops.h"

template <bool streaming> void copy_vectors(void *dst, const void *source, size_t num_bytes) {
  auto *out = static_cast<char *>(dst);
  auto *in = static_cast<const char *>(source);
  const bool stream = streaming && (reinterpret_cast<uintptr_t>(out) & 63U) == 0;
  size_t i = 0;
  for (; i + 64 <= num_bytes; i += 64) {
    const __m512i v = _mm512_loadu_si512(in + i);
    if (stream) {
      _mm512_stream_si512(reinterpret_cast<__m512i *>(out + i), v);
    } else {
      _mm512_storeu_si512(out + i, v);
    }
  }
  if (const size_t left = num_bytes - i; left > 0) {
    const __mmask64 mask = (1ULL << left) - 1ULL;
    _mm512_mask_storeu_epi8(out + i, mask, _mm512_maskz_loadu_epi8(mask, in + i));
  }
  if (stream) {
    _mm_sfence();
  }
}
