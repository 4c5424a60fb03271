// From a panel's sums to what is stored: bias, activation, rounding.
#pragma once

#include "kernels/activation.h"
#include "kernels/panel.h"

COREBOUND_BEGIN_VARIANT

inline Vec biased(const float *sums, const bf16 *bias, int64_t at) {
  return bias ? Vec::load(sums + at) + Vec::load(bias + at) : Vec::load(sums + at);
}

// While the logits are still in the cache. Few panels hold a new best one, so all of them are only compared with it.
inline void keep_best(const float *logits, int64_t count, int64_t first, Best &best) {
  if (count == panel_outputs) {
    Vec top = Vec::load(logits), nothing = top * Vec::zero();
    for (int64_t i = Vec::width; i < panel_outputs; i += Vec::width) {
      const Vec values = Vec::load(logits + i);
      top = max(top, values);
      nothing = fma(values, Vec::zero(), nothing); // 0, or NaN where a value is not finite
    }
    if (top.largest() < best.value && nothing.sum() == 0) {
      return;
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    if (best.yields_to(logits[i], first + i)) {
      best = {logits[i], static_cast<int32_t>(first + i)};
    }
  }
}

// Stores past the caches, with AVX-512 and where `to` lies as that wants it.
inline void stream(Vec v, float *to) {
#ifdef __AVX512F__
  if (reinterpret_cast<uintptr_t>(to) % 64 == 0) {
    return _mm512_stream_ps(to, v.v);
  }
#endif
  v.store(to);
}

inline void stream(Vec v, bf16 *to) {
#ifdef __AVX512F__
  if (reinterpret_cast<uintptr_t>(to) % 32 == 0) {
    alignas(32) bf16 values[Vec::width];
    v.store(values);
    return _mm256_stream_si256(reinterpret_cast<__m256i *>(to), *reinterpret_cast<const __m256i *>(values));
  }
#endif
  v.store(to);
}

// For `rows` rows from row `begin` on, whose sums are at `sums`. Where memory is what they wait for, `streamed` results
// go past the caches: stores that have to read their lines first, two in a panel of 256 KiB, cost 5 % of the bandwidth.
template <bool streamed>
inline void finish_panel(const PanelMatrix &matrix, int64_t panel, int64_t begin, int64_t rows, const float *sums,
                         const PanelOutput &out) {
  const bf16 *bias = out.bias ? reinterpret_cast<const bf16 *>(out.bias) + panel * panel_outputs : nullptr;
  const int64_t width = matrix.gated ? panel_outputs / 2 : panel_outputs, first = panel * width;
  for (int64_t row = begin; row < begin + rows; ++row, sums += panel_outputs) {
    if (!out.y) {
      const int64_t count = matrix.outputs - first < width ? matrix.outputs - first : width;
      float *logits = out.logits + row * out.stride + first, values[panel_outputs];
      for (int64_t i = 0; i < count; i += Vec::width) {
        const Vec value = biased(sums, bias, i);
        value.store(values + i);
        if (streamed && count - i >= Vec::width) {
          stream(value, logits + i);
        } else {
          store_upto(value, logits + i, count - i);
        }
      }
      if (out.best) {
        keep_best(values, count, first, out.best[row]);
      }
      continue;
    }
    bf16 *y = reinterpret_cast<bf16 *>(out.y) + row * out.stride + first;
    for (int64_t i = 0; i < width; i += Vec::width) {
      Vec value = biased(sums, bias, i);
      switch (out.activation) {
      case Activation::none:
        break;
      case Activation::gelu_tanh:
        value = gelu_tanh(value);
        break;
      case Activation::silu_gated:
        value = value * sigmoid(value) * biased(sums, bias, panel_outputs / 2 + i);
        break;
      case Activation::gelu_erf:
        value = gelu_erf(value);
        break;
      case Activation::relu:
        value = max(Vec::zero(), value); // the second where either is NaN
        break;
      case Activation::gelu_tanh_gated:
        value = gelu_tanh(value) * biased(sums, bias, panel_outputs / 2 + i);
        break;
      }
      if constexpr (streamed) {
        stream(value, y + i);
      } else {
        value.store(y + i);
      }
    }
  }
#ifdef __AVX512F__
  if constexpr (streamed) {
    _mm_sfence(); // no barrier of ordinary stores waits for these
  }
#endif
}

COREBOUND_END_VARIANT
