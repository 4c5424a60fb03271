// Sixteen outputs at a time: their sums, and their weights for a pair of inputs. The products of decode and of prefill
// without AMX are written against these types; variants differ in the instructions behind them.
#pragma once

#include "kernels/vec.h"

#if defined(__AVX512F__)
#include "kernels/pairs_avx512.h"
#elif defined(__AVX2__)
#include "kernels/pairs_avx2.h"
#else
#include "kernels/pairs_generic.h"
#endif
