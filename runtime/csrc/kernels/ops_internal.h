// The functions of one variant, defined in its files and collected in variant.cpp.
#pragma once

#include "kernels/kernels.h"
#include "kernels/variant.h"

namespace corebound::kernels::COREBOUND_VARIANT {

void layer_norm(const NormArgs &args, int64_t begin, int64_t end);
void rms_norm(const NormArgs &args, int64_t begin, int64_t end);
void split_qkv(const SplitQkvArgs &args, int64_t begin, int64_t end);
void rotary(const RotaryArgs &args, int64_t begin, int64_t end);
void store_kv(const StoreKvArgs &args, int64_t begin, int64_t end);
void attention(const AttentionArgs &args, void *scratch, int64_t begin, int64_t end);
void gelu(const UnaryArgs &args, int64_t begin, int64_t end);
void silu_mul(const SiluMulArgs &args, int64_t begin, int64_t end);
void linear(const LinearArgs &args, int64_t begin, int64_t end);

} // namespace corebound::kernels::COREBOUND_VARIANT
