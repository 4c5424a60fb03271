// The activation functions themselves, for the operators and for what follows a panel's product.
#pragma once

#include "kernels/vec.h"

COREBOUND_BEGIN_VARIANT

// 0.5 x (1 + tanh(u)) is x / (1 + e^-2u), which keeps relative accuracy where tanh comes close to -1.
inline Vec gelu_tanh(Vec x) {
  const Vec cubic = fma(x * x * x, Vec::set(0.044715F), x);
  return x * sigmoid(cubic * Vec::set(1.59576912F)); // 2 sqrt(2 / pi)
}

// erfc(z) for z >= 0 as t e^(-z^2 + P(t)), t = 1 / (1 + z/2). P was fitted by least squares on Chebyshev nodes for z up
// to 9.5; the relative error is below 2e-7, so that the result keeps its accuracy where x is very negative.
inline Vec erfc_positive(Vec z) {
  constexpr float coefficients[] = {0.140507132F,  -0.656615853F, 1.09943843F,  -0.619523346F, -0.144173503F,
                                    0.0354678631F, 0.022874143F,  0.389117151F, 0.998341441F,  -1.26543343F};
  const Vec t = Vec::set(1.0F) / fma(z, Vec::set(0.5F), Vec::set(1.0F));
  Vec p = Vec::zero();
  for (float c : coefficients) {
    p = fma(p, t, Vec::set(c));
  }
  return t * exp(p - z * z);
}

inline Vec gelu_erf(Vec x) {
  const Vec tail = erfc_positive(abs(x) * Vec::set(0.707106781F));
  return Vec::set(0.5F) * x * where_negative(x, tail, Vec::set(2.0F) - tail);
}

COREBOUND_END_VARIANT
