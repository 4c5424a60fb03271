// Sixteen outputs at a time: their sums, and their weights for a pair of bf16 inputs or four whole-numbered ones. The
// products of decode, and of prefill without AMX, are written against these types; variants differ in what is behind.
#pragma once

#include "kernels/vec.h"

#if defined(__AVX512F__)
#include "kernels/pairs_avx512.h"
#include "kernels/quads_avx512.h"
#elif defined(__AVX2__)
#include "kernels/pairs_avx2.h"
#include "kernels/quads_avx2.h"
#else
#include "kernels/pairs_generic.h"
#include "kernels/quads_generic.h"
#endif
