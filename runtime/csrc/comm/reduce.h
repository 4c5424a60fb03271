// Element-wise sums over several buffers, and copies: the arithmetic of the collectives, one table per variant.
//
// Sums run in the order of the sources, first to last, in fp32 for the floating types, and are rounded once, to nearest
// even. So ranks that pass the same sources in the same order get the same bits. int32 wraps. NaN stays NaN.
// avx512_bf16 rounds with the processor's own instruction, which takes bf16 results below 2^-126 as zero; the other
// variants keep them. Members of a group therefore all use one variant.
// No alignment is required; 64 bytes is fastest. All functions are thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa/isa.h"

namespace corebound::comm {

enum class DType : int { float32, bfloat16, float16, int32, bytes };
inline constexpr int num_sum_dtypes = 4; // `bytes` can be moved but not added

size_t element_bytes(DType dtype);
const char *dtype_name(DType dtype);

// dst[i] = sources[0][i] + ... + sources[num_sources - 1][i]. `dst` may be exactly one of the sources; any other
// overlap is an error of the caller. num_sources is at least 1.
using SumFunction = void (*)(void *dst, const void *const *sources, int num_sources, size_t num_elements);

// Copies without overlap. The streaming kind bypasses the cache and is complete, for other processors too, on return.
using CopyFunction = void (*)(void *dst, const void *source, size_t num_bytes);

struct Arithmetic {
  const char *variant;
  SumFunction sum[num_sum_dtypes]; // by DType
  CopyFunction copy;
  CopyFunction copy_streaming;
};

// The best table at or below `variant`; `amx` has none of its own.
const Arithmetic &arithmetic(isa::Variant variant);

extern const Arithmetic arithmetic_generic, arithmetic_avx2, arithmetic_avx512, arithmetic_avx512_bf16;

} // namespace corebound::comm
