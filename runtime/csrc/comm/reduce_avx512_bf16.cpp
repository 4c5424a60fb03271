// 512-bit sums, bf16 rounded by the processor. Compiled with -mavx512bf16 and the flags of reduce_avx512.cpp.
#include <immintrin.h>

#include "comm/reduce.h"

namespace corebound::comm {
namespace {

__m512i pack_bf16(__m512 low, __m512 high) {
  return (__m512i)_mm512_cvtne2ps_pbh(high, low); // the second operand fills the lower half
}

#include "comm/reduce_avx512_body.h"

} // namespace

const Arithmetic arithmetic_avx512_bf16 = {
    "avx512_bf16", {sum<Fp32>, sum<Bf16>, sum<Fp16>, sum<Int32>}, copy_vectors<false>, copy_vectors<true>};

} // namespace corebound::comm
