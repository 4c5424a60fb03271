// Vec for any x86-64 processor: the compiler's own vectors of four.
#pragma once

#include "kernels/element.h"

COREBOUND_BEGIN_VARIANT

struct Vec {
  static constexpr int64_t width = 4;
  typedef float Floats __attribute__((vector_size(16)));
  typedef int32_t Ints __attribute__((vector_size(16)));
  Floats v;

  static Vec zero() { return {Floats{0, 0, 0, 0}}; }
  static Vec set(float x) { return {Floats{x, x, x, x}}; }
  static Vec load(const float *p) {
    Floats v;
    std::memcpy(&v, p, sizeof(v));
    return {v};
  }
  static Vec load(const bf16 *p) {
    typedef uint16_t Halves __attribute__((vector_size(8)));
    typedef uint32_t Words __attribute__((vector_size(16)));
    Halves halves;
    std::memcpy(&halves, p, sizeof(halves));
    return {reinterpret_cast<Floats>(__builtin_convertvector(halves, Words) << 16)};
  }
  static Vec load(const f16 *p) { return {Floats{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])}}; }
  template <class T> void store(T *p) const {
    for (int i = 0; i < width; ++i) {
      p[i] = from_float<T>(v[i]);
    }
  }
  float sum() const { return (v[0] + v[1]) + (v[2] + v[3]); }
  float largest() const {
    const float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
  }
};

inline Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
inline Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
inline Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
inline Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
// b when either is NaN.
inline Vec min(Vec a, Vec b) { return {a.v < b.v ? a.v : b.v}; }
inline Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
inline Vec abs(Vec a) { return max(a, Vec::zero() - a); }

// Where x < 0, a; elsewhere b.
inline Vec where_negative(Vec x, Vec a, Vec b) { return {x.v < Vec::zero().v ? a.v : b.v}; }

// The sums of 4 vectors as one vector.
inline Vec sum_each(const Vec *x) { return {Vec::Floats{x[0].sum(), x[1].sum(), x[2].sum(), x[3].sum()}}; }

// To the nearest integer, for |x| < 2^22: there the sum with 1.5 * 2^23 has no fraction bits.
inline Vec round(Vec x) {
  const Vec magic = Vec::set(12582912.0F);
  return (x + magic) - magic;
}

// x * 2^n for integral n and a normal result; NaN when both are NaN (whose conversion has no bit left after the shift).
inline Vec scale_by_power(Vec x, Vec n) {
  const Vec::Ints exponent = __builtin_convertvector(n.v, Vec::Ints);
  return {reinterpret_cast<Vec::Floats>(reinterpret_cast<Vec::Ints>(x.v) + (exponent << 23))};
}

COREBOUND_END_VARIANT
