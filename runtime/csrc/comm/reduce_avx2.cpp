// 256-bit sums. Compiled with -mavx2 -mfma -mf16c.
#include <immintrin.h>

#include "comm/reduce.h"

namespace corebound::comm {
namespace {

__m256i load_bits(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }

// Moves the last few elements through a full vector on the stack.
template <class V> typename V::Sum load_tail(const typename V::Element *p, size_t n) {
  typename V::Element whole[V::lanes] = {};
  for (size_t i = 0; i < n; ++i) {
    whole[i] = p[i];
  }
  return V::load(whole);
}

template <class V> void store_tail(typename V::Element *p, typename V::Sum v, size_t n) {
  typename V::Element whole[V::lanes];
  V::store(whole, v);
  for (size_t i = 0; i < n; ++i) {
    p[i] = whole[i];
  }
}

// Rounds to nearest even; the result stays in the upper half of each lane.
__m256i round_to_upper_half(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 is_nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
  return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(is_nan));
}

struct Bf16 {
  using Element = uint16_t;
  struct Sum { // the elements at even and at odd places, so that nothing crosses a lane
    __m256 even, odd;
  };
  static constexpr size_t lanes = 16;
  static Sum load(const Element *p) {
    const __m256i both = load_bits(p);
    return {_mm256_castsi256_ps(_mm256_slli_epi32(both, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000U))))};
  }
  static Sum add(Sum a, Sum b) { return {_mm256_add_ps(a.even, b.even), _mm256_add_ps(a.odd, b.odd)}; }
  static void store(Element *p, Sum v) {
    const __m256i low = _mm256_srli_epi32(round_to_upper_half(v.even), 16);
    const __m256i both = _mm256_blend_epi16(low, round_to_upper_half(v.odd), 0xaa);
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), both);
  }
  static Sum load_some(const Element *p, size_t n) { return load_tail<Bf16>(p, n); }
  static void store_some(Element *p, Sum v, size_t n) { store_tail<Bf16>(p, v, n); }
};

struct Fp16 {
  using Element = uint16_t;
  using Sum = __m256;
  static constexpr size_t lanes = 8;
  static Sum load(const Element *p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))); }
  static Sum add(Sum a, Sum b) { return _mm256_add_ps(a, b); }
  static void store(Element *p, Sum v) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static Sum load_some(const Element *p, size_t n) { return load_tail<Fp16>(p, n); }
  static void store_some(Element *p, Sum v, size_t n) { store_tail<Fp16>(p, v, n); }
};

struct Fp32 {
  using Element = float;
  using Sum = __m256;
  static constexpr size_t lanes = 8;
  static Sum load(const Element *p) { return _mm256_loadu_ps(p); }
  static Sum add(Sum a, Sum b) { return _mm256_add_ps(a, b); }
  static void store(Element *p, Sum v) { _mm256_storeu_ps(p, v); }
  static Sum load_some(const Element *p, size_t n) { return load_tail<Fp32>(p, n); }
  static void store_some(Element *p, Sum v, size_t n) { store_tail<Fp32>(p, v, n); }
};

struct Int32 {
  using Element = int32_t;
  using Sum = __m256i;
  static constexpr size_t lanes = 8;
  static Sum load(const Element *p) { return load_bits(p); }
  static Sum add(Sum a, Sum b) { return _mm256_add_epi32(a, b); }
  static void store(Element *p, Sum v) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), v); }
  static Sum load_some(const Element *p, size_t n) { return load_tail<Int32>(p, n); }
  static void store_some(Element *p, Sum v, size_t n) { store_tail<Int32>(p, v, n); }
};

#include "comm/reduce_loops.h"

template <bool streaming> void copy_vectors(void *dst, const void *source, size_t num_bytes) {
  auto *out = static_cast<char *>(dst);
  auto *in = static_cast<const char *>(source);
  const bool stream = streaming && (reinterpret_cast<uintptr_t>(out) & 31U) == 0;
  size_t i = 0;
  for (; i + 32 <= num_bytes; i += 32) {
    const __m256i v = load_bits(in + i);
    if (stream) {
      _mm256_stream_si256(reinterpret_cast<__m256i *>(out + i), v);
    } else {
      _mm256_storeu_si256(reinterpret_cast<__m256i *>(out + i), v);
    }
  }
  for (; i < num_bytes; ++i) {
    out[i] = in[i];
  }
  if (stream) {
    _mm_sfence();
  }
}

} // namespace

const Arithmetic arithmetic_avx2 = {
    "avx2", {sum<Fp32>, sum<Bf16>, sum<Fp16>, sum<Int32>}, copy_vectors<false>, copy_vectors<true>};

} // namespace corebound::comm
