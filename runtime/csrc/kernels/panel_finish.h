// From a panel's sums to what is stored: bias, activation, rounding.
#pragma once

#include "kernels/activation.h"
#include "kernels/panel.h"

COREBOUND_BEGIN_VARIANT

inline Vec biased(const float *sums, const bf16 *bias, int64_t at) {
  return bias ? Vec::load(sums + at) + Vec::load(bias + at) : Vec::load(sums + at);
}

// For `rows` rows from row `begin` on, whose sums are at `sums`.
inline void finish_panel(const PanelMatrix &matrix, int64_t panel, int64_t begin, int64_t rows, const float *sums,
                         const PanelOutput &out) {
  const bf16 *bias = out.bias ? reinterpret_cast<const bf16 *>(out.bias) + panel * panel_outputs : nullptr;
  const int64_t width = matrix.gated ? panel_outputs / 2 : panel_outputs, first = panel * width;
  for (int64_t row = begin; row < begin + rows; ++row, sums += panel_outputs) {
    if (!out.y) {
      const int64_t count = matrix.outputs - first < width ? matrix.outputs - first : width;
      for (int64_t i = 0; i < count; i += Vec::width) {
        store_upto(biased(sums, bias, i), out.logits + row * out.stride + first + i, count - i);
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
      value.store(y + i);
    }
  }
}

COREBOUND_END_VARIANT
