// 512-bit sums, bf16 rounded by integer arithmetic. Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq and
// AVX2's.
#include <immintrin.h>

#include "comm/reduce.h"

namespace corebound::comm {
namespace {

__m256i round_bf16(__m512 v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}

__m512i pack_bf16(__m512 low, __m512 high) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(round_bf16(low)), round_bf16(high), 1);
}

#include "comm/reduce_avx512_body.h"

} // namespace

const Arithmetic arithmetic_avx512 = {
    "avx512", {sum<Fp32>, sum<Bf16>, sum<Fp16>, sum<Int32>}, copy_vectors<false>, copy_vectors<true>};

} // namespace corebound::comm
