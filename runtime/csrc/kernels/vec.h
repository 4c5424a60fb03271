// A vector of floats as wide as the variant allows, loaded from and stored to any element type. Kernels are written
// against this one type; `Vec::width` differs between variants.
#pragma once

#if defined(__AVX512F__)
#include "kernels/vec_avx512.h"
#elif defined(__AVX2__)
#include "kernels/vec_avx2.h"
#else
#include "kernels/vec_generic.h"
#endif

COREBOUND_BEGIN_VARIANT

// Loads `count` elements, fewer than a whole vector; the other lanes are zero.
template <class T> inline Vec load_part(const T *p, int64_t count) {
  T buffer[Vec::width] = {};
  std::memcpy(buffer, p, static_cast<size_t>(count) * sizeof(T));
  return Vec::load(buffer);
}

template <class T> inline void store_part(Vec v, T *p, int64_t count) {
  T buffer[Vec::width];
  v.store(buffer);
  std::memcpy(p, buffer, static_cast<size_t>(count) * sizeof(T));
}

template <class T> inline Vec load_upto(const T *p, int64_t count) {
  return count >= Vec::width ? Vec::load(p) : load_part(p, count);
}

template <class T> inline void store_upto(Vec v, T *p, int64_t count) {
  if (count >= Vec::width) {
    v.store(p);
  } else {
    store_part(v, p, count);
  }
}

// e^x to about two units in the last place. Arguments are clamped to the range in which both it and its reciprocal are
// normal numbers, since arithmetic with others is slow; NaN stays NaN.
inline Vec exp(Vec x) {
  // x comes second, because min and max return their second operand when either is NaN.
  x = min(Vec::set(87.0F), max(Vec::set(-87.0F), x));
  const Vec n = round(x * Vec::set(1.44269504F));
  // ln 2 in two parts, so that the reduced argument keeps all its bits.
  const Vec r = fma(n, Vec::set(2.12194440e-4F), fma(n, Vec::set(-0.693359375F), x));
  // Taylor's series: at |r| <= ln(2)/2 the first term left out is below 6e-9.
  Vec p = Vec::set(1.0F / 5040.0F);
  p = fma(p, r, Vec::set(1.0F / 720.0F));
  p = fma(p, r, Vec::set(1.0F / 120.0F));
  p = fma(p, r, Vec::set(1.0F / 24.0F));
  p = fma(p, r, Vec::set(1.0F / 6.0F));
  p = fma(p, r, Vec::set(0.5F));
  p = fma(p, r, Vec::set(1.0F));
  p = fma(p, r, Vec::set(1.0F));
  return scale_by_power(p, n);
}

// 1 / (1 + e^-x)
inline Vec sigmoid(Vec x) { return Vec::set(1.0F) / (Vec::set(1.0F) + exp(Vec::zero() - x)); }

COREBOUND_END_VARIANT
