// Storage types of 16-bit elements, and their conversion one at a time (for tails and the generic variant).
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/kernels.h"
#include "kernels/variant.h"

COREBOUND_BEGIN_VARIANT

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

inline uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}

inline float float_of(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

inline float to_float(float x) { return x; }

inline float to_float(bf16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }

inline float to_float(f16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000U) << 16;
  const uint32_t exponent = (x.bits >> 10) & 0x1fU, mantissa = x.bits & 0x3ffU;
  if (exponent == 0) { // zero and subnormals: the mantissa counts units of 2^-24
    return float_of(sign | bits_of(static_cast<float>(mantissa) * 0x1p-24F));
  }
  return float_of(sign | ((exponent == 31 ? 255U : exponent + 112U) << 23) | (mantissa << 13));
}

template <class T> T from_float(float x);

template <> inline float from_float<float>(float x) { return x; }

// Both 16-bit conversions round to nearest, ties to even, and keep NaN.
template <> inline bf16 from_float<bf16>(float x) {
  const uint32_t u = bits_of(x);
  if ((u & 0x7fffffffU) > 0x7f800000U) {
    return {static_cast<uint16_t>((u >> 16) | 0x40U)};
  }
  return {static_cast<uint16_t>((u + 0x7fffU + ((u >> 16) & 1U)) >> 16)};
}

template <> inline f16 from_float<f16>(float x) {
  const uint32_t u = bits_of(x), sign = (u >> 16) & 0x8000U, magnitude = u & 0x7fffffffU;
  uint32_t half;
  if (magnitude >= 0x47800000U) { // 65536 and above, infinity and NaN
    half = magnitude > 0x7f800000U ? 0x7e00U : 0x7c00U;
  } else if (magnitude < 0x38800000U) { // subnormal: adding 0.5 leaves the count of 2^-24 in the low bits, rounded
    half = bits_of(float_of(magnitude) + 0.5F) - 0x3f000000U;
  } else {
    half = (magnitude + 0xfffU + ((magnitude >> 13) & 1U) - 0x38000000U) >> 13;
  }
  return {static_cast<uint16_t>(sign | half)};
}

// Calls f with a null pointer of the element type that `dtype` names.
template <class F> void with_dtype(DType dtype, F f) {
  switch (dtype) {
  case DType::float32:
    return f(static_cast<float *>(nullptr));
  case DType::bfloat16:
    return f(static_cast<bf16 *>(nullptr));
  case DType::float16:
    return f(static_cast<f16 *>(nullptr));
  }
}

COREBOUND_END_VARIANT
